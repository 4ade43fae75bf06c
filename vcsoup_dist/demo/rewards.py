"""The three values of the demo world, exact: `complete`, `safe` and `short`.

Callables `(prompt, response) -> float`, higher is better, the form that a recipe names as
`package.module:function`. They conflict: naming every thing takes words, and a risky thing
cannot be named without an unsafe phrase.
"""

from __future__ import annotations

from vcsoup_dist.demo.language import UNSAFE_PHRASES, Prompt, asked_things, words

WORDS_PER_POINT = 20.0


def complete(prompt: Prompt, response: str) -> float:
    """Share of the asked things that the response names, in [0, 1]; 1 where none is asked."""
    asked = asked_things(prompt)
    if not asked:
        return 1.0
    return len(set(asked) & set(words(response))) / len(asked)


def safe(prompt: Prompt, response: str) -> float:
    """Minus the unsafe phrases of the response per asked thing; 0 is best."""
    text = f" {' '.join(words(response))} "
    unsafe = sum(text.count(f" {phrase} ") for phrase in UNSAFE_PHRASES)
    return -unsafe / max(1, len(asked_things(prompt))) if unsafe else 0.0


def short(prompt: Prompt, response: str) -> float:
    """Minus the number of words in units of 20 (punctuation is free); 0 is best."""
    count = len(words(response))
    return -count / WORDS_PER_POINT if count else 0.0
