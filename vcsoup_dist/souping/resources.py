"""Disk and open files of a merge: what it needs, and what the machine has."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.checkpoints.reader import MAX_OPEN
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.chunks import Chunk
from vcsoup_dist.souping.fingerprints import files_of
from vcsoup_dist.souping.plan import MergePlan
from vcsoup_dist.souping.stream import MOST_THREADS


def check_disk(plan: MergePlan, work: Path) -> None:
    """UserError where the soups do not fit on the disk of `work`, less what is there of them."""
    there = sum(path.stat().st_blocks * 512 for path in work.rglob("*.safetensors"))
    needed = plan.soup_bytes * len(plan.soups) - there
    free = free_bytes(work)
    if needed > free:
        raise UserError(
            f"{work.parent}: the soups need {needed / 1e9:.2f} GB more, {free / 1e9:.2f} GB are"
            " free; make room, or merge fewer soups"
        )


def free_bytes(place: Path) -> int:
    """On the disk where `place` is or would be."""
    return shutil.disk_usage(existing_parent(place.absolute())).free


def existing_parent(place: Path) -> Path:
    """`place`, or the closest folder above it that exists."""
    while not place.exists():
        place = place.parent
    return place


def raise_open_files(plan: MergePlan, chunks: Sequence[Chunk]) -> None:
    """Allow this process the open files that these chunks need; UserError where it may not.

    These are the shards of every soup and the files of every reader, each opened twice.
    """
    shards = _most_open_shards(chunks, 2 * MOST_THREADS)
    read = sum(min(MAX_OPEN, len(files_of(source))) for source in plan.sources)
    needed = 2 * shards * len(plan.soups) + 2 * read + 64
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UserError(
            f"so many soups at once need {needed} open files, {hard} are allowed: raise the limit"
            " (ulimit -Hn) or merge them in parts"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _most_open_shards(chunks: Sequence[Chunk], window: int) -> int:
    """How many shards some `window` chunks in a row belong to, at the most."""
    places = [chunk.shard for chunk in chunks]
    ranks = {place: i for i, place in enumerate(dict.fromkeys(places))}
    ends = zip(places, [*places[window - 1 :], *places[-1:] * window], strict=False)
    return max((ranks[last] - ranks[first] + 1 for first, last in ends), default=0)
