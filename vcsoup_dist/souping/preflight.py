"""What a merge will read and write, and whether it can: known before the first byte is written."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.checkpoints.companions import (
    companion_files,
    read_json,
    require_same_companions,
)
from vcsoup_dist.checkpoints.layout import TensorSpec, read_layout
from vcsoup_dist.checkpoints.writer import Shard, header_bytes, plan_shards
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.formats import FLOAT_DTYPES
from vcsoup_dist.souping.grids import validate_weights

COPIED_DTYPES = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
"""Buffers of these must be equal in all policies, and are copied."""

Layout = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class MergePlan:
    """A merge that can be done: N policies into K soups."""

    layouts: tuple[Layout, ...]
    """Per policy; all hold the same names, dtypes and shapes."""
    shards: tuple[Shard, ...]
    """The files of every soup, in the order of the first policy's files."""
    soups: tuple[str, ...]
    weights: NDArray[np.float64]
    """[K, N]"""
    bytes_read: int
    bytes_written: int
    """All soups together: weights and their headers, and companions."""


def plan_merge(
    policies: Sequence[Path],
    soups: Mapping[str, Sequence[float]],
    out: Path,
    *,
    policy_names: Sequence[str],
    shard_size: int = 5 * 10**9,
) -> MergePlan:
    """Check all that can be checked without reading weights; arguments as those of `merge`.

    UserError where policies do not fit together, a soup is ill defined, something is in the way
    at `out`, or the disk there is too small.
    """
    if len(policies) != len(policy_names):
        raise ValueError(f"{len(policies)} policies, {len(policy_names)} names")
    if not policies or not soups:
        raise UserError("a merge needs at least one policy and one soup")
    for soup, row in soups.items():
        if len(row) != len(policies):
            raise UserError(f"soup {soup} has {len(row)} weights for {len(policies)} policies")
        validate_weights(row, extrapolate=True)  # the bounds are the affair of who made them
        if Path(soup).name != soup or soup in ("", ".."):
            raise UserError(f"soup {soup!r}: its name is no plain folder name")
        if (out / soup).exists():
            raise UserError(f"{out / soup}: is there already; remove it or choose another place")
    layouts = [read_layout(policy) for policy in policies]
    for name, layout in zip(policy_names, layouts, strict=True):
        _check_dtypes(layout, name)
        _check_same(layouts[0], policy_names[0], layout, name)
    _check_not_quantised(policies, policy_names)
    require_same_companions(policies, policy_names)
    shards = plan_shards(
        [(spec.name, spec.dtype, spec.shape) for spec in layouts[0].values()], shard_size
    )
    companions = companion_files(policies[0]).values()
    per_soup = sum(shard.nbytes + len(header_bytes(shard)) for shard in shards)
    per_soup += sum(file.stat().st_size for file in companions)
    written = per_soup * len(soups)
    _check_disk(out, written)
    _check_open_files(len(soups), len(policies))
    return MergePlan(
        layouts=tuple(layouts),
        shards=tuple(shards),
        soups=tuple(soups),
        weights=np.array([list(row) for row in soups.values()], dtype=np.float64),
        bytes_read=sum(spec.nbytes for layout in layouts for spec in layout.values()),
        bytes_written=written,
    )


def _check_dtypes(layout: Layout, name: str) -> None:
    for spec in layout.values():
        if spec.dtype not in FLOAT_DTYPES and spec.dtype not in COPIED_DTYPES:
            raise UserError(
                f"policy {name}: {spec.name} is {spec.dtype}; quantised or complex numbers"
                " cannot be summed: save the policy in bf16, fp16 or fp32"
            )


def _check_same(first: Layout, first_name: str, other: Layout, other_name: str) -> None:
    for with_it, has, without, lacks in (
        (first, first_name, other, other_name),
        (other, other_name, first, first_name),
    ):
        missing = [name for name in with_it if name not in without]
        if missing == ["lm_head.weight"]:
            raise UserError(
                f"policy {has} has its own lm_head.weight, policy {lacks} ties it to the embedding;"
                " save both the same way"
            )
        if missing:
            more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
            raise UserError(
                f"policy {lacks} lacks {missing[0]}{more} that policy {has} has; they are not"
                " policies of one model"
            )
    for spec in first.values():
        twin = other[spec.name]
        if twin.shape != spec.shape:
            raise UserError(
                f"{spec.name} has shape {list(spec.shape)} in policy {first_name} and"
                f" {list(twin.shape)} in policy {other_name}"
            )
        if twin.dtype != spec.dtype:
            raise UserError(
                f"{spec.name} is {spec.dtype} in policy {first_name} and {twin.dtype} in policy"
                f" {other_name}; save both in one dtype"
            )


def _check_not_quantised(policies: Sequence[Path], names: Sequence[str]) -> None:
    for policy, name in zip(policies, names, strict=True):
        config = policy / "config.json"
        if config.is_file() and read_json(config).get("quantization_config"):
            raise UserError(
                f"policy {name}: its config.json has a quantization_config; packed weights cannot"
                " be summed, give the policy as it was trained"
            )


def _check_disk(out: Path, needed: int) -> None:
    place = out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{place}: the soups need {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; free"
            " some, or merge fewer soups"
        )


def _check_open_files(soups: int, policies: int) -> None:
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = soups + policies + 64  # 64: what the process has open besides
    if allowed != resource.RLIM_INFINITY and needed > allowed:
        raise UserError(
            f"{soups} soups at once need {needed} open files, {allowed} are allowed: raise the"
            " limit (ulimit -n) or merge them in parts"
        )
