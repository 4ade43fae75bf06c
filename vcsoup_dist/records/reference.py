"""`reference/<dataset>`: log-probs of a dataset's answers under theta_0.

    logps.npy        [answer tokens] fp32, in nats: chosen and rejected answer of every pair in
                     turn, in the order of `tokens/<dataset>`
    manifest.json    `ReferenceManifest`

All values, methods and objectives that train on a pair share its log-probs, and all ranks the
pages of the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import replacing
from vcsoup_dist.records.json_record import read_record, write_record
from vcsoup_dist.records.pairs import MANIFEST
from vcsoup_dist.records.tokens import TokenFile

LOGPS = "logps.npy"
DTYPE = np.dtype("<f4")
FIX = "remove the run's reference/ folder and run again"

Logps = NDArray[np.float32]


@dataclass(frozen=True)
class ReferenceManifest:
    """Which tokens have log-probs."""

    VERSION: ClassVar[int] = 2

    tokens: str
    """Digest of the token file."""
    rows: int
    """The first pairs of it, whose log-probs are written: all, once the product is finished."""

    def write(self, folder: Path) -> None:
        """Write manifest.json into the folder of a product."""
        write_record(folder / MANIFEST, self)

    @classmethod
    def read(cls, folder: Path) -> ReferenceManifest:
        """Read that of a product; UserError where it is damaged or of another version."""
        return read_record(folder / MANIFEST, cls)


class ReferenceDraft:
    """Log-probs that are being written, some pairs after others; for one process.

    A kill loses the pairs after the last `write`.
    """

    def __init__(self, folder: Path, tokens: TokenFile) -> None:
        self.folder, self.tokens = folder, tokens
        file = folder / LOGPS
        size = tokens.manifest.answer_tokens
        if self.rows() == 0:
            with replacing(file) as aside, open(aside, "wb") as new:
                header = {"descr": DTYPE.str, "fortran_order": False, "shape": (size,)}
                np.lib.format.write_array_header_1_0(new, header)
                new.truncate(new.tell() + size * DTYPE.itemsize)
        self._begin = file.stat().st_size - size * DTYPE.itemsize

    def rows(self) -> int:
        """Pairs, from the first, that are written; of other tokens none are."""
        try:
            manifest = ReferenceManifest.read(self.folder)
        except FileNotFoundError:
            return 0
        return manifest.rows if manifest.tokens == self.tokens.manifest.digest else 0

    def write(self, first: int, logps: Logps, rows: int) -> None:
        """Write log-probs from answer token `first` on; then `rows` pairs are complete."""
        # Not through a map: a full disk would then be a SIGBUS, and no error.
        with open(self.folder / LOGPS, "r+b") as file:
            file.seek(self._begin + first * DTYPE.itemsize)
            file.write(logps.astype(DTYPE).tobytes())
            file.flush()
            os.fsync(file.fileno())
        ReferenceManifest(self.tokens.manifest.digest, rows).write(self.folder)


def open_reference(folder: Path, tokens: TokenFile) -> Logps:
    """The log-probs [answer tokens] of a finished product, mapped into memory.

    UserError where they are damaged, or of other tokens.
    """
    manifest = ReferenceManifest.read(folder)
    if manifest.tokens != tokens.manifest.digest:
        raise UserError(
            f"{folder}: its log-probs are of other tokens than {tokens.folder}; does the chat "
            f"template depend on the day? {FIX}"
        )
    try:
        logps: Logps = np.load(folder / LOGPS, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / LOGPS}: cannot be read ({error}); {FIX}") from error
    whole = logps.shape == (tokens.manifest.answer_tokens,) and logps.dtype == DTYPE
    if not whole or manifest.rows != tokens.rows:
        raise UserError(f"{folder / LOGPS}: lacks answers of {tokens.folder}; {FIX}")
    return logps
