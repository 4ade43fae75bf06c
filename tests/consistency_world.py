"""Scored pairs of chosen numbers, in the files that the first stage leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.pairs import (
    HELD_OUT,
    PairsFile,
    PairsManifest,
    pair_row,
    pairs_schema,
    train_name,
)
from vcsoup_dist.records.scores import ScoreShard, summarise, write_scores
from vcsoup_dist.workspace import Product, Workspace


@dataclass(frozen=True)
class Scored:
    """A dataset of P pairs under N values; the last `heldout` of them are held out."""

    ids: np.ndarray
    """[P] uint64."""
    chosen: np.ndarray
    """[P, N], NaN where the pair has no reward."""
    rejected: np.ndarray
    heldout: int = 2

    @property
    def train(self) -> Scored:
        return Scored(self.ids[: -self.heldout], *self.sides(slice(None, -self.heldout)), 0)

    def sides(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        return self.chosen[rows], self.rejected[rows]


def draw_scored(seed: int, pairs: int, values: int, missing: float = 0.05) -> Scored:
    """Small whole numbers with ties and zero gaps, in another unit for every value."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(0, 2**64, pairs, dtype=np.uint64)
    units = 10.0 ** draw.integers(-3, 4, values)
    chosen, rejected = (draw.integers(-3, 4, (pairs, values)) * units for _ in range(2))
    gone = draw.random((pairs, values)) < missing
    chosen[gone] = rejected[gone] = np.nan
    return Scored(ids, chosen, rejected)


def write_pair_files(folder: Path, scored: Scored, file_pairs: int) -> None:
    """Texts say which pair they are of and which answer they are."""
    files = []
    last = len(scored.ids) - scored.heldout
    for first in range(0, last, file_pairs):
        ids = scored.ids[first : min(first + file_pairs, last)]
        files.append(PairsFile(train_name(len(files)), len(ids)))
        _write_texts(folder / files[-1].file, ids)
    _write_texts(folder / HELD_OUT, scored.ids[last:])
    PairsManifest(len(scored.ids), last, scored.heldout, files).write(folder)


def _write_texts(path: Path, ids: np.ndarray) -> None:
    rows = []
    for i in ids.tolist():
        prompt = [{"role": "user", "content": f"prompt {i}"}]
        rows.append(pair_row(Pair(f"{i:016x}", prompt, f"chosen {i}", f"rejected {i}")))
    pq.write_table(pa.Table.from_pylist(rows, schema=pairs_schema([])), path)


def write_score_files(
    folder: Path, scored: Scored, value: int, file_pairs: int, heldout: bool = False
) -> None:
    """The scores of one value, as the first stage writes them."""
    last = len(scored.ids) - scored.heldout
    starts = range(0, last, file_pairs)
    parts = {
        train_name(i): slice(first, min(first + file_pairs, last)) for i, first in enumerate(starts)
    }
    train = list(parts)
    if heldout:
        parts[HELD_OUT] = slice(last, None)
    for name, rows in parts.items():
        chosen, rejected = scored.chosen[rows, value], scored.rejected[rows, value]
        failures = {int(i): "not a number" for i in np.flatnonzero(np.isnan(chosen))}
        ids = [f"{i:016x}" for i in scored.ids[rows].tolist()]
        write_scores(folder / name, ScoreShard(ids, chosen, rejected, failures=failures))
    summarise(folder, train).write(folder)


def value_names(count: int) -> list[str]:
    return [f"v{j}" for j in range(count)]


def make_world(
    folder: Path,
    model: Path,
    datasets: list[Scored],
    *,
    borrowing: bool = True,
    file_pairs: int = 7,
    **changed: object,
) -> tuple[Recipe, Workspace, list[Product]]:
    """A run directory whose pairs and scores are made; the first values bring the datasets.

    With `borrowing` the last value has no pairs of its own and takes those of all datasets.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judge.py").write_text("def judge(prompt, response):\n    return 0.0\n")
    names = value_names(datasets[0].chosen.shape[1])
    values: dict[str, dict] = {
        name: {
            "reward": {"columns": [f"{name}+", f"{name}-"]},
            "judge": {"callable": "judge.py:judge"},
        }
        for name in names
    }
    for name, _ in zip(names, datasets, strict=False):
        (folder / f"{name}.jsonl").write_text("")
        values[name]["data"] = {"path": f"{name}.jsonl"}
    if borrowing:
        values[names[-1]]["data"] = {"pairs_of": names[: len(datasets)]}
    recipe = {
        "name": "world",
        "model": str(model),
        "values": values,
        "soup": {"weights": [[1.0] + [0.0] * (len(datasets) - 1 + borrowing)]},
        **changed,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(folder / "recipe.yaml")
    workspace = Workspace.open(folder / "run", loaded)
    plan = make_plan(loaded, Hashes(folder / "run" / "hashes.json"))
    scored = dict(zip(names, datasets, strict=False))
    for product in plan:
        if product.stage in ("read", "score"):
            with workspace.publishing(product) as draft:
                if product.stage == "read":
                    write_pair_files(draft.output, scored[str(product.dataset)], file_pairs)
                else:
                    value = names.index(str(product.value))
                    own = scored[str(product.dataset)]
                    heldout = bool(product.covers)
                    write_score_files(draft.output, own, value, file_pairs, heldout)
    return loaded, workspace, [product for product in plan if product.stage == "filter"]
