"""Writing the soups of a plan: one pass over N policies, K soups, in bounded memory.

OUT.partial/soups/<name>/       soups while they are written
OUT.partial/rank-*.journal      which pieces are done; see journal.py
OUT.partial/rank-*.lock         one writer for each rank
OUT, or OUT/<name>              finished soups, by rename

Soups are published, and the work folder goes, only when every piece of every rank is done: a rank
that has pieces to make can rely on its folder, one that has none does not touch it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vcsoup_dist.checkpoints.layout import DTYPE_BITS
from vcsoup_dist.checkpoints.reader import MAX_OPEN
from vcsoup_dist.checkpoints.writer import DISK_FULL
from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log, progress
from vcsoup_dist.souping.journal import Digests, Journal, read_journals, started
from vcsoup_dist.souping.locks import finishing, others_write, writing
from vcsoup_dist.souping.manifest import fingerprint, is_made
from vcsoup_dist.souping.pieces import Piece, cut_pieces, deal_shards
from vcsoup_dist.souping.preflight import (
    MergePlan,
    check_disk,
    raise_open_files,
    widest_output,
)
from vcsoup_dist.souping.publish import publish
from vcsoup_dist.souping.soup_files import SoupFiles, piece_bytes
from vcsoup_dist.souping.stream import Done, Recipients, stream

NOTE_EVERY = 1.0  # seconds between two entries of the journal, or longer where they are slow
SYNC_SHARE = 0.05  # of the time, at the most


@dataclass(frozen=True)
class Placement:
    """Where the soups of a plan go."""

    out: Path
    targets: Mapping[str, Path]
    """Soup -> its finished directory."""

    @property
    def work(self) -> Path:
        return self.out.with_name(self.out.name + ".partial")

    def folder(self, soup: str) -> Path:
        """Where the soup is while it is written."""
        return self.work / "soups" / soup


@dataclass(frozen=True)
class Written:
    """What this process has done of a merge."""

    soups: tuple[str, ...]
    """That were due; none where all were made already."""
    bytes_read: int
    bytes_written: int
    pieces_kept: int
    """That a former run, or other ranks, had done."""
    finished: bool
    """Whether all ranks' parts are done, and the soups are in their place."""


def placement(plan: MergePlan, out: Path, *, inside: bool) -> Placement:
    """inside: soups are folders in `out`; else the only one is `out` itself."""
    if not inside and len(plan.soups) > 1:
        raise ValueError("several soups cannot all be one directory")
    out = out.absolute()
    return Placement(out, {soup: out / soup if inside else out for soup in plan.soups})


def write_soups(
    plan: MergePlan,
    where: Placement,
    *,
    memory: int = 1 << 30,
    rank: int = 0,
    world_size: int = 1,
    finalise: bool = True,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    card: bool = True,
    sha256: bool = False,
    title: str = "merge",
) -> Written:
    """Write this rank's shards of every soup; the rank that finds all done publishes them.

    Every input byte is read once. Killed at any instant, the same call goes on, and ends with
    the same bytes, as any number of ranks do. memory: bytes; finalise: False leaves publishing
    to `finish`; overwrite: replace what lies at the targets; card: write a README.md; sha256:
    also record what `sha256sum` prints; title: of the progress bar.
    UserError for NaN or infinity in a policy unless `allow_nonfinite`, integers that differ, a
    full disk, a place that is taken or in use.
    """
    asked, plan = plan, due(plan, where, overwrite)
    if not plan.soups:
        return Written((), 0, 0, 0, True)
    mark = fingerprint(plan)
    with _disk_full_is_said(where.work):
        _leave_other_merge(where.work, mark, overwrite)
        own = set(deal_shards(plan.shards, world_size)[rank])
        pieces = [piece for piece in cut_pieces(plan.shards) if piece.shard in own]
        done = read_journals(where.work, mark)
        kept, missing = _divided(pieces, done)
        if not due(asked, where, overwrite).soups:  # another rank has published since
            return Written((), 0, 0, 0, True)
        if not missing and (pieces or rank or any(shard.nbytes for shard in plan.shards)):
            report = Written(tuple(plan.soups), 0, 0, len(kept), False)
        else:
            _make_folders(plan, where)
            check_disk(plan, where.work)
            # Two shards of every soup and all files of a reader, each open twice.
            raise_open_files(4 * len(plan.soups) + 2 * MAX_OPEN * len(plan.sources) + 64)
            with writing(where.work, rank, world_size):
                kept, missing = _divided(pieces, read_journals(where.work, mark))
                files = SoupFiles([where.folder(soup) for soup in plan.soups], plan.shards, kept)
                journal = Journal(where.work, mark, rank, world_size)
                report = _write(plan, missing, files, journal, memory, allow_nonfinite, title)
                report = replace(report, pieces_kept=len(kept))
        finished = finalise and finish(plan, where, card=card, sha256=sha256)
    return replace(report, finished=finished)


def finish(plan: MergePlan, where: Placement, *, card: bool = True, sha256: bool = False) -> bool:
    """Publish the soups if every rank has done its part; whether they are published."""
    mark = fingerprint(plan)
    try:
        if where.work.is_dir():
            with _disk_full_is_said(where.work), finishing(where.work):
                if where.work.is_dir():  # still
                    return _publish(plan, where, mark, card=card, sha256=sha256)
    except FileNotFoundError:
        if where.work.exists():
            raise
    # Another rank was faster, or none has begun.
    return all(is_made(plan, soup, where.targets[soup]) for soup in plan.soups)


