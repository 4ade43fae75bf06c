"""What the stages of runs took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.records.history import read_history


def seconds_by_stage(roots: Sequence[Path]) -> dict[str, float]:
    """What each stage took, summed over the runs, of which several shared the machine."""
    found: dict[str, float] = {}
    for root in roots:
        for each in read_history(root):
            if each.ended is not None:
                found[each.stage] = found.get(each.stage, 0.0) + each.ended - each.began
    return {stage: round(seconds, 1) for stage, seconds in found.items()}
