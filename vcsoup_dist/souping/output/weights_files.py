"""The weights files of all soups while they are filled: the sink of a merge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vcsoup_dist.checkpoints.direct_io import Bytes
from vcsoup_dist.checkpoints.writer import Shard, ShardFile, header_bytes
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.chunks import Chunk
from vcsoup_dist.souping.stream import Sink


def require_whole(folder: Path, shard: Shard) -> None:
    """UserError unless a file of which chunks are done is there at its size."""
    path = folder / shard.file_name
    size = len(header_bytes(shard)) + shard.nbytes
    if not path.is_file() or path.stat().st_size != size:
        raise UserError(
            f"{path}: is missing or truncated, though parts of it were done;"
            f" remove {folder.parent.parent} to start over"
        )


class SoupFiles(Sink):
    """A shard's files of all soups are opened with its first chunk and closed with its last."""

    def __init__(
        self, folders: Sequence[Path], shards: Sequence[Shard], finished: Iterable[Chunk]
    ) -> None:
        """folders: [K]; finished: the chunks that a killed run has written."""
        self._folders = folders
        self._shards = shards
        self._written = Counter[int]()  # bytes of one soup, by shard
        for chunk in finished:
            self._written[chunk.shard] += chunk.nbytes
        self._open: dict[int, list[ShardFile]] = {}

    def prepare(self, chunk: Chunk) -> None:
        if chunk.shard not in self._open:
            self._open_shard(chunk.shard)

    def place(self, chunk: Chunk, offset: int) -> int:
        return self._open[chunk.shard][0].start_of(chunk.tensor) + offset

    def put(self, soup: int, chunk: Chunk, offset: int, data: Bytes) -> None:
        self._open[chunk.shard][soup].write(chunk.tensor, offset, data)

    def finish(self, chunk: Chunk) -> None:
        """All of the chunk is written; the shard's files are synced and closed with the last."""
        self._written[chunk.shard] += chunk.nbytes
        if self._written[chunk.shard] == self._shards[chunk.shard].nbytes:
            self._close_shard(chunk.shard)

    def sync(self) -> None:
        """fsync all open files."""
        for files in self._open.values():
            for file in files:
                file.sync()

    def abandon(self) -> None:
        """Close what is open, as it is."""
        for files in self._open.values():
            for file in files:
                file.abandon()
        self._open.clear()

    def _open_shard(self, place: int) -> None:
        files: list[ShardFile] = []
        self._open[place] = files
        for folder in self._folders:
            if self._written[place]:
                require_whole(folder, self._shards[place])
            files.append(
                ShardFile.create(folder, self._shards[place], written=self._written[place])
            )

    def _close_shard(self, place: int) -> None:
        for file in self._open.pop(place):
            file.close()