def missing_ranks(plan: MergePlan, where: Placement, world_size: int) -> list[int]:
    """The ranks whose part is not done."""
    done = read_journals(where.work, fingerprint(plan))
    missing = {piece.shard for piece in cut_pieces(plan.shards) if piece.number not in done}
    dealt = deal_shards(plan.shards, world_size)
    return [rank for rank, shards in enumerate(dealt) if missing & set(shards)]


def _write(
    plan: MergePlan,
    pieces: Sequence[Piece],
    files: SoupFiles,
    journal: Journal,
    memory: int,
    allow_nonfinite: bool,
    title: str,
) -> Written:
    """Make the pieces, and note in the journal what is on the disk."""
    what = Recipients(
        [source.layout for source in plan.sources],
        plan.names,
        plan.weights,
        widest_output(plan.shards),
    )
    nonfinite: set[tuple[str, str]] = set()
    read = written = 0
    unnoted: list[Done] = []
    last = time.monotonic()
    pause = NOTE_EVERY

    def note() -> None:
        nonlocal last, pause
        began = time.monotonic()
        files.sync()
        journal.append(unnoted)
        unnoted.clear()
        last = time.monotonic()
        pause = max(NOTE_EVERY, (last - began) / SYNC_SHARE)

    total = sum(sum(_bytes_of(plan, piece)) for piece in pieces)
    try:
        with progress(title, total / 1e9, "GB") as advance:
            for done in stream(what, pieces, files, memory=memory, allow_nonfinite=allow_nonfinite):
                files.finish(done.piece)
                unnoted.append(done)
                inwards, outwards = _bytes_of(plan, done.piece)
                read, written = read + inwards, written + outwards
                advance((inwards + outwards) / 1e9)
                nonfinite |= {(plan.names[i], done.piece.tensor) for i in done.nonfinite}
                if time.monotonic() - last > pause:
                    note()
        note()
    except BaseException:
        with contextlib.suppress(OSError, UserError):  # a full disk: those pieces are made again
            note()
        raise
    finally:
        files.abandon()
        journal.close()
    for policy, tensor in sorted(nonfinite):
        log.warning("policy %s: %r holds NaN or infinity", policy, tensor)
    return Written(tuple(plan.soups), read, written, 0, False)


def _bytes_of(plan: MergePlan, piece: Piece) -> tuple[int, int]:
    """Read from all policies, written to all soups."""
    bits = sum(DTYPE_BITS[source.layout[piece.tensor].dtype] for source in plan.sources)
    return (piece.end - piece.begin) * bits // 8, piece_bytes(piece) * len(plan.soups)


def due(plan: MergePlan, where: Placement, overwrite: bool) -> MergePlan:
    """The plan of the soups that are not made; UserError where something else is in their place."""
    missing = []
    for soup, target in where.targets.items():
        taken = os.path.lexists(target) and not _is_empty(target)  # before another rank publishes
        if is_made(plan, soup, target):
            continue
        if taken and not overwrite:
            raise UserError(
                f"{target}: is there already, and not made of these policies and weights as they"
                " are now; --overwrite replaces it"
            )
        missing.append(soup)
    if not missing:
        if where.work.is_dir() and not others_write(where.work):
            _remove(where.work)
        return narrowed(plan, [])
    if started(where.work) == fingerprint(plan):
        return plan  # a run of all of them was killed while it published
    return narrowed(plan, missing)


def narrowed(plan: MergePlan, soups: Sequence[str]) -> MergePlan:
    """The same for some soups only."""
    kept = [place for place, soup in enumerate(plan.soups) if soup in soups]
    return replace(
        plan,
        soups={soup: row for soup, row in plan.soups.items() if soup in soups},
        weights=np.ascontiguousarray(plan.weights[kept]),
    )


def _publish(plan: MergePlan, where: Placement, mark: str, *, card: bool, sha256: bool) -> bool:
    done = read_journals(where.work, mark)
    if any(piece.number not in done for piece in cut_pieces(plan.shards)):
        return False
    folders = {soup: where.folder(soup) for soup in plan.soups}
    publish(plan, done, folders, where.targets, card=card, sha256=sha256)
    _remove(where.work)
    return True


def _divided(
    pieces: Sequence[Piece], done: Mapping[int, Digests]
) -> tuple[list[Piece], list[Piece]]:
    """Those that are done, and those that are missing."""
    kept = [piece for piece in pieces if piece.number in done]
    return kept, [piece for piece in pieces if piece.number not in done]


def _leave_other_merge(work: Path, mark: str, overwrite: bool) -> None:
    """Remove the work folder of another merge where that is asked."""
    if overwrite and started(work) not in (None, mark):
        if others_write(work):
            raise UserError(f"{work}: another process writes there; wait for it")
        _remove(work)


def _make_folders(plan: MergePlan, where: Placement) -> None:
    try:
        for soup in plan.soups:
            where.folder(soup).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{where.work}: cannot be made: {error.strerror}") from error


def _remove(work: Path) -> None:
    """Remove a work folder whole: another rank finds it, or finds it gone."""
    doomed = work.with_name(work.name + ".done")
    shutil.rmtree(doomed, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        work.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def _disk_full_is_said(work: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(
            f"{work}: {error.strerror} while writing; make room and run the same command again,"
            " it goes on from here"
        ) from error


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())
