"""Shards that a run sets aside, so that what is wrong with one costs no other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_atomically
from vcsoup_dist.scoring.actors import ShardTask

QUARANTINE = "quarantine.json"


@dataclass(frozen=True)
class SetAside:
    """A shard that cannot be scored."""

    task: ShardTask
    reason: str
    """One line."""
    details: str
    """All that Ray says."""


def write_quarantine(path: Path, shards: Sequence[SetAside]) -> None:
    """List the shards that one pool has set aside, with the pairs that they hold."""
    listed = [
        {
            "shard": each.task.name,
            "pairs": str(each.task.pairs.file),
            "first": each.task.pairs.first,
            "rows": each.task.pairs.rows,
            "reason": each.reason,
            "details": each.details,
        }
        for each in shards
    ]
    write_atomically(path, json.dumps(listed, indent=1) + "\n")


def error_of(pool: str, shards: Sequence[SetAside], total: int, file: Path) -> UserError:
    """What a person is told in the end of one pool's shards, `total` of which were due."""
    first = shards[0]
    return UserError(
        f"{pool}: {len(shards)} of {total} shards are set aside, listed with their errors in "
        f"{file}; the first is {first.task.name}: {first.reason}. All other scores are kept, and "
        "the same command tries just these again"
    )
