"""DeepSpeed checkpoints to resume from: written aside, marked complete, renamed, the last kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from vcsoup_dist.checkpoints.zero3 import COMPLETE, WRAPPED_AS
from vcsoup_dist.errors import UserError
from vcsoup_dist.files import sync, sync_tree, write_atomically


def save_checkpoint(engine: Any, folder: Path, step: int, metrics: Mapping[str, float]) -> Path:
    """Save all ranks' state after `step` optimizer steps, and what was measured by then.

    Called by all ranks together; returns the checkpoint's folder.
    """
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
        state = {"step": step, "ranks": dist.get_world_size(), "metrics": dict(metrics)}
        write_atomically(partial / COMPLETE, json.dumps(state))
        sync_tree(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync(folder)
        for older in folder.glob("step-*"):
            if older != final:
                shutil.rmtree(older)
    dist.barrier()
    return final


@dataclass(frozen=True)
class Resumed:
    """Where training goes on."""

    step: int
    """Optimizer steps that are done."""
    metrics: Mapping[str, float]
    """As `save_checkpoint` was given them."""
    checkpoint: Path | None


def resume(engine: Any, folder: Path) -> Resumed:
    """Load the newest complete checkpoint, if there is one."""
    complete = sorted(path.parent for path in folder.glob(f"step-*/{COMPLETE}"))
    complete = [path for path in complete if not path.name.endswith(".partial")]
    if not complete:
        return Resumed(0, {}, None)
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
    return Resumed(int(written["step"]), written["metrics"], newest)
