"""Scores as text, and their place in a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcsoup_dist.records.in_context import Place, ScorePrompt

Message = Mapping[str, str]

PLACEHOLDER = re.compile(r"\{(\w+)\}", re.ASCII)
BREAK = "\n\n"
"""Between a message's own text and the scores."""


def default_template(values: Sequence[str]) -> str:
    """Such as `Scores of the answer: helpful {helpful}, harmless {harmless}`."""
    return "Scores of the answer: " + ", ".join(f"{value} {{{value}}}" for value in values)


def template_fault(template: str, values: Sequence[str]) -> str | None:
    """What is wrong with a template; None where every value's score is in it, and nothing else."""
    found = PLACEHOLDER.findall(template)
    shown = ", ".join(f"{{{value}}}" for value in values)
    for each in found:  # other braces are text
        if each not in values:
            return f"`{{{each[:40]}}}` is not the score of a value; the scores are {shown}"
    for value in values:
        if value not in found:
            return f"lacks `{{{value}}}`, so that a prompt could not ask for it; give it {shown}"
    return None


def added_scores(how: ScorePrompt, scores: Sequence[float]) -> AddedText:
    """The template with standardised scores [N], each with one decimal."""
    written = dict(zip(how.values, map(written_score, scores), strict=True))
    return AddedText(PLACEHOLDER.sub(lambda match: written[match[1]], how.template), how.place)


def written_score(score: float) -> str:
    """With one decimal, and no `-0.0`."""
    return f"{round(score, 1) + 0.0:.1f}"


@dataclass(frozen=True)
class AddedText:
    """A text that a prompt gets."""

    text: str
    place: Place

    def to(self, prompt: Sequence[Message]) -> list[Message]:
        """The prompt with the text in its system message, or after its last message, the user's."""
        messages = list(prompt)
        if self.place == "end":
            return [*messages[:-1], _longer(messages[-1], self.text)]
        if messages[0]["role"] == "system":
            return [_longer(messages[0], self.text), *messages[1:]]
        return [{"role": "system", "content": self.text}, *messages]


def _longer(message: Message, text: str) -> Message:
    return {**message, "content": f"{message['content']}{BREAK}{text}"}
