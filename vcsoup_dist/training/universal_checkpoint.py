"""Checkpoints for another number of ranks, in DeepSpeed's universal format.

The format (deepspeed/checkpoint/ds_to_universal.py) is a folder a parameter, with its fp32 master
and its Adam moments whole. DeepSpeed's own converter takes one process, cuts everything into small
files before it joins them, and leaves a whole rank's state in the file that every rank reads. Here
each rank joins its share of the parameters straight from the mapped partitions, and the result is
the same.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vcsoup_dist.checkpoints.deepspeed_files import COMPLETE
from vcsoup_dist.errors import UserError
from vcsoup_dist.files import remove_leftovers, replacing, sync, sync_tree, write_atomically

STATES = ("fp32", "exp_avg", "exp_avg_sq")
POLL = 0.1  # seconds

_SHARDED = {"base_optimizer_state", "param_slice_mappings", "single_partition_of_fp32_groups"}


class _Fragment(NamedTuple):
    """A range of a parameter's elements in a rank's flat tensors."""

    rank: int
    group: int
    start: int
    numel: int


@dataclass(frozen=True)
class _Partitions:
    """The optimizer states of all ranks, mapped into memory."""

    flats: Sequence[Sequence[Mapping[str, Any]]]
    """[ranks][groups] -> the flat tensors of `STATES`, and `step`."""
    shapes: Mapping[str, torch.Size]
    fragments: Mapping[str, Sequence[_Fragment]]
    """Parameter -> ranges of its elements, in order."""
    common: Mapping[str, Any]
    """State that is the same on all ranks."""
    stage: int


def begin(output: Path) -> None:
    """Remove a killed run's marks of finished ranks below `output`, but not their work."""
    for mark in output.with_name(output.name + ".partial").glob("done-*-of-*"):
        mark.unlink()


def convert(checkpoint: Path, output: Path, rank: int, world_size: int) -> None:
    """Make `output`, the universal form of a checkpoint of ZeRO-2 or -3.

    Called by all ranks together, after one of them has called `begin`; each does its share and
    waits for the others by polling the disk, so that no timeout of a collective ends a long
    conversion. Written aside, marked complete, renamed; any number of ranks resume it after a kill.
    UserError for a checkpoint that has no such form.
    """
    if (output / COMPLETE).is_file():
        return
    partial = output.with_name(output.name + ".partial")
    found = _open(checkpoint)
    largest_first = sorted(found.shapes, key=lambda name: (-found.shapes[name].numel(), name))
    for name in largest_first[rank::world_size]:
        _write_parameter(found, name, partial / "zero" / name)
    if rank == 0:
        _save(dict(found.common), partial / "zero" / "optimizer_state.pt")
        _link(_model_states(checkpoint), partial)
    write_atomically(partial / f"done-{rank}-of-{world_size}", "")
    if rank > 0:
        _wait(lambda: (output / COMPLETE).is_file())
        return
    marks = [partial / f"done-{other}-of-{world_size}" for other in range(world_size)]
    _wait(lambda: all(mark.is_file() for mark in marks))
    for mark in partial.glob("done-*-of-*"):
        mark.unlink()
    remove_leftovers(partial)
    sync_tree(partial)
    write_atomically(partial / COMPLETE, "{}")
    partial.rename(output)
    sync(output.parent)


