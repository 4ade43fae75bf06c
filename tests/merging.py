"""Policies on disk, for the tests of merging."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from vcsoup_dist.checkpoints.layout import read_layout
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.writer import ShardFile, plan_shards, write_index


def write_policy(directory: Path, tensors, shard_size=10**9, config=None, tokenizer=None) -> Path:
    """tensors: name -> (dtype, array)"""
    directory.mkdir(parents=True)
    metas = [(name, dtype, array.shape) for name, (dtype, array) in tensors.items()]
    shards = plan_shards(metas, shard_size)
    for shard in shards:
        with ShardFile.create(directory, shard) as file:
            for name, _, _ in shard.tensors:
                file.write(name, 0, tensors[name][1].tobytes())
    write_index(directory, shards)
    (directory / "config.json").write_text(json.dumps(config or {"hidden_size": 8}))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer or {"model": {"a": 0}}))
    return directory


def bf16(rng, *shape):
    return (rng.standard_normal(shape).astype("<f4").view("<u4") >> 16).astype("<u2")


def read_all(directory: Path) -> dict[str, bytes]:
    """The tensors of a model directory."""
    layout = read_layout(directory)
    with CheckpointReader(layout) as reader:
        found = {}
        for name, spec in layout.items():
            buffer = np.empty(spec.nbytes, np.uint8)
            reader.read_into(name, 0, buffer)
            found[name] = buffer.tobytes()
    return found


def files_of(directory: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def forget(file: Path) -> None:
    """Let the page cache lose a file, where the file system is not made of it."""
    with open(file, "rb+") as opened:
        os.fsync(opened)
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
