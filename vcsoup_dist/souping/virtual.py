"""Virtual soups: theta(lambda) = sum_i lambda_i theta_i, from the policies straight into a model.

With a base theta_0 the soup is theta_0 + sum_i lambda_i (theta_i - theta_0), for any lambda.

    soup = load_soup(model, ["policies/a", "policies/b"], (0.3, 0.7))
    reweight(model, (0.6, 0.4))

The model is then the same bit for bit as `from_pretrained` of the written soup: each sum is rounded
once to the dtype that the soup would be stored in, the first policy's, and cast to the parameter's.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vcsoup_dist.checkpoints.direct_io import Bytes
from vcsoup_dist.checkpoints.layout import TensorSpec
from vcsoup_dist.checkpoints.reader import CheckpointReader, are_equal
from vcsoup_dist.checkpoints.sources import Source, open_source
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.arguments import as_path, as_row
from vcsoup_dist.souping.compatible import require_same, require_summable
from vcsoup_dist.souping.grids import validate_weights, weight_of_base
from vcsoup_dist.souping.kernels.formats import FLOAT_DTYPES
from vcsoup_dist.souping.kernels.kernel import weighted_sum
from vcsoup_dist.souping.live_tensors import (
    checkpoint_views,
    live_tensors,
    memory_of,
    tied_copies,
)
from vcsoup_dist.souping.name_matching import with_names_of_first
from vcsoup_dist.souping.stream import is_equal_buffer

ELEMENTS = 1 << 22  # of a tensor at a time: 8 MiB of each policy in bf16

FLOATS = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
INTEGERS = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16,
    "I16": torch.int16, "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64,
    "I64": torch.int64,
}  # fmt: skip

# What from_pretrained leaves out for every model: buffers of old checkpoints.
UNUSED_NAMES = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$")


@dataclass
class LiveSoup:
    """What a live model was filled with; does not keep the model alive."""

    sources: tuple[Source, ...]
    """The policies, then the base where there is one."""
    has_base: bool
    _model: weakref.ref[nn.Module]
    weights: tuple[float, ...] | None = field(default=None, init=False)
    """lambda, in the order of the policies; None after a filling that failed half way."""

    def reweight(self, weights: Sequence[float]) -> None:
        """Change lambda in place; as `reweight` of the model."""
        model = self._model()
        if model is None:
            raise UserError("the model that this soup was loaded into is gone")
        weights = as_row(weights, "weights")
        _check_weights(weights, len(self.sources) - self.has_base, self.has_base)
        fills, _ = _plan(model, self.sources)
        self.weights = None
        _LIVE[model] = self
        with torch.no_grad():
            of_base = (weight_of_base(weights),) if self.has_base else ()
            _sum_into(fills, self.sources, (*weights, *of_base))
        self.weights = tuple(float(weight) for weight in weights)


_LIVE: weakref.WeakKeyDictionary[nn.Module, LiveSoup] = weakref.WeakKeyDictionary()


def load_soup(
    model: nn.Module,
    policies: Sequence[str | Path | Source],
    weights: Sequence[float],
    base: str | Path | Source | None = None,
) -> LiveSoup:
    """Fill a transformers model with the soup of `policies` at `weights`.

    policies: N checkpoints that `open_source` opens, or opened; weights: N numbers, which sum to 1
    unless there is a base; base: theta_0, for theta_0 + sum_i weights_i (policy_i - theta_0).
    Parameters may lie on any devices and have any float dtype; those that accelerate has offloaded
    to host memory are filled there. Persistent buffers that the policies hold are filled too, those
    that they lack stay as they are. Holds one chunk of each policy in memory; a policy of weight 0
    is not read, nor is the base where the weights sum to 1 within 1e-6.

    UserError, before anything is overwritten, where policies and model do not fit together, integer
    buffers differ between policies, or a parameter is sharded by ZeRO-3, distributed, offloaded to
    disk or without memory. UserError with the model half filled where a policy holds NaN or
    infinity.
    """
    if isinstance(policies, (str, Path)):
        raise TypeError(f"policies must be a list of paths or strings, got {policies!r}")
    weights = as_row(weights, "weights")
    sources = tuple(_opened(each, "policies") for each in policies)
    _check_weights(weights, len(sources), base is not None)
    if base is not None:
        # A model as it was published may name tied weights, and save buffers, as policies do not.
        sources = tuple(with_names_of_first([*sources, _opened(base, "base")]))
    _check_policies(sources)
    fills, doubles = _plan(model, sources)
    _check_integers(fills, sources)
    _check_doubles(doubles, sources, model)
    soup = LiveSoup(sources, base is not None, weakref.ref(model))
    soup.reweight(weights)
    return soup


def reweight(model: nn.Module | LiveSoup, weights: Sequence[float]) -> None:
    """Change lambda of a model that `load_soup` has filled, reading the policies again.

    The model is then what `load_soup` of these weights would make of it. UserErrors as those of
    `load_soup`, and where no soup was loaded into the model.
    """
    soup = model if isinstance(model, LiveSoup) else _LIVE.get(model)
    if soup is None:
        raise UserError("no soup was loaded into this model; call load_soup first")
    soup.reweight(weights)


@dataclass(frozen=True)
class _Fill:
    """A tensor of the policies, and the memory of the model that it fills."""

    spec: TensorSpec
    """In the first policy."""
    places: tuple[Tensor, ...]
    """Of spec.shape; several where the model has copies of tied weights."""

    @property
    def dtype(self) -> torch.dtype:
        """What the soup is stored in."""
        return FLOATS.get(self.spec.dtype) or INTEGERS[self.spec.dtype]

    @property
    def row(self) -> int:
        """Elements that can only be written together."""
        if all(place.is_contiguous() for place in self.places):
            return 1
        return self.places[0][0].numel()

    @property
    def step(self) -> int:
        """Elements at a time."""
        return max(self.row, ELEMENTS // self.row * self.row)

    def parts(self) -> Iterator[tuple[int, int, list[Tensor]]]:
        """(begin, end, these elements of every place), in order."""
        numel, row, step = self.places[0].numel(), self.row, self.step
        for begin in range(0, numel, step):
            end = min(begin + step, numel)
            yield (
                begin,
                end,
                [
                    place.view(-1)[begin:end] if row == 1 else place[begin // row : end // row]
                    for place in self.places
                ],
            )


def _opened(policy: str | Path | Source, argument: str) -> Source:
    return policy if isinstance(policy, Source) else open_source(as_path(policy, argument))


def _check_weights(weights: Sequence[float], policies: int, has_base: bool) -> None:
    if not policies:
        raise UserError("a soup needs at least one policy")
    if len(weights) != policies:
        raise UserError(f"{len(weights)} weights for {policies} policies")
    # The bounds are the affair of who made them.
    validate_weights(weights, extrapolate=True, any_sum=has_base)


def _check_policies(policies: Sequence[Source]) -> None:
    """All hold the same tensors, which can be summed or copied."""
    first = policies[0]
    for policy in policies:
        name = str(policy.path)
        require_summable(policy.layout, name)
        # Under the first one's names: tied weights may have another in each.
        renamed = {each: twin for each in first.layout if (twin := _twin(policy, each))}
        unnamed = {spec.name for spec in renamed.values()}
        others = {each: spec for each, spec in policy.layout.items() if each not in unnamed}
        require_same(first.layout, str(first.path), renamed | others, name)


def _twin(policy: Source, name: str) -> TensorSpec | None:
    return policy.layout.get(policy.aliases.get(name, name))


def _plan(
    model: nn.Module, policies: Sequence[Source]
) -> tuple[list[_Fill], list[tuple[str, str]]]:
    """What fills what, in the order of the first policy; and names that share the same memory.

    Touches no data. UserError where a tensor has no place or a parameter stays unfilled.
    """
    first = policies[0]
    live = live_tensors(model)
    names = {name: [name] for name in first.layout}
    for alias, name in first.aliases.items():
        names[name].append(alias)
    known: Mapping[str, Tensor] = live
    if not all(live.keys() & each for each in names.values()):
        known = checkpoint_views(model, live) | live
    owners: dict[object, str] = {}  # memory -> who fills it
    places: dict[str, list[Tensor]] = {}
    doubles = []
    unknown = []
    for name in first.layout:
        places[name] = []
        tensors = [known[each] for each in names[name] if each in known]
        if not tensors and not _is_unused(model, name):
            unknown.append(name)
        for tensor in tensors:
            owner = owners.setdefault(memory_of(tensor), name)
            if owner != name:
                doubles.append((owner, name))
            elif all(memory_of(tensor) != memory_of(each) for each in places[name]):
                places[name].append(tensor)
    if unknown:
        raise UserError(
            f"{first.path}: holds {_first_of(unknown)}, for which {type(model).__name__} has no"
            " place; build the model from a policy's config"
        )
    for owner, tensor in tied_copies(model, live, owners):
        places[owner].append(tensor)
    fills = [_Fill(first.layout[name], tuple(each)) for name, each in places.items() if each]
    _check_fills(fills, model, first)
    _check_all_filled(model, live, owners, fills)
    return fills, doubles


def _is_unused(model: nn.Module, name: str) -> bool:
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(each, name) for each in (*UNUSED_NAMES, *patterns))


def _check_fills(fills: Sequence[_Fill], model: nn.Module, first: Source) -> None:
    for fill in fills:
        for place in fill.places:
            if tuple(place.shape) != fill.spec.shape:
                raise UserError(
                    f"{first.path}: {fill.spec.name} has shape {list(fill.spec.shape)}, in"
                    f" {type(model).__name__} {list(place.shape)}"
                )
            both_float = fill.dtype in FLOATS.values() and place.dtype in FLOATS.values()
            if not both_float and place.dtype != fill.dtype:
                raise UserError(
                    f"{first.path}: {fill.spec.name} is {fill.spec.dtype}, in"
                    f" {type(model).__name__} {place.dtype}; quantised models cannot be filled"
                )


def _check_all_filled(
    model: nn.Module,
    live: Mapping[str, Tensor],
    owners: Mapping[object, str],
    fills: Sequence[_Fill],
) -> None:
    unfilled = []
    for name, _ in model.named_parameters(remove_duplicate=False):
        whole = live.get(name)
        if whole is None or whole.numel() == 0 or memory_of(whole) in owners:
            continue
        end = whole.data_ptr() + whole.nbytes
        filled = sum(
            part.numel()
            for fill in fills
            for part in fill.places
            if part.device == whole.device and whole.data_ptr() <= part.data_ptr() < end
        )
        if filled != whole.numel():
            unfilled.append(name)
    if unfilled:
        raise UserError(f"{type(model).__name__}: the policies do not fill {_first_of(unfilled)}")


def _first_of(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _check_integers(fills: Sequence[_Fill], policies: Sequence[Source]) -> None:
    for name in (fill.spec.name for fill in fills if fill.spec.dtype in INTEGERS):
        for policy in policies[1:]:
            if not _are_equal((policies[0], name), (policy, name)):
                raise UserError(
                    f"{policy.path}: {name} differs from that of {policies[0].path}; integers have"
                    " no weighted sum"
                )


def _check_doubles(
    doubles: Sequence[tuple[str, str]], policies: Sequence[Source], model: nn.Module
) -> None:
    for one, other in doubles:
        for policy in policies:
            if not _are_equal((policy, one), (policy, other)):
                raise UserError(
                    f"{policy.path}: {one} and {other} differ, {type(model).__name__} ties them;"
                    " build the model with tie_word_embeddings=False"
                )


def _are_equal(one: tuple[Source, str], other: tuple[Source, str]) -> bool:
    """Whether two tensors of policies hold the same bytes; names may be aliases."""
    names = [policy.aliases.get(name, name) for policy, name in (one, other)]
    return are_equal(one[0].layout, names[0], names[1], other[0].layout)


def _sum_into(fills: Sequence[_Fill], policies: Sequence[Source], weights: Sequence[float]) -> None:
    used = [policy for policy, weight in zip(policies, weights, strict=True) if weight]
    row = np.array([[float(weight) for weight in weights if weight]])
    # Of the widest dtype.
    longest = 8 * max((min(fill.step, fill.places[0].numel()) for fill in fills), default=0)
    staging = np.empty(longest, np.uint8)  # untouched pages take no memory
    buffers = [np.empty(longest, np.uint8) for _ in used]
    with ExitStack() as stack:
        readers = [stack.enter_context(CheckpointReader(policy.layout)) for policy in used]
        for fill in fills:
            width = fill.dtype.itemsize
            for begin, end, parts in fill.parts():
                direct = _own_memory(parts[0], fill.dtype)
                out = direct if direct is not None else staging[: (end - begin) * width]
                if fill.spec.dtype in INTEGERS:  # the same in all policies
                    readers[0].read_into(_spec(used[0], fill).name, begin * width, out)
                else:
                    _sum_part(fill, begin, end, used, readers, buffers, row, out)
                for part in parts if direct is None else parts[1:]:
                    part.copy_(torch.from_numpy(out).view(fill.dtype).view(part.shape))


def _sum_part(
    fill: _Fill,
    begin: int,
    end: int,
    policies: Sequence[Source],
    readers: Sequence[CheckpointReader],
    buffers: Sequence[Bytes],
    weights: np.ndarray,
    out: Bytes,
) -> None:
    """Elements `begin` to `end` of one tensor's sum, into `out`."""
    specs = [_spec(policy, fill) for policy in policies]
    chunks = []
    for spec, reader, buffer in zip(specs, readers, buffers, strict=True):
        width = FLOAT_DTYPES[spec.dtype]
        chunks.append(buffer[: (end - begin) * width])
        reader.read_into(spec.name, begin * width, chunks[-1])
    dtypes = [spec.dtype for spec in specs]
    nonfinite = weighted_sum(chunks, dtypes, weights, fill.spec.dtype, [out])
    if any(nonfinite) and is_equal_buffer(fill.spec.name, chunks, dtypes):
        weighted_sum(chunks[:1], dtypes[:1], np.ones((1, 1)), fill.spec.dtype, [out])
        return
    for policy, is_bad in zip(policies, nonfinite, strict=True):
        if is_bad:
            raise UserError(
                f"{policy.path}: {fill.spec.name} holds NaN or infinity; its training has failed,"
                " take an earlier checkpoint"
            )


def _spec(policy: Source, fill: _Fill) -> TensorSpec:
    spec = _twin(policy, fill.spec.name)
    assert spec is not None  # _check_policies
    return spec


def _own_memory(part: Tensor, dtype: torch.dtype) -> Bytes | None:
    """The bytes of a part of a parameter, where a soup's bytes can be written straight to them."""
    if part.device.type != "cpu" or part.dtype != dtype or not part.is_contiguous():
        return None
    memory: Bytes = part.view(-1).view(torch.uint8).numpy()
    return memory
