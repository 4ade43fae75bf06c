"""`manifest.json` of a soup: what it was made from, and the digest of every file of it.

`vcsoup merge` and `export` write it, `vcsoup verify` checks a soup against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.json_file import read_json

MANIFEST_NAME = "manifest.json"
FORMAT = 1
"""Raised when a reader of the one before would misread the file."""


@dataclass(frozen=True)
class FileEntry:
    """A file of a soup or of a source."""

    nbytes: int
    digest: str | None
    """None for a source's file of which only parts were read."""
    sha256: str | None = None

    def as_json(self) -> dict[str, Any]:
        entry = {"bytes": self.nbytes, "digest": self.digest, "sha256": self.sha256}
        return {key: value for key, value in entry.items() if value is not None}


@dataclass(frozen=True)
class SourceEntry:
    """A policy, or theta_0."""

    name: str
    weight: float
    """What it was multiplied with."""
    kind: str
    """Of checkpoint."""
    weights: str
    """Digest of its tensors, however they are cut into files."""
    files: Mapping[str, FileEntry]


@dataclass(frozen=True)
class SoupManifest:
    """Digests are in hex; checkpoints/digests.py says what they are of."""

    made_by: str
    made_from: str
    """Digest of the policies' fingerprints, the weights and the headers of what is written."""
    lambdas: Mapping[str, float]
    """Policy -> lambda, as asked for."""
    base: str | None
    """Name of theta_0 in soups of task vectors."""
    weights: str
    """Digest of all tensors."""
    sources: tuple[SourceEntry, ...]
    files: Mapping[str, FileEntry]
    """All files of the soup but this one, by relative name."""
    tensors: Mapping[str, str]
    """Tensor -> digest."""


def write_manifest(folder: Path, manifest: SoupManifest) -> None:
    """Write `manifest.json` into the folder of a soup that is not published yet."""
    content = {
        "format": FORMAT,
        "digest": "xxh3-128 of xxh3-128: vcsoup_dist/checkpoints/digests.py",
        "made_by": manifest.made_by,
        "made_from": manifest.made_from,
        "lambda": dict(manifest.lambdas),
        "base": manifest.base,
        "weights": manifest.weights,
        "sources": [
            {
                "name": source.name,
                "weight": source.weight,
                "kind": source.kind,
                "weights": source.weights,
                "files": {name: entry.as_json() for name, entry in source.files.items()},
            }
            for source in manifest.sources
        ],
        "files": {name: entry.as_json() for name, entry in manifest.files.items()},
        "tensors": dict(manifest.tensors),
    }
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> SoupManifest:
    """The manifest of a soup; UserError where it is missing, damaged or of another format."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise UserError(f"{path}: is missing; `vcsoup verify` checks what `vcsoup merge` wrote")
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}: is of format {content.get('format')!r}, this version reads {FORMAT};"
            " merge again, or use the vcsoup_dist that wrote it"
        )
    try:
        manifest = SoupManifest(
            str(content["made_by"]),
            str(content["made_from"]),
            {str(name): float(weight) for name, weight in content["lambda"].items()},
            content["base"],
            str(content["weights"]),
            tuple(_source(entry) for entry in content["sources"]),
            _files(content["files"]),
            {str(name): str(digest) for name, digest in content["tensors"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}: {error})") from None
    for name, entry in manifest.files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts or entry.digest is None:
            raise UserError(f"{path}: names {name!r}, which is not a file of its directory")
    return manifest


def _source(entry: dict[str, Any]) -> SourceEntry:
    return SourceEntry(
        str(entry["name"]),
        float(entry["weight"]),
        str(entry["kind"]),
        str(entry["weights"]),
        _files(entry["files"]),
    )


def _files(entries: dict[str, Any]) -> dict[str, FileEntry]:
    return {
        str(name): FileEntry(int(entry["bytes"]), entry.get("digest"), entry.get("sha256"))
        for name, entry in entries.items()
    }
