"""How often the report's intervals hold the true number, in worlds where it is known.

    python tools/check_intervals.py --out docs/results/intervals.json [--draws 2000] [--jobs 2]
    python tools/check_intervals.py --out docs/results/intervals.json --time

Two methods answer the same prompts; every draw has new prompts, seeds and answers. What is checked
is what the report computes: `mean_errors` for means and their differences, `volumes_of` for
hypervolumes, `compare_all` for who is named. A reward of a candidate with weights λ is

    front(λ) + seed(λ) + prompt + method's part of the prompt(λ) + answer

with standard deviations of 0 to 1, 1, 0.5 and 0.7; what depends on λ is drawn for each policy
and mixed as the soup is. Every cell of the grid is written, with the draws it is made from; a
Markdown summary goes to the standard output.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.records.summary import Scale
from vcsoup_dist.report.statistics.comparisons import compare_all
from vcsoup_dist.report.statistics.crossed import Errors, mean_errors
from vcsoup_dist.report.statistics.evaluated import Evaluated
from vcsoup_dist.report.statistics.hypervolumes import hypervolumes
from vcsoup_dist.report.statistics.students_t import t_quantile
from vcsoup_dist.report.statistics.summarise import summarise
from vcsoup_dist.report.statistics.volumes import Volumes, prompt_shares, volumes_of

Array = NDArray[np.float64]

SEEDS = (1, 2, 3, 5, 10)
DEVIATIONS = (0.0, 0.25, 0.5, 1.0)
CANDIDATES = (11, 66)
PROMPTS = (16, 64, 256)
CONFIDENCE = 0.95
RESAMPLES = 200  # fewer than a report takes, which widens nothing: coverage can only be less
METHOD_PART, ANSWER_PART = 0.5, 0.7
TRUTHS = 40_000  # seeds whose hypervolumes are averaged for the true one
ZERO_ONE = Scale(
    {"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, {"a": -0.1, "b": -0.1}, {"a": -0.1, "b": -0.1},
    "bulging", True,
)  # fmt: skip
NAMES = ("mean", "mean_difference", "hypervolume", "hypervolume_difference")
FALSE_WINNERS = ((1, 0.0), (3, 0.0), (3, 0.5), (5, 0.5), (10, 0.5), (1, 0.5))
"""Seeds and their deviation, for four equal methods."""


@dataclass(frozen=True)
class World:
    """How many of what; all draws of a world have new prompts, seeds and answers."""

    seeds: int
    candidates: int
    prompts: int

    @property
    def weights(self) -> Array:
        """[C, 2]: of the two policies."""
        first = np.linspace(0, 1, self.candidates)
        return np.stack([first, 1 - first], axis=1)

    def front(self, bulge: float) -> Array:
        """[C, 2]: true means; a straight line from (1, 0) to (0, 1), or one that bulges."""
        first, second = self.weights.T
        return self.weights + (bulge * first * second)[:, None]

    def seed_parts(self, draw: np.random.Generator, seeds: int) -> Array:
        """[S, C, 2]: of standard deviation 1 for a policy."""
        return np.asarray(self.weights @ draw.standard_normal((seeds, 2, 2)))

    def method(self, draw: np.random.Generator, shared: Array) -> Array:
        """[S, C, 2, P]: what answers to prompts with parts `shared` [2, P] earn, less the front."""
        own = np.tensordot(self.weights, draw.standard_normal((2, 2, self.prompts)), axes=1)
        shape = (self.seeds, self.candidates, 2, self.prompts)
        return shared + METHOD_PART * own + ANSWER_PART * draw.standard_normal(shape)


BULGES = (1.0, 0.0)
"""The two methods' fronts differ, and so do their hypervolumes and biases."""


