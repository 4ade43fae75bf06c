"""The files of a reward in the making: one per shard of pairs, which are joined in the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.records.pairs import HELD_OUT, PairSlice, PairsManifest, cut_rows
from vcsoup_dist.records.scores import join_scores, shard_name


@dataclass(frozen=True)
class ScoreFile:
    """The scores of one file of pairs. Any of its files that exists is complete."""

    file: Path
    """What is left in the end."""
    shards: dict[PairSlice, Path]
    """Slices of the file of pairs in order, and the files of their scores until then."""

    def found(self) -> list[Path]:
        """What is there of it."""
        if self.file.exists():
            return [self.file]
        return [shard for shard in self.shards.values() if shard.exists()]

    def missing(self) -> dict[PairSlice, Path]:
        """The shards that a killed run has not left."""
        if self.file.exists():
            return {}
        return {part: shard for part, shard in self.shards.items() if not shard.exists()}

    def join(self) -> None:
        """Put the file in the place of its shards, all of which are there.

        Killed on the way, it leaves either the shards or the file, and does what is left when it
        is called again.
        """
        if not self.file.exists():
            join_scores(self.file, list(self.shards.values()))
        for shard in self.shards.values():
            shard.unlink(missing_ok=True)


def score_files(pairs: Path, output: Path, shard_pairs: int) -> list[ScoreFile]:
    """The files, in `output`, of one reward of the training pairs of a finished `pairs/<dataset>`.

    A shard has at most `shard_pairs` pairs, and none crosses the end of a file.
    """
    manifest = PairsManifest.read(pairs)
    files: list[ScoreFile] = []
    number = 0
    for each in manifest.files:
        parts = cut_rows(pairs / each.file, each.rows, shard_pairs)
        shards = {part: output / shard_name(i) for i, part in enumerate(parts, start=number)}
        number += len(parts)
        files.append(ScoreFile(output / each.file, shards))
    return files


def heldout_file(pairs: Path, output: Path, shard_pairs: int) -> ScoreFile:
    """As `score_files`, the file of the held-out pairs."""
    parts = cut_rows(pairs / HELD_OUT, PairsManifest.read(pairs).heldout, shard_pairs)
    shards = {part: output / shard_name(i, heldout=True) for i, part in enumerate(parts)}
    return ScoreFile(output / HELD_OUT, shards)
