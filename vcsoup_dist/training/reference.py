"""Log-probs of every pair under theta_0, computed once by the same packed forward as training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from vcsoup_dist.forward.answers import pack_pairs
from vcsoup_dist.forward.packing import budget_batches
from vcsoup_dist.progress import progress
from vcsoup_dist.recipe import Training
from vcsoup_dist.records.reference import DTYPE, Logps, ReferenceDraft
from vcsoup_dist.records.tokens import TokenFile
from vcsoup_dist.training.distributed import gather_to_all, gather_to_first, is_first, local_device
from vcsoup_dist.training.job import ReferenceTask
from vcsoup_dist.training.runtime import Runtime

BATCHES_PER_WRITE = 8
"""Of each rank: enough that ranks seldom wait for each other."""


def compute_reference(runtime: Runtime, task: ReferenceTask) -> bool:
    """Write one dataset's log-probs, some pairs after others; False where stopped on request.

    Called by all ranks together. Pairs that a killed run wrote are kept.
    """
    tokens = TokenFile(Path(task.tokens))
    draft = ReferenceDraft(Path(task.output), tokens) if is_first() else None
    # Rank 0 alone looks: on a network file system the others may see an older state.
    done = gather_to_all(draft.rows() if draft else 0)[0]
    runtime.engine.eval()
    with progress(f"reference {tokens.folder.name}", tokens.rows, "pairs", done) as advance:
        for number, (first, end) in enumerate(_groups(tokens, done, runtime.training)):
            if runtime.stop.on_any_rank(number > 0):
                return False
            logps = _pair_logps(runtime, tokens, range(first, end))
            if draft is not None and logps is not None:
                draft.write(tokens.answers_before(first), logps, end)
            advance(end - first)
    return True


def _groups(tokens: TokenFile, done: int, training: Training) -> Iterator[tuple[int, int]]:
    """Rows [first, end) that are written together, large enough to give every rank some batches.

    The same from the same row on, also after a kill: what is packed together decides the last bits.
    """
    enough = BATCHES_PER_WRITE * dist.get_world_size() * training.tokens_per_batch
    first, size, end = done, 0, done
    for end, cost in enumerate(tokens.costs(done), start=done + 1):
        size += cost
        if size >= enough:
            yield first, end
            first, size = end, 0
    if first < end:
        yield first, end


def _pair_logps(runtime: Runtime, tokens: TokenFile, rows: range) -> Logps | None:
    """Log-probs of the rows' answers, end to end, on rank 0; ranks take batches in turn."""
    # `costs` goes on after the last row.
    costs = dict(zip(rows, tokens.costs(rows.start), strict=False))
    usable = [row for row, cost in costs.items() if cost]
    batches = budget_batches([costs[row] for row in usable], runtime.training.tokens_per_batch)
    rank, world = dist.get_rank(), dist.get_world_size()
    mine: list[tuple[int, Logps]] = []
    for turn in range(-(-len(batches) // world)):
        runtime.watchdog.alive()
        number = turn * world + rank
        # A rank without a batch repeats the first: all must run the same number of forwards.
        part = [usable[i] for i in batches[number if number < len(batches) else 0]]
        pairs = [tokens.pair(row) for row in part]
        answers = pack_pairs(pairs, local_device())
        with torch.no_grad():
            logps = runtime.engine(answers).cpu().numpy()
        if number >= len(batches):
            continue
        ends = np.cumsum([sum(side.answer_length for side in pair) for pair in pairs])
        mine += zip(part, np.split(logps, ends[:-1]), strict=True)
    runtime.watchdog.rest()
    shares = gather_to_first(mine)
    if shares is None:
        return None
    joined = sorted((each for share in shares for each in share), key=lambda each: each[0])
    return np.concatenate([np.zeros(0, DTYPE), *(logps for _, logps in joined)])