@dataclass(frozen=True)
class Cell:
    """Shares of the draws whose interval holds the true number, of one cell of the grid."""

    seeds: int
    deviation: float
    candidates: int
    prompts: int
    draws: int
    mean: float
    """Of one candidate, one value."""
    mean_difference: float
    hypervolume: float
    """Less its bias."""
    hypervolume_difference: float
    given_the_seeds: dict[str, float]
    """The same four where the true number is that of the seeds that were drawn."""
    power: float
    """Share of differences of hypervolumes of two standard errors that are found."""
    bias: float
    """Of one method's hypervolume, before it is corrected."""
    bias_left: float


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, and what is true."""

    value: float
    width: float
    true: float
    true_given_seeds: float


def estimates(world: World, deviation: float, seed_parts: list[Array], earned: list[Array],
              volumes: list[Volumes], true: list[float]) -> dict[str, Estimate]:  # fmt: skip
    """Of one draw, for the first `world.seeds` of its seeds."""
    s, middle = world.seeds, world.candidates // 2
    fronts = [world.front(bulge)[middle, 0] for bulge in BULGES]
    moved = [deviation * parts[:s, middle, 0].mean() for parts in seed_parts]
    samples = [each[:s, middle, 0] for each in earned]
    of_seeds = [
        float(hypervolumes(world.front(bulge) + deviation * parts[:s], [-0.1, -0.1]).mean())
        for bulge, parts in zip(BULGES, seed_parts, strict=True)
    ]
    mine = [replace(v, measured=v.measured[:s], drawn=v.drawn[:s]) for v in volumes]

    def of(value: float, errors: Errors, true: float, given: float) -> Estimate:
        return Estimate(value, float(errors.half_width(CONFIDENCE)), true, given)

    return {
        "mean": of(samples[0].mean(), mean_errors(samples[:1]), fronts[0], fronts[0] + moved[0]),
        "mean_difference": of(
            samples[0].mean() - samples[1].mean(),
            mean_errors([samples[0], -samples[1]]),
            fronts[0] - fronts[1],
            fronts[0] - fronts[1] + moved[0] - moved[1],
        ),
        "hypervolume": of(mine[0].corrected, mine[0].errors, true[0], of_seeds[0]),
        "hypervolume_difference": of(
            mine[0].corrected - mine[1].corrected,
            mine[0].errors_before(mine[1]),
            true[0] - true[1],
            of_seeds[0] - of_seeds[1],
        ),
        "measured": Estimate(float(mine[0].measured.mean()), 0.0, true[0], of_seeds[0]),
    }


def one_draw(world: World, number: int, truths: dict[float, list[float]]) -> Iterator[
    tuple[int, float, dict[str, Estimate]]
]:  # fmt: skip
    """Every number of seeds and every deviation, from the same prompts and answers."""
    draw = np.random.default_rng([world.candidates, world.prompts, number])
    shared = draw.standard_normal((2, world.prompts))
    parts = [world.seed_parts(draw, world.seeds) for _ in BULGES]
    noise = [world.method(draw, shared) for _ in BULGES]
    shares = prompt_shares(world.prompts, RESAMPLES, number)
    for deviation in DEVIATIONS:
        earned = [
            each + (world.front(bulge) + deviation * part)[..., None]
            for bulge, part, each in zip(BULGES, parts, noise, strict=True)
        ]
        volumes = [volumes_of(list(each), shares, ZERO_ONE) for each in earned]
        for seeds in SEEDS:
            few = replace(world, seeds=seeds)
            yield seeds, deviation, estimates(few, deviation, parts, earned, volumes,
                                              truths[deviation])  # fmt: skip


def cells_of(task: tuple[int, int, int]) -> list[Cell]:
    """All cells of the grid with so many candidates and prompts."""
    candidates, prompts, draws = task
    world = World(max(SEEDS), candidates, prompts)
    draw = np.random.default_rng(candidates)
    truths = {
        deviation: [
            float(hypervolumes(world.front(b) + deviation * world.seed_parts(draw, TRUTHS),
                               [-0.1, -0.1]).mean())
            for b in BULGES
        ]
        for deviation in DEVIATIONS
    }  # fmt: skip
    found: dict[tuple[int, float], list[dict[str, Estimate]]] = {}
    for number in range(draws):
        for seeds, deviation, each in one_draw(world, number, truths):
            found.setdefault((seeds, deviation), []).append(each)
    return [cell(world, key, each) for key, each in found.items()]


def cell(world: World, key: tuple[int, float], drawn: list[dict[str, Estimate]]) -> Cell:
    """The shares of one cell's draws."""

    def held(name: str, given_seeds: bool) -> float:
        hits = [
            abs(e[name].value - (e[name].true_given_seeds if given_seeds else e[name].true))
            <= e[name].width
            for e in drawn
        ]
        return float(np.mean(hits))

    differences = np.array([e["hypervolume_difference"].value for e in drawn])
    widths = np.array([e["hypervolume_difference"].width for e in drawn])
    lifted = differences - differences.mean() + 2 * differences.std()
    return Cell(
        *key, world.candidates, world.prompts, len(drawn),
        **{name: held(name, False) for name in NAMES},
        given_the_seeds={name: held(name, True) for name in NAMES},
        power=float((np.abs(lifted) > widths).mean()),
        bias=float(np.mean([e["measured"].value - e["measured"].true for e in drawn])),
        bias_left=float(np.mean([e["hypervolume"].value - e["hypervolume"].true for e in drawn])),
    )  # fmt: skip


