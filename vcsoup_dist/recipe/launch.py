"""`launch` and `keep`: where a run runs, and what of it stays."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PrivateAttr

from vcsoup_dist.recipe.sbatch_options import JobName, SbatchOptions
from vcsoup_dist.recipe.section import Section


class Launch(Section):
    """Where ranks and actors run."""

    launcher: Literal["local", "srun"] = "local"
    """Where training ranks run: on this machine, or with `srun` one for each task of the Slurm job
    in which the command runs. `--launcher` on the command line goes before it."""
    ranks: int = Field(1, ge=1)
    """Training processes on this machine, one per GPU where there are GPUs. A Slurm job has its
    own number of tasks."""
    threads: int = Field(1, ge=1)
    """OMP_NUM_THREADS of every rank and actor; on a CPU it decides the last bits of a result."""
    max_minutes: float | None = Field(None, gt=0, le=1e6)
    """Training saves and stops so long after the command's start, but not before a step is done;
    the same command resumes."""
    hang_minutes: float = Field(30, gt=0, le=1e6)
    """A micro-batch that takes longer ends the run, with every rank's stack in its logs."""
    peak_tflops: float | None = Field(None, gt=0)
    """Dense peak of one device for `training.dtype`, by which MFU is reckoned. Absent: known from
    the name of usual GPUs."""
    wandb: str | None = None
    """Weights & Biases project that also gets the metrics; needs the package `wandb`."""
    ray_address: str | None = None
    """Address of a running Ray cluster. Absent: RAY_ADDRESS, else a cluster of this machine.
    `--address` on the command line goes before it."""
    slurm: dict[JobName, SbatchOptions] = {}
    """Options of `sbatch` for the job of each stage, by their long names, such as
    `train: {nodes: 2, ntasks-per-node: 8, gpus-per-node: 8, time: "24:00:00"}`. They go before the
    site file's (docs/slurm.md), and those before what follows from the recipe: what its ranks
    and actors need on one node."""
    policies_at_once: int | None = Field(None, ge=1)
    """At most so many policies are trained at a time by `vcsoup submit`, each with checkpoints on
    the disk. Absent: as many as Slurm starts."""
    merge_ranks: int = Field(1, ge=1)
    """Jobs of one array that share the merging, in `vcsoup submit`."""

    _ray_address_from: str = PrivateAttr(default="launch.ray_address")

    @property
    def ray_address_from(self) -> str:
        """Where `ray_address` was given, for messages."""
        return self._ray_address_from


class Keep(Section):
    """What stays on disk."""

    checkpoints: bool = False
    """DeepSpeed checkpoints of finished policies; otherwise they go as soon as one is finished."""
    reference: bool = True
    """Reference log-probs, once all policies are trained."""
    soups: bool = True
    """Soups as model directories. `false`: evaluation sums the policies in memory, with the same
    result bit for bit, and a soup is written only by `vcsoup merge`, until `vcsoup clean`."""
