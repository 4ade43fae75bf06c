"""The finished policy as sharded safetensors, streamed from the last checkpoint.

No rank ever holds the model: each streams its share of the files from the partitions of all ranks.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vcsoup_dist.checkpoints.layout import Layout, read_layout
from vcsoup_dist.errors import UserError
from vcsoup_dist.records.soup_manifest import MANIFEST_NAME
from vcsoup_dist.souping.merge_run import MergeRun
from vcsoup_dist.souping.options import MergeOptions
from vcsoup_dist.souping.output.state import publish_soups
from vcsoup_dist.souping.output.write import write_soups
from vcsoup_dist.souping.plan import plan_merge

MEMORY = 1 << 28  # bytes of each rank

DTYPES = {"fp32": "F32", "bf16": "BF16"}


def export_policy(
    checkpoint: Path,
    auxiliary: Path,
    output: Path,
    dtype: str,
    expected: Mapping[str, tuple[int, ...]],
    group: Any = None,
) -> None:
    """Write a checkpoint into the directory `output` as a model, its weights as `dtype`.

    auxiliary: a directory with its config and tokenizer; dtype: as in the recipe; expected: the
    model's tensors, name -> full shape of parameters and persistent buffers, tied ones under their
    first name; group: where ranks wait for each other, None for the default group.

    Called by all ranks together. Tied weights are written once, under their first name, as
    transformers does. Resumes after a kill. UserError where the checkpoint, or what was written,
    does not hold exactly the model's tensors.
    """
    options = MergeOptions(
        model=auxiliary,
        dtype=DTYPES[dtype],
        memory=MEMORY,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        overwrite=True,
        card=False,
        title="export",
    )
    plan = plan_merge([checkpoint], {"policy": (1.0,)}, ["checkpoint"], options)
    fix = "remove that folder to resume from the one before"
    require_tensors(plan.sources[0].layout, expected, checkpoint, fix)
    run = MergeRun.into(checkpoint.with_name("export"), plan, options, inside=False)
    report = write_soups(run)
    dist.barrier(group=group)
    if dist.get_rank() == 0:
        # Ranks of other nodes may have seen each other's journals too late.
        if not report.finished and not publish_soups(run):
            raise UserError(f"{run.work}: a rank has not written its share; run it again")
        _move(run.out, output, expected)
    dist.barrier(group=group)


def _move(written: Path, output: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Move a written model to `output`, the manifest last: while it is missing, this is redone."""
    for file in sorted(written.iterdir()):
        if file.name != MANIFEST_NAME:
            file.replace(output / file.name)
    try:
        require_tensors(read_layout(output), expected, output, "run it again to rewrite it")
    except UserError:
        for file in output.glob("*.safetensors*"):
            file.unlink()
        shutil.rmtree(written)
        raise
    (written / MANIFEST_NAME).replace(output / MANIFEST_NAME)
    shutil.rmtree(written)


def require_tensors(
    layout: Layout, expected: Mapping[str, tuple[int, ...]], where: Path, fix: str
) -> None:
    """UserError where a checkpoint does not hold exactly the model's tensors, none of them empty.

    expected: as for `export_policy`; fix: the end of the error's line.
    """
    missing, extra = expected.keys() - layout.keys(), layout.keys() - expected.keys()
    wrong = [
        f"{name!r} is {list(layout[name].shape)} and not {list(shape)}"
        for name, shape in expected.items()
        if name in layout and layout[name].shape != tuple(shape)
    ]
    empty = [name for name in expected if name in layout and not math.prod(layout[name].shape)]
    faults = [
        *(f"lacks {name!r}" for name in sorted(missing)),
        *(f"holds {name!r}, which the model lacks" for name in sorted(extra)),
        *wrong,
        *(f"{name!r} is empty" for name in empty),
    ]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise UserError(
            f"{where}: is not the model that was trained: {', '.join(faults[:3])}{more}; {fix}"
        )
