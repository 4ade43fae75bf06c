"""What the stages before the evaluation counted, read from their products for the report."""

from __future__ import annotations

from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.filter_report import GAPS, HISTOGRAM, FilterReport
from vcsoup_dist.records.pairs import PairsManifest
from vcsoup_dist.records.scores import ScoresManifest
from vcsoup_dist.records.training_summary import TrainingSummary
from vcsoup_dist.report.page_data import (
    Filters,
    PairsRead,
    PairsScored,
    Plot,
    Trained,
)
from vcsoup_dist.workspace import Product, Workspace


def pairs_read(workspace: Workspace, product: Product) -> PairsRead:
    """The counts of a product of stage `read`."""
    manifest = PairsManifest.read(workspace.folder(product))
    return PairsRead(
        dataset=str(product.dataset),
        rows=manifest.rows,
        training=manifest.train,
        heldout=manifest.heldout,
        duplicates=manifest.duplicates,
        leaked=manifest.heldout_in_train_pairs,
        rejected=manifest.rejected,
        left_out=manifest.left_out,
        joined=manifest.joined,
        returned_prompts=manifest.returned_prompts,
    )


def pairs_scored(workspace: Workspace, product: Product) -> list[PairsScored]:
    """The statistics of every reward that took part in a filter or a union, by dataset."""
    scores = {
        score.name: score
        for filtered in (*product.inputs_of("filter"), *product.inputs_of("union"))
        for score in filtered.inputs_of("score")
    }
    found = []
    for each in scores.values():
        summary = ScoresManifest.read(workspace.need(each))
        found.append(
            PairsScored(
                dataset=str(each.dataset),
                value=str(each.value),
                pairs=summary.rows,
                unscored=summary.unscored,
                reasons=summary.reasons,
                truncated=summary.truncated,
                mean=summary.mean,
                std=summary.std,
            )
        )
    return found


def filters(recipe: Recipe, workspace: Workspace, product: Product) -> list[Filters]:
    """The filtered sets of each trained value; the first VC-Soup's view is shown, if any."""
    found = []
    for value in recipe.trained_values():
        own = [each for each in product.inputs_of("filter") if each.value == value]
        sets = {str(each.method): workspace.need(each) for each in own}
        if not sets:  # every method weighs the pairs of all values
            continue
        vc_soups = (name for name in sets if recipe.methods[name].kind == "vc_soup")
        shown = next(vc_soups, next(iter(sets)))
        plots = [
            Plot(caption, (sets[shown] / file).read_bytes())
            for file, caption in (
                (HISTOGRAM, f"{value}: consistency of its pairs, as {shown} sees it"),
                (GAPS, f"{value}: gaps of its pairs, by sign pattern"),
            )
        ]
        reports = {name: FilterReport.read(folder) for name, folder in sets.items()}
        found.append(Filters(value, reports, shown, plots))
    return found


def trained(workspace: Workspace, product: Product) -> Trained:
    """The end of a policy's training curve."""
    summary = TrainingSummary.read(workspace.need(product))
    last = {"steps": summary.steps, "pairs": summary.pairs, "passes": summary.passes}
    for prefix, metrics in (("", summary.last_step), ("heldout_", summary.heldout)):
        if metrics is not None:
            last |= {prefix + name: x for name, x in vars(metrics).items() if x is not None}
    name = product.value or product.name.split("/")[2]
    return Trained(str(product.method), name, product.seed or 0, last)
