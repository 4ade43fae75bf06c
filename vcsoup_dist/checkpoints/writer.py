"""Writing safetensors header first: each tensor, or any part of one, straight to its place.

All sizes are known before the first byte, so no shard is ever held in memory, and parts may come
in any order and from several processes. transformers, vLLM and mergekit read the result.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.checkpoints.direct_io import PAGE, open_direct
from vcsoup_dist.checkpoints.layout import DTYPE_BITS, tensor_bytes
from vcsoup_dist.checkpoints.model_files import INDEX_NAME, SINGLE_NAME
from vcsoup_dist.files import DISK_FULL, write_error

TensorMeta = tuple[str, str, tuple[int, ...]]
"""name, dtype (safetensors' name), shape"""


@dataclass(frozen=True)
class Shard:
    """One weights file to be: its name, and its tensors in the order of their bytes."""

    file_name: str
    tensors: tuple[TensorMeta, ...]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the tensors, without the header."""
        return sum(tensor_bytes(dtype, shape) for _, dtype, shape in self.tensors)


def plan_shards(tensors: Sequence[TensorMeta], shard_size: int) -> list[Shard]:
    """Cut tensors, in the given order, into files of at most `shard_size` bytes of data.

    A larger tensor gets a file of its own. The same arguments give the same plan on every rank.
    """
    names = [name for name, _, _ in tensors]
    if len(set(names)) != len(names) or "__metadata__" in names:
        raise ValueError("tensor names must be distinct, and none may be __metadata__")
    groups: list[list[TensorMeta]] = []
    room = -1
    for tensor in tensors:
        nbytes = tensor_bytes(tensor[1], tensor[2])
        if nbytes > room:
            groups.append([])
            room = shard_size
        groups[-1].append(tensor)
        room -= nbytes
    return shards_like(groups)


def shards_like(groups: Sequence[Sequence[TensorMeta]]) -> list[Shard]:
    """One file for each group of tensors, named as transformers names them.

    Within a file wider dtypes come first, so that every tensor starts at a multiple of its
    element size.
    """
    ordered = [tuple(sorted(group, key=lambda each: -DTYPE_BITS[each[1]])) for group in groups]
    if len(ordered) == 1:
        return [Shard(SINGLE_NAME, ordered[0])]
    return [
        Shard(f"model-{number:05d}-of-{len(ordered):05d}.safetensors", group)
        for number, group in enumerate(ordered, start=1)
    ]


def header_bytes(shard: Shard) -> bytes:
    """Length and JSON header, padded so that the data begin at a page: direct I/O wants that."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, dtype, shape in shard.tensors:
        end = begin + tensor_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % 4096)
    return len(text).to_bytes(8, "little") + text


