"""`manifest.json` of a soup: what it was made from, and the digest of every file of it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vcsoup_dist.checkpoints.digests import combined, digest, weights_digest
from vcsoup_dist.checkpoints.layout import TensorSpec, raw_header
from vcsoup_dist.checkpoints.sources import Source
from vcsoup_dist.checkpoints.writer import Shard, header_bytes
from vcsoup_dist.souping.chunks import cut_chunks
from vcsoup_dist.souping.fingerprints import files_of, name_in
from vcsoup_dist.souping.output.journal import Digests
from vcsoup_dist.souping.plan import MergePlan

MANIFEST_NAME = "manifest.json"
FORMAT = 1

TensorDigests = Mapping[str, bytes]
"""By tensor name; see checkpoints/digests.py."""


def identity(plan: MergePlan, soups: Sequence[str]) -> str:
    """What some soups of a plan are made from, as far as it shows without reading all weights:
    names and sizes of the policies' files and samples of their weights, the companions, and the
    headers of what is written."""
    rows = [
        row for name, row in zip(plan.soups, plan.weights.tolist(), strict=True) if name in soups
    ]
    content = {
        "format": FORMAT,
        "sources": plan.source_fingerprints,
        "companions": plan.auxiliary_digests,
        "names": plan.names,
        "base": plan.base,
        "soups": list(soups),
        "weights": rows,
        "headers": [digest(header_bytes(shard)).hex() for shard in plan.shards],
    }
    return digest(json.dumps(content).encode()).hex()


def fingerprint(plan: MergePlan) -> str:
    """The same of all soups, and of this state of the policies' files: their times."""
    times = [plan.states[path].modified for source in plan.sources for path in files_of(source)]
    return digest(json.dumps([identity(plan, list(plan.soups)), times]).encode()).hex()


def is_made(plan: MergePlan, soup: str, target: Path) -> bool:
    """Whether `target` is the finished soup, written after its policies were, as make judges."""
    path = target / MANIFEST_NAME
    try:
        made_from = json.loads(path.read_bytes())["made_from"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    newest = max((state.modified for state in plan.states.values()), default=0)
    return bool(made_from == identity(plan, [soup]) and newest <= path.stat().st_mtime_ns)


def tensor_digests(
    plan: MergePlan, done: Mapping[int, Digests]
) -> tuple[list[dict[str, bytes]], list[dict[str, bytes]]]:
    """[N] of the policies' and [K] of the soups' tensors, from those of all chunks."""
    of_chunks: dict[str, list[Digests]] = {
        name: [] for shard in plan.shards for name, _, _ in shard.tensors
    }
    for chunk in cut_chunks(plan.shards):
        of_chunks[chunk.tensor].append(done[chunk.number])
    inputs = [
        {
            name: combined(_nth(each.inputs, i) for each in found)
            for name, found in of_chunks.items()
        }
        for i in range(len(plan.sources))
    ]
    outputs = [
        {
            name: combined(_nth(each.outputs, k) for each in found)
            for name, found in of_chunks.items()
        }
        for k in range(len(plan.soups))
    ]
    return inputs, outputs


def _nth(digests: bytes, place: int) -> bytes:
    return digests[16 * place : 16 * place + 16]


def soup_manifest(
    plan: MergePlan,
    soup: str,
    folder: Path,
    of_sources: Sequence[TensorDigests],
    of_soup: TensorDigests,
    *,
    version: str,
    sha256: bool,
) -> dict[str, Any]:
    """The manifest of a soup whose files are all in `folder`."""
    place = list(plan.soups).index(soup)
    lambdas = dict(zip(plan.names, plan.soups[soup], strict=False))  # without the base's
    files: dict[str, dict[str, Any]] = {}
    for shard in plan.shards:
        files[shard.file_name] = {
            "bytes": len(header_bytes(shard)) + shard.nbytes,
            "digest": shard_digest(header_bytes(shard), shard, of_soup).hex(),
        }
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in files and name != MANIFEST_NAME:
            files[name] = {"bytes": path.stat().st_size, "digest": digest(path.read_bytes()).hex()}
    if sha256:
        for name, entry in files.items():
            with open(folder / name, "rb") as file:
                entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "format": FORMAT,
        "digest": "xxh3-128 of xxh3-128: vcsoup_dist/checkpoints/digests.py",
        "made_by": f"vcsoup_dist {version}",
        "made_from": identity(plan, [soup]),
        "lambda": lambdas,
        "base": plan.base,
        "weights": weights_digest(_specs(plan), of_soup).hex(),
        "sources": [
            {
                "name": name,
                "weight": float(plan.weights[place, i]),
                "kind": source.kind,
                "weights": weights_digest(list(source.layout.values()), tensors).hex(),
                "files": _source_files(source, tensors),
            }
            for i, (name, source, tensors) in enumerate(
                zip(plan.names, plan.sources, of_sources, strict=True)
            )
        ],
        "files": files,
        "tensors": {name: each.hex() for name, each in of_soup.items()},
    }


def shard_digest(header: bytes, shard: Shard, tensors: TensorDigests) -> bytes:
    """Of a weights file. Tensors without elements are in its header alone."""
    parts = [tensors[name] for name, _, shape in shard.tensors if math.prod(shape)]
    return combined([digest(header), *parts])


def _specs(plan: MergePlan) -> list[TensorSpec]:
    """The soup's tensors, as far as their digest needs them."""
    return [
        TensorSpec(name, dtype, shape, ())
        for shard in plan.shards
        for name, dtype, shape in shard.tensors
    ]


def _source_files(source: Source, tensors: TensorDigests) -> dict[str, dict[str, Any]]:
    """Sizes, and digests of the files that were read as a whole."""
    by_file: dict[Path, list[TensorSpec]] = {}
    for spec in source.layout.values():
        for extent in spec.extents:
            by_file.setdefault(extent.file, []).append(spec)
    files: dict[str, dict[str, Any]] = {}
    for path, specs in sorted(by_file.items()):
        entry: dict[str, Any] = {"bytes": path.stat().st_size}
        if source.kind == "safetensors" and path.suffix == ".safetensors":
            header = raw_header(path)
            if len(header) + sum(spec.nbytes for spec in specs) == entry["bytes"]:
                parts = [tensors[spec.name] for spec in specs if spec.nbytes]
                entry["digest"] = combined([digest(header), *parts]).hex()
        files[name_in(source, path)] = entry
    return files
