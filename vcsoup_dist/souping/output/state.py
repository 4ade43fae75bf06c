"""How far a merge is: which soups are made, and which work folder is of which merge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.chunks import Chunk, cut_chunks, deal_shards
from vcsoup_dist.souping.merge_run import MergeRun
from vcsoup_dist.souping.output.journal import read_journals
from vcsoup_dist.souping.output.manifest import fingerprint, is_made
from vcsoup_dist.souping.output.publish import publish
from vcsoup_dist.souping.output.targets import require_free, require_same_file_system
from vcsoup_dist.souping.output.weights_files import require_whole
from vcsoup_dist.souping.output.work_folder import (
    WorkRecord,
    active_writers,
    clear,
    explain_lost_disk,
    locked,
    lost,
    read_record,
    remove,
    write_record,
)
from vcsoup_dist.souping.resources import check_disk


def missing_soups(run: MergeRun, *, overwrite: bool | None = None) -> list[str]:
    """The soups that are not made; UserError where something else is in their place."""
    overwrite = run.options.overwrite if overwrite is None else overwrite
    missing = [soup for soup in run.plan.soups if not is_made(run.plan, soup, run.targets[soup])]
    for soup in missing:
        require_free(run.targets[soup], overwrite)
    return missing


def all_made(run: MergeRun) -> bool:
    return all(is_made(run.plan, soup, run.targets[soup]) for soup in run.plan.soups)


def begin(run: MergeRun) -> MergeRun:
    """The part of a merge that its work folder, which is locked, is of from now on.

    Without soups where there is nothing to do; then the folder is removed. UserError where a
    target is taken, the disk too small, or the folder in use by another merge.
    """
    work = run.work
    record = read_record(work)
    started = _started(run, record)
    if started is not None:
        if not all_made(started):
            missing_soups(started)
            check_disk(started.plan, work)
            return started
        clear(work)  # a run was killed that had published all
    elif record is not None:
        if not run.options.overwrite:
            raise _of_another(work)
        if writers := active_writers(work):
            raise UserError(f"{work}: another process writes there ({writers[0]}); wait for it")
        clear(work)
    try:
        missing = run.of_soups(missing_soups(run))
        if missing.plan.soups:
            require_same_file_system(work, [run.targets[soup] for soup in missing.plan.soups])
            check_disk(missing.plan, work)
            write_record(work, WorkRecord(fingerprint(missing.plan), tuple(missing.plan.soups)))
            return missing
    except BaseException:
        remove(work)
        raise
    remove(work)
    return missing


def publish_soups(run: MergeRun) -> bool:
    """Publish the started soups of a merge if every rank has done its share; whether they are made.

    UserError where the work folder is of another merge, or a target is taken.
    """
    with locked(run.work, make=False) as exists, explain_lost_disk(run.work):
        if not exists:  # another rank was faster, or none has begun
            return all_made(run)
        record = read_record(run.work)
        started = _started(run, record)
        if record is not None and started is None:
            raise _of_another(run.work)
        if all_made(started or run):  # who published them was killed before it had tidied up
            remove(run.work)
            return True
        if started is None:
            return False
        done = read_journals(run.work)
        if any(chunk.number not in done for chunk in cut_chunks(started.plan.shards)):
            return False
        publish(started, done)
        remove(run.work)
    return True


def is_published_or_kept(run: MergeRun, own: Sequence[Chunk]) -> bool:
    """Whether the soups are in their place.

    UserError where they are not, and the chunks that this process has written are not in the work
    folder any more.
    """
    with locked(run.work, make=False) as exists:
        if all_made(run):
            return True
        record = read_record(run.work) if exists else None
        done = read_journals(run.work) if record else {}
        if record is None or any(chunk.number not in done for chunk in own):
            raise lost(run.work)
        shards = {chunk.shard for chunk in own}
        for soup in run.plan.soups:
            made = is_made(run.plan, soup, run.targets[soup])
            for place in () if made else shards:
                require_whole(run.folder(soup), run.plan.shards[place])
    return False


def missing_ranks(run: MergeRun) -> list[int]:
    """The ranks whose share is not done; all that have one where nothing of this merge is."""
    with locked(run.work, make=False) as exists:
        started = _started(run, read_record(run.work)) if exists else None
        if all_made(started or run):
            return []
        done = read_journals(run.work) if started else {}
    missing = {chunk.shard for chunk in cut_chunks(run.plan.shards) if chunk.number not in done}
    dealt = deal_shards(run.plan.shards, run.options.world_size)
    return [rank for rank, shards in enumerate(dealt) if missing & set(shards)]


def _started(run: MergeRun, record: WorkRecord | None) -> MergeRun | None:
    """The part of a merge that the work folder is of, all else being made; None where it is of
    another, or of none."""
    if record is None:
        return None
    same = run.of_soups(record.soups)
    rest = run.of_soups([soup for soup in run.plan.soups if soup not in same.plan.soups])
    if fingerprint(same.plan) != record.fingerprint or missing_soups(rest, overwrite=True):
        return None
    return same


def _of_another(work: Path) -> UserError:
    return UserError(
        f"{work}: holds a started merge of other policies, weights or options; give the"
        " same ones to resume it, or --overwrite to start over"
    )
