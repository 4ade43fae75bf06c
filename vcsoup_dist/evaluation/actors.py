"""Ray actors that answer the held-out prompts with a soup and score the answers."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.evaluation.generate import Answer, generate_answers, load_model
from vcsoup_dist.evaluation.judges import Judge
from vcsoup_dist.evaluation.prompts import Prompt
from vcsoup_dist.files import write_atomically
from vcsoup_dist.identity import Located
from vcsoup_dist.launch.placement import check_room
from vcsoup_dist.locks import share_until_exit
from vcsoup_dist.processes import die_on_sigterm, die_with_parent
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Evaluation
from vcsoup_dist.scoring.actor_errors import is_out_of_memory, mendable
from vcsoup_dist.scoring.load_reward import load_reward
from vcsoup_dist.scoring.rewards import Reward, Text, score_all
from vcsoup_dist.souping.virtual import load_soup, reweight

LESS = "lower evaluation.batch or scoring.tokens_per_batch, or give it more memory"
ATTEMPTS = 3  # at one soup, when its actors die; the last one alone
QUIET = 60.0  # seconds without any result, after which the log says that all wait for room

ANSWERS = "answers.parquet"


@dataclass(frozen=True)
class VirtualSoup:
    """A soup that is not on disk."""

    policies: tuple[Path, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class EvaluationTask:
    """One soup to evaluate."""

    name: str
    model: Located | VirtualSoup
    output: Path
    """Folder to write `answers.parquet` into."""
    workers_lock: Path


class EvaluationActor:
    """Holds all judges, and one soup at a time, in a process of its own."""

    def __init__(
        self, judges: Sequence[Judge], settings: Evaluation, tokens_per_batch: int | None, gpu: bool
    ) -> None:
        die_with_parent(int(os.environ["RAY_RAYLET_PID"]))
        die_on_sigterm()
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.judges = judges
        self.settings = settings
        self.tokens_per_batch = tokens_per_batch
        self.device = "cuda" if gpu else "cpu"
        self.rewards: list[Reward] = []
        # The last virtual soup's: the next one often is another of the same policies.
        self.policies: tuple[Path, ...] | None = None
        self.model: Any = None
        self.tokenizer: Any = None

    def ready(self) -> None:
        """Answers as soon as Ray has found room for this actor."""

    def evaluate(self, task: EvaluationTask, prompts: Sequence[Prompt]) -> tuple[int, int]:
        """Write the answers and their rewards; how many there are, and how many did not end."""
        share_until_exit(task.workers_lock)
        self._load(task.model)
        answers = generate_answers(self.model, self.tokenizer, prompts, self.settings)
        if self.policies is None:
            self.model = None  # makes room for the rewards
        texts = [(answer.prompt.messages, answer.text) for answer in answers]
        names = [f"{task.name}'s answer to prompt {answer.prompt.id}" for answer in answers]
        scores = self._scores(texts, names)
        sink = pa.BufferOutputStream()
        pq.write_table(answer_table(answers, scores), sink)
        write_atomically(task.output / ANSWERS, sink.getvalue().to_pybytes())
        return len(answers), sum(not answer.finished for answer in answers)

    def _load(self, model: Located | VirtualSoup) -> None:
        if isinstance(model, VirtualSoup) and model.policies == self.policies:
            reweight(self.model, model.weights)
            return
        self.policies = self.model = None  # one model at a time
        if isinstance(model, VirtualSoup):
            first = Located(str(model.policies[0]), None, None)  # whose files a soup would have
        else:
            first = model
        loaded = load_model(first.source, first.revision, self.settings.dtype, self.device)
        self.model, self.tokenizer = loaded
        if isinstance(model, VirtualSoup):
            load_soup(self.model, model.policies, model.weights)
            self.policies = model.policies

    def _scores(
        self, texts: Sequence[Text], names: Sequence[str]
    ) -> dict[str, NDArray[np.float64]]:
        """Value -> rewards [n] of texts."""
        if not self.rewards:  # not in __init__, whose errors Ray gives back as text only
            self.rewards = [
                load_reward(
                    list(judge.rewards.values()),
                    judge.source,
                    device=self.device,
                    tokens_per_batch=self.tokens_per_batch,
                )
                for judge in self.judges
            ]
        scores: dict[str, NDArray[np.float64]] = {}
        for judge, reward in zip(self.judges, self.rewards, strict=True):
            rewards = score_all(reward, texts, names)
            scores |= {value: rewards[:, v] for v, value in enumerate(judge.rewards)}
        return scores


def answer_table(answers: Sequence[Answer], scores: Mapping[str, Any]) -> pa.Table:
    """One row per prompt: the prompt, the answer, and a column `reward_<value>` per value."""
    columns = {
        "prompt_id": [answer.prompt.id for answer in answers],
        "dataset": [answer.prompt.dataset for answer in answers],
        "prompt": [answer.prompt.messages for answer in answers],
        "answer": [answer.text for answer in answers],
        "tokens": [answer.tokens for answer in answers],
        "finished": [answer.finished for answer in answers],
        **{f"reward_{value}": rewards for value, rewards in scores.items()},
    }
    return pa.table(columns)


def evaluate_all(
    tasks: Sequence[EvaluationTask],
    prompts: Sequence[Prompt],
    judges: Sequence[Judge],
    settings: Evaluation,
    tokens_per_batch: int | None,
    advance: Callable[[float], None],
) -> None:
    """Evaluate every task on the connected Ray cluster, the next one wherever an actor is free.

    Actors for which there is no room get no task and keep nobody waiting. A task whose actors die
    again and again may take others along, as where a node runs out of memory; so its last attempt
    is made while no other task is at work, and UserError names the right one.
    """
    check_room("evaluation", {"CPU": settings.cpus_per_actor, "GPU": settings.gpus_per_actor})
    # Ray is not asked to restart an actor: its task would wait with it, for room on other nodes.
    kind = ray.remote(max_restarts=0, max_task_retries=0)(EvaluationActor).options(
        num_cpus=settings.cpus_per_actor, num_gpus=settings.gpus_per_actor
    )
    gpu = settings.gpus_per_actor > 0
    crew = _Crew(lambda: kind.remote(judges, settings, tokens_per_batch, gpu), settings.actors)
    waiting, suspects = deque(tasks), deque[EvaluationTask]()
    unfinished = len(tasks)
    try:
        while unfinished:
            crew.fill(1 if suspects else unfinished)
            reference = crew.first_result()
            actor, task = crew.pending[reference]
            try:
                answers, cut = _result(reference, task.name if task else "evaluation")
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError as error:
                crew.dismiss(reference)
                crew.died(task, error)
                if task is not None and crew.deaths[task] == ATTEMPTS - 1:
                    suspects.append(task)
                elif task is not None:
                    waiting.appendleft(task)
                continue
            if task is None:
                crew.deaths[None] = 0
            else:
                advance(answers)
                _say_unfinished(task.name, answers, cut, settings.max_new_tokens)
                unfinished -= 1
                if task in suspects:
                    suspects.remove(task)
            following = None
            if not suspects:
                following = waiting.popleft() if waiting else None
            elif crew.is_last(reference):
                following = suspects[0]  # where it stays until it is finished, so that none joins
            if following is None:
                crew.dismiss(reference)
            else:
                crew.pending[actor.evaluate.remote(following, list(prompts))] = (actor, following)
                del crew.pending[reference]
    finally:
        for reference in list(crew.pending):
            crew.dismiss(reference)


class _Crew:
    """The actors, each with one result to come: that it is ready, or of its task."""

    def __init__(self, hire: Callable[[], Any], size: int) -> None:
        self.hire = hire
        self.size = size
        self.pending: dict[Any, tuple[Any, EvaluationTask | None]] = {}
        """Ray's reference to a result -> its actor and task."""
        self.deaths: Counter[EvaluationTask | None] = Counter()
        """Task -> actors that died at it; None -> those in a row that never were ready."""

    def fill(self, most: int) -> None:
        """Hire up to `size` actors, and no more than `most`."""
        while len(self.pending) < min(self.size, most):
            actor = self.hire()
            self.pending[actor.ready.remote()] = (actor, None)

    def dismiss(self, reference: Any) -> None:
        """End the actor of that result."""
        actor, _ = self.pending.pop(reference)
        ray.kill(actor)

    def is_last(self, reference: Any) -> bool:
        """Whether all others are idle; those are dismissed then."""
        others = {ref: task for ref, (_, task) in self.pending.items() if ref != reference}
        if any(task is not None for task in others.values()):
            return False
        for other in others:
            self.dismiss(other)
        return True

    def first_result(self) -> Any:
        """Wait for a result; returns Ray's reference to it."""
        while True:
            done, _ = ray.wait(list(self.pending), num_returns=1, timeout=QUIET)
            if done:
                return done[0]
            if not self._is_at_work():
                log.warning(
                    "evaluation: %d actors wait for room on the Ray cluster", len(self.pending)
                )

    def died(self, task: EvaluationTask | None, error: Exception) -> None:
        """Count the death of an actor at a task, or before it was ready; raises UserError at last.

        Where actors do not come so far as to be ready while others are at work, as on a broken
        machine, those go on without them.
        """
        name = task.name if task else "evaluation"
        reason = " ".join(str(error).split())[:300]
        self.deaths[task] += 1
        if self.deaths[task] < ATTEMPTS:
            log.warning("%s: its actor died, another takes its place (%s)", name, reason)
        elif task is None and self._is_at_work():
            self.size, self.deaths[None] = len(self.pending), 0
            log.warning("evaluation: going on with %d actors (%s)", self.size, reason)
        else:
            raise UserError(
                f"{name}: its actor died {ATTEMPTS} times; out of memory? {LESS} ({reason})"
            ) from error

    def _is_at_work(self) -> bool:
        return any(task is not None for _, task in self.pending.values())


def _say_unfinished(name: str, answers: int, cut: int, limit: int) -> None:
    """Answers that do not end are judged as they are, which says little of the soup."""
    if not cut:
        return
    say = log.warning if cut > answers / 2 else log.info
    say("%s: %d of %d answers did not end within %d tokens", name, cut, answers, limit)


def _result(reference: Any, name: str) -> tuple[int, int]:
    """Answers, and those that did not end; none where the actor only says that it is ready."""
    try:
        return ray.get(reference) or (0, 0)
    except ray.exceptions.RayTaskError as error:
        if (line := mendable(error.cause, name)) is not None:
            raise line from None
        if is_out_of_memory(error.cause):
            raise UserError(f"{name}: {reason_of(error.cause)}; {LESS}") from error
        raise
