"""The pairs of one policy, each made from mapped files when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch

from vcsoup_dist.forward.answers import pair_tokens
from vcsoup_dist.forward.packing import to_device
from vcsoup_dist.forward.template import Encoded
from vcsoup_dist.records.reference import Logps, Reference
from vcsoup_dist.records.tokens import TokenFile
from vcsoup_dist.training.job import PolicyTask, Selection
from vcsoup_dist.training.objectives import PREFERENCES, LossTargets

NO_ANSWER = Encoded([], 0)


@dataclass(frozen=True)
class Example:
    """One preference pair, ready to be packed."""

    id: str
    chosen: Encoded
    rejected: Encoded
    tokens: int
    """Of both, their common start counted once: the pair's cost in a forward."""
    weight: float = 1.0
    """Of its loss."""
    reference_chosen: np.ndarray | None = None
    """[chosen.answer_length] fp32 log-probs under theta_0; None without a reference."""
    reference_rejected: np.ndarray | None = None
    targets: LossTargets = PREFERENCES


class Examples(Sequence[Example]):
    """The pairs of a selection, in its order.

    tokens: the token files that it names; references: of each its log-probs, or none.
    of_pairs: False where the objective reads the chosen answers alone.
    """

    def __init__(
        self,
        selection: Selection,
        tokens: Sequence[TokenFile],
        references: Sequence[Reference],
        of_pairs: bool,
    ) -> None:
        self._rows = np.load(selection.file, mmap_mode="r")  # [P] of `selection.ROW`
        self._divisor = selection.divisor
        self._tokens, self._references, self._of_pairs = tokens, references, of_pairs

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        dataset, row, swapped, weight, label, margin = self._rows[index].item()
        tokens = self._tokens[dataset]
        sides = tokens.pair(row)
        logps: tuple[Logps | None, Logps | None] = (None, None)
        if self._references:
            both = self._references[dataset].logps(row)
            logps = both[: sides[0].answer_length], both[sides[0].answer_length :]
        cost = pair_tokens(*sides)
        if swapped:
            sides, logps = sides[::-1], logps[::-1]
        chosen, rejected = sides if self._of_pairs else (sides[0], NO_ANSWER)
        targets = LossTargets(label, margin, self._divisor)
        return Example(tokens.id(row), chosen, rejected, cost, weight, *logps, targets)


def targets_of(pairs: Sequence[Example], device: torch.device | str) -> LossTargets:
    """Of P pairs of one run."""
    label, margin = (
        to_device(np.array([each.targets[i] for each in pairs]), torch.float64, device)
        for i in range(2)
    )
    return LossTargets(label, margin, pairs[0].targets.divisor)


def open_examples(task: PolicyTask, of_pairs: bool) -> tuple[Examples, Examples]:
    """A policy's training and held-out pairs. UserError where a file of theirs is not usable."""
    tokens = [TokenFile(Path(folder)) for folder in task.tokens]
    references = [
        Reference(Path(folder), each)
        for folder, each in zip(task.references, tokens, strict=bool(task.references))
    ]
    train, heldout = (
        Examples(each, tokens, references, of_pairs) for each in (task.train, task.heldout)
    )
    return train, heldout
