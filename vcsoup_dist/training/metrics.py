"""What a step was like: one line of JSON and TensorBoard points per step, by rank 0."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to `metrics.jsonl` and TensorBoard event files in a folder; closed by `with`.

    A resumed run drops the lines of steps that it takes again.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = []
        if path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) < first_step]
        path.write_text("".join(line + "\n" for line in kept))
        self._file = open(path, "a")  # noqa: SIM115 - lives as long as this object
        from torch.utils.tensorboard import SummaryWriter

        if first_step == 0:  # the curve of another recipe, or of a run killed early
            for old in folder.glob("events.out.tfevents*"):
                old.unlink()
        self._board = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record one step's values."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        self._board.close()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except ValueError:  # cut off by a kill
        return 1 << 62


def peak_memory_gib() -> float:
    """Peak memory of this rank in GiB: the GPU's, or the process's on a CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    with open(f"/proc/{os.getpid()}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmHWM"].split()[0]) / 2**20
