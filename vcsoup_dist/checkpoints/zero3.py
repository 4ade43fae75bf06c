"""Where every tensor of a DeepSpeed checkpoint lies, so that it is read without being converted.

Under ZeRO-3 each rank's `optim_states.pt` holds fp32 flat groups: its parts of the parameters in
the order of `param_shapes`, each part ceil(numel / ranks) elements, so that the last ranks' parts
may end in padding of arbitrary content. Frozen parameters are cut alike but lie in the ranks'
`model_states.pt`; buffers lie whole in rank 0's. This mirrors DeepSpeed's own
`deepspeed/utils/zero_to_fp32.py`. Under ZeRO-1 and -2, `mp_rank_00_model_states.pt` holds the
whole model as it is used in the forward pass.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch

from vcsoup_dist.checkpoints.deepspeed_files import OPTIM_NAME, RankFiles, find_tag, list_files
from vcsoup_dist.checkpoints.layout import DTYPE_BITS, Extent, Source, TensorSpec, element_count
from vcsoup_dist.checkpoints.pickled import (
    Pickled,
    is_name,
    load_without_data,
    separate_aliases,
    state_dict_specs,
)
from vcsoup_dist.errors import UserError

T = TypeVar("T")

WRAPPED_AS = "wrapped_as"
"""Key of its client state: what the wrapper puts before the names of the model's parameters."""

AS_USED = "its weights are read as the model used them, not from the optimizer's fp32 masters"
"""What is noted of ZeRO-1 and -2."""

_SWAPPED = re.compile(r"(\d+)_(\d+)\.tensor\.swp")
_SWAP_PADDING = 1 << 20  # bytes; DeepSpeed pads to its threads times 1024


class _Ignored:
    """Stands in for an object of DeepSpeed whose state does not matter here."""


# Nothing of DeepSpeed is imported, and none of its code runs.
_ALLOWED = (
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_Ignored, "deepspeed.utils.tensor_fragment.fragment_address"),
    (_Ignored, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Ignored, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
)


