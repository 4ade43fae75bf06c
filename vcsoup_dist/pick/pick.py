"""`vcsoup pick` as a function: a run in, one model out, in a folder that others can use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_atomically
from vcsoup_dist.pick.base_card import CARD_NAME, base_model_of
from vcsoup_dist.pick.card import CardFacts, PolicyFacts, card_text
from vcsoup_dist.pick.choose import Choice, Wish, candidate_label, choose
from vcsoup_dist.pick.commands import use_lines
from vcsoup_dist.pick.prompt import added_text
from vcsoup_dist.pick.write import default_folder, policies_of, write_model
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.summary import Summary
from vcsoup_dist.records.training_summary import TrainingSummary
from vcsoup_dist.workspace import Product, Workspace


def pick(
    recipe: Recipe,
    workspace: Workspace,
    plan: Sequence[Product],
    wish: Wish,
    out: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the model that is wished for, with its card, and print how to use it; its folder.

    out: an empty or new folder; by default one below `picked/` of the run directory. The same call
    resumes what was killed, and leaves a finished folder as it is. UserError for a wish that cannot
    be met, and for a folder that holds something else.
    """
    summary = _summary(recipe, workspace, plan, wish)
    choice = choose(recipe, wish, summary)
    added = added_text(workspace, plan, choice)
    folder = (out or default_folder(workspace, choice)).absolute()
    write_model(recipe, workspace, plan, choice, folder, overwrite)
    policies = _policies(workspace, plan, choice)
    facts = CardFacts(base_model_of(recipe), policies, added, summary)
    _write_card(folder / CARD_NAME, card_text(recipe, choice, facts), overwrite)
    _show(recipe, choice, folder, facts)
    return folder


def _summary(
    recipe: Recipe, workspace: Workspace, plan: Sequence[Product], wish: Wish
) -> Summary | None:
    """Of the report, where there is one of the recipe as it is now; UserError where it must be."""
    report = next((each for each in plan if each.stage == "report"), None)
    if report is not None and workspace.is_made(report):
        return Summary.read(workspace.folder(report))
    if wish.balanced or wish.prefer is not None:
        option = "--balanced" if wish.balanced else "--prefer"
        raise UserError(
            f"{option}: the candidates of {recipe.name} are not evaluated yet, or not as the recipe"
            " is now: run `vcsoup run` first; --weights and --candidate need policies only"
        )
    return None


def _policies(workspace: Workspace, plan: Sequence[Product], choice: Choice) -> list[PolicyFacts]:
    """What the card says of the policies of a model."""
    candidate = choice.candidate
    found = []
    for i, (name, each) in enumerate(
        zip(candidate.policies, policies_of(choice, plan), strict=True)
    ):
        weight = f"{candidate.weights[i]:.6g}" if candidate.is_soup else ""
        summary = TrainingSummary.read(workspace.folder(each))
        found.append(PolicyFacts(name, weight, summary.steps, summary.pairs, each.fingerprint))
    return found


def _write_card(file: Path, text: str, overwrite: bool) -> None:
    """Write the card where there is none; one that somebody may have edited stays."""
    there = file.read_text(encoding="utf-8") if file.exists() else None
    if there is None or (overwrite and there != text):
        write_atomically(file, text)
    elif there != text:
        log.warning("%s is kept; --overwrite writes it anew, as the run is now", file)


def _show(recipe: Recipe, choice: Choice, folder: Path, facts: CardFacts) -> None:
    label = candidate_label(recipe, choice)
    print(f"{label}, {choice.method}, seed {choice.seed}, with a model card:")
    print(folder)
    if facts.added is not None:
        where = "the last user message" if facts.added.place == "end" else "the system message"
        print(f"prompt: add to {where}, after an empty line: {facts.added.text}")
    for line in use_lines(folder, f"{recipe.name}-{choice.method}"):
        print(line)