def false_winners(task: tuple[int, float, int]) -> dict[str, float]:
    """How often one of four equal methods is ahead of all others, on 64 prompts."""
    seeds, deviation, draws = task
    world, named, any_pair = World(seeds, 11, 64), 0, 0
    for number in range(draws):
        draw = np.random.default_rng([seeds, int(100 * deviation), number])
        shared = draw.standard_normal((2, world.prompts))
        shares = prompt_shares(world.prompts, RESAMPLES, number)
        volumes = {}
        for name in "pqrs":
            parts = deviation * world.seed_parts(draw, seeds) + world.front(1.0)
            earned = world.method(draw, shared) + parts[..., None]
            volumes[name] = volumes_of(list(earned), shares, ZERO_ONE)
        pairs = compare_all(volumes, CONFIDENCE)
        named += all(pair.differs for pair in pairs if pair.first == pairs[0].first)
        any_pair += any(pair.differs for pair in pairs)
    return {"seeds": seeds, "deviation": deviation, "draws": draws,
            "winner": named / draws, "any_pair": any_pair / draws}  # fmt: skip


def alternatives(draws: int) -> list[dict[str, float | bool]]:
    """Three intervals for one mean over prompts and seeds, where prompts are skewed too.

    `joined` is the report's; `wider` the wider of a crossed interval and Student's t over seeds;
    `plain` resamples prompts and seeds together, by its variance in closed form.
    """
    draw, found = np.random.default_rng(0), []
    normal = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    for skewed, prompts, seeds, deviation in product((False, True), PROMPTS, SEEDS, DEVIATIONS):
        part = draw.exponential if skewed else draw.standard_normal
        samples = part(size=(draws, 1, prompts)) - (1.0 if skewed else 0.0)
        samples = samples + ANSWER_PART * draw.standard_normal((draws, seeds, prompts))
        samples += deviation * draw.standard_normal((draws, seeds, 1))
        off, errors = np.abs(samples.mean(axis=(1, 2))), mean_errors([samples])
        shares = {"joined": (off <= errors.half_width(CONFIDENCE)).mean()}
        if seeds > 1:
            (of_seeds,) = errors.of_seeds
            over_seeds = t_quantile((1 + CONFIDENCE) / 2, seeds - 1) * np.sqrt(of_seeds.between)
            crossed = normal * np.sqrt(errors.prompts + errors.seeds)
            shares["wider"] = (off <= np.maximum(crossed, over_seeds)).mean()
            plain = (errors.prompts * (prompts - 1) / prompts + of_seeds.by_prompts
                     + of_seeds.between * (seeds - 1) / seeds)  # fmt: skip
            shares["plain"] = (off <= normal * np.sqrt(plain)).mean()
        found.append({"skewed": skewed, "prompts": prompts, "seeds": seeds, "deviation": deviation,
                      **{name: float(share) for name, share in shares.items()}})  # fmt: skip
    return found


def theory() -> dict[int, float]:
    """Degrees of freedom -> how often Student's t finds a difference of two standard errors.

    Of two methods' seeds 2 (S - 1), of prompts P - 1. The integral over the estimated standard
    error s, whose s^2 f is chi-squared of f degrees of freedom.
    """
    normal, found = NormalDist().cdf, {}
    for f in [2 * (s - 1) for s in SEEDS if s > 1] + [p - 1 for p in PROMPTS]:
        limit = float(t_quantile((1 + CONFIDENCE) / 2, f))
        s = np.linspace(0, 4, 4001)[1:]
        density = np.exp((f - 1) * np.log(s) - f * s**2 / 2 + f / 2 * math.log(f / 2)
                         - math.lgamma(f / 2)) * 2  # fmt: skip
        power = [normal(2 - limit * each) + normal(-2 - limit * each) for each in s]
        found[f] = float((density * power).sum() * (s[1] - s[0]))
    return found


