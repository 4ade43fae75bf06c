"""The consistency stage in many blocks: on Ray or not, killed or not, it is one result."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from consistency_world import Scored, draw_scored, make_world

from vcsoup_dist.consistency import stage

CHANGED = {
    "methods": ["vc_soup", "random"],
    "policies": ["v1"],
    "soup": {"weights": [[1.0]]},
}
"""Few products; v1 swaps some of the pairs that it borrows from v0."""

KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from consistency_world import draw_scored, make_world
from vcsoup_dist.consistency import stage

@contextmanager
def dies_after_the_first_part(title, total, unit):
    def advance(pairs):
        if title.endswith("writing"):
            os.kill(os.getpid(), signal.SIGKILL)
    yield advance

stage.ON_CLUSTER = int(sys.argv[3])
stage.progress = dies_after_the_first_part
folder, model = Path(sys.argv[1]), Path(sys.argv[2])
stage.make(*make_world(folder, model, [draw_scored(0, 100, 2)], **eval(sys.argv[4])))
"""


def drawn() -> list[Scored]:
    return [draw_scored(0, 100, 2)]


def content(run: Path) -> dict[Path, bytes]:
    files = (file for file in (run / "filtered").rglob("*") if file.is_file())
    return {file.relative_to(run): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, model_files: Path) -> dict[Path, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe, workspace, products = make_world(folder, model_files, drawn(), **CHANGED)
    stage.make(recipe, workspace, products)
    return content(workspace.root)


@pytest.mark.kills
@pytest.mark.processes
@pytest.mark.parametrize("on_cluster", [False, pytest.param(True, marks=pytest.mark.ray)])
def test_killed_while_it_writes_it_resumes_to_the_same_bytes(
    tmp_path: Path, model_files: Path, undisturbed, on_cluster, monkeypatch: pytest.MonkeyPatch
):
    from_bytes = "0" if on_cluster else str(10**9)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(model_files), from_bytes, repr(CHANGED)],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == -signal.SIGKILL
    (first,) = (tmp_path / "run" / "work" / "filtered" / "vc_soup").rglob("pairs-00000.parquet")
    written = first.stat().st_ino
    monkeypatch.setattr(stage, "ON_CLUSTER", int(from_bytes))
    recipe, workspace, products = make_world(tmp_path, model_files, drawn(), **CHANGED)
    stage.make(recipe, workspace, products)
    kept = workspace.root / "filtered" / "vc_soup" / "v1" / first.name
    assert kept.stat().st_ino == written
    assert content(workspace.root) == undisturbed
    assert sum(file.name.startswith("pairs-") for file in undisturbed) > 4


def test_values_with_missing_rewards_filter_as_numpy_does(tmp_path: Path, model_files: Path):
    datasets = [draw_scored(seed, 80, 4, missing=0.1) for seed in (3, 4)]
    datasets[1].ids[:5] = datasets[0].ids[10:15]
    settings = {"scope": "all", "normalisation": "gap_std", "threshold": 0.2, "min_norm": 0.5}
    recipe, workspace, products = make_world(
        tmp_path, model_files, datasets, methods=["vc_soup"], consistency=settings
    )
    stage.make(recipe, workspace, [each for each in products if each.value == "v3"])
    trained = [each.train for each in datasets]
    raw = np.concatenate([each.chosen - each.rejected for each in trained])
    gaps = raw / np.nanstd(raw, axis=0)
    gaps = np.where(gaps[:, 3:] < 0, -gaps, gaps)
    ids = np.concatenate([each.ids for each in trained])
    again = (np.arange(len(ids)) >= 78) & np.isin(ids, trained[0].ids)
    norms = np.linalg.norm(gaps, axis=1)
    usable = ~np.isnan(gaps).any(axis=1) & (gaps[:, 3] != 0) & ~again
    kept = usable & (norms >= 0.5) & (gaps.sum(axis=1) >= 0.2 * math.sqrt(4) * norms)
    folder = workspace.root / "filtered" / "vc_soup" / "v3"
    found = [
        row for file in sorted(folder.glob("pairs-*")) for row in pq.read_table(file).to_pylist()
    ]
    assert [int(row["id"], 16) for row in found] == ids[kept].tolist()
    written = [[row[f"gap_v{j}"] for j in range(4)] for row in found]
    np.testing.assert_allclose(written, gaps[kept], rtol=1e-12)
