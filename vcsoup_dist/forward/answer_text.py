"""Whether an answer's text is in the tokens that a template made of it.

Templates cut, replace and leave out: those of reasoning models drop all up to `</think>`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # its module needs torch
    from vcsoup_dist.forward.packing import Ids

DROPPED = "the template drops part of the answer: its tokens do not contain its text"
"""Why a pair with such an answer is not used."""


def kept_answer(tokenizer: Any, ids: Ids, start: int, answer: str) -> bool:
    """Whether the tokens `ids`, of which `ids[start:]` are the answer's, contain its text.

    White space does not count, since most templates trim it. What the tokenizer itself changes
    (case, accents, compatible characters, unknown ones) is no loss: then the text is compared as
    the tokenizer reads it by itself.
    """
    wanted = _squeezed(answer)
    if wanted in _read(tokenizer, ids[start:]):
        return True
    own = tokenizer(answer, add_special_tokens=False)["input_ids"]
    read = _read(tokenizer, own)
    # Not in the answer's tokens alone: it may begin with what the prompt's tokens end with, such as
    # a `<think>`. It must end among its own, or it would be found where the prompt quotes it.
    found = _read(tokenizer, ids).rfind(read)
    return not read or (found >= 0 and found + len(read) > len(_read(tokenizer, ids[:start])))


def _read(tokenizer: Any, ids: Ids) -> str:
    text = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    return _squeezed(str(text))


def _squeezed(text: str) -> str:
    """The text without its white space."""
    return "".join(text.split())
