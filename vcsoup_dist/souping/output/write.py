"""Writing the soups of a merge: one pass over N policies, K soups, in bounded memory.

Soups are written in the work folder (work_folder.py) and published by rename. Every step that
others may race with holds the folder's lock.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log, progress
from vcsoup_dist.souping.chunks import Chunk
from vcsoup_dist.souping.fingerprints import require_unchanged
from vcsoup_dist.souping.merge_run import MergeRun
from vcsoup_dist.souping.output import state
from vcsoup_dist.souping.output.journal import Journal, read_journals
from vcsoup_dist.souping.output.weights_files import SoupFiles
from vcsoup_dist.souping.output.work_folder import (
    explain_lost_disk,
    explain_lost_files,
    locked,
    rank_lock,
)
from vcsoup_dist.souping.plan import MergePlan
from vcsoup_dist.souping.resources import raise_open_files
from vcsoup_dist.souping.stream import FinishedChunk, stream

SYNC_EVERY = 1.0  # seconds between two entries of the journal, or longer where they are slow
SYNC_SHARE = 0.05  # of the time, at the most


@dataclass(frozen=True)
class MergeReport:
    """What this process has done of a merge."""

    soups: tuple[str, ...]
    """That were due; none where all were made already."""
    bytes_read: int = 0
    bytes_written: int = 0
    chunks_kept: int = 0
    """Of this rank, that a former run had done."""
    finished: bool = False
    """Whether all ranks' shares are done, and the soups are in their place."""


def write_soups(run: MergeRun) -> MergeReport:
    """Write this rank's share of the files of every soup; the rank that finds all done publishes.

    Every input byte is read once. Killed at any instant, the same call resumes, and ends with the
    same bytes, as any number of ranks do. UserError for NaN or infinity in a policy unless allowed,
    integers that differ, a full disk, a target that is taken, a work folder in use.
    """
    if not run.work.exists() and not state.missing_soups(run):
        return MergeReport((), finished=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(explain_lost_disk(run.work))
        with locked(run.work, make=True):
            run = state.begin(run)
            if not run.plan.soups:
                return MergeReport((), finished=True)
            stack.enter_context(explain_lost_files(run.work))
            stack.enter_context(rank_lock(run.work, run.options))
            done = read_journals(run.work)
        own = run.own_chunks()
        kept = [chunk for chunk in own if chunk.number in done]
        missing = [chunk for chunk in own if chunk.number not in done]
        report = MergeReport(tuple(run.plan.soups))
        if missing:  # so nothing is published before they are done, and the folder stays
            try:
                report = _write_chunks(run, kept, missing)
            except UserError:
                _require_unchanged(run.plan)  # what is wrong with the numbers may be half written
                raise
        _require_unchanged(run.plan)
        finished = state.is_published_or_kept(run, own)
        if run.options.publish and not finished:
            finished = state.publish_soups(run)
    return replace(report, chunks_kept=len(kept), finished=finished)


def _require_unchanged(plan: MergePlan) -> None:
    """UserError that names a file of a policy that was written while it was merged."""
    for source, fingerprint in zip(plan.sources, plan.source_fingerprints, strict=True):
        require_unchanged(source, plan.states, fingerprint)


def _write_chunks(run: MergeRun, kept: Sequence[Chunk], missing: Sequence[Chunk]) -> MergeReport:
    """Write the missing chunks, and note in the journal what is on the disk."""
    plan, options = run.plan, run.options
    raise_open_files(plan, missing)
    folders = [run.folder(soup) for soup in plan.soups]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    files = SoupFiles(folders, plan.shards, kept)
    journal = _SyncedJournal(files, Journal(run.work, options.rank, options.world_size))
    nonfinite: set[tuple[str, str]] = set()
    read = written = 0
    total = sum(sum(plan.bytes_of(chunk)) for chunk in missing)
    try:
        with contextlib.ExitStack() as stack:
            advance = stack.enter_context(progress(options.title, total / 1e9, "GB"))
            finished = stream(
                plan.sums(),
                missing,
                files,
                memory=options.memory,
                allow_nonfinite=options.allow_nonfinite,
            )
            stack.enter_context(contextlib.closing(finished))
            for each in finished:
                files.finish(each.chunk)
                of_inputs, of_outputs = plan.bytes_of(each.chunk)
                read, written = read + of_inputs, written + of_outputs
                advance((of_inputs + of_outputs) / 1e9)
                nonfinite |= {(plan.names[i], each.chunk.tensor) for i in each.nonfinite}
                journal.add(each)
        journal.sync()
    except BaseException:
        with contextlib.suppress(OSError, UserError):  # a full disk: those are made again
            journal.sync()
        raise
    finally:
        files.abandon()
        with contextlib.suppress(OSError):  # what it says was synced
            journal.journal.close()
    for policy, tensor in sorted(nonfinite):
        log.warning("policy %s: %r holds NaN or infinity", policy, tensor)
    return MergeReport(tuple(plan.soups), read, written)


class _SyncedJournal:
    """Chunks enter the journal when they are on the disk: every second or so."""

    def __init__(self, files: SoupFiles, journal: Journal) -> None:
        self.journal = journal
        self._files = files
        self._unnoted: list[FinishedChunk] = []
        self._last = time.monotonic()
        self._pause = SYNC_EVERY

    def add(self, chunk: FinishedChunk) -> None:
        self._unnoted.append(chunk)
        if time.monotonic() - self._last > self._pause:
            self.sync()

    def sync(self) -> None:
        began = time.monotonic()
        self._files.sync()
        self.journal.append(self._unnoted)
        self._unnoted.clear()
        self._last = time.monotonic()
        self._pause = max(SYNC_EVERY, (self._last - began) / SYNC_SHARE)