class Flat:
    """A rank's flat tensors, thought of as laid end to end."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.specs = specs
        self.sizes = [math.prod(spec.shape) for spec in specs]
        self.starts = list(accumulate(self.sizes, initial=0))

    def cut(self, begin: int, count: int) -> list[Extent]:
        """Where the elements from `begin` on lie, `count` of them."""
        extents = []
        while count > 0:
            index = bisect_right(self.starts, begin) - 1
            skipped = begin - self.starts[index]
            taken = min(count, self.sizes[index] - skipped)
            file, start, _ = self.specs[index].extents[0]
            size = DTYPE_BITS[self.specs[index].dtype] // 8
            extents.append(Extent(file, start + skipped * size, taken * size))
            begin, count = begin + taken, count - taken
        return extents


def open_checkpoint(path: Path) -> Source:
    """A DeepSpeed checkpoint, or the newest of a folder of them.

    The newest is the one that the file `latest` names, or of this project's own the last that is
    complete. ZeRO-3: the fp32 masters; lower stages: the weights as the model used them.
    UserError where files are missing, damaged or disagree, and for checkpoints whose parameters
    are cut in other ways as well (model, pipeline or expert parallel, universal).
    """
    tag = find_tag(path)
    files = list_files(tag)
    if files.whole is not None:
        model = load_states(files.whole)
        _refuse_experts(model)
        module = model.content.get("module")
        if not module:
            raise UserError(f"{files.whole}: holds no weights of a module")
        specs, aliases = separate_aliases(state_dict_specs(model, module))
    else:
        model = load_states(files.model[0])
        _refuse_experts(model)
        flats = _read_flats(files.optim, _shapes_of_groups(model))
        specs = _cut_parameters(model, flats)
        specs |= _frozen_parameters(model, files.model)
        specs |= _buffers(model)
        aliases = {
            alias: owner
            for alias, owner in _names_to(str, model, "shared_params").items()
            if owner in specs and alias not in specs
        }
    prefix = model.content.get(WRAPPED_AS, "")
    if not isinstance(prefix, str) or not all(
        name.startswith(prefix) and name != prefix for name in (*specs, *aliases)
    ):
        raise UserError(f"{model.file}: {WRAPPED_AS!r} is {prefix!r}, its tensors' names are not")
    cut = len(prefix)
    layout = {name[cut:]: spec._replace(name=name[cut:]) for name, spec in specs.items()}
    aliases = {name[cut:]: of[cut:] for name, of in aliases.items()}
    notes = (AS_USED,) if files.whole and files.optim else ()
    return Source(path, "zero3", layout, aliases, notes, lacks_frozen=_lacks_frozen(model, files))


def load_states(file: Path) -> Pickled:
    """What a file of a DeepSpeed checkpoint holds; UserError where it is none."""
    pickled = load_without_data(file, _ALLOWED)
    if not isinstance(pickled.content, dict):
        raise UserError(f"{file}: is not a file of a DeepSpeed checkpoint")
    return pickled


def _lacks_frozen(model: Pickled, files: RankFiles) -> bool | None:
    """Whether `exclude_frozen_parameters` was asked for; ZeRO-0 and -1 do not say."""
    config = model.content.get("ds_config")
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    stage = zero.get("stage") if isinstance(zero, dict) else None
    if "frozen_param_shapes" not in model.content or (files.whole and stage not in (2, 3)):
        return None
    return model.content["frozen_param_shapes"] is None


def _refuse_experts(model: Pickled) -> None:
    if any(model.content.get(key) for key in ("ds_autoep_layers", "autoep_layers")):
        raise UserError(f"{model.file}: expert-parallel checkpoints cannot be read")


def _read_flats(files: Sequence[Path], shapes: Mapping[str, tuple[int, ...]]) -> list[Flat]:
    """Every rank's flat groups; UserError where the ranks are not of one checkpoint.

    shapes: of the trained parameters in DeepSpeed's order.
    """
    parts = [_part(shape, len(files)) for shape in shapes.values()]
    flats: list[Flat] = []
    for file in files:
        optim = load_states(file)
        state = optim.content.get("optimizer_state_dict")
        if not isinstance(state, dict) or state.get("zero_stage") != 3:
            raise UserError(f"{file}: holds no optimizer states of ZeRO-3")
        if state.get("ds_zero_partition_groups") is not None:
            raise UserError(f"{file}: expert-parallel checkpoints cannot be read")
        if state.get("partition_count") != len(files):
            raise UserError(
                f"{file}: was written by one of {state.get('partition_count')} ranks, there are"
                f" files of {len(files)}; keep the files of one checkpoint alone"
            )
        groups = state.get("fp32_flat_groups")
        if not isinstance(groups, list) or not groups or not all(map(is_flat, groups)):
            raise UserError(f"{file}: holds no flat groups of weights")
        specs = [optim.spec(f"fp32_flat_groups[{i}]", each) for i, each in enumerate(groups)]
        specs = _with_swapped(file, specs, parts)
        flats.append(Flat(specs))
        if _kinds(flats[-1]) != _kinds(flats[0]):
            raise UserError(f"{file}: its flat groups are not like those of {files[0].name}")
        if len({spec.dtype for spec in specs}) > 1:
            raise UserError(f"{file}: its flat groups are of several dtypes")
    return flats


def _with_swapped(
    file: Path, specs: Sequence[TensorSpec], parts: Sequence[int]
) -> list[TensorSpec]:
    """The groups, those that lay on NVMe from the files that were copied beside the checkpoint.

    In the list itself they are empty. Their files are named by the first and the last of their
    parameters, of which this rank has `parts` elements each, and end in padding.
    """
    found = OPTIM_NAME.fullmatch(file.name)
    assert found is not None
    folder = file.parent / "offloaded_tensors" / f"rank{int(found[1]):02d}"
    names = [match for each in folder.glob("*") if (match := _SWAPPED.fullmatch(each.name))]
    if not names:
        return list(specs)
    names.sort(key=lambda match: int(match[1]))
    empty = [i for i, spec in enumerate(specs) if spec.shape == (0,)]
    if len(names) != len(empty):
        raise UserError(f"{folder}: holds {len(names)} swapped groups for {len(empty)} of {file}")
    filled = list(specs)
    for i, match in zip(empty, names, strict=True):
        count = sum(parts[int(match[1]) : int(match[2]) + 1])
        swapped, nbytes = folder / match[0], 4 * count
        if not 0 <= swapped.stat().st_size - nbytes < _SWAP_PADDING:
            raise UserError(f"{swapped}: is not as long as its parameters; copy it again")
        filled[i] = TensorSpec(specs[i].name, "F32", (count,), (Extent(swapped, 0, nbytes),))
    return filled


def is_flat(tensor: Any) -> bool:
    """Whether it is a tensor of one dimension."""
    return isinstance(tensor, torch.Tensor) and tensor.dim() == 1


def _kinds(flat: Flat) -> list[tuple[str, tuple[int, ...]]]:
    return [(spec.dtype, spec.shape) for spec in flat.specs]


def _shapes_of_groups(model: Pickled) -> dict[str, tuple[int, ...]]:
    """The trained parameters in DeepSpeed's order."""
    shapes: dict[str, tuple[int, ...]] = {}
    groups = model.content.get("param_shapes")
    for group in groups if isinstance(groups, list) else [groups]:
        shapes |= as_shapes(group, model, "param_shapes")
    return shapes


