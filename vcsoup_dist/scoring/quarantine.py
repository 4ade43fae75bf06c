"""The file of shards that a run sets aside, so that what is wrong with one costs no other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_atomically
from vcsoup_dist.launch.workload import FailedTask
from vcsoup_dist.scoring.tasks import ShardTask

QUARANTINE = "quarantine.json"


def write_quarantine(path: Path, shards: Sequence[FailedTask[ShardTask]]) -> None:
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


def quarantine_error(
    reward: str, shards: Sequence[FailedTask[ShardTask]], total: int, file: Path
) -> UserError:
    """The error in which the shards of one reward end, `total` of which were due."""
    first = shards[0]
    return UserError(
        f"{reward}: {len(shards)} of {total} shards are set aside, listed with their errors in "
        f"{file}; the first is {first.task.name}: {first.reason}. All other scores are kept, and "
        "the same command tries just these again"
    )