def summarising() -> dict[str, float]:
    """Seconds that `summarise` takes for 5 methods, 3 seeds, 66 candidates, 64 prompts and 2,000
    resamples, with two and three values; and the peak memory of the whole process, in MB."""
    draw, found = np.random.default_rng(0), {}
    for values in ("ab", "abc"):
        weights = draw.dirichlet(np.ones(len(values)), size=66)
        weights[: len(values)] = np.eye(len(values))
        evaluated = [
            Evaluated(f"{method}/{seed}/{i}", method, seed,
                      dict(zip(values, map(float, each), strict=True)),
                      dict(zip(values, each[:, None] + draw.standard_normal((len(values), 64)),
                               strict=True)))
            for method, seed in product("pqrst", range(3)) for i, each in enumerate(weights)
        ]  # fmt: skip
        began = time.perf_counter()
        summarise(evaluated, resamples=2000, confidence=CONFIDENCE)
        found[f"seconds_with_{len(values)}_values"] = round(time.perf_counter() - began, 2)
    return found | {"peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1)}


def show(cells: list[Cell], winners: list[dict[str, float]]) -> None:
    """A Markdown summary."""
    heads = ["candidates", "prompts", "seeds", "deviation", "mean", "its difference", "hypervolume",
             "its difference", "found", "bias", "bias left"]  # fmt: skip
    _row(heads)
    _row(["---:"] * len(heads))
    for each in cells:
        given = each.given_the_seeds if each.seeds == 1 else None
        shown = [
            f"{100 * getattr(each, name):.1f}" + (f" ({100 * given[name]:.1f})" if given else "")
            for name in NAMES
        ]
        numbers = [each.candidates, each.prompts, each.seeds, f"{each.deviation:g}"]
        bias = [f"{each.bias:.3f}", f"{each.bias_left:.3f}"]
        _row([*numbers, *shown, f"{100 * each.power:.0f}", *bias])
    print()
    heads = ["seeds", "deviation", "draws", "a winner is named", "any pair differs"]
    _row(heads)
    _row(["---:"] * len(heads))
    for one in winners:
        shares = [f"{100 * one[name]:.1f}" for name in ("winner", "any_pair")]
        _row([f"{one[name]:g}" for name in ("seeds", "deviation", "draws")] + shares)


def _row(cells: Sequence[object]) -> None:
    print("| " + " | ".join(map(str, cells)) + " |")


def add(file: Path, content: dict[str, object]) -> None:
    """Write keys into a JSON file, whose other keys stay."""
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | content, indent=1) + "\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--draws", type=int, default=2000, help="of every cell")
    parser.add_argument("--winner-draws", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--time",
        action="store_true",
        help="only time the report's summary, and add it and theory to the file",
    )
    options = parser.parse_args()
    if options.time:
        add(options.out, {"theory": theory(), "summarising": summarising()})
        return
    began = time.monotonic()
    tasks = [(*size, options.draws) for size in product(CANDIDATES[::-1], PROMPTS[::-1])]
    with get_context("fork").Pool(options.jobs) as pool:
        grid = pool.map_async(cells_of, tasks, chunksize=1)
        of_four = [(*each, options.winner_draws) for each in FALSE_WINNERS]
        winners = pool.map_async(false_winners, of_four, chunksize=1).get()
        cells = sorted(
            (each for some in grid.get() for each in some),
            key=lambda c: (c.candidates, c.prompts, c.seeds, c.deviation),
        )
    content = {
        "confidence": CONFIDENCE, "resamples": RESAMPLES, "seconds": time.monotonic() - began,
        "means": alternatives(options.draws),
        "cells": [asdict(each) for each in cells], "four_equal_methods": winners,
        "theory": theory(),
    }  # fmt: skip
    add(options.out, content)
    show(cells, winners)


if __name__ == "__main__":
    main()
