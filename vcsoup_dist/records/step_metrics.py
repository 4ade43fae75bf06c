"""`metrics.jsonl`: the metrics of every optimizer step, from 0, a line of JSON each.

A step has those that its objective has.

    loss                the objective's, over the step's pairs (SFT: per answer token)
    chosen_reward, rejected_reward, margin, accuracy
                        beta log pi/ref of the answers, their difference, and how often it is > 0
    kl_estimate         mean of log pi/ref over both answers, in nats per answer: KL(pi || ref) if
                        the policy had sampled them
    grad_norm           before clipping, over all ranks
    learning_rate
    step_seconds
    tokens_per_second   per rank: all tokens of prompts and answers, each answer with its prompt
    tokens              the same tokens, of all ranks
    ranks, gpus         that took the step; a GPU each, or none
    mfu                 share of the device's peak; counts what is computed (a shared prompt once)
    peak_memory_gib     so far, of rank 0
    heldout_loss, heldout_accuracy, heldout_margin
                        every `training.evaluate_every` steps
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class StepMetrics:
    """One step's metrics by name."""

    step: int
    values: Mapping[str, float]

    def as_line(self) -> str:
        """The step as a line of the file."""
        return json.dumps({"step": self.step, **self.values}) + "\n"

    @classmethod
    def from_line(cls, line: str) -> StepMetrics | None:
        """The step of a line; None where a kill or a writer has left a part of one."""
        try:
            values = json.loads(line)
            return cls(int(values.pop("step")), values)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
