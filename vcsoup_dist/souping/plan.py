"""What a merge will read and write, and whether it can: known before the first byte is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vcsoup_dist.checkpoints.auxiliary_files import (
    CONFIG_NAME,
    auxiliary_digests,
    auxiliary_files,
)
from vcsoup_dist.checkpoints.completeness import missing_part
from vcsoup_dist.checkpoints.layout import DTYPE_BITS, TensorSpec
from vcsoup_dist.checkpoints.sources import Source, open_source
from vcsoup_dist.checkpoints.writer import Shard, TensorMeta, header_bytes, plan_shards, shards_like
from vcsoup_dist.errors import UserError
from vcsoup_dist.json_file import read_json
from vcsoup_dist.progress import log
from vcsoup_dist.souping.chunks import Chunk
from vcsoup_dist.souping.compatible import require_same, require_summable
from vcsoup_dist.souping.fingerprints import FileState, files_of, source_fingerprint, state_of
from vcsoup_dist.souping.grids import weight_of_base
from vcsoup_dist.souping.kernels.formats import FLOAT_DTYPES, Float64
from vcsoup_dist.souping.name_matching import with_names_of_first
from vcsoup_dist.souping.options import SHARD_SIZE, MergeOptions
from vcsoup_dist.souping.stream import WeightedSums
from vcsoup_dist.souping.tokenizer_source import choose_tokenizer_source


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
    model: Path | None
    """Whose config, tokenizer and chat template the soups get."""
    auxiliary_digests: Mapping[str, str]
    """Name -> digest of each of these files."""
    states: Mapping[Path, FileState]
    """Of all files that the sources' tensors lie in, as they were when their headers were read."""
    source_fingerprints: Sequence[list[Any]]
    """[N]"""

    def sums(self) -> WeightedSums:
        """What the one pass computes."""
        widths = [DTYPE_BITS[dtype] // 8 for shard in self.shards for _, dtype, _ in shard.tensors]
        layouts = [source.layout for source in self.sources]
        return WeightedSums(layouts, self.names, self.weights, max(widths, default=8))

    @property
    def bytes_read(self) -> int:
        """Of weights, each once."""
        return sum(spec.nbytes for source in self.sources for spec in source.layout.values())

    @property
    def soup_bytes(self) -> int:
        """Of one soup: weights, their headers, and auxiliary files."""
        files = auxiliary_files(self.model).values() if self.model else ()
        weights = sum(shard.nbytes + len(header_bytes(shard)) for shard in self.shards)
        return weights + sum(file.stat().st_size for file in files)

    def bytes_of(self, chunk: Chunk) -> tuple[int, int]:
        """Of a chunk: read from all policies, written to all soups."""
        bits = sum(DTYPE_BITS[source.layout[chunk.tensor].dtype] for source in self.sources)
        return (chunk.end - chunk.begin) * bits // 8, chunk.nbytes * len(self.soups)

    def of_soups(self, soups: Sequence[str]) -> MergePlan:
        """The same for some soups only."""
        kept = [place for place, soup in enumerate(self.soups) if soup in soups]
        return replace(
            self,
            soups={soup: row for soup, row in self.soups.items() if soup in soups},
            weights=np.ascontiguousarray(self.weights[kept]),
        )


def plan_merge(
    policies: Sequence[Path | Source],
    soups: Mapping[str, Sequence[float]],
    names: Sequence[str],
    options: MergeOptions,
) -> MergePlan:
    """Check all that can be checked without reading weights or looking at the output.

    policies: checkpoints that `open_source` knows, or opened ones; soups: name -> N weights;
    names: of the policies. UserError where policies do not fit together or a soup is ill defined.
    """
    if len(policies) != len(names) or len(set(names)) != len(names):
        raise ValueError(f"{len(policies)} policies need as many distinct names, got {names}")
    _check_soups(soups, len(policies))
    if options.model is not None:
        require_config(options.model)
    sources = [each if isinstance(each, Source) else open_source(each) for each in policies]
    all_names = list(names)
    weights = np.array([list(row) for row in soups.values()], dtype=np.float64)
    base = None
    if options.base is not None:
        base = _base_name(options.base_name or options.base.resolve().name, names)
        of_base = np.array([weight_of_base(row) for row in weights.tolist()])
        if of_base.any():  # else theta_0 cancels, and is not read
            sources.append(open_source(options.base))
            all_names.append(base)
            weights = np.column_stack([weights, of_base])
    sources = with_names_of_first(sources)
    for name, source in zip(all_names, sources, strict=True):
        require_summable(source.layout, name)
        require_same(sources[0].layout, all_names[0], source.layout, name)
        _check_not_quantised(source, name)
        for note in source.notes:
            log.info("%s: %s", name, note)
    model = choose_tokenizer_source(
        [(name, source.path) for name, source in zip(names, sources, strict=False)],
        (base, options.base) if base and options.base else None,
        options.model,
    )
    if model:
        _require_whole(sources[0], model)
    return MergePlan(
        sources=tuple(sources),
        names=tuple(all_names),
        soups={soup: tuple(row) for soup, row in soups.items()},
        weights=weights,
        base=base,
        shards=tuple(_shards(sources[0], options)),
        model=model,
        auxiliary_digests=auxiliary_digests(model) if model else {},
        states={path: state_of(path) for source in sources for path in files_of(source)},
        source_fingerprints=[source_fingerprint(source) for source in sources],
    )


def require_config(model: Path) -> None:
    """UserError where a folder has no config to give to a soup."""
    if not (model / CONFIG_NAME).is_file():
        raise UserError(f"{model}: is not a model directory, it has no {CONFIG_NAME}")


def _check_soups(soups: Mapping[str, Sequence[float]], policies: int) -> None:
    if not policies or not soups:
        raise UserError("a merge needs at least one policy and one soup")
    for soup, row in soups.items():
        if len(row) != policies:
            raise UserError(f"soup {soup} has {len(row)} weights for {policies} policies")
        if not all(weight == 0 or 1e-100 < abs(weight) < 1e100 for weight in row):
            raise UserError(
                f"soup {soup}: weights must be finite, and 0 or between 1e-100 and 1e100 in size,"
                f" got {list(row)}"
            )
        if Path(soup).name != soup or soup in ("", ".."):
            raise UserError(f"soup {soup!r}: its name is not a plain folder name")


def _base_name(name: str, names: Sequence[str]) -> str:
    return f"base {name}" if name in names else name


def _require_whole(source: Source, model: Path) -> None:
    """UserError where all policies lack what the config of their soup promises."""
    shapes = {name: spec.shape for name, spec in source.layout.items()}
    shapes |= {name: shapes[other] for name, other in source.aliases.items()}
    if missing := missing_part(shapes, read_json(model / CONFIG_NAME)):
        raise UserError(
            f"{source.path}: {missing}; a loader would fill at random what a soup lacks, so give "
            "whole policies (of DeepSpeed checkpoints without frozen parameters, first "
            "`vcsoup export --model BASE --frozen-from-model`)"
        )


def _shards(first: Source, options: MergeOptions) -> list[Shard]:
    def meta(spec: TensorSpec) -> TensorMeta:
        written = options.dtype if options.dtype and spec.dtype in FLOAT_DTYPES else spec.dtype
        return spec.name, written, spec.shape

    specs = list(first.layout.values())
    if options.shard_size is not None or first.kind != "safetensors":
        return plan_shards([meta(spec) for spec in specs], options.shard_size or SHARD_SIZE)
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
