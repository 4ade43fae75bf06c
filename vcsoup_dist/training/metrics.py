"""Writing the metrics of every step: lines of JSON, TensorBoard points and W&B, by rank 0."""

from __future__ import annotations

import importlib.util
import os
import uuid
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.records.step_metrics import METRICS, StepMetrics


class MetricsLog:
    """Appends to `metrics.jsonl`, TensorBoard event files and, where a project is named, to W&B.

    A context manager. A resumed run drops the lines of steps that it takes again.
    """

    def __init__(
        self, folder: Path, first_step: int, wandb_project: str | None = None, name: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / METRICS
        lines = path.read_text().splitlines() if path.exists() else []
        steps = [step for line in lines if (step := StepMetrics.from_line(line))]
        path.write_text("".join(each.as_line() for each in steps if each.step < first_step))
        self._file = open(path, "a")  # noqa: SIM115 - lives as long as this object
        from torch.utils.tensorboard import SummaryWriter

        if first_step == 0:  # the curve of another recipe, or of a run killed early
            for old in folder.glob("events.out.tfevents*"):
                old.unlink()
        self._board = SummaryWriter(str(folder), purge_step=first_step)
        self._wandb = (
            None if wandb_project is None else _start_wandb(wandb_project, folder, name, first_step)
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record one step's values."""
        self._file.write(StepMetrics(step, values).as_line())
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(values, step=step)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()


def lacks_wandb(project: str | None) -> str:
    """What is missing for a project of W&B; empty where nothing is.

    Python takes a folder `wandb` of former runs for a package, which does not count.
    """
    found = importlib.util.find_spec("wandb") if project is not None else None
    if project is None or (found is not None and found.origin is not None):
        return ""
    return "launch.wandb: the package wandb is not installed; pip install wandb, or remove the key"


def _start_wandb(project: str, folder: Path, name: str, first_step: int) -> Any:
    """A W&B run; a resumed training continues its first one."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"launch.wandb: the package wandb cannot be imported ({error}); pip install wandb"
        ) from error
    marker = folder / "wandb-run"
    if first_step == 0 or not marker.exists():
        marker.write_text(uuid.uuid4().hex[:16])
    try:
        return wandb.init(
            project=project,
            name=name,
            id=marker.read_text(),
            resume="allow",
            dir=str(folder),
            settings=wandb.Settings(silent=True),
        )
    except Exception as error:  # its own errors, and those of the network
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"launch.wandb: {reason}; `wandb login`, or set WANDB_MODE=offline"
        ) from error


def peak_memory_gib() -> float:
    """Peak memory of this rank in GiB: the GPU's, or the process's on a CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    with open(f"/proc/{os.getpid()}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmHWM"].split()[0]) / 2**20
