"""DeepSpeed checkpoints to resume from: written aside, marked complete, renamed, some kept.

    step-00000040/            complete: COMPLETE was written last
    step-00000060.partial/    being written, or being removed
    step-00000040.universal/  converted for another number of ranks, until those save

All ranks together call `save_checkpoint`, `find_checkpoint` and `load`. They exchange small objects
over `group`; None is the default group.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vcsoup_dist.checkpoints.deepspeed_files import COMPLETE
from vcsoup_dist.checkpoints.zero3 import WRAPPED_AS
from vcsoup_dist.errors import UserError
from vcsoup_dist.files import DISK_FULL, sync, sync_tree, write_atomically
from vcsoup_dist.progress import log
from vcsoup_dist.training.universal_checkpoint import begin, convert

HELDOUT = "heldout_loss"
"""The metric by which a checkpoint is the best."""

FIX = "remove that folder to resume from the one before"

_NAME = re.compile(r"step-\d{8}")


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint."""

    path: Path
    step: int
    """Optimizer steps that are done."""
    metrics: Mapping[str, float]
    """As passed to `save_checkpoint`."""
    ranks: int
    """Number of ranks that wrote it."""
    stage: int
    """ZeRO stage that wrote it."""
    files: Mapping[str, int]
    """Path below `path` -> bytes."""
    universal: Path | None = None
    """Converted for any number of ranks; the engine must be configured to load that."""


def save_checkpoint(
    engine: Any,
    folder: Path,
    step: int,
    metrics: Mapping[str, float],
    kept: int = 1,
    best: bool = False,
    group: Any = None,
) -> Path:
    """Save all ranks' state after `step` optimizer steps, with the metrics so far.

    The newest `kept` checkpoints stay, and with `best` also the one of the lowest held-out loss.
    Returns the checkpoint's folder. UserError for a full disk.
    """
    final = folder / f"step-{step:08d}"
    partial = final.with_name(final.name + ".partial")
    rank = dist.get_rank()
    if rank == 0:
        _remove(partial)
    dist.barrier(group=group)
    with _full_disk_as_user_error(partial):
        engine.save_checkpoint(
            str(folder), tag=partial.name, client_state={WRAPPED_AS: "model."}, save_latest=False
        )
        # Each rank its own files: another node's fsync may not reach them.
        for file in partial.glob(f"*zero_pp_rank_{rank}_mp_rank_*"):
            sync(file)
        dist.barrier(group=group)
        if rank == 0:
            sync_tree(partial)
            state = {
                "step": step,
                "ranks": dist.get_world_size(),
                "stage": int(engine.zero_optimization_stage()),
                "metrics": dict(metrics),
                "files": _sizes(partial),
            }
            write_atomically(partial / COMPLETE, json.dumps(state))
            _publish(partial)
            _remove_superseded(folder, kept, best)
    dist.barrier(group=group)
    return final


def find_checkpoint(folder: Path, group: Any = None) -> CheckpointInfo | None:
    """The newest complete checkpoint, ready to be loaded by this number of ranks.

    Called before the engine is built: where `universal` is set, its configuration needs
    `{"checkpoint": {"load_universal": True}}`. Removes what killed runs left incomplete.
    UserError where the checkpoint is damaged or cannot be converted for this number of ranks.
    """
    shared: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            shared = [_find_and_tidy(folder, dist.get_world_size())]
        except UserError as error:
            shared = [str(error)]
    dist.broadcast_object_list(shared, src=0, group=group)
    (found,) = shared
    if isinstance(found, str):
        raise UserError(found)
    if found is None:
        return None
    assert isinstance(found, CheckpointInfo)
    if found.universal is not None:
        with _full_disk_as_user_error(found.universal):
            convert(found.path, found.universal, dist.get_rank(), dist.get_world_size())
    return found


def load(engine: Any, found: CheckpointInfo) -> None:
    """Load weights, Adam's moments and step count into a fresh engine.

    UserError where DeepSpeed cannot read the checkpoint.
    """
    if getattr(engine.optimizer, "swap_optimizer", False):
        # Seen with DeepSpeed 0.19.8: after a load the loss curve is another one.
        raise UserError(
            f"{found.path}: DeepSpeed does not restore optimizer states on NVMe, so this training"
            " cannot be resumed; remove that folder to start again, or train with"
            " training.deepspeed: zero3_offload_param"
        )
    stage = int(engine.zero_optimization_stage())
    if stage != found.stage:
        raise UserError(
            f"{found.path}: was written under ZeRO-{found.stage} and cannot be resumed under"
            f" ZeRO-{stage}; set training.deepspeed back, or remove that folder"
        )
    tag = found.universal or found.path
    try:
        path, _ = engine.load_checkpoint(str(tag.parent), tag=tag.name)
        reason = "DeepSpeed finds no files of its own there"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # its own asserts, torch's, zipfile's and the unpickler's
        path, reason = None, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    if path is None:
        raise UserError(
            f"{tag}: cannot be loaded ({reason}); remove {found.path} to resume without it"
        )
    if found.universal is not None:
        # DeepSpeed's loader shares one tensor of steps among all parameter groups, and each would
        # increment it.
        for state in engine.optimizer.optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()


