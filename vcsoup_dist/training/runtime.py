"""What a rank works with from its first forward to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vcsoup_dist.recipe import Training
from vcsoup_dist.training.job import Job
from vcsoup_dist.training.stopping import StopRequest
from vcsoup_dist.training.watchdog import Watchdog


@dataclass(frozen=True)
class Runtime:
    """This rank's engine, and what belongs to it."""

    job: Job
    engine: Any
    """DeepSpeed's, around `AnswerLogps(theta_0)`; that alone where nothing is trained and every
    rank holds the whole model."""
    tokenizer: Any
    stop: StopRequest
    watchdog: Watchdog

    @property
    def model(self) -> Any:
        """The language model, whose weights may be cut over the ranks."""
        return getattr(self.engine, "module", self.engine).model

    @property
    def training(self) -> Training:
        """The settings of the job."""
        return self.job.training
