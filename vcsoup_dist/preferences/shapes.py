"""Public data that no format reads, known by its columns, and how to make pairs of it."""

from __future__ import annotations

from collections.abc import Collection

WRITE = "write rows with `prompt`, `chosen` and `rejected`: "
SHAPES: tuple[tuple[frozenset[str], str, str], ...] = tuple(
    (frozenset(names.split()), name, remedy)
    for names, name, remedy in (
        (
            "history human_ref_A human_ref_B labels",
            "SHP (Stanford Human Preferences)",
            WRITE + "the history, and human_ref_A as chosen where `labels` is 1, human_ref_B "
            "where it is 0",
        ),
        (
            "prompt answers",
            "ranked answers (as in Nectar)",
            WRITE + "an answer of a better rank as chosen, one of a worse rank as rejected",
        ),
        (
            "context response1 response2 overall_preference",
            "HelpSteer3",
            WRITE + "the context's messages, and response1 as chosen where `overall_preference` is "
            "negative, response2 where it is positive; leave out 0",
        ),
        (
            "conversation_a conversation_b winner",
            "Chatbot Arena",
            "write rows with `chosen` and `rejected`: the winner's conversation and the other's; "
            "leave out ties",
        ),
        (
            "question answer_0 answer_1 score_0 score_1",
            "WebGPT comparisons",
            WRITE + "the question's text, the answer of the higher score, the other",
        ),
        (
            "info summaries choice",
            "summaries compared by people (as in summarize_from_feedback)",
            WRITE + "the post, the summary that `choice` numbers, the other",
        ),
        (
            "conversations chosen rejected",
            "ShareGPT",
            "write `prompt` as a list of {role, content} made of `conversations` (`human` is the "
            "role user, `gpt` the role assistant), and `chosen` and `rejected` as their texts",
        ),
        (
            "conversations",
            "ShareGPT dialogues, one answer each",
            "there is nothing to prefer; take data that compares two answers",
        ),
        (
            "messages chosen rejected",
            "OpenAI's `messages` and two answers",
            "rename `messages` to `prompt`; it must end with the user's turn",
        ),
        (
            "messages",
            "OpenAI's `messages`, one answer each",
            "there is nothing to prefer; take data that compares two answers",
        ),
        (
            "prompt completion label",
            "answers with one label each (as for KTO)",
            WRITE + "two answers to the same prompt, the one with the label true as chosen",
        ),
        (
            "instruction output",
            "Alpaca's instructions, one answer each",
            "there is nothing to prefer; take data that compares two answers",
        ),
    )
)
LISTS = ("responses", "answers", "candidates", "generations", "outputs", "completions", "texts")
RANKS = ("ranks", "rank", "ranking", "rankings", "scores", "ratings", "rewards", "labels")
PAIRS = (
    ("response_a", "response_b"), ("response_1", "response_2"), ("response1", "response2"),
    ("answer_a", "answer_b"), ("answer_0", "answer_1"), ("output_1", "output_2"),
    ("response_0", "response_1"), ("responseA", "responseB"),
)  # fmt: skip
NAMES = {
    "prompt": ("question", "instruction", "input", "query", "user", "problem", "context"),
    "chosen": ("chosen_response", "response_chosen", "preferred", "accepted", "winner", "positive"),
    "rejected": ("rejected_response", "response_rejected", "dispreferred", "loser", "negative"),
}
"""Column of a pair -> names that other data has for the same thing."""


def advice(names: Collection[str]) -> str:
    """What to do with rows that have these columns and are not pairs."""
    there = set(names)
    for wanted, name, remedy in SHAPES:
        if wanted <= there:
            return f"this looks like {name}: {remedy}"
    renamed = {
        column: next((each for each in others if each in there), None)
        for column, others in NAMES.items()
        if column not in there
    }
    if all(renamed.values()):
        what = ", ".join(f"`{old}` to `{new}`" for new, old in renamed.items())
        return f"rename {what}" + _prompt_note(there, renamed.get("prompt"))
    if any(each in there for each in LISTS) and any(each in there for each in RANKS):
        return f"this looks like a list of ranked or rated answers: {WRITE}a better and a worse one"
    for one, other in PAIRS:
        if one in there and other in there:
            return f"this looks like two answers and a verdict on them: {WRITE}the better first"
    return (
        "a row must have `prompt`, `chosen` and `rejected`, or the columns of another format "
        "(`data.format`)"
    )


def _prompt_note(there: Collection[str], renamed: str | None) -> str:
    """What else belongs to the prompt of an instruction with its input."""
    if renamed == "instruction" and "input" in there:
        return ", and write the `input` of a row below its instruction"
    return ""
