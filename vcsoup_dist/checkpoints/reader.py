"""Reading any part of any tensor of a checkpoint into a buffer of the caller."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.checkpoints.layout import TensorSpec
from vcsoup_dist.errors import UserError


class CheckpointReader:
    """One open checkpoint; holds one of its files open at a time and no data."""

    def __init__(self, layout: Mapping[str, TensorSpec]) -> None:
        self.layout = layout
        self._file: Path | None = None
        self._descriptor = -1

    def read_into(self, name: str, offset: int, buffer: NDArray[np.uint8]) -> None:
        """Fill `buffer` with the bytes of tensor `name` from `offset` (bytes within the tensor)."""
        spec = self.layout[name]
        if offset < 0 or offset + buffer.nbytes > spec.nbytes:
            raise ValueError(f"{name!r} has {spec.nbytes} bytes, asked {offset} + {buffer.nbytes}")
        self._open(spec.file)
        done = 0
        while done < buffer.nbytes:
            # One call reads at most 2 GiB, and may read less than asked.
            got = os.preadv(self._descriptor, [buffer.data[done:]], spec.start + offset + done)
            if got == 0:
                raise UserError(f"{spec.file}: ends within tensor {name!r}; it changed while read")
            done += got

    def close(self) -> None:
        """Close the file that is open, if any."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor, self._file = -1, None

    def _open(self, file: Path) -> None:
        if file == self._file:
            return
        self.close()
        self._descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        self._file = file
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
