"""`reference/<dataset>`: log-probs under theta_0 of the pairs that policies train on or evaluate.

    part-00000/rows.npy         [P] of `ROW`: usable pairs of `tokens/<dataset>`, in its order
    part-00000/logps.npy        [answer tokens] fp32, in nats: chosen and rejected answer of each of
                                these pairs in turn
    part-00000/manifest.json    `PartManifest`
    part-00001/                 the same of other pairs, which were asked for later, and so on

All values, methods and objectives that train on a pair share its log-probs, and all ranks the
pages of the files. No two parts have the same pair, and a part never changes.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import replacing
from vcsoup_dist.records.json_record import read_record, write_record
from vcsoup_dist.records.pairs import MANIFEST
from vcsoup_dist.records.tokens import TokenFile

ROWS, LOGPS = "rows.npy", "logps.npy"
DTYPE = np.dtype("<f4")
ROW = np.dtype(
    [
        ("row", "<u4"),  # in the token file
        ("cost", "<u4"),  # tokens that a forward computes
        ("answers", "<i8"),  # answer tokens of all pairs of the part before this one
    ]
)
FIX = "remove the run's reference/ folder and run again"

Logps = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class PartManifest:
    """Which log-probs of a part are there."""

    VERSION: ClassVar[int] = 3

    tokens: str
    """Digest of the token file."""
    answer_tokens: int
    """Of all pairs of the part."""
    pairs: int
    """The first pairs of it, whose log-probs are written: all, once the product is finished."""

    def write(self, folder: Path) -> None:
        """Write manifest.json into the folder of a part."""
        write_record(folder / MANIFEST, self)

    @classmethod
    def read(cls, folder: Path) -> PartManifest:
        """Read that of a part; UserError where it is damaged or of another version."""
        return read_record(folder / MANIFEST, cls)


def part_name(number: int) -> str:
    """Folder name of a part."""
    return f"part-{number:05d}"


def part_folders(folder: Path) -> list[Path]:
    """The parts of a product, or of its draft, in order."""
    return sorted(folder.glob("part-*"))


def begin_part(folder: Path, tokens: TokenFile, rows: Rows) -> None:
    """Make a part of these usable pairs, sorted, that has no log-probs yet."""
    table = tokens.table(["cost", "answers"])
    cost, answers = (table[name].to_numpy() for name in ("cost", "answers"))
    lengths = np.diff(answers, append=tokens.manifest.answer_tokens)[rows]
    index = np.zeros(len(rows), ROW)
    index["row"], index["cost"] = rows, cost[rows]
    index["answers"] = np.cumsum(lengths) - lengths
    folder.mkdir()
    size = int(lengths.sum())
    with replacing(folder / ROWS) as aside, open(aside, "wb") as new:
        np.save(new, index)
    with open(folder / LOGPS, "wb") as new:
        header = {"descr": DTYPE.str, "fortran_order": False, "shape": (size,)}
        np.lib.format.write_array_header_1_0(new, header)
        new.truncate(new.tell() + size * DTYPE.itemsize)
    PartManifest(tokens.manifest.digest, size, 0).write(folder)


def begun_rows(folder: Path, tokens: TokenFile) -> Rows | None:
    """The pairs of a part that was begun; None where that was not finished, or of other tokens."""
    try:
        manifest = PartManifest.read(folder)
    except FileNotFoundError:
        return None
    if manifest.tokens != tokens.manifest.digest:
        return None
    rows: Rows = np.load(folder / ROWS)["row"].astype(np.int64)
    return rows


class PartDraft:
    """Log-probs that are being written, some pairs after others; for one process.

    A kill loses the pairs after the last `write`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, PartManifest.read(folder)
        size = (folder / LOGPS).stat().st_size
        self._begin = size - self.manifest.answer_tokens * DTYPE.itemsize

    @property
    def pairs(self) -> int:
        """Pairs, from the first, that are written."""
        return self.manifest.pairs

    def write(self, first: int, logps: Logps, pairs: int) -> None:
        """Write log-probs from answer token `first` on; then `pairs` pairs are complete."""
        # Not through a map: a full disk would then be a SIGBUS, and no error.
        with open(self.folder / LOGPS, "r+b") as file:
            file.seek(self._begin + first * DTYPE.itemsize)
            file.write(logps.astype(DTYPE).tobytes())
            file.flush()
            os.fsync(file.fileno())
        self.manifest = PartManifest(self.manifest.tokens, self.manifest.answer_tokens, pairs)
        self.manifest.write(self.folder)


class Reference:
    """The log-probs of a finished product, mapped into memory.

    UserError where they are damaged, or of other tokens.
    """

    def __init__(self, folder: Path, tokens: TokenFile) -> None:
        self.folder = folder
        self._parts = [_Part(each, tokens) for each in part_folders(folder)]

    def rows(self) -> Rows:
        """The pairs that have log-probs, a part after the other."""
        return np.concatenate([np.zeros(0, np.int64), *(each.rows for each in self._parts)])

    def logps(self, row: int) -> Logps:
        """[answer tokens] of both answers of a pair, the chosen one first."""
        for part in self._parts:
            found = part.logps(row)
            if found is not None:
                return found
        raise UserError(f"{self.folder}: lacks the pair in row {row} of its token file; {FIX}")


class _Part:
    """Views of a finished part."""

    def __init__(self, folder: Path, tokens: TokenFile) -> None:
        manifest = PartManifest.read(folder)
        if manifest.tokens != tokens.manifest.digest:
            raise UserError(
                f"{folder}: its log-probs are of other tokens than {tokens.folder}; does the chat "
                f"template depend on the day? {FIX}"
            )
        index, self._logps = _mapped(folder / ROWS), _mapped(folder / LOGPS)
        size, count = (manifest.answer_tokens,), (manifest.pairs,)
        whole = self._logps.shape == size and self._logps.dtype == DTYPE
        if not whole or index.shape != count or index.dtype != ROW:
            raise UserError(f"{folder}: is not what its {MANIFEST} says; {FIX}")
        self.rows, self._answers = index["row"], index["answers"]

    def logps(self, row: int) -> Logps | None:
        place = bisect_left(self.rows, row)  # np.searchsorted would copy the column
        if place == len(self.rows) or self.rows[place] != row:
            return None
        last = place + 1 == len(self.rows)
        end = len(self._logps) if last else self._answers[place + 1]
        found: Logps = self._logps[self._answers[place] : end]
        return found


def _mapped(file: Path) -> Any:
    try:
        return np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); {FIX}") from error
