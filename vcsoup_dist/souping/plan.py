"""What a merge will read and write, and whether it can: known before the first byte is written."""

from __future__ import annotations

import math
import resource
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vcsoup_dist.checkpoints.auxiliary_files import (
    CONFIG_NAME,
    auxiliary_digests,
    auxiliary_files,
)
from vcsoup_dist.checkpoints.completeness import what_is_lacking
from vcsoup_dist.checkpoints.json_file import read_json
from vcsoup_dist.checkpoints.layout import DTYPE_BITS, TensorSpec
from vcsoup_dist.checkpoints.sources import Source, open_source
from vcsoup_dist.checkpoints.writer import Shard, TensorMeta, header_bytes, plan_shards, shards_like
from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log
from vcsoup_dist.souping.compatible import require_same, require_summable
from vcsoup_dist.souping.fingerprints import FileState, files_of, source_fingerprint, state_of
from vcsoup_dist.souping.kernels.formats import FLOAT_DTYPES, Float64
from vcsoup_dist.souping.name_matching import aligned
from vcsoup_dist.souping.stream import Recipients
from vcsoup_dist.souping.tokenizer_source import choose_tokenizer_source

SHARD_SIZE = 5 * 10**9
"""Bytes per weights file, the size that readers are used to."""


@dataclass(frozen=True)
class MergePlan:
    """A merge that can be done: N policies, the base among them where it takes part, K soups."""

    sources: tuple[Source, ...]
    """[N]; all hold the same names and shapes."""
    names: tuple[str, ...]
    """[N]"""
    soups: Mapping[str, tuple[float, ...]]
    """[K] name -> lambda, as asked for: of the policies, without the base."""
    weights: Float64
    """[K, N] what the sources are multiplied with."""
    base: str | None
    """Name of theta_0 where soups are theta_0 + sum_i lambda_i (theta_i - theta_0)."""
    shards: tuple[Shard, ...]
    """The files of every soup, in the order of the first policy's bytes."""
    companions: Path | None
    """Whose config, tokenizer and chat template the soups get."""
    auxiliary_digests: Mapping[str, str]
    """Name -> digest of each of these files."""
    states: Mapping[Path, FileState]
    """Of all files that the sources' tensors lie in, as they were when their headers were read."""
    source_fingerprints: Sequence[list[Any]]
    """[N] cheap signs of what each source is."""

    def recipients(self) -> Recipients:
        """What the one pass sums."""
        widest = [DTYPE_BITS[dtype] // 8 for shard in self.shards for _, dtype, _ in shard.tensors]
        layouts = [source.layout for source in self.sources]
        return Recipients(layouts, self.names, self.weights, max(widest, default=8))

    @property
    def bytes_read(self) -> int:
        """Of weights, each once."""
        return sum(spec.nbytes for source in self.sources for spec in source.layout.values())

    @property
    def soup_bytes(self) -> int:
        """Of one soup: weights, their headers, and companions."""
        files = auxiliary_files(self.companions).values() if self.companions else ()
        weights = sum(shard.nbytes + len(header_bytes(shard)) for shard in self.shards)
        return weights + sum(file.stat().st_size for file in files)


def plan_merge(
    policies: Sequence[Path | Source],
    soups: Mapping[str, Sequence[float]],
    *,
    names: Sequence[str],
    base: Path | None = None,
    dtype: str | None = None,
    shard_size: int | None = SHARD_SIZE,
    companions: Path | None = None,
) -> MergePlan:
    """Check all that can be checked without reading weights or looking at the output.

    policies: checkpoints that `open_source` knows, or opened ones; soups: name -> N weights;
    names: of the policies; base: theta_0 of task vectors; dtype: safetensors' name of what floats
    are written as, the first policy's where None; shard_size: bytes, None for files cut as the
    first policy's; companions: where config and tokenizer come from, the first policy that has
    them where None. UserError where policies do not fit together or a soup is ill defined.
    """
    if len(policies) != len(names) or len(set(names)) != len(names):
        raise ValueError(f"{len(policies)} policies need as many distinct names, got {names}")
    if not policies or not soups:
        raise UserError("a merge needs at least one policy and one soup")
    for soup, row in soups.items():
        if len(row) != len(policies):
            raise UserError(f"soup {soup} has {len(row)} weights for {len(policies)} policies")
        if not all(weight == 0 or 1e-100 < abs(weight) < 1e100 for weight in row):
            raise UserError(
                f"soup {soup}: weights must be finite, and 0 or between 1e-100 and 1e100 in size,"
                f" got {list(row)}"
            )
        if Path(soup).name != soup or soup in ("", ".."):
            raise UserError(f"soup {soup!r}: its name is no plain folder name")
    if shard_size is not None and shard_size < 1:
        raise UserError(f"a weights file cannot have {shard_size} bytes; give a larger shard size")
    if companions is not None:
        require_config(companions)
    sources = [each if isinstance(each, Source) else open_source(each) for each in policies]
    names = list(names)
    weights = np.array([list(row) for row in soups.values()], dtype=np.float64)
    base_name = None
    if base is not None:
        base_name = base.resolve().name
        if base_name in names:
            base_name = f"base {base_name}"
        of_base = np.array([_rest_of(row) for row in weights.tolist()])
        if of_base.any():  # else theta_0 cancels, and is not read
            sources.append(open_source(base))
            names.append(base_name)
            weights = np.column_stack([weights, of_base])
    sources = aligned(sources)
    for name, source in zip(names, sources, strict=True):
        require_summable(source.layout, name)
        require_same(sources[0].layout, names[0], source.layout, name)
        _check_not_quantised(source, name)
        for note in source.notes:
            log.info("%s: %s", name, note)
    named_base = (base_name, base) if base is not None and base_name else None
    donor = choose_tokenizer_source(
        list(zip(names, (source.path for source in sources[: len(policies)]), strict=False)),
        named_base,
        companions,
    )
    if donor:
        _require_whole(sources[0], donor)
    return MergePlan(
        sources=tuple(sources),
        names=tuple(names),
        soups={soup: tuple(row) for soup, row in soups.items()},
        weights=weights,
        base=base_name,
        shards=tuple(_shards(sources[0], dtype, shard_size)),
        companions=donor,
        auxiliary_digests=auxiliary_digests(donor) if donor else {},
        states={path: state_of(path) for source in sources for path in files_of(source)},
        source_fingerprints=[source_fingerprint(source) for source in sources],
    )


def require_config(model: Path) -> None:
    """UserError where a folder has no config to give to a soup."""
    if not (model / CONFIG_NAME).is_file():
        raise UserError(f"{model}: is no model directory, it has no {CONFIG_NAME}")


def _require_whole(source: Source, donor: Path) -> None:
    """UserError where all policies lack what the config of their soup promises."""
    shapes = {name: spec.shape for name, spec in source.layout.items()}
    shapes |= {name: shapes[other] for name, other in source.aliases.items()}
    if lack := what_is_lacking(shapes, read_json(donor / CONFIG_NAME)):
        raise UserError(
            f"{source.path}: {lack}; a loader would make up at random what a soup lacks, so give "
            "whole policies (of DeepSpeed checkpoints without frozen parameters, first "
            "`vcsoup export --model BASE --frozen-from-model`)"
        )


def check_disk(plan: MergePlan, work: Path) -> None:
    """UserError where the soups do not fit on the disk of `work`, beside what is there of them."""
    there = sum(path.stat().st_blocks * 512 for path in work.rglob("*.safetensors"))
    needed = plan.soup_bytes * len(plan.soups) - there
    free = free_bytes(work)
    if needed > free:
        raise UserError(
            f"{work.parent}: the soups need {needed / 1e9:.2f} GB more, {free / 1e9:.2f} GB are"
            " free; make room, or merge fewer soups"
        )


def free_bytes(place: Path) -> int:
    """On the disk where `place` is or would be."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def raise_open_files(needed: int) -> None:
    """Allow this process `needed` open files; UserError where the machine does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UserError(
            f"so many soups at once need {needed} open files, {hard} are allowed: raise the limit"
            " (ulimit -Hn) or merge them in parts"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _rest_of(row: Sequence[float]) -> float:
    """What theta_0 is multiplied with: 1 - sum lambda, 0 where only rounding is left of it."""
    rest = math.fsum([1.0, *(-weight for weight in row)])
    return rest if abs(rest) > 1e-12 else 0.0


def _shards(first: Source, dtype: str | None, shard_size: int | None) -> list[Shard]:
    def meta(spec: TensorSpec) -> TensorMeta:
        written = dtype if dtype is not None and spec.dtype in FLOAT_DTYPES else spec.dtype
        return spec.name, written, spec.shape

    specs = list(first.layout.values())
    if shard_size is not None or first.kind != "safetensors":
        return plan_shards([meta(spec) for spec in specs], shard_size or SHARD_SIZE)
    files: dict[Path, list[TensorMeta]] = {}
    for spec in specs:
        files.setdefault(spec.file, []).append(meta(spec))
    return shards_like(list(files.values()))


def _check_not_quantised(source: Source, name: str) -> None:
    config = source.path / CONFIG_NAME
    if config.is_file() and read_json(config).get("quantization_config"):
        raise UserError(
            f"policy {name}: its config.json has a quantization_config; packed weights cannot be"
            " summed, give the policy as it was trained"
        )
