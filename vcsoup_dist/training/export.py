"""The finished policy as sharded safetensors, streamed from the last checkpoint.

No rank ever holds the model: each streams its share of the files from the partitions of all ranks.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch.distributed as dist

from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.preflight import plan_merge
from vcsoup_dist.souping.write import finish, placement, write_soups

MEMORY = 1 << 28  # bytes of each rank

DTYPES = {"fp32": "F32", "bf16": "BF16"}


def export_policy(checkpoint: Path, companions: Path, output: Path, dtype: str) -> None:
    """Write a checkpoint into the directory `output` as a model, its weights as `dtype`.

    companions: a directory with its config and tokenizer; dtype: as in the recipe.

    Called by all ranks together. Tied weights are written once, under their first name, as
    transformers does. Goes on after a kill.
    """
    plan = plan_merge(
        [checkpoint],
        {"policy": (1.0,)},
        names=["checkpoint"],
        dtype=DTYPES[dtype],
        companions=companions,
    )
    where = placement(plan, checkpoint.with_name("export"), inside=False)
    written = write_soups(
        plan,
        where,
        memory=MEMORY,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        overwrite=True,
        card=False,
        title="export",
    )
    dist.barrier()
    if dist.get_rank() == 0:
        # Ranks of other nodes may have seen each other's journals too late.
        if not written.finished and not finish(plan, where, card=False):
            raise UserError(f"{where.work}: a rank has not written its share; run it again")
        # The manifest last: while it is here a run that was killed goes on with the rest.
        for file in sorted(where.out.iterdir(), key=lambda each: each.name == "manifest.json"):
            file.replace(output / file.name)
        shutil.rmtree(where.out)
    dist.barrier()