def _cut_parameters(model: Pickled, flats: Sequence[Flat]) -> dict[str, TensorSpec]:
    """The trained parameters: which elements of the ranks' flat groups they are."""
    shapes = _shapes_of_groups(model)
    specs: dict[str, TensorSpec] = {}
    begin = 0
    for name, shape in shapes.items():
        part = _part(shape, len(flats))
        if begin + part <= flats[0].starts[-1]:
            specs[name] = _join(name, shape, flats, begin)
        begin += part
    if begin != flats[0].starts[-1]:
        raise UserError(
            f"{model.file}: its parameters need {begin} elements a rank, the optimizer states hold"
            f" {flats[0].starts[-1]}; weights swapped to NVMe or sharded otherwise cannot be read"
        )
    return specs


def _frozen_parameters(model: Pickled, files: Sequence[Path]) -> dict[str, TensorSpec]:
    shapes = as_shapes(model.content.get("frozen_param_shapes") or {}, model, "frozen_param_shapes")
    if not shapes:
        return {}
    fragments: dict[str, list[Flat]] = {name: [] for name in shapes}
    for file in files:
        rank = load_states(file) if file != model.file else model
        for key in ("dp_world_size", "frozen_param_shapes"):
            if rank.content.get(key) != model.content.get(key):
                raise UserError(
                    f"{file}: is not of the same checkpoint as {model.file.name} ({key} differs)"
                )
        found = _names_to(torch.Tensor, rank, "frozen_param_fragments")
        for name, shape in shapes.items():
            if name not in found or found[name].numel() != _part(shape, len(files)):
                raise UserError(f"{file}: holds no part of the frozen {name!r} as of {shape}")
            if found[name].dtype == torch.int8:
                raise UserError(f"{file}: the frozen {name!r} is quantised and cannot be read")
            fragments[name].append(Flat([rank.spec(name, found[name])]))
            if fragments[name][-1].specs[0].dtype != fragments[name][0].specs[0].dtype:
                raise UserError(f"{file}: the frozen {name!r} is of another dtype than in rank 0")
    return {name: _join(name, shape, fragments[name], 0) for name, shape in shapes.items()}


def _buffers(model: Pickled) -> dict[str, TensorSpec]:
    names = model.content.get("buffer_names")
    module = model.content.get("module")
    if not isinstance(names, list) or not isinstance(module, dict):
        raise UserError(f"{model.file}: does not say which buffers the model has")
    return state_dict_specs(model, {name: module[name] for name in module if name in names})


def _join(name: str, shape: tuple[int, ...], flats: Sequence[Flat], begin: int) -> TensorSpec:
    """The tensor whose parts begin at element `begin` of each rank's flat tensors."""
    left, part = math.prod(shape), _part(shape, len(flats))
    first = flats[0].specs[0]
    extents: list[Extent] = []
    for flat in flats:
        extents += flat.cut(begin, min(part, left))
        left -= part
    return TensorSpec(name, first.dtype, shape, tuple(extents) or (Extent(first.file, 0, 0),))


def _part(shape: Sequence[int], ranks: int) -> int:
    """Elements of a parameter that each rank holds, padding included."""
    return -(-math.prod(shape) // ranks)


def _is_possible(shape: Sequence[int]) -> bool:
    try:
        return element_count(shape) >= 0
    except ValueError:
        return False


def as_shapes(found: Any, model: Pickled, key: str) -> dict[str, tuple[int, ...]]:
    """Shapes by name; UserError where `found`, `key` of the model states, is anything else."""
    if not isinstance(found, dict) or not all(
        is_name(name)
        and isinstance(shape, tuple)
        and all(type(size) is int and size >= 0 for size in shape)
        and _is_possible(shape)
        for name, shape in found.items()
    ):
        raise UserError(f"{model.file}: its {key} are not shapes by name")
    return {name: tuple(shape) for name, shape in found.items()}


def _names_to(kind: type[T], model: Pickled, key: str) -> Mapping[str, T]:
    found = model.content.get(key) or {}
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, kind) for name, value in found.items()
    ):
        raise UserError(f"{model.file}: its {key} are not {kind.__name__} by name")
    return found
