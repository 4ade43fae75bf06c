"""A worker that answers the held-out prompts with one model at a time and scores the answers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcsoup_dist.evaluation.answer_logps import answer_logps
from vcsoup_dist.evaluation.generate import (
    Answer,
    draws_from_model,
    generate_answers,
    load_model,
)
from vcsoup_dist.evaluation.heldout_pairs import HeldoutPair, heldout_logps
from vcsoup_dist.evaluation.judges import Judge
from vcsoup_dist.evaluation.prompts import Prompt
from vcsoup_dist.evaluation.repetition import repeated_share
from vcsoup_dist.evaluation.tasks import AnswerCounts, EvaluationTask, VirtualSoup
from vcsoup_dist.forward.template import Encoded
from vcsoup_dist.identity import Located
from vcsoup_dist.launch.worker import PoolWorker
from vcsoup_dist.locks import shared_by_process
from vcsoup_dist.recipe import Evaluation
from vcsoup_dist.records.answers import Answers
from vcsoup_dist.scoring.load_reward import load_reward
from vcsoup_dist.scoring.rewards import Reward, score_all
from vcsoup_dist.souping.virtual import LiveSoup, load_soup
from vcsoup_dist.theta_0 import local_folder

Logps = tuple[NDArray[np.float64], NDArray[np.float64]]
"""[P] each, under the model and under theta_0."""


class EvaluationWorker(PoolWorker):
    """Holds all judges, and one model at a time."""

    def __init__(
        self,
        judges: Sequence[Judge],
        prompts: Sequence[Prompt],
        pairs: Sequence[HeldoutPair],
        settings: Evaluation,
        tokens_per_batch: int | None,
        gpu: bool,
    ) -> None:
        super().__init__()
        self.judges = judges
        self.prompts = prompts
        self.pairs = pairs
        self.settings = settings
        self.tokens_per_batch = tokens_per_batch
        self.device = "cuda" if gpu else "cpu"
        self.rewards: list[Reward] = []
        # Of the last virtual soup: the next one often is another of the same policies.
        self.soup: LiveSoup | None = None
        self.policies: tuple[Path, ...] = ()
        self.model: Any = None
        self.tokenizer: Any = None

    def load(self) -> str:
        """Load the judges' rewards."""
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.rewards = [
            load_reward(
                list(judge.rewards.values()),
                judge.source,
                device=self.device,
                tokens_per_batch=self.tokens_per_batch,
            )
            for judge in self.judges
        ]
        return ""

    def run(self, task: EvaluationTask, following: EvaluationTask | None) -> AnswerCounts:
        """Write the model's answers and their rewards."""
        with shared_by_process(task.workers_lock):
            return self._answer(task)

    def _answer(self, task: EvaluationTask) -> AnswerCounts:
        self._load_model(task)
        answers = generate_answers(
            self.model, self.tokenizer, self.prompts, self.settings, task.added
        )
        if task.with_pairs:
            heldout_logps(self.model, self.pairs).write(task.output)
        logps = self._logps(task, answers)
        from_model = draws_from_model(self.model, self.settings)
        if self.soup is None:
            self.model = None  # frees memory for the rewards
        rewards = self._score(task.name, answers)
        record(answers, rewards, logps, from_model).write(task.output)
        return AnswerCounts(len(answers), sum(not answer.finished for answer in answers))

    def _load_model(self, task: EvaluationTask) -> None:
        model = task.model
        if isinstance(model, VirtualSoup) and self.soup and model.policies == self.policies:
            self.soup.reweight(model.weights)
            return
        self.soup = self.model = None  # one model at a time
        if isinstance(model, VirtualSoup):
            first = Located(str(model.policies[0]), None, None)  # whose files a soup would have
        else:
            first = model
        loaded = load_model(first.source, first.revision, self.settings.dtype, self.device)
        self.model, self.tokenizer = loaded
        if isinstance(model, VirtualSoup):
            self.policies = model.policies
            base = local_folder(task.theta_0)
            self.soup = load_soup(self.model, model.policies, model.weights, base)

    def _logps(self, task: EvaluationTask, answers: Sequence[Answer]) -> Logps:
        """Of the answers, under the model that gave them and under theta_0.

        theta_0's weights then take the model's place: a second model may not have room.
        """
        own = answer_logps(self.model, [_encoded(each.asked, each.ids) for each in answers])
        if task.model == task.theta_0:
            return own, own
        if self.soup is not None:
            self.soup.reweight([0] * len(self.policies))
        else:
            assert isinstance(task.model, Located)
            load_soup(self.model, [task.model.source], [0], local_folder(task.theta_0))
        plain = [_encoded(each.plain, each.ids) for each in answers]
        return own, answer_logps(self.model, plain)

    def _score(self, name: str, answers: Sequence[Answer]) -> dict[str, NDArray[np.float64]]:
        """Value -> rewards [P] of a model's answers."""
        texts = [(answer.prompt.messages, answer.text) for answer in answers]
        names = [f"{name}'s answer to prompt {answer.prompt.id}" for answer in answers]
        scores: dict[str, NDArray[np.float64]] = {}
        for judge, reward in zip(self.judges, self.rewards, strict=True):
            rewards = score_all(reward, texts, names)
            scores |= {value: rewards[:, v] for v, value in enumerate(judge.rewards)}
        return scores


def record(
    answers: Sequence[Answer],
    rewards: dict[str, NDArray[np.float64]],
    logps: Logps,
    drawn_from_model: bool,
) -> Answers:
    """Answers as they are written; rewards: value -> [P]."""
    own, theta_0 = logps
    return Answers(
        prompt_ids=[answer.prompt.id for answer in answers],
        datasets=[answer.prompt.dataset for answer in answers],
        prompts=[answer.prompt.messages for answer in answers],
        texts=[answer.text for answer in answers],
        tokens=[answer.tokens for answer in answers],
        finished=[answer.finished for answer in answers],
        repeated=[repeated_share(answer.ids) for answer in answers],
        logp=own.tolist(),
        logp_theta_0=theta_0.tolist(),
        drawn_from_model=[drawn_from_model] * len(answers),
        rewards=rewards,
    )


def _encoded(prompt: Sequence[int], answer: Sequence[int]) -> Encoded:
    return Encoded([*prompt, *answer], len(prompt))
