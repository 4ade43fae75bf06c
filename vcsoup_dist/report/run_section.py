"""The report's sections about the run: data, training, prompts, answers, commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vcsoup_dist.report.html import (
    Html,
    join,
    method_name,
    number,
    paragraph,
    plain_table,
    section,
    tag,
    text,
)
from vcsoup_dist.report.page_data import (
    PairsRead,
    PairsScored,
    Prompts,
    Sample,
    Trained,
)


def facts_list(facts: Mapping[str, str]) -> Html:
    """What was run, as a list of terms."""
    terms = [tag("div", tag("dt", text(term)), tag("dd", text(fact)))
             for term, fact in facts.items()]  # fmt: skip
    return tag("dl", *terms, css="facts")


def data_section(pairs: Sequence[PairsRead], scores: Sequence[PairsScored]) -> Html:
    """Rows read, rejected and left out with reasons, and scored."""
    read = [
        [text(each.dataset), *map(number, (each.rows, each.training, each.heldout, each.joined,
                                           each.duplicates, each.leaked,
                                           sum(each.left_out.values()),
                                           sum(each.rejected.values())))]
        for each in pairs
    ]  # fmt: skip
    titles = ["Data of", "Rows read", "To train on", "Held out", "Other halves", "Duplicates",
              "Prompt held out", "Left out", "Rejected"]  # fmt: skip
    scored = [
        [text(each.dataset), text(each.value), *map(number, (
            each.pairs, each.unscored, each.truncated, each.mean, each.std,
        ))]
        for each in scores
    ]  # fmt: skip
    parts = [
        paragraph(text(
            "Not trained on: pairs held out, rows that are the other half of a pair, duplicates of "
            "earlier pairs, pairs whose prompt is held out, rows left out because they make no "
            "pair, and rejected rows, which are faulty."
        )),
        plain_table(titles, read),
    ]  # fmt: skip
    parts += [
        paragraph(text(
            f"{each.dataset}: {each.returned_prompts:,} times a prompt comes back after others; "
            "only rows that follow one another are paired."
        ))
        for each in pairs if each.returned_prompts
    ]  # fmt: skip
    for title, counts in (
        ("Rows left out", {each.dataset: each.left_out for each in pairs}),
        ("Rejected rows", {each.dataset: each.rejected for each in pairs}),
    ):
        rows = [
            [text(dataset), *reason] for dataset, of in counts.items() for reason in _sorted(of)
        ]
        if rows:
            parts.append(tag("h3", text(title)))
            parts.append(plain_table(["Data of", "Reason", "Rows"], rows, 2))
    if scored:
        titles = ["Data of", "Reward", "Pairs", "Without reward", "Prompts cut", "Mean",
                  "Standard deviation"]  # fmt: skip
        parts += [tag("h3", text("Scores")), plain_table(titles, scored, 2)]
    rows = [
        [text(each.dataset), text(each.value), *reason]
        for each in scores
        for reason in _sorted(each.reasons)
    ]
    if rows:
        parts.append(tag("h3", text("Pairs without reward")))
        parts.append(plain_table(["Data of", "Reward", "Reason", "Pairs"], rows, 3))
    return section("data", "Data", *parts)


def training_section(trained: Sequence[Trained], places: Mapping[str, int]) -> Html:
    """The last numbers of every training curve."""
    names = list(dict.fromkeys(name for each in trained for name in each.last))
    rows = [
        [method_name(each.method, places.get(each.method)), text(each.value), number(each.seed),
         *(number(each.last.get(name)) for name in names)]
        for each in trained
    ]  # fmt: skip
    titles = ["Method", "Policy of", "Seed", *names]
    return section("training", "Training", plain_table(titles, rows, 2))


def prompt_section(prompts: Sequence[Prompts]) -> Html:
    """How many prompts were evaluated, and which of them were trained on."""
    rows = [
        [text(each.dataset), *map(number, (each.prompts, each.left_out, len(each.in_training)))]
        for each in prompts
    ]
    titles = ["Data of", "Prompts", "Left out as too long", "In its training pairs"]
    parts = [plain_table(titles, rows)]
    seen = list(dict.fromkeys(prompt for each in prompts for prompt in each.in_training))
    if seen:
        were = "prompt was" if len(seen) == 1 else "prompts were"
        told = f"{len(seen):,} evaluation {were} also trained on, which flatters the rewards:"
        parts.append(paragraph(text(told)))
        parts.append(tag("ul", *(tag("li", text(_shortened(prompt))) for prompt in seen[:10])))
    else:
        parts.append(paragraph(text("No evaluation prompt occurs in the training data.")))
    return section("prompts", "Evaluation prompts", *parts)


def sample_section(samples: Sequence[Sample]) -> Html:
    """Answers of the soups to the same prompt, side by side."""
    parts = []
    for sample in samples:
        answers = []
        for answer in sample.answers:
            rewards = [join([text(value), number(reward, 2)], " ")
                       for value, reward in answer.rewards.items()]  # fmt: skip
            answers.append(tag(
                "article",
                tag("h4", text(answer.soup)),
                tag("div", text(answer.text), css="answer"),
                paragraph(join(rewards, " · "), css="rewards"),
            ))  # fmt: skip
        parts.append(tag("blockquote", text(sample.prompt)))
        parts.append(tag("div", *answers, css="answers"))
    return section("answers", "Answers", *parts)


def again_section(commands: Sequence[str], recipe: str) -> Html:
    """How to make the report again."""
    return section(
        "again", "Make it again", tag("pre", text("\n".join(commands))),
        tag("h3", text("Recipe")), tag("pre", text(recipe)),
    )  # fmt: skip


def _sorted(counts: Mapping[str, int]) -> list[list[Html]]:
    """Reasons and their counts, the most frequent first."""
    order = sorted(counts.items(), key=lambda item: -item[1])
    return [[text(reason), number(count)] for reason, count in order]


def _shortened(prompt: str, letters: int = 200) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= letters else line[:letters].rstrip() + " …"
