"""What a product was made from: names, sizes and hashes of files, commits of hub repositories."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_atomically
from vcsoup_dist.progress import log

BLOCK = 1 << 24


@dataclass(frozen=True)
class Located:
    """A model or dataset that is there: where to load it from, and what it is."""

    source: str
    """Absolute local path, or hub id."""
    revision: str | None
    """Commit of a hub repository."""
    identity: Any
    """JSON-able: equal where the content is equal, wherever it lies."""


class Hashes:
    """xxh3 hashes of files, remembered in `cache` by path, size, inode and modification time."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.known = _remembered(cache)

    def of_file(self, path: Path) -> list[Any]:
        """[size in bytes, hex hash] of one file."""
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_ino}|{stat.st_mtime_ns}"
        if key not in self.known:
            digest = xxhash.xxh3_128()
            with open(path, "rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
            self.known[key] = digest.hexdigest()
        return [stat.st_size, self.known[key]]

    def of(self, path: Path) -> Any:
        """A file's identity, or that of all files of a folder by name."""
        if path.is_file():
            return self.of_file(path)
        files = sorted(each for each in path.rglob("*") if each.is_file())
        return {
            str(file.relative_to(path)): self.of_file(file)
            for file in files
            if not any(part.startswith(".") for part in file.relative_to(path).parts)
        }

    def save(self) -> None:
        """Keep what is known for the next command."""
        text = json.dumps(self.known, sort_keys=True, indent=0)
        if not self.cache.exists() or self.cache.read_bytes() != text.encode():
            write_atomically(self.cache, text)


def _remembered(cache: Path) -> dict[str, str]:
    """What a cache holds; nothing where it is damaged, since all of it can be found anew."""
    try:
        known = json.loads(cache.read_bytes())
        if not isinstance(known, dict) or not all(isinstance(each, str) for each in known.values()):
            raise ValueError("not a mapping of files to hashes")
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        log.warning("%s: damaged (%s); the files are hashed anew", cache, error)
        return {}
    return known


def locate(
    reference: str, local: Path | None, revision: str | None, kind: str, key: str, hashes: Hashes
) -> Located:
    """Find a model or dataset (`kind`) named by the recipe's `key`; nothing is downloaded yet.

    Raises UserError where it is neither a local path nor a hub id that can be resolved.
    """
    if local is not None:
        return Located(str(local.resolve()), None, hashes.of(local))
    looks_local = reference.startswith(("/", ".", "~")) or reference.count("/") != 1
    if looks_local or reference.endswith((".jsonl", ".json", ".parquet", ".yaml")):
        raise UserError(f"{key}: no such file or folder: {reference}")
    commit = _hub_commit(reference, revision, kind, key)
    return Located(reference, commit, {"hub": reference, "commit": commit})


def _hub_commit(repository: str, revision: str | None, kind: str, key: str) -> str:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    if not constants.HF_HUB_OFFLINE:
        try:
            info = HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=10)
            return str(info.sha)
        except Exception as error:  # the hub raises its own, httpx's and requests' errors
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    else:
        reason = "HF_HUB_OFFLINE is set"
    folder = repo_folder_name(repo_id=repository, repo_type=kind)
    cached = Path(constants.HF_HUB_CACHE) / folder
    reference = cached / "refs" / (revision or "main")
    if reference.exists():
        return reference.read_text().strip()
    if revision and os.path.isdir(cached / "snapshots" / revision):
        return revision
    raise UserError(
        f"{key}: `{repository}` is not a local path, and the hub does not give it ({reason})"
    )
