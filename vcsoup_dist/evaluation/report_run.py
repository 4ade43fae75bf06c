"""The report's sections about the run: data, filters, training, prompts, answers, commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vcsoup_dist.evaluation.report_data import (
    PairsRead,
    PairsScored,
    Patterns,
    Plot,
    Prompts,
    Sample,
    Trained,
)
from vcsoup_dist.evaluation.report_html import (
    Html,
    join,
    method_name,
    number,
    paragraph,
    picture,
    plain_table,
    section,
    tag,
    text,
)


def facts_list(facts: Mapping[str, str]) -> Html:
    """What was run, as a list of terms."""
    terms = [tag("div", tag("dt", text(term)), tag("dd", text(fact)))
             for term, fact in facts.items()]  # fmt: skip
    return tag("dl", *terms, css="facts")


def data_section(pairs: Sequence[PairsRead], scores: Sequence[PairsScored]) -> Html:
    """Rows read, rejected with reasons, and scored."""
    read = [
        [text(each.dataset), *map(number, (each.rows, each.training, each.heldout, each.duplicates,
                                           each.leaked, sum(each.rejected.values())))]
        for each in pairs
    ]  # fmt: skip
    titles = ["Data of", "Rows read", "To train on", "Held out", "Duplicates",
              "Prompt held out", "Rejected"]  # fmt: skip
    reasons = [
        [text(each.dataset), text(reason), number(count)]
        for each in pairs
        for reason, count in sorted(each.rejected.items(), key=lambda item: -item[1])
    ]
    scored = [
        [text(each.dataset), text(each.value), number(each.pairs), number(each.truncated),
         number(each.mean), number(each.std)]
        for each in scores
    ]  # fmt: skip
    parts = [
        paragraph(text(
            "Not trained on: pairs held out, duplicates of earlier pairs, pairs whose prompt is "
            "held out, and rejected rows."
        )),
        plain_table(titles, read),
    ]  # fmt: skip
    if reasons:
        parts.append(tag("h3", text("Rejected rows")))
        parts.append(plain_table(["Data of", "Reason", "Rows"], reasons, 2))
    if scored:
        titles = ["Data of", "Reward", "Pairs", "Prompts cut", "Mean", "Standard deviation"]
        parts += [tag("h3", text("Scores")), plain_table(titles, scored, 2)]
    return section("data", "Data", *parts)


def filter_section(
    patterns: Sequence[Patterns], plots: Sequence[Plot], values: Sequence[str]
) -> Html:
    """What each filter kept, by the signs of the gaps, and the plots of the consistency."""
    order = ", ".join(values)
    parts = [paragraph(text(
        "A pair's gap is positive (+) where a value's reward prefers the chosen answer, and "
        f"negative (−) where it prefers the rejected one. Signs stand in the order {order}."
    ))]  # fmt: skip
    for each in patterns:
        signs = sorted(each.all_pairs, key=lambda sign: (-each.all_pairs[sign], sign))
        rows = [
            [tag("code", text(sign.replace("-", "−"))), number(each.all_pairs[sign]),
             *(number(kept.get(sign, 0)) for kept in each.kept.values())]
            for sign in signs
        ]  # fmt: skip
        total = sum(each.all_pairs.values())
        kept_totals = [_share(sum(kept.values()), total) for kept in each.kept.values()]
        rows.append([tag("b", text("all")), tag("b", number(total)), *kept_totals])
        names = [f"kept by {method}" for method in each.kept]
        parts.append(tag("h3", text(f"Pairs of {each.value}")))
        parts.append(plain_table(["Signs", "Pairs", *names], rows))
    if plots:
        pictures = [picture(each.png, each.caption, text(each.caption)) for each in plots]
        parts.append(tag("div", *pictures, css="plots"))
    return section("consistency", "Consistency", *parts)


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


def _share(count: int, total: int) -> Html:
    share = f" ({100 * count / total:.0f} %)" if total else ""
    return tag("b", number(count), text(share))


def _shortened(prompt: str, letters: int = 200) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= letters else line[:letters].rstrip() + " …"
