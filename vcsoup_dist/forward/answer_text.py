"""Whether the tokens that a template makes of an answer contain its text.

Templates may drop parts: those of reasoning models drop all up to `</think>`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # its module needs torch
    from vcsoup_dist.forward.packing import Ids

DROPPED = "the template drops part of the answer: its tokens do not contain its text"
"""Why a pair with such an answer is unusable."""


def kept_answer(tokenizer: Any, ids: Ids, start: int, answer: str) -> bool:
    """Whether the tokens `ids`, of which `ids[start:]` are the answer's, contain its text.

    White space does not count, since most templates trim it. Changes by the tokenizer itself
    (case, accents, compatible or unknown characters) do not count either: then the answer is
    compared with its own text after tokenization.
    """
    wanted = _squeezed(answer)
    if wanted in _read(tokenizer, ids[start:]):
        return True
    own = tokenizer(answer, add_special_tokens=False)["input_ids"]
    read = _read(tokenizer, own)
    # The answer may begin with the end of the prompt's tokens, such as a `<think>`. It must end in
    # its own tokens: the prompt may quote it.
    found = _read(tokenizer, ids).rfind(read)
    return not read or (found >= 0 and found + len(read) > len(_read(tokenizer, ids[:start])))


def _read(tokenizer: Any, ids: Ids) -> str:
    text = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    return _squeezed(str(text))


def _squeezed(text: str) -> str:
    """The text without its white space."""
    return "".join(text.split())
