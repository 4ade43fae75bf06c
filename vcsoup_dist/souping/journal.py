"""Which pieces of a merge are done: what lets it go on after a kill, and rank meet rank.

One file per rank in the work folder, a line per piece, appended after the data of that piece are
on the disk. The first line says which merge it is of.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.stream import Done


class Digests(NamedTuple):
    """Of a finished piece."""

    inputs: tuple[bytes, ...]
    """[N]"""
    outputs: tuple[bytes, ...]
    """[K]"""


class Journal:
    """The journal of one rank, open for appending."""

    def __init__(self, folder: Path, fingerprint: str, rank: int, world_size: int) -> None:
        path = folder / f"rank-{rank:05d}-of-{world_size:05d}.journal"
        kept = len(_whole_lines(path))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(self._descriptor, kept)  # a line that a kill cut short
        if not kept:
            self._append([json.dumps({"merge": fingerprint})])

    def append(self, pieces: Iterable[Done]) -> None:
        """Note finished pieces, durably."""
        self._append(
            [
                json.dumps(
                    [
                        done.piece.number,
                        [each.hex() for each in done.inputs],
                        [each.hex() for each in done.outputs],
                    ],
                    separators=(",", ":"),
                )
                for done in pieces
            ]
        )

    def close(self) -> None:
        os.close(self._descriptor)

    def _append(self, lines: list[str]) -> None:
        data = memoryview("".join(line + "\n" for line in lines).encode())
        before = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except BaseException:  # a full disk: no half line before the next one
            os.ftruncate(self._descriptor, before)
            raise


def started(folder: Path) -> str | None:
    """The fingerprint of the merge that a work folder is of; None where none has begun."""
    for path in _journals(folder):
        if lines := _whole_lines(path).splitlines():
            return str(json.loads(lines[0])["merge"])
    return None


def read_journals(folder: Path, fingerprint: str) -> dict[int, Digests]:
    """The finished pieces of all ranks by number; UserError where one is of another merge.

    None where the folder is gone, as it is when another rank has published.
    """
    done: dict[int, Digests] = {}
    for path in _journals(folder):
        for number, line in enumerate(_whole_lines(path).splitlines()):
            entry: Any = json.loads(line)
            if number == 0:
                if entry["merge"] != fingerprint:
                    raise UserError(
                        f"{folder}: holds a started merge of other policies, weights or options;"
                        " give the same ones to go on with it, or --overwrite to begin anew"
                    )
                continue
            piece, inputs, outputs = entry
            done[piece] = Digests(
                tuple(map(bytes.fromhex, inputs)), tuple(map(bytes.fromhex, outputs))
            )
    return done


def _journals(folder: Path) -> list[Path]:
    names: list[str] = []
    with suppress(FileNotFoundError):
        names = fnmatch.filter(os.listdir(folder), "rank-*.journal")
    return sorted(folder / name for name in names)


def _whole_lines(path: Path) -> bytes:
    """Up to the last line end; nothing where there is no such file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]
