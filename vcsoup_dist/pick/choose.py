"""Which candidate a person asks for: by balance, by preference, by name, or by its weights."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vcsoup_dist.errors import UserError
from vcsoup_dist.methods import methods_of
from vcsoup_dist.methods.method import Candidate
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.records.summary import Row, Summary
from vcsoup_dist.report.statistics import fronts
from vcsoup_dist.report.tables import soup_label
from vcsoup_dist.souping.grids import soup_name, validate_weights, weight_of_base

SAME = 1e-6
"""Weights this close to each other are the same."""
SUGGESTED = 3
SEED = re.compile(r"\bseed-(\d+)(?:/|$)")


@dataclass(frozen=True)
class Wish:
    """What a person asks for: just one of the first four, and which of several."""

    balanced: bool = False
    weights: tuple[float, ...] | None = None
    """lambda over the trained values."""
    prefer: Mapping[str, float] | None = None
    """Value -> how much it counts; only the direction matters."""
    candidate: str | None = None
    method: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Choice:
    """The model that is meant."""

    method: str
    seed: int
    candidate: Candidate
    name: str
    """Of the candidate, such as `helpful-0.30_harmless-0.70`."""
    row: Row | None
    """What the report says of it; None where it was not evaluated."""


def choose(recipe: Recipe, wish: Wish, summary: Summary | None) -> Choice:
    """The model that is wished for; summary: of the report, where there is one.

    A name, or weights, that several methods have mean the first method with soups, unless the wish
    names one. UserError where there is no such model.
    """
    methods = list(methods_of(recipe))
    if wish.method is not None and wish.method not in methods:
        raise UserError(f"no method is called `{wish.method}`; the recipe has {_listed(methods)}")
    if wish.seed is not None and wish.seed not in recipe.seeds:
        raise UserError(f"no seed {wish.seed}; the recipe has {_listed(recipe.seeds)}")
    if wish.candidate is not None:
        return _named(recipe, wish, summary)
    if wish.weights is not None:
        method, candidate = _weighted(recipe, wish.weights, wish.method)
        return _choice(recipe, method, candidate, wish.seed, summary)
    if summary is None:
        raise ValueError("only a report says which candidate is balanced or preferred")
    row = _best(summary, wish)
    found = _same_weights(
        methods_of(recipe)[str(row.method)].candidates(recipe), list((row.weights or {}).values())
    )
    assert found is not None
    return _choice(recipe, str(row.method), found, wish.seed, summary)


def preferred(summary: Summary, preference: Mapping[str, float], rows: Sequence[int]) -> int:
    """Of the rows the one with the largest inner product of `preference` with its scaled values.

    A value that the preference does not name weighs 0. UserError for an unknown value, a negative
    weight, or nothing but zeros.
    """
    for value in preference:
        if value not in summary.values:
            raise UserError(f"no value is called `{value}`; there are {_listed(summary.values)}")
    weights = list(preference.values())
    if not all(0 <= each < math.inf for each in weights) or not any(weights):
        raise UserError(f"a preference has weights >= 0, not all of them 0; got {dict(preference)}")
    scaled = [[summary.rows[i].cells[value].scaled for value in summary.values] for i in rows]
    return rows[fronts.pick(scaled, [preference.get(value, 0.0) for value in summary.values])]


def candidate_label(recipe: Recipe, choice: Choice) -> str:
    """As a reader should see it, such as `0.3 helpful + 0.7 harmless`."""
    named = zip(recipe.trained_values(), choice.candidate.weights, strict=True)
    return " + ".join(f"{weight:.4g} {value}" for value, weight in named if weight)


def _best(summary: Summary, wish: Wish) -> Row:
    """The row of the report that is balanced, or preferred, among all or among a method's."""
    rows = [i for i, row in enumerate(summary.rows) if wish.method in (None, row.method)]
    if not rows:
        raise UserError(
            f"the report has no candidate of {wish.method}: `vcsoup run` evaluates it; --weights"
            " and --candidate need its policies only"
        )
    if wish.prefer is not None:
        best, what = preferred(summary, wish.prefer, rows), "preferred by these weights"
    else:
        own = [each.balanced for each in summary.methods if each.method == wish.method]
        best, what = own[0] if own else summary.balanced, "the most balanced"
    if summary.rows[best].method is None:
        methods = _listed([each.method for each in summary.methods])
        raise UserError(
            f"theta_0, the model before training, is {what}: there is nothing to pick; --method"
            f" picks among the candidates of one method ({methods})"
        )
    return summary.rows[best]


