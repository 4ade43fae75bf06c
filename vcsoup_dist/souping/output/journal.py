"""Which chunks of a merge are done: what lets it resume after a kill, and ranks share the work.

One file per rank in the work folder, a line per chunk, appended after the data of that chunk are
on the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.stream import FinishedChunk


class Digests(NamedTuple):
    """Of a finished chunk, 16 bytes each, end to end."""

    inputs: bytes
    """Of N policies."""
    outputs: bytes
    """Of K soups."""


class Journal:
    """The journal of one rank, open for appending."""

    def __init__(self, folder: Path, rank: int, world_size: int) -> None:
        path = folder / f"rank-{rank:05d}-of-{world_size:05d}.journal"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._descriptor, len(_whole_lines(path)))  # less a line that a kill cut short

    def append(self, chunks: Iterable[FinishedChunk]) -> None:
        """Note finished chunks, durably, or none of them."""
        lines = [
            json.dumps(
                [each.chunk.number, b"".join(each.inputs).hex(), b"".join(each.outputs).hex()]
            )
            for each in chunks
        ]
        data = memoryview("".join(line + "\n" for line in lines).encode())
        before = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except BaseException:  # a full disk: no half line before the next one
            os.ftruncate(self._descriptor, before)
            raise

    def close(self) -> None:
        os.close(self._descriptor)


def read_journals(folder: Path) -> dict[int, Digests]:
    """The finished chunks of all ranks by number; UserError where a journal is damaged."""
    done: dict[int, Digests] = {}
    for path in sorted(folder.glob("rank-*.journal")):
        try:
            for line in _whole_lines(path).splitlines():
                number, inputs, outputs = json.loads(line)
                done[int(number)] = Digests(bytes.fromhex(inputs), bytes.fromhex(outputs))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: is damaged ({error}); remove {folder}") from None
    return done


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]
