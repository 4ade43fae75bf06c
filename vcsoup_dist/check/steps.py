"""Optimizer steps and passes of every policy, and whether they can move its weights.

A policy *hardly moves* where its learning rates, warm-up and decay included, sum to less than
`LEAST_MOVE`. Adam moves a weight by about its learning rate a step at most, so the sum is about the
farthest that any weight can go. bf16's numbers near 0.005, a small but usual weight, lie 2^-15
apart: what moves by less than half of that is rounded back, so the policy has theta_0's own number
there. In fp32 the change is kept, and is 0.3 % of that weight at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from vcsoup_dist.check.cost import count_pairs
from vcsoup_dist.recipe import Recipe, Training
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.pairs import PairsManifest
from vcsoup_dist.records.training_summary import TrainingSummary
from vcsoup_dist.records.union import UnionManifest
from vcsoup_dist.training.schedule import count_steps, learning_rate, passes_warning
from vcsoup_dist.training.sft import sft_training
from vcsoup_dist.workspace import Product, Workspace

LEAST_MOVE = 2.0**-16
SUMMED = 10_000  # steps at most whose rates are looked up; of more, evenly spread ones


@dataclass(frozen=True)
class Steps:
    """What training of one name takes, its seeds alike."""

    name: str
    settings: str
    """The section of the recipe that its settings are in."""
    training: Training
    pairs: int | None
    """Those it trains on, or at most so many; None where that is not known."""
    steps: int | None
    """Or at most so many; None where the pairs are not known."""
    pairs_known: bool = False
    steps_known: bool = False
    unfiltered: int | None = None
    """What `count_steps` was given."""
    unknown: str = ""
    """Until when."""
    trade_off_of: str | None = None
    """The method, where it is for one trade-off."""

    def row(self) -> tuple[str, ...]:
        """The cells of its row."""
        pairs = self.unknown if self.pairs is None else _bound(self.pairs, self.pairs_known)
        steps = self.unknown if self.steps is None else _bound(self.steps, self.steps_known)
        return (
            self.name.removeprefix("policies/"),
            pairs,
            steps,
            self._passes(),
            f"{self.training.learning_rate:g}",
        )

    def warnings(self) -> list[str]:
        """What a person may not expect of it."""
        lines = []
        if self.steps is not None:
            move = farthest_move(self.training, self.steps)
            if move < LEAST_MOVE:
                lines.append(
                    f"will hardly move: {_bound(self.steps, self.steps_known)} "
                    f"step{'' if self.steps == 1 else 's'} at a learning rate of "
                    f"{self.training.learning_rate:g} or less change no weight by more than about "
                    f"{move:.1g}, and a usual weight needs {LEAST_MOVE:.1g}; raise "
                    f"{self.settings}.learning_rate, or take more steps ({self.settings}.epochs "
                    "or steps, fewer pairs_per_step)"
                )
        if self.pairs_known and self.pairs and self.steps and self.unfiltered is not None:
            odd = passes_warning(self.training, self.unfiltered, self.pairs, self.steps)
            lines += [odd] if odd else []
        return lines

    def _passes(self) -> str:
        if not self.pairs:
            return self.unknown
        each = self.training.pairs_per_step
        if self.pairs_known and self.steps_known and self.steps:
            return f"{self.steps * each / self.pairs:.3g}"
        # Fewer pairs or more of them counted only make it more.
        asked = self.training.epochs if self.training.steps is None else 0.0
        least = self.steps if self.steps_known and self.steps else 1
        return f"at least {max(asked, least * each / self.pairs):.3g}"


def farthest_move(training: Training, steps: int) -> float:
    """About how far Adam can move a weight in so many steps: the sum of their learning rates."""
    stride = -(-steps // SUMMED)
    rates = [learning_rate(step, steps, training) for step in range(0, steps, stride)]
    return sum(rates) / len(rates) * steps


def plan_steps(recipe: Recipe, workspace: Workspace, plan: Sequence[Product]) -> list[Steps]:
    """theta_0 where the recipe makes it, then a policy of every method and value."""
    found = [_theta_0(recipe, workspace, each) for each in plan if each.stage == "sft"]
    policies: dict[str, list[Product]] = {}
    for each in plan:
        if each.stage == "train":
            policies.setdefault(each.name.rpartition("/")[0], []).append(each)
    return found + [_policy(recipe, workspace, *each) for each in policies.items()]


def steps_table(found: Sequence[Steps]) -> Table:
    """A row each; one for the trade-offs of a method that take the same."""
    table = Table(title="optimizer steps, of every seed", title_justify="left")
    for column in ("policy", "pairs", "steps", "passes", "learning rate"):
        table.add_column(column, overflow="fold", no_wrap=column == "policy")
    alike: dict[tuple[str, ...], list[Steps]] = {}
    for each in found:
        name, *cells = each.row()
        alike.setdefault((each.trade_off_of or name, *cells), []).append(each)
    for (name, *cells), group in alike.items():
        shown = group[0].row()[0] if len(group) == 1 else f"{name}, {len(group)} trade-offs"
        table.add_row(shown, *cells)
    return table


def step_warnings(found: Sequence[Steps]) -> list[str]:
    """A line for each kind of warning, with the names that it is about."""
    names: dict[str, list[str]] = {}
    for each in found:
        for line in each.warnings():
            names.setdefault(line, []).append(each.name)
    return [f"{', '.join(each)}: {line}" for line, each in names.items()]


def _theta_0(recipe: Recipe, workspace: Workspace, product: Product) -> Steps:
    training = sft_training(recipe)
    pairs, unknown = _read(recipe, workspace, product)
    trained = _trained_pairs(workspace, [product])
    return _steps(product.name, "sft", training, trained, pairs, pairs, True, unknown)


def _policy(recipe: Recipe, workspace: Workspace, name: str, seeds: Sequence[Product]) -> Steps:
    sources = seeds[0].inputs_of("filter") or seeds[0].inputs_of("union")
    # Both answers of every pair are one each.
    answers = 2 if seeds[0].inputs_of("in_context") else 1
    pairs, unknown = _read(recipe, workspace, seeds[0])
    unfiltered = pairs
    counted = all(workspace.is_made(each) for each in sources)
    if counted:
        pairs, unfiltered = _counted(workspace, sources, answers)
    elif pairs is not None:
        divided = sources[0].stage == "union" and answers == 1
        unfiltered = -(-answers * pairs // (len(recipe.trained_values()) if divided else 1))
        pairs *= answers
    trained = _trained_pairs(workspace, seeds)
    method = recipe.methods[str(seeds[0].method)]
    training = method.training(recipe)
    settings = "training" if method.learning_rate is None else f"methods.{seeds[0].method}"
    found = _steps(name, settings, training, trained, pairs, unfiltered, counted, unknown)
    if seeds[0].value is None:
        return replace(found, trade_off_of=str(seeds[0].method))
    return found


def _counted(workspace: Workspace, sources: Sequence[Product], answers: int) -> tuple[int, int]:
    """Pairs, or answers, that a policy trains on at most, and those that steps are counted by."""
    folders = [workspace.folder(each) for each in sources]
    if sources[0].stage == "union":
        union = UnionManifest.read(folders[0])
        if answers == 2:
            return 2 * union.pairs, union.answers_of_all_values
        return union.rows, union.pairs_of_a_value
    reports = [FilterReport.read(folder) for folder in folders]
    return (
        sum(each.counts.kept for each in reports),
        sum(each.comparison.usable for each in reports),
    )


def _steps(
    name: str,
    settings: str,
    training: Training,
    trained: int | None,
    pairs: int | None,
    unfiltered: int | None,
    counted: bool,
    unknown: str,
) -> Steps:
    """`trained`: its pairs where it was trained; `counted`: whether `unfiltered` is exact."""
    known = trained is not None
    pairs = trained if known else pairs
    if pairs is None or unfiltered is None:
        steps = training.steps
        return Steps(name, settings, training, None, steps, False, steps is not None, None, unknown)
    steps = count_steps(training, unfiltered, pairs)
    exact = training.steps is not None or (counted if training.equal_steps else known)
    return Steps(name, settings, training, pairs, steps, known, exact, unfiltered, unknown)


def _read(recipe: Recipe, workspace: Workspace, product: Product) -> tuple[int | None, str]:
    """Training pairs of a product's datasets at most, before the filter; or until when unknown."""
    total = 0
    for each in product.inputs_of("read"):
        if workspace.is_made(each):
            total += PairsManifest.read(workspace.folder(each)).train
            continue
        source, file = each.sources["data"], Path(each.sources["data"].source)
        if source.revision is not None or not file.exists():
            return None, "unknown before the download"
        rows = count_pairs(file) if file.is_file() else None
        if rows is None:
            return None, "unknown before `vcsoup score`"
        limit = recipe.datasets()[str(each.dataset)].limit
        total += rows if limit is None else min(rows, limit)
    return total, ""


def _trained_pairs(workspace: Workspace, seeds: Sequence[Product]) -> int | None:
    """Pairs that a finished policy was trained on, those left out as too long not among them."""
    for product in seeds:
        if workspace.is_made(product):
            return TrainingSummary.read(workspace.folder(product)).pairs
    return None


def _bound(count: int, known: bool) -> str:
    return f"{count:,}" if known else f"at most {count:,}"
