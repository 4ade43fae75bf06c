"""A sample of every dataset: how many of its first rows are pairs, before a run starts."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.json_rows import remedy
from vcsoup_dist.preferences.other_columns import not_read
from vcsoup_dist.preferences.pair import BadRow, LeftOut, Pair
from vcsoup_dist.preferences.row_sources import split_files
from vcsoup_dist.preferences.rows import read_pairs
from vcsoup_dist.recipe import Data, Recipe
from vcsoup_dist.workspace import Product

ROWS = 1000
"""Rows of a sample, fewer of each file where a split has many."""
FILES = 50
SECONDS = 3.0
"""After which a file of huge rows is looked at no longer."""
REASONS = 3


@dataclass
class Sample:
    """What became of the first rows of a dataset."""

    rows: int = 0
    pairs: int = 0
    joined: int = 0
    whole: bool = True
    """Whether these are all its rows."""
    bad: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    first_row: dict[str, int] = field(default_factory=dict)
    tally: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        """How many of the rows are pairs, and why the others are none."""
        text = f"{self.pairs:,} of the first {self.rows:,} rows are pairs"
        if self.joined:
            text += f", {self.joined:,} the other half of one"
        for what, found in (("cannot be used", self.bad), ("make no pair", self.left_out)):
            if found:
                text += f"; {found.total():,} {what}: {self.reasons(found)}"
        return text

    def reasons(self, found: Counter[str]) -> str:
        """The most frequent reasons, each with how often and where first."""
        named = [
            f"{count:,} {reason} (first in row {self.first_row[reason]:,})"
            for reason, count in found.most_common(REASONS)
        ]
        return ", ".join(named) + (", …" if len(found) > REASONS else "")


def check_files(recipe: Recipe, plan: Sequence[Product]) -> list[str]:
    """A line for every local dataset of a plan, training and held out, and its warnings.

    Raises UserError where one cannot be read, does not have what its `data` or a reward names, or
    where none of its first rows is a pair.
    """
    lines: list[str] = []
    for product in plan:
        if product.stage == "read":
            for key, source, split in _sources(recipe, product):
                lines += _look(recipe, product, key, source, split)
    return lines


def first_pairs(recipe: Recipe, product: Product, source: Located, most: int) -> list[Pair]:
    """The first pairs of a source of a product of stage `read`, with the columns that rewards name.

    Raises UserError as `read_pairs` does.
    """
    rows = _rows(recipe, product, source, _data(recipe, product).split, Counter())
    return list(islice((row for _, row in rows if isinstance(row, Pair)), most))


def _data(recipe: Recipe, product: Product) -> Data:
    return recipe.datasets()[str(product.dataset)]


def _sources(recipe: Recipe, product: Product) -> Iterator[tuple[str, Located, str]]:
    """(its key in the recipe, where it lies, its split) of what a dataset is read from."""
    data, key = _data(recipe, product), f"values.{product.dataset}.data"
    yield key, product.sources["data"], data.split
    if "heldout" in product.sources:
        yield f"{key}.heldout", product.sources["heldout"], data.split
    elif data.heldout is not None:
        yield f"{key}.heldout", product.sources["data"], data.heldout


def _look(recipe: Recipe, product: Product, key: str, source: Located, split: str) -> Iterator[str]:
    path = Path(source.source)
    if not path.exists():
        yield f"{key} ({source.source}): not read before the download"
        return
    files = split_files(source, _data(recipe, product).subset, split) or [path]
    shown = files[:FILES]
    if len(files) > FILES:
        yield f"{key} ({path.name}): {FILES} of its {len(files):,} files are looked at"
    for file in shown:
        place = Located(str(file), None, None) if file.is_file() else source
        rows = max(ROWS // len(shown), 20)
        sample = _sample(recipe, product, place, split, rows)
        where = path.name if file == path else f"{path.name}/{os.path.relpath(file, path)}"
        name = f"{key} ({where})" if file.is_file() else f"{key} ({where}, split {split})"
        yield from _judge(name, sample, recipe.scoring.max_bad_rows)


def _sample(recipe: Recipe, product: Product, source: Located, split: str, rows: int) -> Sample:
    found = Sample()
    end = None
    for number, row in _rows(recipe, product, source, split, found.tally, sample=rows + 1):
        end = end or time.monotonic() + SECONDS
        if found.rows == rows or (found.rows and time.monotonic() > end):
            found.whole = False
            break
        found.rows += 1
        if isinstance(row, Pair):
            found.pairs += 1
        elif row is None:
            found.joined += 1
        else:
            reasons = found.bad if isinstance(row, BadRow) else found.left_out
            reasons[row.reason] += 1
            found.first_row.setdefault(row.reason, number)
    return found


def _judge(name: str, sample: Sample, max_bad_rows: float) -> Iterator[str]:
    """The lines about a sample; raises UserError where no run can come of it."""
    bad = sample.bad.total()
    judged = sample.rows - sample.joined - sample.left_out.total()
    advice = next(iter(filter(None, map(remedy, sample.bad))), None)
    if not sample.rows:
        raise UserError(f"{name}: it holds no rows")
    if not sample.pairs:
        reasons = sample.reasons(sample.bad + sample.left_out)
        raise UserError(
            f"{name}: none of the first {sample.rows:,} rows is a pair: {reasons}"
            + (f"; {advice}" if advice else "")
        )
    text = f"{name}: {sample.text()}" + (f"; {advice}" if advice else "")
    if bad > max_bad_rows * judged:
        allowed = f"scoring.max_bad_rows is {max_bad_rows:g}"
        if sample.whole:
            raise UserError(f"{text}; {allowed}, so fix the rows or raise it")
        text += f"; warning: {allowed}, and `vcsoup score` refuses a file with more"
    yield text
    if unread := not_read(sample.tally):
        yield f"warning: {name}: {unread}"


def _rows(
    recipe: Recipe,
    product: Product,
    source: Located,
    split: str,
    tally: Counter[str],
    sample: int | None = None,
) -> Iterator[tuple[int, Pair | BadRow | LeftOut | None]]:
    data = _data(recipe, product)
    return read_pairs(
        source,
        format=data.format,
        preferred_by=data.preferred_by,
        subset=data.subset,
        split=split,
        columns=product.made_from["columns"],
        tally=tally,
        sample=sample,
    )
