"""From the rewards of every soup's answers to what the report shows, as one pure function."""

from __future__ import annotations

from collections.abc import Sequence

from vcsoup_dist.records.summary import Summary
from vcsoup_dist.report.statistics import fronts
from vcsoup_dist.report.statistics.connectivity import find_edges
from vcsoup_dist.report.statistics.evaluated import Evaluated, check_shared, same_soup
from vcsoup_dist.report.statistics.methods import (
    candidates_of,
    compare_methods,
    method_summary,
    scaled,
    volumes_by_method,
)
from vcsoup_dist.report.statistics.rows import gains_of, make_rows
from vcsoup_dist.report.statistics.scale import choose_scale
from vcsoup_dist.report.statistics.volumes import prompt_shares

BOOTSTRAP_SEED = 0  # one for all methods and seeds, so that all are resampled on the same prompts


def summarise(evaluated: Sequence[Evaluated], *, resamples: int, confidence: float) -> Summary:
    """Average, scale and compare all evaluations of a run; deterministic.

    Evaluations of one method and one lambda become one row, whatever their seeds. Fronts and
    picks are those of the rows; hypervolumes are taken for each seed and then averaged, theta_0
    left out. Raises what `check_shared` raises.
    """
    shared = check_shared(evaluated)
    groups = same_soup(evaluated, shared.axes)
    scale = choose_scale(evaluated, shared)
    rows = make_rows(groups, shared, scale, confidence)
    methods = list(dict.fromkeys(row.method for row in rows if row.method is not None))
    candidates = {method: candidates_of(evaluated, method, shared) for method in methods}
    shares = prompt_shares(shared.prompts, resamples, BOOTSTRAP_SEED)
    volumes = volumes_by_method(candidates, shares, scale)
    balanced = fronts.balanced(scaled(rows))
    start = next((one for one in evaluated if one.method is None), None)
    return Summary(
        values=shared.values,
        axes=shared.axes,
        prompts=shared.prompts,
        resamples=resamples,
        confidence=confidence,
        scale=scale,
        rows=tuple(rows),
        methods=tuple(
            method_summary(each, rows, candidates[each], volumes[each], scale, confidence)
            for each in methods
        ),
        front=tuple(i for i, row in enumerate(rows) if row.on_front),
        balanced=balanced,
        balanced_against_start=gains_of(groups[balanced], start, confidence),
        comparisons=compare_methods(candidates, volumes, shares, scale, confidence),
        edges=tuple(find_edges(evaluated, shared.axes, resamples, confidence)),
    )
