"""What a finished soup's manifest says, and whether a soup is made of what a merge asks for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from vcsoup_dist import __version__
from vcsoup_dist.checkpoints.digests import combined, digest, weights_digest
from vcsoup_dist.checkpoints.layout import TensorSpec, raw_header
from vcsoup_dist.checkpoints.sources import Source
from vcsoup_dist.checkpoints.writer import Shard, header_bytes
from vcsoup_dist.errors import UserError
from vcsoup_dist.records.soup_manifest import (
    FORMAT,
    MANIFEST_NAME,
    FileEntry,
    SoupManifest,
    SourceEntry,
    read_manifest,
)
from vcsoup_dist.souping.chunks import cut_chunks
from vcsoup_dist.souping.fingerprints import files_of, name_in
from vcsoup_dist.souping.output.journal import Digests
from vcsoup_dist.souping.plan import MergePlan

TensorDigests = Mapping[str, bytes]
"""By tensor name; see checkpoints/digests.py."""


def identity(plan: MergePlan) -> str:
    """What the soups of a plan are made from, as far as it shows without reading all weights:
    names and sizes of the policies' files and samples of their weights, the auxiliary files, and
    the headers of what is written."""
    content = {
        "format": FORMAT,
        "sources": plan.source_fingerprints,
        "companions": plan.auxiliary_digests,
        "names": plan.names,
        "base": plan.base,
        "soups": list(plan.soups),
        "weights": plan.weights.tolist(),
        "headers": [digest(header_bytes(shard)).hex() for shard in plan.shards],
    }
    return digest(json.dumps(content).encode()).hex()


def fingerprint(plan: MergePlan) -> str:
    """The identity, and this state of the policies' files: their times."""
    times = [plan.states[path].modified for source in plan.sources for path in files_of(source)]
    return digest(json.dumps([identity(plan), times]).encode()).hex()


def is_made(plan: MergePlan, soup: str, target: Path) -> bool:
    """Whether `target` is the finished soup, written after its policies were, as make judges."""
    try:
        made_from = read_manifest(target).made_from
        written = (target / MANIFEST_NAME).stat().st_mtime_ns
    except (UserError, OSError):
        return False
    newest = max((state.modified for state in plan.states.values()), default=0)
    return made_from == identity(plan.of_soups([soup])) and newest <= written


def tensor_digests(
    plan: MergePlan, done: Mapping[int, Digests]
) -> tuple[list[dict[str, bytes]], list[dict[str, bytes]]]:
    """[N] of the policies' and [K] of the soups' tensors, from those of all chunks."""
    of_chunks: dict[str, list[Digests]] = {
        name: [] for shard in plan.shards for name, _, _ in shard.tensors
    }
    for chunk in cut_chunks(plan.shards):
        of_chunks[chunk.tensor].append(done[chunk.number])

    def digests(kind: Literal["inputs", "outputs"], place: int) -> dict[str, bytes]:
        own = slice(16 * place, 16 * place + 16)
        return {
            name: combined(getattr(each, kind)[own] for each in found)
            for name, found in of_chunks.items()
        }

    return (
        [digests("inputs", i) for i in range(len(plan.sources))],
        [digests("outputs", k) for k in range(len(plan.soups))],
    )


def soup_manifest(
    plan: MergePlan,
    soup: str,
    folder: Path,
    of_sources: Sequence[TensorDigests],
    of_soup: TensorDigests,
    *,
    sha256: bool,
) -> SoupManifest:
    """The manifest of a soup whose files are all in `folder`."""
    own = plan.of_soups([soup])
    specs = [
        TensorSpec(name, dtype, shape, ())  # as far as their digest needs them
        for shard in plan.shards
        for name, dtype, shape in shard.tensors
    ]
    return SoupManifest(
        made_by=f"vcsoup_dist {__version__}",
        made_from=identity(own),
        lambdas=dict(zip(plan.names, plan.soups[soup], strict=False)),  # without the base's
        base=plan.base,
        weights=weights_digest(specs, of_soup).hex(),
        sources=tuple(
            SourceEntry(
                name,
                float(weight),
                source.kind,
                weights_digest(list(source.layout.values()), tensors).hex(),
                _source_files(source, tensors),
            )
            for name, weight, source, tensors in zip(
                plan.names, own.weights[0], plan.sources, of_sources, strict=True
            )
        ),
        files=_soup_files(plan.shards, folder, of_soup, sha256),
        tensors={name: each.hex() for name, each in of_soup.items()},
    )


def shard_digest(header: bytes, shard: Shard, tensors: TensorDigests) -> bytes:
    """Of a weights file. Tensors without elements are in its header alone."""
    parts = [tensors[name] for name, _, shape in shard.tensors if math.prod(shape)]
    return combined([digest(header), *parts])


def _soup_files(
    shards: Sequence[Shard], folder: Path, tensors: TensorDigests, sha256: bool
) -> dict[str, FileEntry]:
    def entry(name: str, nbytes: int, found: bytes) -> FileEntry:
        if not sha256:
            return FileEntry(nbytes, found.hex())
        with open(folder / name, "rb") as file:
            return FileEntry(nbytes, found.hex(), hashlib.file_digest(file, "sha256").hexdigest())

    files: dict[str, FileEntry] = {}
    for shard in shards:
        header = header_bytes(shard)
        found = shard_digest(header, shard, tensors)
        files[shard.file_name] = entry(shard.file_name, len(header) + shard.nbytes, found)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in files and name != MANIFEST_NAME:
            files[name] = entry(name, path.stat().st_size, digest(path.read_bytes()))
    return files


def _source_files(source: Source, tensors: TensorDigests) -> dict[str, FileEntry]:
    """Sizes, and digests of the files that were read as a whole."""
    by_file: dict[Path, list[TensorSpec]] = {}
    for spec in source.layout.values():
        for extent in spec.extents:
            by_file.setdefault(extent.file, []).append(spec)
    files: dict[str, FileEntry] = {}
    for path, specs in sorted(by_file.items()):
        nbytes, found = path.stat().st_size, None
        if source.kind == "safetensors" and path.suffix == ".safetensors":
            header = raw_header(path)
            if len(header) + sum(spec.nbytes for spec in specs) == nbytes:
                parts = [tensors[spec.name] for spec in specs if spec.nbytes]
                found = combined([digest(header), *parts]).hex()
        files[name_in(source, path)] = FileEntry(nbytes, found)
    return files
