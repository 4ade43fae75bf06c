"""Preference pairs of the demo world: one data set per value, labelled by that value with noise."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.demo import rewards
from vcsoup_dist.demo.language import Prompt, draw_answer, draw_prompt
from vcsoup_dist.files import write_atomically

VALUES: dict[str, Callable[[Prompt, str], float]] = {
    "complete": rewards.complete,
    "safe": rewards.safe,
    "short": rewards.short,
}
HH_VALUE = "safe"  # written as HH-RLHF dialogues, the others as TRL conversations
LABEL_NOISE = 0.12


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt; `flipped` where noise made the worse one the chosen one."""

    prompt: list[dict[str, str]]
    chosen: str
    rejected: str
    flipped: bool


def draw_pairs(
    value: str, count: int, rng: random.Random, *, for_test: bool, noise: float = LABEL_NOISE
) -> list[Pair]:
    """`count` pairs with distinct prompts and no tie in `value`.

    The better answer by the exact value is chosen, but the worse one with probability `noise`.
    """
    reward = VALUES[value]
    pairs: list[Pair] = []
    asked: set[str] = set()
    while len(pairs) < count:
        prompt = draw_prompt(rng, for_test=for_test)
        one, other = draw_answer(prompt, rng), draw_answer(prompt, rng)
        gap = reward(prompt, one) - reward(prompt, other)
        if gap == 0 or prompt[-1]["content"] in asked:
            continue
        asked.add(prompt[-1]["content"])
        flipped = rng.random() < noise
        chosen, rejected = (one, other) if (gap > 0) != flipped else (other, one)
        pairs.append(Pair(prompt, chosen, rejected, flipped))
    return pairs


def trl_row(pair: Pair) -> dict[str, list[dict[str, str]]]:
    """TRL's conversational form: three lists of messages."""
    return {
        "prompt": pair.prompt,
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


def hh_row(pair: Pair) -> dict[str, str]:
    """Anthropic's HH-RLHF form: two whole dialogues as text."""
    speaker = {"user": "Human", "assistant": "Assistant"}
    shared = "".join(f"\n\n{speaker[m['role']]}: {m['content']}" for m in pair.prompt)
    return {
        "chosen": f"{shared}\n\nAssistant: {pair.chosen}",
        "rejected": f"{shared}\n\nAssistant: {pair.rejected}",
    }


def write_pairs(pairs: list[Pair], value: str, path: Path) -> None:
    """JSON Lines in the form of the value's data set."""
    row = hh_row if value == HH_VALUE else trl_row
    write_atomically(path, "".join(json.dumps(row(pair)) + "\n" for pair in pairs))
