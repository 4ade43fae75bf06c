"""Rewards that are Python functions or columns."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.recipe import CallableReward, ColumnsReward
from vcsoup_dist.scoring.columns import column_scores
from vcsoup_dist.scoring.function import FunctionReward
from vcsoup_dist.scoring.load_reward import load_reward
from vcsoup_dist.scoring.rewards import Scored, model_key, score_all

CODE = """
import sys

import numpy as np

from beside import UNIT

def length(prompt, response):
    prompt.clear()
    return len(response) / UNIT

def fails(prompt, response):
    return 1 / len(response)

def text(prompt, response):
    return "12"

def nothing(prompt, response):
    return None

def leaves(prompt, response):
    return np.float32(1.5) if response else sys.exit("empty")

def agrees(prompt, response):
    return response == "four"

def infinite(prompt, response):
    return float("inf")

NUMBER = 3
"""
TEXTS = [([{"role": "user", "content": "x"}], "four"), ([{"role": "user", "content": "y"}], "")]
NAMES = ["answer A", "answer B"]


@pytest.fixture
def code(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    monkeypatch.delitem(sys.modules, "vcsoup_reward_code", raising=False)
    (tmp_path / "beside.py").write_text("UNIT = 2\n")
    (tmp_path / "code.py").write_text(CODE)
    return tmp_path / "code.py"


def load(code: Path, name: str, *signs: int):
    rewards = [CallableReward(callable=f"code.py:{name}", sign=sign) for sign in signs or (1,)]
    return load_reward(rewards, Located(str(code), None, None))


def scored_by(code: Path, name: str, *signs: int) -> Scored:
    reward = load(code, name, *signs)
    return reward.score(reward.encode(TEXTS))


def test_a_function_of_a_file_scores_texts_and_cannot_change_them(code: Path):
    scored = scored_by(code, "length")
    assert scored.rewards.tolist() == [[2.0], [0.0]] and not scored.failures
    assert TEXTS[0][0] == [{"role": "user", "content": "x"}]


def test_a_function_gives_several_values_their_reward_by_one_call(code: Path):
    assert scored_by(code, "length", 1, -1).rewards.tolist() == [[2.0, -2.0], [0.0, 0.0]]


def test_a_function_of_a_module_is_imported_by_name(code: Path, monkeypatch):
    monkeypatch.syspath_prepend(code.parent)
    code.rename(code.parent / "code_module.py")
    reward = load_reward(
        [CallableReward(callable="code_module:length")], Located(str(code), None, None)
    )
    rewards = score_all(reward, TEXTS, NAMES)
    assert rewards.dtype == np.float64 and rewards.tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize(
    ("name", "failures"),
    [
        ("fails", {1: "code.py:fails: ZeroDivisionError: division by zero"}),
        ("infinite", {0: "its reward is inf", 1: "its reward is inf"}),
        ("text", dict.fromkeys((0, 1), "code.py:text: TypeError: it returned a str, not a number")),
        (
            "nothing",
            dict.fromkeys(
                (0, 1), "code.py:nothing: TypeError: it returned a NoneType, not a number"
            ),
        ),
        ("leaves", {1: "code.py:leaves: SystemExit: empty"}),
    ],
)
def test_a_text_that_a_function_fails_on_has_no_reward_and_a_reason(code: Path, name, failures):
    scored = scored_by(code, name)
    assert scored.failures == failures
    failed = ~np.isfinite(scored.rewards[:, 0])
    assert np.flatnonzero(failed).tolist() == list(failures)


def test_where_every_text_needs_a_reward_the_first_without_is_named(code: Path):
    with pytest.raises(UserError, match="code.py:fails.*reward of answer B: .*ZeroDivisionError"):
        score_all(load(code, "fails"), TEXTS, NAMES)


def test_rewards_share_a_model_where_they_differ_in_what_is_read_from_it_alone():
    base = {"classifier": "m", "output": 0, "softmax": False, "head": "logits", "sign": 1}
    base |= {"dtype": "fp32"}
    others = [{"output": "x"}, {"softmax": True}, {"head": "rewards"}, {"sign": -1}]
    assert {model_key(base | other) for other in others} == {model_key(base)}
    assert model_key(base | {"dtype": "bf16"}) != model_key(base)
    function = {"callable": "a:b", "sign": 1}
    assert model_key(function) != model_key({"callable": "a:c", "sign": 1})


def test_yes_and_no_are_numbers_too(code: Path):
    assert scored_by(code, "agrees").rewards.tolist() == [[1.0], [0.0]]


def test_a_dataclass_with_postponed_annotations_can_stand_in_the_file(code: Path):
    code.write_text(
        "from __future__ import annotations\nfrom dataclasses import KW_ONLY, dataclass\n"
        "@dataclass\nclass Words:\n    text: str\n    _: KW_ONLY\n    scale: float = 2.0\n"
        "def count(prompt, response):\n    return Words(response).scale\n"
    )
    assert scored_by(code, "count").rewards.tolist() == [[2.0], [2.0]]


def test_what_lies_beside_the_file_wins_over_what_is_installed(code: Path, tmp_path_factory):
    other = tmp_path_factory.mktemp("installed")
    (other / "beside.py").write_text("UNIT = 4\n")
    sys.path.insert(0, str(other))
    assert scored_by(code, "length").rewards.tolist() == [[2.0], [0.0]]
    assert sys.path[0] == str(other)


def test_a_file_that_leaves_python_is_a_clear_error(code: Path):
    code.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UserError, match="cannot import it: SystemExit: 3"):
        load(code, "length")
    assert "vcsoup_reward_code" not in sys.modules


@pytest.mark.parametrize("name", ["nosuch", "NUMBER"])
def test_a_name_that_is_no_function_is_refused(code: Path, name):
    with pytest.raises(UserError, match=f"no function `{name}`"):
        load(code, name)


def test_code_that_cannot_be_imported_is_a_clear_error(code: Path):
    code.write_text("import nosuchmodule\n")
    with pytest.raises(UserError, match="cannot import it: ModuleNotFoundError"):
        load(code, "length")


def test_columns_become_scores_with_their_sign():
    pairs = [Pair(str(i), [], "a", "b", {"good": float(i), "bad": 1.0}) for i in range(3)]
    scores = column_scores(pairs, ColumnsReward(columns=("good", "bad"), sign=-1))
    assert scores.ids == ["0", "1", "2"]
    assert scores.chosen.tolist() == [0.0, -1.0, -2.0] and scores.rejected.tolist() == [-1.0] * 3


UNUSUAL = """
class Silent(Exception):
    def __str__(self):
        raise ValueError("no")

