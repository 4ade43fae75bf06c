"""Joining the other ranks, and collectives on small objects."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from vcsoup_dist.errors import UserError

T = TypeVar("T")

_control: Any = None

TIMEOUT = timedelta(days=7)
"""Of a collective: ranks wait while one converts a checkpoint or writes a model."""


def local_device() -> torch.device:
    """This rank's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def start_distributed() -> None:
    """Join the other ranks: NCCL on GPUs, gloo on CPUs and for objects."""
    global _control
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # Only DeepSpeed's tensor-parallel inference uses it, but it is compiled at the first start, and
    # a kill during that leaves a lock file that blocks every later start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = local_device()
    if device.type == "cuda":
        ranks, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if ranks > gpus:
            raise UserError(
                f"launch.ranks: {ranks} ranks on a machine with {gpus} GPUs; set it (in a Slurm "
                f"job --ntasks-per-node, with --gpus-per-node) to {gpus}, or CUDA_VISIBLE_DEVICES= "
                "in the environment to train on the CPU"
            )
        torch.cuda.set_device(device)
    # The watchdog limits collectives: it knows what each rank is doing.
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT, verbose=False
    )
    _control = dist.new_group(backend="gloo", timeout=TIMEOUT)


def control_group() -> Any:
    """The gloo group of all ranks, for objects, flags and long waits."""
    assert _control is not None, "start_distributed comes first"
    return _control


def barrier() -> None:
    """Wait for all ranks, for hours where needed."""
    dist.barrier(group=control_group())


def is_first() -> bool:
    """Whether this is rank 0, which logs and writes for all."""
    return dist.get_rank() == 0


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; the same answer everywhere."""
    total = torch.tensor([int(flag)])
    dist.all_reduce(total, op=dist.ReduceOp.MAX, group=control_group())
    return bool(total)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum of a small CPU tensor over all ranks."""
    total = values.clone()
    dist.all_reduce(total, group=control_group())
    return total


def gather_to_all(mine: T) -> list[T]:
    """Every rank's object, in order of ranks, on every rank."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine, group=control_group())
    return gathered


def gather_to_first(mine: T) -> list[T] | None:
    """Every rank's object, in order of ranks, on rank 0; None on the others."""
    gathered: list[Any] | None = [None] * dist.get_world_size() if is_first() else None
    dist.gather_object(mine, gathered, dst=0, group=control_group())
    return gathered
