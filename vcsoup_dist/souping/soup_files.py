"""The weights files of all soups while they are filled: the sink of a merge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from vcsoup_dist.checkpoints.layout import DTYPE_BITS
from vcsoup_dist.checkpoints.pages import Bytes
from vcsoup_dist.checkpoints.writer import Shard, ShardFile, header_bytes
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.pieces import Piece


def piece_bytes(piece: Piece) -> int:
    """Of one soup."""
    return (piece.end - piece.begin) * DTYPE_BITS[piece.dtype] // 8


def require_whole(folder: Path, shard: Shard) -> None:
    """UserError unless a file of which pieces are done is there at its size."""
    path = folder / shard.file_name
    size = len(header_bytes(shard)) + shard.nbytes
    if not path.is_file() or path.stat().st_size != size:
        raise UserError(
            f"{path}: is gone or cut, though parts of it were done; remove"
            f" {folder.parent.parent} to begin anew"
        )


def most_open_shards(pieces: Sequence[Piece], window: int) -> int:
    """How many shards some `window` pieces in a row belong to, at the most."""
    places = [piece.shard for piece in pieces]
    ranks = {place: i for i, place in enumerate(dict.fromkeys(places))}
    ends = zip(places, [*places[window - 1 :], *places[-1:] * window], strict=False)
    return max((ranks[last] - ranks[first] + 1 for first, last in ends), default=0)


class SoupFiles:
    """A shard's files of all soups are opened with its first piece and closed with its last."""

    def __init__(
        self, folders: Sequence[Path], shards: Sequence[Shard], finished: Iterable[Piece]
    ) -> None:
        """folders: [K]; finished: the pieces that a killed run has written."""
        self._folders = folders
        self._shards = shards
        self._written = Counter[int]()  # bytes of one soup, by shard
        for piece in finished:
            self._written[piece.shard] += piece_bytes(piece)
        self._open: dict[int, list[ShardFile]] = {}

    def prepare(self, piece: Piece) -> None:
        if piece.shard not in self._open:
            self._open_shard(piece.shard)

    def place(self, piece: Piece, offset: int) -> int:
        return self._open[piece.shard][0].start_of(piece.tensor) + offset

    def put(self, soup: int, piece: Piece, offset: int, data: Bytes) -> None:
        self._open[piece.shard][soup].write(piece.tensor, offset, data)

    def finish(self, piece: Piece) -> None:
        """All of the piece is written; the shard's files are synced and closed with the last."""
        self._written[piece.shard] += piece_bytes(piece)
        if self._written[piece.shard] == self._shards[piece.shard].nbytes:
            self._close_shard(piece.shard)

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
