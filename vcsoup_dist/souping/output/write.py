"""Writing the soups of a plan: one pass over N policies, K soups, in bounded memory.

Soups are written in the work folder (work.py) and published by rename. Every step that others may
race with is taken with its door held.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vcsoup_dist.checkpoints.layout import DTYPE_BITS
from vcsoup_dist.checkpoints.reader import MAX_OPEN
from vcsoup_dist.errors import UserError
from vcsoup_dist.files import DISK_FULL, write_error
from vcsoup_dist.progress import log, progress
from vcsoup_dist.souping.chunks import Chunk, cut_chunks, deal_shards
from vcsoup_dist.souping.fingerprints import files_of, require_unchanged
from vcsoup_dist.souping.output.journal import Journal, read_journals
from vcsoup_dist.souping.output.manifest import fingerprint, is_made
from vcsoup_dist.souping.output.publish import publish
from vcsoup_dist.souping.output.targets import Placement, require_free
from vcsoup_dist.souping.output.weights_files import (
    SoupFiles,
    chunk_bytes,
    most_open_shards,
    require_whole,
)
from vcsoup_dist.souping.output.work_folder import (
    Record,
    check_targets,
    clear,
    door,
    read_record,
    remove,
    write_record,
    writers,
    writing,
)
from vcsoup_dist.souping.plan import MergePlan, check_disk, raise_open_files
from vcsoup_dist.souping.stream import MOST_THREADS, Done, stream

NOTE_EVERY = 1.0  # seconds between two entries of the journal, or longer where they are slow
SYNC_SHARE = 0.05  # of the time, at the most


@dataclass(frozen=True)
class Written:
    """What this process has done of a merge."""

    soups: tuple[str, ...]
    """That were due; none where all were made already."""
    bytes_read: int
    bytes_written: int
    chunks_kept: int
    """Of this rank, that a former run had done."""
    finished: bool
    """Whether all ranks' parts are done, and the soups are in their place."""


def write_soups(
    plan: MergePlan,
    where: Placement,
    *,
    memory: int = 1 << 30,
    rank: int = 0,
    world_size: int = 1,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    card: bool = True,
    sha256: bool = False,
    title: str = "merge",
    publishing: bool = True,
) -> Written:
    """Write this rank's shards of every soup; the rank that finds all done publishes them.

    Every input byte is read once. Killed at any instant, the same call goes on, and ends with
    the same bytes, as any number of ranks do. memory: bytes; overwrite: replace
    what lies at the targets; card: write a README.md; sha256: also record what `sha256sum`
    prints; title: of the progress bar; publishing: False leaves that to `finish` in any case.
    UserError for NaN or infinity in a policy unless `allow_nonfinite`, integers that differ, a
    full disk, a place that is taken or in use.
    """
    if not where.work.exists() and not due(plan, where, overwrite):
        return Written((), 0, 0, 0, True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_disk_full_is_said(where.work))
        with door(where.work, make=True):
            plan = _enter(plan, where, overwrite)
            if not plan.soups:
                return Written((), 0, 0, 0, True)
            stack.enter_context(_lost_is_said(where.work))
            stack.enter_context(writing(where.work, rank, world_size))
            done = read_journals(where.work)
        own = set(deal_shards(plan.shards, world_size)[rank])
        chunks = [chunk for chunk in cut_chunks(plan.shards) if chunk.shard in own]
        kept = [chunk for chunk in chunks if chunk.number in done]
        missing = [chunk for chunk in chunks if chunk.number not in done]
        report = Written(tuple(plan.soups), 0, 0, 0, False)
        if missing:  # so nothing is published before they are done, and the folder stays
            raise_open_files(open_files(plan, missing))
            for soup in plan.soups:
                where.folder(soup).mkdir(parents=True, exist_ok=True)
            files = SoupFiles([where.folder(soup) for soup in plan.soups], plan.shards, kept)
            journal = Journal(where.work, rank, world_size)
            try:
                report = _write(plan, missing, files, journal, memory, allow_nonfinite, title)
            except UserError:
                _require_unchanged(plan)  # what is wrong with the numbers may be half written
                raise
        _require_unchanged(plan)
        finished = _is_published_or_kept(plan, where, chunks)
        if publishing and not finished:
            finished = finish(plan, where, overwrite=overwrite, card=card, sha256=sha256)
    return replace(report, chunks_kept=len(kept), finished=finished)