def newest_checkpoint(folder: Path) -> CheckpointInfo:
    """The complete checkpoint of most steps; UserError where there is none."""
    return _complete(folder)[-1]


def best_checkpoint(folder: Path) -> CheckpointInfo:
    """The one of the lowest held-out loss, of equals the newest; the newest where none has one.

    UserError where none is complete.
    """
    complete = _complete(folder)
    return _best(complete) or complete[-1]


def _complete(folder: Path) -> list[CheckpointInfo]:
    """In order of steps; UserError where there is none."""
    found = [_read(path) for path in _published(folder)]
    if not found:
        raise UserError(f"{folder}: holds no complete checkpoint; train again")
    return found


def _published(folder: Path) -> list[Path]:
    """Complete checkpoints in order of steps."""
    return sorted(
        path.parent for path in folder.glob(f"*/{COMPLETE}") if _NAME.fullmatch(path.parent.name)
    )


def _read(path: Path) -> CheckpointInfo:
    """Read a complete checkpoint's marker."""
    try:
        written = json.loads((path / COMPLETE).read_text())
        return CheckpointInfo(
            path,
            int(written["step"]),
            dict(written["metrics"]),
            int(written["ranks"]),
            int(written["stage"]),
            dict(written["files"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / COMPLETE}: is damaged ({error!r}); {FIX}") from None


def _require_whole(found: CheckpointInfo) -> None:
    for name, size in found.files.items():
        file = found.path / name
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(f"{file}: is missing, or not of its {size} bytes; {FIX}")


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _best(found: Sequence[CheckpointInfo]) -> CheckpointInfo | None:
    """Of equals the newest."""
    measured = [each for each in found if math.isfinite(each.metrics.get(HELDOUT, math.nan))]
    return min(reversed(measured), key=lambda each: each.metrics[HELDOUT], default=None)


def _find_and_tidy(folder: Path, ranks: int) -> CheckpointInfo | None:
    for partial in folder.glob("step-*.partial"):
        # Killed between marker and rename, it is as good as published.
        if _NAME.fullmatch(partial.stem) and (partial / COMPLETE).is_file():
            _publish(partial)
    published = _published(folder)
    found = _read(published[-1]) if published else None
    if found is not None:
        _require_whole(found)
        if found.ranks != ranks:
            found = replace(found, universal=found.path.with_name(found.path.name + ".universal"))
    for path in folder.glob("step-*"):
        if found and found.universal and path.name.removesuffix(".partial") == found.universal.name:
            continue
        if path not in published:
            _remove(path)
    if found is not None and found.universal is not None:
        log.info("%s: written by %d ranks, is converted for %d", found.path, found.ranks, ranks)
        begin(found.universal)
    return found


def _publish(partial: Path) -> None:
    """Give a complete checkpoint its name, replacing an older one of the same step."""
    final = partial.with_suffix("")
    _remove(final)
    partial.rename(final)
    sync(final.parent)


def _remove_superseded(folder: Path, kept: int, best: bool) -> None:
    published = [_read(path) for path in _published(folder)]
    staying = published[-max(kept, 1) :]
    if best and (chosen := _best(published)):
        staying = [*staying, chosen]
    for each in published:
        if each not in staying:
            _remove(each.path)
    for universal in folder.glob("step-*.universal*"):  # this number of ranks has its own now
        _remove(universal)


def _remove(path: Path) -> None:
    """The marker first: half a checkpoint must not look complete."""
    if (path / COMPLETE).exists():
        (path / COMPLETE).unlink()
        sync(path)
    if path.is_dir():
        shutil.rmtree(path)


@contextlib.contextmanager
def _full_disk_as_user_error(partial: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not is_full_disk(error):
            raise
        free = shutil.disk_usage(partial.parent).free
        raise UserError(
            f"{partial}: the checkpoint could not be written, {free / 1e9:.2f} GB are free; free"
            " more and run the same command again, it resumes from the last checkpoint"
        ) from error


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error or its cause is that of a full disk, which torch.save hides."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        said = ("PytorchStreamWriter failed", "inline_container", "iostream error")
        if isinstance(error, RuntimeError) and any(words in str(error) for words in said):
            return True
        error = error.__context__
    return False
