"""DeepSpeed checkpoints to resume from: written aside, marked complete, renamed, the last kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vcsoup_dist.checkpoints.zero3 import COMPLETE, WRAPPED_AS
from vcsoup_dist.errors import UserError
from vcsoup_dist.files import sync, sync_tree, write_atomically


def save_checkpoint(engine: Any, folder: Path, step: int) -> None:
    """Save all ranks' state after `step` optimizer steps. Called by all ranks together."""
    final = folder / f"step-{step:08d}"
    partial = final.with_name(final.name + ".partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    dist.barrier()
    engine.save_checkpoint(
        str(folder), tag=partial.name, client_state={WRAPPED_AS: "model."}, save_latest=False
    )
    dist.barrier()
    if dist.get_rank() == 0:
        write_atomically(
            partial / COMPLETE, json.dumps({"step": step, "ranks": dist.get_world_size()})
        )
        sync_tree(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync(folder)
        for older in folder.glob("step-*"):
            if older != final:
                shutil.rmtree(older)
    dist.barrier()


def resume(engine: Any, folder: Path) -> int:
    """Load the newest complete checkpoint; the number of steps it holds, 0 without one."""
    complete = sorted(path.parent for path in folder.glob(f"step-*/{COMPLETE}"))
    complete = [path for path in complete if not path.name.endswith(".partial")]
    if not complete:
        return 0
    newest = complete[-1]
    written = json.loads((newest / COMPLETE).read_text())
    if written["ranks"] != dist.get_world_size():
        raise UserError(
            f"{newest} was written by {written['ranks']} ranks and cannot be resumed by "
            f"{dist.get_world_size()}; set launch.ranks to {written['ranks']} or remove that folder"
        )
    path, _ = engine.load_checkpoint(str(folder), tag=newest.name)
    if path is None:
        raise UserError(f"{newest}: DeepSpeed cannot read this checkpoint; remove that folder")
    return int(written["step"])
