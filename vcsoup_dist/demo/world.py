"""Making the demo world on disk: preference data, theta_0, and two reward models.

data/<value>_train.jsonl, data/<value>_test.jsonl
base/                                theta_0
reward-complete/, reward-safe/       sequence classifiers; `short` is a callable
world.json                           written last: the version of what is here
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vcsoup_dist.demo.pairs import VALUES, draw_pairs, write_pairs
from vcsoup_dist.files import sync_tree, write_atomically
from vcsoup_dist.locks import exclusive

VERSION = 2  # raised when anything below would come out differently
SEED = 0
TRAIN_PAIRS, TEST_PAIRS = 600, 120
POLICY_STEPS, REWARD_STEPS = 300, 50
TRAINED_REWARDS = ("complete", "safe")


def make_world(folder: Path, on_progress: Callable[[str], None]) -> None:
    """Make the world below `folder`, or return at once where it is there.

    The same bytes each time on the same versions of PyTorch and the same machine. Killed, the next
    call resumes after what is finished.
    """
    marker = folder / "world.json"
    content = json.dumps({"version": VERSION, "seed": SEED}) + "\n"
    if marker.exists() and marker.read_text() == content:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock"):  # a second call waits here, and then finds the marker
        if not (marker.exists() and marker.read_text() == content):
            _make(folder, content, on_progress)
            write_atomically(marker, content)


def _make(folder: Path, content: str, on_progress: Callable[[str], None]) -> None:
    begun = folder / ".begun.json"
    if not (begun.exists() and begun.read_text() == content):
        # Parts of another version: none of them may stand beside those of this one.
        (folder / "world.json").unlink(missing_ok=True)
        for part in ("data", "base", *(f"reward-{value}" for value in TRAINED_REWARDS)):
            shutil.rmtree(folder / part, ignore_errors=True)
        write_atomically(begun, content)
    (folder / "data").mkdir(exist_ok=True)
    for value in VALUES:
        for name, count in (("train", TRAIN_PAIRS), ("test", TEST_PAIRS)):
            rng = random.Random(f"{SEED}/{value}/{name}")
            pairs = draw_pairs(value, count, rng, for_test=name == "test")
            write_pairs(pairs, value, folder / "data" / f"{value}_{name}.jsonl")
    on_progress(f"world: {len(VALUES)} values, {TRAIN_PAIRS} pairs each")
    _make_models(folder, on_progress)


def _make_models(folder: Path, on_progress: Callable[[str], None]) -> None:
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # of files that are read in no time
    from vcsoup_dist.demo.models import train_policy, train_reward
    from vcsoup_dist.demo.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()

    def titled(title: str) -> Callable[[str], None]:
        return lambda line: on_progress(f"world: {title}: {line}")

    if not (folder / "base").exists():
        policy = train_policy(tokenizer, POLICY_STEPS, SEED, titled("theta_0"))
        _save(policy, tokenizer, folder / "base")
    policy = LlamaForCausalLM.from_pretrained(folder / "base")
    for value in TRAINED_REWARDS:
        target = folder / f"reward-{value}"
        if not target.exists():
            title = titled(f"reward of {value}")
            reward = train_reward(value, policy, tokenizer, REWARD_STEPS, SEED, title)
            _save(reward, tokenizer, target)


def _save(model: Any, tokenizer: Any, target: Path) -> None:
    """Save aside and rename, so that what is there is whole."""
    aside = target.with_name(f".{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    sync_tree(aside)
    aside.rename(target)
