"""The finished policy as sharded safetensors, written without any rank holding the model."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vcsoup_dist.checkpoints.writer import ShardFile, plan_shards, write_index

SHARD_SIZE = 5_000_000_000  # bytes, the size that readers are used to

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def export_weights(engine: Any, folder: Path) -> None:
    """Write the wrapped model's parameters below `folder`. Called by all ranks together.

    Tensors are gathered one at a time; each file is written by one rank, in turn. Tied weights are
    written once, under their first name, as transformers does.
    """
    import deepspeed

    parameters = dict(engine.module.model.named_parameters())
    described = [
        (name, DTYPES[each.dtype], tuple(getattr(each, "ds_shape", each.shape)))
        for name, each in parameters.items()
    ]
    shards = plan_shards(described, SHARD_SIZE)
    rank, world = dist.get_rank(), dist.get_world_size()
    if rank == 0:  # what a killed export left
        for leftover in folder.glob("model*.safetensors"):
            leftover.unlink()
    dist.barrier()
    for number, shard in enumerate(shards):
        mine = number % world == rank
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(ShardFile.create(folder, shard)) if mine else None
            for name, _, _ in shard.tensors:
                parameter = parameters[name]
                sharded = hasattr(parameter, "ds_id")
                with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
                    if file is not None:
                        data = parameter.detach().cpu().contiguous().reshape(-1)
                        file.write(name, 0, data.view(torch.uint8).numpy())
    dist.barrier()
    if rank == 0:
        write_index(folder, shards)