def finish(
    plan: MergePlan,
    where: Placement,
    *,
    overwrite: bool = False,
    card: bool = True,
    sha256: bool = False,
) -> bool:
    """Publish the started soups of a plan if every rank has done its part; whether they are made.

    UserError where the work folder is of another merge, or a target is taken.
    """
    with door(where.work, make=False) as there, _disk_full_is_said(where.work):
        if not there:  # another rank was faster, or none has begun
            return _all_made(plan, where)
        record = read_record(where.work)
        same = _started(plan, where, record)
        if record is not None and same is None:
            raise _of_another(where.work)
        if _all_made(same or plan, where):  # who published them was killed before it had tidied up
            remove(where.work)
            return True
        if same is None:
            return False
        done = read_journals(where.work)
        if any(chunk.number not in done for chunk in cut_chunks(same.shards)):
            return False
        folders = {soup: where.folder(soup) for soup in same.soups}
        publish(same, done, folders, where.targets, overwrite=overwrite, card=card, sha256=sha256)
        remove(where.work)
    return True


def _is_published_or_kept(plan: MergePlan, where: Placement, own: Sequence[Chunk]) -> bool:
    """Whether the soups are in their place; UserError where they are not, and what this process
    has written of them is not in the work folder any more."""
    with door(where.work, make=False) as there:
        if _all_made(plan, where):
            return True
        record = read_record(where.work) if there else None
        done = read_journals(where.work) if record else {}
        if record is None or any(chunk.number not in done for chunk in own):
            raise _removed(where.work)
        shards = {chunk.shard for chunk in own}
        for soup in plan.soups:
            for place in shards if not is_made(plan, soup, where.targets[soup]) else ():
                require_whole(where.folder(soup), plan.shards[place])
    return False


def _require_unchanged(plan: MergePlan) -> None:
    """UserError that names a file of a policy that was written while it was merged."""
    for source, mark in zip(plan.sources, plan.source_fingerprints, strict=True):
        require_unchanged(source, plan.states, mark)


def missing_ranks(plan: MergePlan, where: Placement, world_size: int) -> list[int]:
    """The ranks whose part is not done; all that have one where nothing of this merge is."""
    with door(where.work, make=False) as there:
        started = _started(plan, where, read_record(where.work)) if there else None
        if _all_made(started or plan, where):
            return []
        done = read_journals(where.work) if started else {}
    missing = {chunk.shard for chunk in cut_chunks(plan.shards) if chunk.number not in done}
    dealt = deal_shards(plan.shards, world_size)
    return [rank for rank, shards in enumerate(dealt) if missing & set(shards)]


def due(plan: MergePlan, where: Placement, overwrite: bool) -> list[str]:
    """The soups that are not made; UserError where something else is in their place."""
    missing = []
    for soup in plan.soups:
        target = where.targets[soup]
        if is_made(plan, soup, target):
            continue
        require_free(target, overwrite)
        missing.append(soup)
    return missing


def narrowed(plan: MergePlan, soups: Sequence[str]) -> MergePlan:
    """The same for some soups only."""
    kept = [place for place, soup in enumerate(plan.soups) if soup in soups]
    return replace(
        plan,
        soups={soup: row for soup, row in plan.soups.items() if soup in soups},
        weights=np.ascontiguousarray(plan.weights[kept]),
    )


def open_files(plan: MergePlan, chunks: Sequence[Chunk]) -> int:
    """How many a merge may have open: shards of every soup, and all of its readers', each twice."""
    shards = most_open_shards(chunks, 2 * MOST_THREADS)
    read = sum(min(MAX_OPEN, len(files_of(source))) for source in plan.sources)
    return 2 * shards * len(plan.soups) + 2 * read + 64


