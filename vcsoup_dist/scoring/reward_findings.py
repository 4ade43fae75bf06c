"""What is often wrong with a reward model's tokenizer and template, found by trying them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.errors import UserError
from vcsoup_dist.preferences.pair import Message
from vcsoup_dist.scoring.texts import RewardText

Encode = Callable[[Sequence[Message], str], RewardText]

TURNS = ("zebra", "violin", "harbour")
"""Words of a dialogue's first question, of its answer and of its last question."""
ANSWER = ("orchid", "walnut")
"""First and last word of the response to it."""
PARTS = (
    "the first question",
    "the answer to it",
    "the last question",
    "the response's start",
    "the response's end",
)
"""What the words above stand for."""
NOTHING = 1e-6
"""Of a reward's spread, what is no difference."""
FILLING = "and so on " * 40


@dataclass(frozen=True)
class Finding:
    """Something to know of a reward."""

    grave: bool
    """Whether its scores would be wrong or meaningless."""
    text: str


def padding_findings(tokenizer: Any) -> list[Finding]:
    """No pad token, or one that is the end token too."""
    where = "here the last token is found by its position; tools that look for the pad token"
    if tokenizer.pad_token_id is None:
        return [Finding(False, f"it has no pad token: {where} refuse batches of it")]
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        return [Finding(False, f"its pad token is its end token: {where} score another token")]
    return []


def start_findings(ids: Sequence[int], tokenizer: Any) -> list[Finding]:
    """A start token (BOS) that stands twice at the start of a text."""
    start = tokenizer.bos_token_id
    if start is not None and list(ids[:2]) == [start, start]:
        token = tokenizer.convert_ids_to_tokens(start)
        return [Finding(True, f"texts begin with {token} twice: take it out of the template")]
    return []


def template_findings(tokenizer: Any, encode: Encode, with_prompt: bool) -> list[Finding]:
    """Parts of a dialogue that the template loses; `encode` must not truncate.

    with_prompt: whether the form of the text has the prompt in it at all.
    """
    dialogue = [
        {"role": role, "content": f"{word} {FILLING}"}
        for role, word in zip(("user", "assistant", "user"), TURNS, strict=True)
    ]
    try:
        text = encode(dialogue, f"{ANSWER[0]} {FILLING} {ANSWER[1]}")
    except UserError as error:
        return [Finding(True, f"a dialogue of three turns is refused: {error}")]
    # Word by word, since a vocabulary may not know them: then there is nothing to compare.
    known = [
        word for word in (*TURNS, *ANSWER) if word in _read(tokenizer, _plain(tokenizer, word))
    ]
    seen = _read(tokenizer, text.ids)
    parts = dict(zip((*TURNS, *ANSWER), PARTS, strict=True))
    wanted = known if with_prompt else [word for word in known if word in ANSWER]
    lost = [parts[word] for word in wanted if word not in seen]
    if lost:
        return [Finding(True, f"the template loses {', '.join(lost)} of a dialogue of three turns")]
    return []


def _plain(tokenizer: Any, word: str) -> list[int]:
    return list(tokenizer(word, add_special_tokens=False)["input_ids"])


def _read(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids)))


def rounding_findings(rounded: bool) -> list[Finding]:
    """Outputs of bf16, of which close ones tie."""
    if not rounded:
        return []
    return [
        Finding(
            False,
            "its outputs are rounded to bf16, so that rewards tie which differ by less than 1 in "
            "256; `dtype: fp32` tells them apart",
        )
    ]


def length_findings(texts: Sequence[RewardText | str], limit: int | None) -> list[Finding]:
    """Responses that were cut, by themselves longer than `limit`."""
    cut = sum(isinstance(text, RewardText) and text.response_truncated for text in texts)
    if not cut:
        return []
    return [
        Finding(
            False,
            f"{cut} of {len(texts)} responses were cut: the response alone is longer than {limit} "
            "tokens",
        )
    ]


def prompt_findings(
    rewards: NDArray[np.float64],
    swapped: NDArray[np.float64],
    values: Sequence[str],
    rounding: float,
) -> list[Finding]:
    """Rewards [n, V] that do not look at the prompt; `swapped`: after another one.

    rounding: the share of a reward's size by which packs of one text may differ.
    """
    size = np.maximum(np.abs(rewards), np.abs(swapped))
    least = np.maximum(rounding * size, NOTHING * rewards.std(axis=0))
    same = (np.abs(rewards - swapped) <= least).all(axis=0)
    deaf = [value for value, each in zip(values, same.tolist(), strict=True) if each]
    if not deaf:
        return []
    return [
        Finding(
            True,
            f"the reward of {', '.join(deaf)} is the same after another prompt: is `text` right?",
        )
    ]
