"""Rewards that are Python functions or columns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences import Pair
from vcsoup_dist.recipe import CallableReward, ColumnsReward
from vcsoup_dist.scoring.columns import column_scores
from vcsoup_dist.scoring.rewards import load_reward

CODE = """
from beside import UNIT

def length(prompt, response):
    prompt.clear()
    return len(response) / UNIT

def fails(prompt, response):
    return 1 / len(response)

def text(prompt, response):
    return "high"

def infinite(prompt, response):
    return float("inf")

NUMBER = 3
"""
TEXTS = [([{"role": "user", "content": "x"}], "four"), ([{"role": "user", "content": "y"}], "")]
NAMES = ["answer A", "answer B"]


@pytest.fixture
def code(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    monkeypatch.delitem(__import__("sys").modules, "beside", raising=False)
    (tmp_path / "beside.py").write_text("UNIT = 2\n")
    (tmp_path / "code.py").write_text(CODE)
    return tmp_path / "code.py"


def load(code: Path, name: str, sign: int = 1):
    reward = CallableReward(callable=f"code.py:{name}", sign=sign)
    return load_reward(reward, Located(str(code), None, None))


def test_a_function_of_a_file_scores_texts_and_cannot_change_them(code: Path):
    assert load(code, "length").score(TEXTS).rewards.tolist() == [2.0, 0.0]
    assert load(code, "length", sign=-1).score(TEXTS).rewards.tolist() == [-2.0, 0.0]
    assert TEXTS[0][0] == [{"role": "user", "content": "x"}]


def test_a_function_of_a_module_is_imported_by_name(code: Path, monkeypatch):
    monkeypatch.syspath_prepend(code.parent)
    reward = CallableReward(callable="code_module:length")
    code.rename(code.parent / "code_module.py")
    scored = load_reward(reward, Located(str(code), None, None)).score(TEXTS)
    assert scored.rewards.dtype == np.float64 and scored.rewards.tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "code.py:fails fails on answer B: ZeroDivisionError"),
        ("text", "code.py:text fails on answer A: ValueError"),
        ("infinite", "code.py:infinite: its reward of answer A is inf"),
    ],
)
def test_what_goes_wrong_in_a_function_names_it_and_the_answer(code: Path, name, message):
    with pytest.raises(UserError, match=message):
        load(code, name).score(TEXTS, names=NAMES)


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