def _named(recipe: Recipe, wish: Wish, summary: Summary | None) -> Choice:
    """By the name of its folder, with or without method and seed, or by the report's label."""
    text = (wish.candidate or "").strip().rstrip("/")
    known = _places(recipe, wish.method)
    seeds = {int(found) for found in SEED.findall(text)}
    seeds |= set() if wish.seed is None else {wish.seed}
    parts = [part for part in SEED.sub("", text).split("/") if part] or [text]
    place = "/".join(parts[-2:] if parts[-2:-1] and parts[-2] in recipe.methods else parts[-1:])
    for row in summary.rows if summary else ():
        if row.weights is not None and soup_label(row) == text:
            place = f"{row.method}/{_name(recipe, list(row.weights.values()))}"
    found = [each for each in known if each == place or each.endswith(f"/{place}")]
    if not found:
        raise UserError(f"no candidate is called `{text}`{_alike(place, list(known))}")
    if len(seeds) > 1 or not seeds <= set(recipe.seeds):
        raise UserError(
            f"`{text}` is of seed {_listed(sorted(seeds))}; the recipe has {_listed(recipe.seeds)}"
        )
    return _choice(recipe, *known[found[0]], next(iter(seeds), None), summary)


def _places(recipe: Recipe, method: str | None) -> dict[str, tuple[str, Candidate]]:
    """`METHOD/NAME` -> method and candidate, of one method or of all: those with soups first."""
    found = [
        (name, candidate)
        for name, each in methods_of(recipe).items()
        for candidate in (each.candidates(recipe) if method in (None, name) else ())
    ]
    found.sort(key=lambda one: not one[1].is_soup)
    return {f"{name}/{_name(recipe, each.weights)}": (name, each) for name, each in found}


def _weighted(
    recipe: Recipe, weights: Sequence[float], wanted: str | None
) -> tuple[str, Candidate]:
    """A method and its candidate with these weights, which need not be among those evaluated."""
    candidates = {name: each.candidates(recipe) for name, each in methods_of(recipe).items()}
    with_soups = [name for name, own in candidates.items() if any(each.is_soup for each in own)]
    method = wanted or next(iter([*with_soups, *candidates]))
    own = candidates[method]
    _check_weights(recipe, weights, is_soup=method in with_soups)
    if (listed := _same_weights(own, weights)) is not None:
        return method, listed
    if method in with_soups:
        return method, Candidate(tuple(weights), own[0].policies)
    if (asked := own[0].asked) is not None:
        asked = replace(asked, weights=tuple(weights))
        return method, replace(own[0], weights=tuple(weights), asked=asked)
    names = [_name(recipe, each.weights) for each in own]
    soups = f"; soups of any weights have {_listed(with_soups)}" if with_soups else ""
    raise UserError(
        f"{method} trains a policy for each trade-off, and none for {_name(recipe, weights)}: it"
        f" has {_listed(names)}{soups}"
    )


def _check_weights(recipe: Recipe, weights: Sequence[float], is_soup: bool) -> None:
    """UserError unless there is one for each policy, and they are within what the recipe allows."""
    values, box = recipe.trained_values(), recipe.soup.box if is_soup else None
    shown = ",".join(f"{each:g}" for each in weights)
    if len(weights) != len(values):
        raise UserError(
            f"--weights {shown}: gives {len(weights)} of {len(values)} weights, in this order: "
            + ", ".join(values)
        )
    if box is not None:
        low, high = box
        if not all(low <= each <= high for each in weights):
            raise UserError(f"--weights {shown}: must lie in soup.box, [{low:g}, {high:g}]")
        if not any(weights):
            raise UserError(f"--weights {shown}: is theta_0 itself, the model before training")
        return
    total = math.fsum(weights)
    if all(0 <= each < math.inf for each in weights) and total and weight_of_base(weights):
        normalised = ",".join(f"{each / total:.6g}" for each in weights)
        raise UserError(f"--weights {shown}: sum to {total:g}, not to 1; give {normalised}")
    validate_weights(weights)


def _choice(
    recipe: Recipe, method: str, candidate: Candidate, seed: int | None, summary: Summary | None
) -> Choice:
    return Choice(
        method,
        recipe.seeds[0] if seed is None else seed,
        candidate,
        _name(recipe, candidate.weights),
        _row(summary, recipe, method, candidate),
    )


def _row(summary: Summary | None, recipe: Recipe, method: str, candidate: Candidate) -> Row | None:
    """What the report says of a candidate."""
    wanted = dict(zip(recipe.trained_values(), candidate.weights, strict=True))
    for row in summary.rows if summary else ():
        weights = row.weights or {}
        if row.method == method and all(
            abs(weights.get(value, math.inf) - weight) <= SAME for value, weight in wanted.items()
        ):
            return row
    return None


def _same_weights(candidates: Sequence[Candidate], weights: Sequence[float]) -> Candidate | None:
    for each in candidates:
        if all(abs(a - b) <= SAME for a, b in zip(each.weights, weights, strict=True)):
            return each
    return None


def _name(recipe: Recipe, weights: Sequence[float]) -> str:
    return soup_name(dict(zip(recipe.trained_values(), weights, strict=True)))


def _alike(text: str, known: Sequence[str]) -> str:
    """What may be meant instead of a name that is not known."""
    names = known if "/" in text else [each.rpartition("/")[2] for each in known]
    close = difflib.get_close_matches(text, dict.fromkeys(names), n=SUGGESTED)
    if close:
        return f"; did you mean {' or '.join(f'`{each}`' for each in close)}?"
    more = f" and {len(known) - SUGGESTED} more" if len(known) > SUGGESTED else ""
    return f"; there are {_listed(known[:SUGGESTED])}{more}"


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(str, names))