def _open(checkpoint: Path) -> _Partitions:
    # weights_only: the file runs no code but these classes of DeepSpeed.
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    if (checkpoint / "offloaded_tensors").is_dir():
        raise UserError(
            f"{checkpoint}: its optimizer is on NVMe, which another number of ranks cannot"
            " load; set launch.ranks back to what it was"
        )
    allowed = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    model_file = _model_states(checkpoint)
    optim_files = sorted(checkpoint.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt"), key=_rank)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            model = torch.load(model_file, map_location="cpu", mmap=True, weights_only=True)
            states = [
                torch.load(file, map_location="cpu", mmap=True, weights_only=True)[
                    "optimizer_state_dict"
                ]
                for file in optim_files
            ]
        if [_rank(file) for file in optim_files] != list(range(model["dp_world_size"])):
            raise UserError(f"{checkpoint}: lacks the optimizer states of some ranks")
        partitions = (_stage_3 if states[0]["zero_stage"] == 3 else _stage_2)(model, states)
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise UserError(f"{checkpoint}: {_cannot(error)}") from error
    for name, shape in partitions.shapes.items():
        if sum(each.numel for each in partitions.fragments.get(name, ())) != shape.numel():
            raise UserError(f"{checkpoint}: its ranks' parts of {name!r} do not make {list(shape)}")
    return partitions


def _stage_3(model: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> _Partitions:
    ranks = len(states)
    flats = [
        [
            {**state["optimizer_state_dict"]["state"][group], "fp32": fp32}
            for group, fp32 in enumerate(state["fp32_flat_groups"])
        ]
        for state in states
    ]
    shapes: dict[str, torch.Size] = {}
    fragments: dict[str, list[_Fragment]] = {}
    for group, names in enumerate(model["param_shapes"]):
        start = 0
        for name, shape in names.items():
            # All ranks' parts have the same length; the last may end in padding.
            part = math.ceil(shape.numel() / ranks)
            held = [min(part, max(0, shape.numel() - rank * part)) for rank in range(ranks)]
            shapes[name] = shape
            fragments[name] = [
                _Fragment(rank, group, start, held[rank]) for rank in range(ranks) if held[rank]
            ]
            start += part
    groups = states[0]["optimizer_state_dict"]["param_groups"]
    common = {key: value for key, value in states[0].items() if key != "fp32_flat_groups"}
    common |= {
        "optimizer_state_dict": {"state": {0: _steps(flats[0][0])}, "param_groups": groups},
        "param_groups": groups,
    }
    return _Partitions(flats, shapes, fragments, common, 3)


def _stage_2(model: Mapping[str, Any], states: Sequence[Mapping[str, Any]]) -> _Partitions:
    flats = [
        [
            {**state["base_optimizer_state"]["state"][group], "fp32": fp32}
            for group, fp32 in enumerate(state["single_partition_of_fp32_groups"])
        ]
        for state in states
    ]
    shapes = {name: shape for names in model["param_shapes"] for name, shape in names.items()}
    fragments: dict[str, list[_Fragment]] = {}
    for rank, state in enumerate(states):
        for group, mapping in enumerate(state["param_slice_mappings"]):
            for name, where in mapping.items():
                fragment = _Fragment(rank, group, where.start, where.numel)
                fragments.setdefault(name, []).append(fragment)
    common = {key: value for key, value in states[0].items() if key not in _SHARDED}
    common["param_groups"] = states[0]["base_optimizer_state"]["param_groups"]
    return _Partitions(flats, shapes, fragments, common, 2)


def _steps(flat: Mapping[str, Any]) -> dict[str, Any]:
    return {"step": flat["step"]} if "step" in flat else {}


def _write_parameter(found: _Partitions, name: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for state in STATES:
        if (folder / f"{state}.pt").is_file():  # written by a killed run
            continue
        parts = [
            found.flats[each.rank][each.group][state].narrow(0, each.start, each.numel)
            for each in found.fragments[name]
        ]
        whole = torch.cat(parts)
        shaped = {"cat_dim": 0, "param": whole.view(found.shapes[name])}
        _save(whole if found.stage == 3 else shaped, folder / f"{state}.pt")
    first = found.fragments[name][0]
    if found.stage == 2:
        for step in _steps(found.flats[first.rank][first.group]).values():
            _save(step, folder / "step.pt")
    sync(folder)


def _save(content: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside:
        torch.save(content, aside)


def _link(file: Path, folder: Path) -> None:
    """The same file also in `folder`; a copy where the file system has no links."""
    target = folder / file.name
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _model_states(checkpoint: Path) -> Path:
    """The file of model states that DeepSpeed reads with a universal checkpoint."""
    for name in ("zero_pp_rank_0_mp_rank_00_model_states.pt", "mp_rank_00_model_states.pt"):
        if (checkpoint / name).is_file():
            return checkpoint / name
    raise UserError(f"{checkpoint}: holds no model states of rank 0")


def _rank(file: Path) -> int:
    return int(file.name.partition("zero_pp_rank_")[2].partition("_")[0])


def _cannot(error: Exception) -> str:
    reason = " ".join(str(error).split())[:120]
    return (
        f"cannot be converted for another number of ranks ({type(error).__name__}: {reason});"
        " set launch.ranks back to what it was, or remove that folder"
    )


def _wait(until: Callable[[], bool]) -> None:
    while not until():
        time.sleep(POLL)