def _enter(plan: MergePlan, where: Placement, overwrite: bool) -> MergePlan:
    """The plan of what is to be done in the work folder, whose door is held; without soups where
    there is nothing to do, and then without the folder."""
    work = where.work
    record = read_record(work)
    same = _started(plan, where, record)
    if same is not None:
        if not _all_made(same, where):
            due(same, where, overwrite)
            check_disk(same, work)
            return same
        clear(work)  # a run was killed that had published all
    elif record is not None:
        if not overwrite:
            raise _of_another(work)
        if who := writers(work):
            raise UserError(f"{work}: another process writes there ({who[0]}); wait for it")
        clear(work)
    try:
        missing = narrowed(plan, due(plan, where, overwrite))
        if missing.soups:
            check_targets(work, [where.targets[soup] for soup in missing.soups])
            check_disk(missing, work)
            write_record(work, Record(fingerprint(missing), tuple(missing.soups)))
            return missing
    except BaseException:
        remove(work)
        raise
    remove(work)
    return missing


def _started(plan: MergePlan, where: Placement, record: Record | None) -> MergePlan | None:
    """The part of the plan that the work folder is of, all else being made; None where it is of
    another, or of none."""
    if record is None:
        return None
    same = narrowed(plan, record.soups)
    rest = narrowed(plan, [soup for soup in plan.soups if soup not in same.soups])
    if fingerprint(same) != record.fingerprint or due(rest, where, True):
        return None
    return same


def _of_another(work: Path) -> UserError:
    return UserError(
        f"{work}: holds a started merge of other policies, weights or options; give the"
        " same ones to go on with it, or --overwrite to begin anew"
    )


def _all_made(plan: MergePlan, where: Placement) -> bool:
    return all(is_made(plan, soup, where.targets[soup]) for soup in plan.soups)


def _write(
    plan: MergePlan,
    chunks: Sequence[Chunk],
    files: SoupFiles,
    journal: Journal,
    memory: int,
    allow_nonfinite: bool,
    title: str,
) -> Written:
    """Make the chunks, and note in the journal what is on the disk."""
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

    total = sum(sum(_bytes_of(plan, chunk)) for chunk in chunks)
    try:
        with contextlib.ExitStack() as stack:
            advance = stack.enter_context(progress(title, total / 1e9, "GB"))
            made = stream(
                plan.recipients(), chunks, files, memory=memory, allow_nonfinite=allow_nonfinite
            )
            stack.enter_context(contextlib.closing(made))
            for done in made:
                files.finish(done.chunk)
                unnoted.append(done)
                inwards, outwards = _bytes_of(plan, done.chunk)
                read, written = read + inwards, written + outwards
                advance((inwards + outwards) / 1e9)
                nonfinite |= {(plan.names[i], done.chunk.tensor) for i in done.nonfinite}
                if time.monotonic() - last > pause:
                    note()
        note()
    except BaseException:
        with contextlib.suppress(OSError, UserError):  # a full disk: those chunks are made again
            note()
        raise
    finally:
        files.abandon()
        journal.close()
    for policy, tensor in sorted(nonfinite):
        log.warning("policy %s: %r holds NaN or infinity", policy, tensor)
    return Written(tuple(plan.soups), read, written, 0, False)


def _bytes_of(plan: MergePlan, chunk: Chunk) -> tuple[int, int]:
    """Read from all policies, written to all soups."""
    bits = sum(DTYPE_BITS[source.layout[chunk.tensor].dtype] for source in plan.sources)
    return (chunk.end - chunk.begin) * bits // 8, chunk_bytes(chunk) * len(plan.soups)


def _removed(work: Path) -> UserError:
    return UserError(
        f"{work}: was removed, emptied or replaced while it was written to, so the soups are lost;"
        " run the same command again, it begins anew"
    )


@contextlib.contextmanager
def _lost_is_said(work: Path) -> Iterator[None]:
    """A folder or file that is gone from the work folder is no defect of this project."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        if not error.filename or work not in Path(os.fsdecode(error.filename)).parents:
            raise
        raise _removed(work) from error


@contextlib.contextmanager
def _disk_full_is_said(work: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise write_error(error, work) or error from error
