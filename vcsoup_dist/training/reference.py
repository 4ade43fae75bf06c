"""Log-probs of pairs under theta_0, computed once by the same packed forward as training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from vcsoup_dist.forward.answers import pack_pairs
from vcsoup_dist.forward.packing import budget_batches
from vcsoup_dist.progress import progress
from vcsoup_dist.recipe import Training
from vcsoup_dist.records.reference import DTYPE, ROWS, Logps, PartDraft
from vcsoup_dist.records.tokens import TokenFile
from vcsoup_dist.training.distributed import gather_to_all, gather_to_first, is_first, local_device
from vcsoup_dist.training.job import ReferenceTask
from vcsoup_dist.training.runtime import Runtime

BATCHES_PER_WRITE = 8
"""Of each rank: enough that ranks seldom wait for each other."""


def compute_reference(runtime: Runtime, task: ReferenceTask) -> bool:
    """Write a part's log-probs, some pairs after others; False where stopped on request.

    Called by all ranks together. Pairs that a killed run wrote are kept.
    """
    tokens = TokenFile(Path(task.tokens))
    pairs = np.load(Path(task.output) / ROWS, mmap_mode="r")
    draft = PartDraft(Path(task.output)) if is_first() else None
    # Rank 0 alone looks: on a network file system the others may see an older state.
    done = gather_to_all(draft.pairs if draft else 0)[0]
    runtime.engine.eval()
    with progress(f"reference {tokens.folder.name}", len(pairs), "pairs", done) as advance:
        for number, (first, end) in enumerate(_groups(pairs, done, runtime.training)):
            if runtime.stop.on_any_rank(number > 0):
                return False
            logps = _pair_logps(runtime, tokens, pairs[first:end])
            if draft is not None and logps is not None:
                draft.write(int(pairs["answers"][first]), logps, end)
            advance(end - first)
    return True


def _groups(pairs: NDArray[Any], done: int, training: Training) -> Iterator[tuple[int, int]]:
    """Pairs [first, end) that are written together, large enough to give every rank some batches.

    pairs: the part's, of `ROW`. The same from the same pair on, also after a kill: what is packed
    together decides the last bits.
    """
    enough = BATCHES_PER_WRITE * dist.get_world_size() * training.tokens_per_batch
    first, size, end = done, 0, done
    for end, cost in enumerate(pairs["cost"][done:], start=done + 1):
        size += int(cost)
        if size >= enough:
            yield first, end
            first, size = end, 0
    if first < end:
        yield first, end


def _pair_logps(runtime: Runtime, tokens: TokenFile, group: NDArray[Any]) -> Logps | None:
    """Log-probs of the answers of pairs [P] of `ROW`, end to end, on rank 0.

    Ranks take batches in turn.
    """
    rows: list[int] = group["row"].tolist()
    batches = budget_batches(group["cost"].tolist(), runtime.training.tokens_per_batch)
    rank, world = dist.get_rank(), dist.get_world_size()
    mine: list[tuple[int, Logps]] = []
    for turn in range(-(-len(batches) // world)):
        runtime.watchdog.alive()
        number = turn * world + rank
        # A rank without a batch repeats the first: all must run the same number of forwards.
        part = [rows[i] for i in batches[number if number < len(batches) else 0]]
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
