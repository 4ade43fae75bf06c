"""Weight vectors lambda of soups: grids, random ones, their validity and their names."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from vcsoup_dist.errors import UserError

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
MAX_NAME = 200  # file systems allow 255 bytes; the rest is left to suffixes
DECIMALS = 6
SUM_TOLERANCE = 1e-6
"""Weights whose sum is this close to 1 sum to 1."""


def simplex_grid(values: int, step: float, *, cap: int = 10_000) -> list[tuple[float, ...]]:
    """All lambda in the simplex of `values` weights whose entries are multiples of `step`.

    Compositions of n = 1/step into `values` parts, each divided by n, in ascending order; there
    are C(n + values - 1, values - 1). UserError where `step` does not divide 1 (within 1e-9) or
    there are more than `cap`.
    """
    if values < 1:
        raise UserError(f"a grid needs at least one value, got {values}")
    if not 1e-6 <= step <= 1:
        raise UserError(f"the grid's step must lie between 0.000001 and 1, got {step}")
    n = round(1 / step)
    if abs(n * step - 1) > 1e-9:
        raise UserError(f"the grid's step must divide 1, {step} does not (try {1 / n:.6g})")
    count = math.comb(n + values - 1, values - 1)
    if count > cap:
        raise UserError(
            f"a grid of step {step} over {values} values has {count:,} soups, more than {cap:,};"
            " take a larger step"
        )
    # Stars and bars: where values - 1 bars stand among n stars.
    grid = []
    for bars in itertools.combinations(range(n + values - 1), values - 1):
        edges = (-1, *bars, n + values - 1)
        grid.append(tuple((right - left - 1) / n for left, right in itertools.pairwise(edges)))
    return grid


def box_grid(
    values: int, low: float, high: float, step: float, *, cap: int = 10_000
) -> list[tuple[float, ...]]:
    """All lambda with every entry in {low, low + step, ..., high}, in ascending order, but 0.

    Entries are the exact decimals, rounded once, so those on the simplex are `simplex_grid`'s. The
    soup of lambda = 0 is theta_0 itself. UserError where `step` does not divide high - low (within
    1e-9) or there are more than `cap`.
    """
    if values < 1:
        raise UserError(f"a grid needs at least one value, got {values}")
    first, span = Fraction(str(low)), Fraction(str(high)) - Fraction(str(low))
    if not 1e-6 <= step <= float(span):
        raise UserError(f"the grid's step must lie between 0.000001 and {span}, got {step}")
    n = round(span / Fraction(str(step)))
    if abs(n * step - float(span)) > 1e-9:
        raise UserError(f"the grid's step must divide {float(span):g}, {step} does not")
    if (count := (n + 1) ** values) > cap:
        raise UserError(
            f"a grid of step {step} over {values} values has {count:,} points, more than {cap:,};"
            " take a larger step"
        )
    entries = [float(first + span * k / n) for k in range(n + 1)]
    return [row for row in itertools.product(entries, repeat=values) if any(row)]


def weight_of_base(weights: Sequence[float]) -> float:
    """What theta_0 is multiplied with in theta_0 + sum_i lambda_i (theta_i - theta_0).

    1 - sum lambda; 0, so that theta_0 is not read, where that is no more than SUM_TOLERANCE.
    """
    rest = math.fsum([1.0, *(-weight for weight in weights)])
    return rest if abs(rest) > SUM_TOLERANCE else 0.0


def is_between_two(weights: Sequence[float]) -> bool:
    """Whether a soup lies on the line between two policies, or is one: on the simplex, with at most
    two parts."""
    on_simplex = not weight_of_base(weights) and min(weights) >= 0
    return on_simplex and sum(weight != 0 for weight in weights) <= 2


def random_weights(values: int, count: int, seed: int) -> list[tuple[float, ...]]:
    """`count` draws from Dirichlet(1, ..., 1), the uniform distribution on the simplex.

    Gaps between sorted uniform numbers; from the standard library's generator, whose stream is
    the same in every version and on every machine.
    """
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        edges = (0.0, *sorted(draw.random() for _ in range(values - 1)), 1.0)
        rows.append(tuple(right - left for left, right in itertools.pairwise(edges)))
    return rows


def distinct_random_weights(
    values: int, count: int, seed: int, *, cap: int = 10_000
) -> list[tuple[float, ...]]:
    """The first `count` draws of `random_weights` that differ in their names (six decimals).

    UserError for more than `cap`, and for several soups of one value, which has only one.
    """
    if not 1 <= count <= cap:
        raise UserError(f"--random is a number of soups, from 1 to {cap:,}, got {count}")
    if values == 1 and count > 1:
        raise UserError(f"one policy has one soup, not {count}: give more policies")
    rows: dict[tuple[str, ...], tuple[float, ...]] = {}
    drawn = count
    while len(rows) < count:
        rows = {}
        for row in random_weights(values, drawn, seed):
            rows.setdefault(tuple(map(_decimal, row)), row)
        drawn += drawn // 10 + 1
    return list(rows.values())[:count]


def validate_weights(
    weights: Sequence[float], *, extrapolate: bool = False, any_sum: bool = False
) -> None:
    """UserError unless all are finite, sum to 1 within 1e-6, and lie in [0, 1].

    With `extrapolate` they may lie outside [0, 1]: beyond the policies, on the same affine plane.
    With `any_sum`, which is for task vectors, theta_0 takes what is left of 1.
    """
    shown = [float(weight) for weight in weights]
    if not all(math.isfinite(weight) for weight in shown):
        raise UserError(f"soup weights must be finite, got {shown}")
    if not any_sum and weight_of_base(shown):
        raise UserError(f"soup weights must sum to 1, {shown} sum to {math.fsum(shown):.9g}")
    if not extrapolate and not all(0 <= weight <= 1 for weight in shown):
        raise UserError(f"soup weights must lie in [0, 1] unless extrapolation is asked: {shown}")


def soup_name(weights: Mapping[str, float]) -> str:
    """A folder name such as `helpful-0.30_harmless-0.70`.

    Two to six decimals: weights that differ by 0.000001 or more have different names, which holds
    on every grid within the size cap. UserError for a value's name that no folder can bear.
    """
    for value in weights:
        if not SAFE_NAME.fullmatch(value):
            raise UserError(
                f"{value!r} cannot be part of a folder name; use letters, digits, '.', '_', '-'"
            )
    name = "_".join(f"{value}-{_decimal(weight)}" for value, weight in weights.items())
    if len(name) > MAX_NAME:
        raise UserError(
            f"the soup's name {name[:40]}... is too long; give the values shorter names"
        )
    return name


def weights_name(weights: Sequence[float]) -> str:
    """A folder name such as `soup_0.30_0.70`, with the decimals of `soup_name`."""
    name = "_".join(["soup", *map(_decimal, weights)])
    if len(name) > MAX_NAME:
        raise UserError(f"{len(weights)} policies are too many for folders named by their weights")
    return name


def _decimal(weight: float) -> str:
    text = f"{weight:.{DECIMALS}f}"
    if float(text) == 0:
        text = text.lstrip("-")  # no "-0.00"
    kept = text.rstrip("0")
    return kept + "0" * max(0, 2 - len(kept.partition(".")[2]))
