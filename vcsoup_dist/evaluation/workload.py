"""All models that a run evaluates, as the workload of a worker pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.evaluation.heldout_pairs import HeldoutPair
from vcsoup_dist.evaluation.judges import Judge
from vcsoup_dist.evaluation.prompts import Prompt
from vcsoup_dist.evaluation.tasks import AnswerCounts, EvaluationTask
from vcsoup_dist.evaluation.worker import EvaluationWorker
from vcsoup_dist.launch.placement import WorkerResources
from vcsoup_dist.launch.worker_errors import final_error, is_out_of_memory
from vcsoup_dist.launch.workload import FailedTask, Workload
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Evaluation


@dataclass(kw_only=True, eq=False)
class EvaluationWorkload(Workload[EvaluationTask]):
    """Models, the prompts that they answer, and the judges of the answers."""

    name: str = "evaluation"
    section: str = "evaluation"
    patience: float = 3600.0  # a model often takes many minutes
    last_attempt_alone: bool = True
    memory_advice: str = (
        "lower evaluation.batch or scoring.tokens_per_batch, or give it more memory"
    )
    prompts: Sequence[Prompt]
    pairs: Sequence[HeldoutPair]
    judges: Sequence[Judge]
    settings: Evaluation
    tokens_per_batch: int | None

    def worker(self) -> tuple[type[EvaluationWorker], tuple[Any, ...]]:
        """Class of the workers, and its arguments."""
        gpu = self.resources.gpus > 0
        arguments = (self.judges, self.prompts, self.pairs, self.settings, self.tokens_per_batch)
        return EvaluationWorker, (*arguments, gpu)

    def finished(self, task: EvaluationTask, result: AnswerCounts) -> float:
        """The number of answers.

        Logs how many did not end: they are judged as they are, which says little of the model.
        """
        if result.unfinished:
            say = log.warning if result.unfinished > result.answers / 2 else log.info
            say(
                "%s: %d of %d answers did not end within %d tokens",
                task.name, result.unfinished, result.answers, self.settings.max_new_tokens,
            )  # fmt: skip
        return result.answers

    def raise_if_final(self, what: str, error: Any) -> None:
        """Raise every exception: a model fails for the same reason again."""
        if (line := final_error(error.cause, what)) is not None:
            raise line from None
        if is_out_of_memory(error.cause):
            reason = reason_of(error.cause)
            raise UserError(f"{what}: {reason}; {self.memory_advice}") from error
        raise error

    def gave_up(self, failed: Sequence[FailedTask[EvaluationTask]]) -> UserError:
        """Raise UserError naming the model that loses every worker."""
        first = failed[0]
        raise UserError(f"{first.task.name}: {first.reason} ({first.details[:300]})")


def evaluation_workload(
    tasks: Sequence[EvaluationTask],
    prompts: Sequence[Prompt],
    judges: Sequence[Judge],
    settings: Evaluation,
    tokens_per_batch: int | None,
    pairs: Sequence[HeldoutPair] = (),
) -> EvaluationWorkload:
    """The workload of these tasks, with as many workers as `settings` says."""
    return EvaluationWorkload(
        tasks=tasks,
        workers=settings.actors,
        resources=WorkerResources(settings.cpus_per_actor, settings.gpus_per_actor),
        prompts=prompts,
        pairs=pairs,
        judges=judges,
        settings=settings,
        tokens_per_batch=tokens_per_batch,
    )