class Deadly(BaseException):
    def __str__(self):
        raise SystemExit(1)

class Named(type):
    @property
    def __name__(cls):
        raise ValueError("no name")

class Nameless(Exception, metaclass=Named):
    pass

def recurse(n):
    return recurse(n + 1)

def unusual(prompt, response):
    if not response:
        return 1.0
    raised = {
        "interrupt": KeyboardInterrupt, "exit": SystemExit, "generator": GeneratorExit,
        "silent": Silent, "deadly": Deadly, "memory": MemoryError, "base": BaseException,
    }
    if response in raised:
        raise raised[response]("said")
    if response == "recursion":
        recurse(0)
    if response == "terminal":
        raise ValueError("\\x1b[31mred\\x00")
    if response == "nameless":
        raise Nameless("said")
    if response == "surrogate":
        raise ValueError("half of \\ud83d")
    import asyncio
    raise asyncio.CancelledError()
"""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("interrupt", "KeyboardInterrupt: said"),
        ("exit", "SystemExit: said"),
        ("generator", "GeneratorExit: said"),
        ("silent", r"Silent: \(it raises ValueError when it is printed\)"),
        ("deadly", r"Deadly: \(it raises SystemExit when it is printed\)"),
        ("memory", "MemoryError: said"),
        ("base", "BaseException: said"),
        ("recursion", "RecursionError: maximum recursion depth"),
        ("surrogate", r"ValueError: half of \\ud83d"),
        ("terminal", r"ValueError: \\x1b\[31mred\\x00"),
        ("nameless", r"Nameless: said"),
        ("cancelled", "CancelledError"),
    ],
)
def test_whatever_a_function_raises_costs_its_own_text_alone(tmp_path, answer, reason):
    code = tmp_path / "odd.py"
    code.write_text(UNUSUAL)
    function = FunctionReward(
        [CallableReward(callable="odd.py:unusual")], Located(str(code), None, None)
    )
    prompt = [{"role": "user", "content": "x"}]
    scored = function.score([(prompt, ""), (prompt, answer), (prompt, "")])
    assert list(scored.failures) == [1] and scored.rewards[[0, 2], 0].tolist() == [1.0, 1.0]
    assert re.fullmatch(f"odd.py:unusual: {reason}.*", scored.failures[1])
    assert scored.failures[1].encode()


def test_a_real_interrupt_stops_in_the_midst_of_a_function(tmp_path):
    code = tmp_path / "slow.py"
    code.write_text(
        "import os, signal\ndef slow(prompt, response):\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "    import time\n    time.sleep(5)\n    return 1.0\n"
    )
    function = FunctionReward(
        [CallableReward(callable="slow.py:slow")], Located(str(code), None, None)
    )
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        function.score([([{"role": "user", "content": "x"}], "")])
    assert signal.getsignal(signal.SIGINT) is before
