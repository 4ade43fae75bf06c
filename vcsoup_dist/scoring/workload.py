"""All shards that one reward model scores in this run, as the workload of a worker pool."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.launch.placement import WorkerResources
from vcsoup_dist.launch.worker_errors import final_error
from vcsoup_dist.launch.workload import FailedTask, Workload
from vcsoup_dist.recipe import ActorPool, CallableReward, ClassifierReward
from vcsoup_dist.scoring.groups import too_many_unscored
from vcsoup_dist.scoring.quarantine import quarantine_error, write_quarantine
from vcsoup_dist.scoring.tasks import ShardTask, Unscored
from vcsoup_dist.scoring.worker import ScoringWorker

log = logging.getLogger("vcsoup")

TIME_LIMIT = ", or give what the function waits for a time limit"


@dataclass(kw_only=True, eq=False)
class ScoringWorkload(Workload[ShardTask]):
    """The shards of one reward model."""

    look_ahead: bool = True
    memory_advice: str = (
        "lower scoring.tokens_per_batch or scoring.shard_pairs, or give it more memory"
    )
    rewards: Sequence[ClassifierReward | CallableReward]
    """Of its V values."""
    source: Located
    tokens_per_batch: int | None
    most_unscored: Mapping[str, int]
    """Product -> pairs of it that may lack a reward."""
    resumed: bool
    """Whether a former run has left rewards of some pairs."""
    quarantine: Path
    """File that lists the shards that are set aside."""
    seen: Counter[str] = field(default_factory=Counter)
    """Product -> its pairs that this run has finished."""
    unscored: Counter[str] = field(default_factory=Counter)
    """Those of them that have no reward."""

    def __post_init__(self) -> None:
        if isinstance(self.rewards[0], CallableReward):
            self.hang_advice += TIME_LIMIT

    def worker(self) -> tuple[type[ScoringWorker], tuple[Any, ...]]:
        """Class of the workers, and its arguments."""
        gpu = self.resources.gpus > 0
        return ScoringWorker, (self.rewards, self.source, self.tokens_per_batch, gpu)

    def finished(self, task: ShardTask, result: Sequence[Unscored]) -> float:
        """The shard's pairs.

        Raises UserError where too many pairs have no reward, or none of a whole first shard.
        """
        of_product = {each.product: each for each in result}
        for output in task.outputs:
            self.seen[output.product] += task.pairs.rows
            if output.product in of_product:
                self._check_unscored(output.file.parent, of_product[output.product])
        return task.pairs.rows

    def _check_unscored(self, folder: Path, missing: Unscored) -> None:
        self.unscored[missing.product] += missing.pairs
        pairs = self.unscored[missing.product]
        none = pairs == self.seen[missing.product] and not self.resumed
        if none and pairs >= max(each.pairs.rows for each in self.tasks):
            raise UserError(
                f"{self.name}: none of the first {pairs} pairs of {missing.product} has a "
                f"reward; {missing.first}"
            )
        if pairs > self.most_unscored[missing.product]:
            raise too_many_unscored(self.name, folder, pairs, missing.first)

    def raise_if_final(self, what: str, error: Any) -> None:
        """Raise UserError for what spoils every shard."""
        if (line := final_error(error.cause, what)) is not None:
            raise line

    def gave_up(self, failed: Sequence[FailedTask[ShardTask]]) -> UserError:
        """List the shards that are set aside."""
        log.error("%s: SET ASIDE: %s", failed[-1].task.name, failed[-1].reason)
        write_quarantine(self.quarantine, failed)
        return quarantine_error(self.name, failed, len(self.tasks), self.quarantine)


def worker_resources(pool: ActorPool) -> WorkerResources:
    """What Ray reserves for one worker of a pool in the recipe."""
    return WorkerResources(
        cpus=pool.cpus_per_actor,
        gpus=pool.gpus_per_actor,
        custom=pool.resources_per_actor,
        spread=pool.placement == "spread",
    )
