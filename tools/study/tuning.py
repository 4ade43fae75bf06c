"""Which setting each method takes."""

from __future__ import annotations

import json
from pathlib import Path

from vcsoup_dist.files import write_atomically
from vcsoup_dist.records.summary import SUMMARY, Summary


def write(run_dir: Path, out: Path, folder: Path) -> None:
    """tuning.json: the hypervolume of every setting, and each method's best.

    All have the same number of candidates, and one scale, which the first setting spans.
    """
    del out
    summary = Summary.read(run_dir / "report")
    if summary.comparisons is None:
        raise ValueError(f"{run_dir / 'report' / SUMMARY} compares nothing")
    volumes = summary.comparisons.hypervolumes
    best: dict[str, str] = {}
    for setting, volume in sorted(volumes.items(), key=lambda each: -each[1]):
        method = setting.partition("-")[0]
        best.setdefault(method, setting)
        print(f"{setting:26} {volume:.3f}{'  taken' if best[method] == setting else ''}")
    content = {"hypervolumes": volumes, "taken": best}
    write_atomically(folder / "tuning.json", json.dumps(content, indent=1) + "\n")