class ShardFile:
    """One weights file being filled, in any order and by several threads at once.

    The file is there under its final name from the start: write into a directory that is
    published when all is done. Leaving its `with` block well closes it; else it stays bad.
    UserError where the disk is full.
    """

    def __init__(self, path: Path, shard: Shard, written: int, descriptor: int) -> None:
        self.path = path
        self._cached = descriptor
        self._direct = open_direct(path, os.O_WRONLY)
        self._spans: dict[str, tuple[int, int]] = {}  # name -> absolute start, bytes
        start = len(header_bytes(shard))
        for name, dtype, shape in shard.tensors:
            nbytes = tensor_bytes(dtype, shape)
            self._spans[name] = (start, nbytes)
            start += nbytes
        self._missing = shard.nbytes - written
        self._lock = threading.Lock()

    @classmethod
    def create(cls, directory: Path, shard: Shard, *, written: int | None = None) -> ShardFile:
        """Make the file at its final size, header written, data still zero.

        written: resume a file that a killed process left, of which so many bytes of data are
        done; without it FileExistsError where the file is there already. Mode 0644 (less the
        umask): the safetensors library writes 0600, which other users of a cluster cannot read.
        """
        path = directory / shard.file_name
        header = header_bytes(shard)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if written is None else 0)
        descriptor = os.open(path, flags, 0o644)
        made = cls(path, shard, written or 0, descriptor)
        try:
            made._allocate(len(header) + shard.nbytes)
            made._write_to(made._cached, 0, memoryview(header))
        except BaseException:
            made._close_descriptors()
            raise
        return made

    def start_of(self, name: str) -> int:
        """Offset of the first byte of tensor `name` in the file."""
        return self._spans[name][0]

    def write(self, name: str, offset: int, data: bytes | memoryview | NDArray[np.uint8]) -> None:
        """Write a part of tensor `name`, from byte `offset` of that tensor.

        Whole pages go past the page cache where `data` lies in memory as it will in the file:
        its address and its place differ by a multiple of `PAGE`.
        """
        view = data.data if isinstance(data, np.ndarray) else memoryview(data)
        start, nbytes = self._spans[name]
        if offset < 0 or offset + view.nbytes > nbytes:
            raise ValueError(f"{name!r} has {nbytes} bytes, given {offset} + {view.nbytes}")
        if not view.nbytes:  # an empty view cannot be cast
            return
        view, position = view.cast("B"), start + offset
        before = min(-position % PAGE, view.nbytes)
        pages = (view.nbytes - before) // PAGE * PAGE
        address = data.ctypes.data if isinstance(data, np.ndarray) else -1
        if self._direct < 0 or (address - position) % PAGE or not pages:
            self._write_to(self._cached, position, view)
        else:
            self._write_to(self._cached, position, view[:before])
            self._write_to(self._direct, position + before, view[before : before + pages])
            self._write_to(self._cached, position + before + pages, view[before + pages :])
        with self._lock:
            self._missing -= view.nbytes

    def sync(self) -> None:
        """fsync: what was written so far survives a power cut."""
        try:
            os.fsync(self._cached)
        except OSError as error:
            raise write_error(error, self.path) or error from error

    def close(self) -> None:
        """fsync and close; ValueError if fewer bytes were written than the file holds."""
        try:
            if self._missing > 0:
                raise ValueError(f"{self.path}: {self._missing} bytes were never written")
            self.sync()
        finally:
            self._close_descriptors()

    def abandon(self) -> None:
        """Close without a word about what is missing."""
        with contextlib.suppress(OSError):  # a file system that is out of reach
            self._close_descriptors()

    def _close_descriptors(self) -> None:
        os.close(self._cached)
        if self._direct >= 0:
            os.close(self._direct)

    def _allocate(self, size: int) -> None:
        """Reserve the disk blocks now, where the file system can: a full disk shows at once."""
        try:
            os.ftruncate(self._cached, size)
            if _fallocate(self._cached, size) != 0 and ctypes.get_errno() in DISK_FULL:
                raise OSError(ctypes.get_errno(), "")
        except OSError as error:
            raise write_error(error, self.path) or error from error

    def _write_to(self, descriptor: int, position: int, data: memoryview) -> None:
        while data:
            try:
                # One call writes at most 2 GiB, and may write less than given.
                done = os.pwrite(descriptor, data, position)
            except OSError as error:
                if error.errno == errno.EINVAL and descriptor == self._direct:
                    descriptor = self._cached  # a device of larger blocks
                    continue
                raise write_error(error, self.path) or error from error
            data, position = data[done:], position + done

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def write_index(directory: Path, shards: Sequence[Shard]) -> None:
    """Write `model.safetensors.index.json`, as transformers does; nothing for a single file."""
    if len(shards) < 2:
        return
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    index = {
        "metadata": {
            "total_parameters": sum(math.prod(shape) for _, _, shape in tensors),
            "total_size": sum(shard.nbytes for shard in shards),
        },
        "weight_map": {name: shard.file_name for shard in shards for name, _, _ in shard.tensors},
    }
    (directory / INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _fallocate(descriptor: int, size: int) -> int:
    """0, or -1 with ctypes.get_errno(); os.posix_fallocate would write zeros where the file system
    cannot reserve."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if function is None:  # not on macOS
        return 0
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return int(function(descriptor, 0, 0, size)) if size else 0
