"""The fp32 masters of ZeRO-1 and ZeRO-2, which the optimizer trains; the model used them rounded.

A group of parameters is one flat vector, which the ranks hold in equal parts: parameters lie in it
one after the other, the end is padding. This mirrors DeepSpeed's own `zero_to_fp32.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vcsoup_dist.checkpoints.deepspeed_files import find_tag, list_files
from vcsoup_dist.checkpoints.layout import Source, TensorSpec
from vcsoup_dist.checkpoints.zero3 import AS_USED, WRAPPED_AS, Flat, as_shapes, is_flat, load_states
from vcsoup_dist.errors import UserError


def with_masters(source: Source) -> Source:
    """A checkpoint of ZeRO-1 or -2 with its fp32 masters in place of the weights as used.

    Unchanged for other stages, and with a note where it has no optimizer states. UserError where
    these are damaged or do not fit the model states.
    """
    files = list_files(find_tag(source.path))
    if files.whole is None:
        return source
    model = load_states(files.whole)
    groups = model.content.get("param_shapes")
    others = tuple(note for note in source.notes if note != AS_USED)
    if not files.optim or not isinstance(groups, list) or not groups:
        note = "holds no fp32 masters: its weights are read as the model used them"
        return replace(source, notes=(*others, note))
    states = [_state(file) for file in files.optim]
    for file, state in zip(files.optim, states, strict=True):
        _check(file, state, len(files.optim), len(groups))
    prefix = model.content.get(WRAPPED_AS, "")
    layout = dict(source.layout)
    for i, group in enumerate(groups):
        vector = Flat([specs[i] for specs, _ in states])
        shapes = as_shapes(group, model, "param_shapes")
        begin = 0
        for name, shape, padding in zip(
            shapes, shapes.values(), _paddings(states[0][1], i, len(shapes)), strict=True
        ):
            count = math.prod(shape)
            if begin + count > vector.starts[-1]:
                raise UserError(
                    f"{files.optim[0]}: its masters hold {vector.starts[-1]} numbers, too few for"
                    f" {name!r} and those before; copy the files of all ranks again"
                )
            short = name.removeprefix(prefix)
            owner = source.aliases.get(short, short)
            if owner in layout and layout[owner].shape == shape:
                extents = tuple(vector.cut(begin, count)) or layout[owner].extents
                layout[owner] = TensorSpec(owner, vector.specs[0].dtype, shape, extents)
            begin += count + padding
    return replace(source, layout=layout, notes=others)


def _state(file: Path) -> tuple[list[TensorSpec], dict[str, Any]]:
    """This rank's part of every group, and the optimizer's state."""
    optim = load_states(file)
    state = optim.content.get("optimizer_state_dict")
    groups = state.get("single_partition_of_fp32_groups") if isinstance(state, dict) else None
    if not isinstance(groups, list) or not all(map(is_flat, groups)):
        raise UserError(f"{file}: holds no fp32 masters of ZeRO-1 or ZeRO-2")
    specs = [optim.spec(f"fp32 group {i}", each) for i, each in enumerate(groups)]
    return specs, state


def _check(
    file: Path, found: tuple[Sequence[TensorSpec], dict[str, Any]], ranks: int, groups: int
) -> None:
    specs, state = found
    counts = state.get("partition_count")
    count = max(counts, default=0) if isinstance(counts, list) else counts
    if count != ranks:
        raise UserError(
            f"{file}: was written by one of {count} ranks, there are files of {ranks}; copy the"
            " files of all ranks, and those of one checkpoint alone"
        )
    if len(specs) != groups or len({spec.dtype for spec in specs}) > 1:
        raise UserError(f"{file}: its fp32 groups are not those of the model states")


def _paddings(state: dict[str, Any], group: int, count: int) -> list[int]:
    """Numbers between a group's parameters, which newer versions may put there."""
    found = state.get("param_alignment_paddings")
    if found is None:
        return [0] * count
    paddings = list(found[group])
    if len(paddings) != count or not all(type(each) is int and each >= 0 for each in paddings):
        raise UserError("the optimizer states do not say where parameters begin")
    return paddings
