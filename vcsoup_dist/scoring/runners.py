"""How a classifier runs over many texts: packed, padded, or one at a time.

The fastest packs decoders' texts without padding, those that begin alike with their common start
once, and pools the last token of each by its position: transformers pools the last token that is
not by id the pad token, which is another one where pad is eos. `probing` tries which is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from vcsoup_dist.errors import UserError, is_stop, reason_of
from vcsoup_dist.forward.hidden import hidden_states, last_tokens
from vcsoup_dist.forward.packing import budget_batches, pack_branches
from vcsoup_dist.forward.prefix_groups import group_branches, prefix_groups
from vcsoup_dist.scoring.heads import LOGITS, Outputs, read_heads
from vcsoup_dist.scoring.texts import RewardText

Batches = Iterator[tuple[list[int], Outputs | str]]
"""Indices of texts, and their outputs in that order, or why they have none."""


class Runner(Protocol):
    """Runs a classifier over texts in batches of at most so many tokens."""

    @property
    def name(self) -> str:
        """What the log calls it."""

    def run(self, texts: Sequence[RewardText], tokens_per_batch: int) -> Batches:
        """The outputs of all texts, in any order."""


@dataclass(frozen=True)
class PackedRunner:
    """A decoder over texts laid end to end, its head over their last tokens."""

    name: str
    model: Any
    head: torch.nn.Module
    """In fp32, since bf16 logits would tie answers that differ by less than 1 in 256."""

    def run(self, texts: Sequence[RewardText], tokens_per_batch: int) -> Batches:
        """See `Runner`."""
        ids = [np.asarray(text.ids) for text in texts]
        groups = prefix_groups(ids, tokens_per_batch)
        for batch in budget_batches([group.tokens for group in groups], tokens_per_batch):
            together = [groups[i] for i in batch]
            pack = pack_branches(group_branches(together, ids), self.model.device)
            pooled = last_tokens(hidden_states(self.model, pack), pack)
            yield [i for group in together for i in group.members], _apply(self.head, pooled)


@dataclass(frozen=True)
class LastTokenRunner:
    """A model without its head over padded texts, the head over their last real tokens."""

    name: str
    model: Any
    head: torch.nn.Module
    """In fp32."""
    padding: int

    def run(self, texts: Sequence[RewardText], tokens_per_batch: int) -> Batches:
        """See `Runner`."""
        for batch in padded_batches([len(text.ids) for text in texts], tokens_per_batch):
            together = [texts[i] for i in batch]
            inputs = pad(together, self.padding, "right", self.model.device)
            hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
            last = inputs["attention_mask"].sum(dim=1) - 1
            pooled = hidden[torch.arange(len(batch), device=hidden.device), last]
            yield batch, _apply(self.head, pooled)


@dataclass(frozen=True)
class ModelRunner:
    """The whole model, its own pooling and heads, over padded texts or one at a time."""

    name: str
    model: Any
    heads: Sequence[str]
    source: str
    """What errors call the model."""
    padding: int
    side: Literal["left", "right"] | None
    """Where padding goes; None: one text at a time."""
    takes_types: bool
    """Whether the model has token_type_ids."""
    forgiving: bool
    """Whether what it raises on a text is that text's failure: for code of its own, which may look
    for something in each text."""

    def run(self, texts: Sequence[RewardText], tokens_per_batch: int) -> Batches:
        """See `Runner`."""
        for batch in self._batches(texts, tokens_per_batch):
            try:
                yield batch, self._outputs([texts[i] for i in batch])
            except (UserError, torch.OutOfMemoryError):
                raise
            except BaseException as error:
                if not self.forgiving or is_stop(error):
                    raise
                if len(batch) > 1:
                    alone = self.run([texts[i] for i in batch], 0)
                    yield from (([batch[i] for i in part], found) for part, found in alone)
                else:
                    yield batch, reason_of(error)

    def _batches(self, texts: Sequence[RewardText], budget: int) -> Iterator[list[int]]:
        if self.side is None:
            yield from ([i] for i in range(len(texts)))
            return
        kinds: dict[int, list[int]] = {}
        config = self.model.config
        for i, text in enumerate(texts):
            # Such as BART pool at the last eos, and want the same number of them in every text.
            kind = text.ids.count(config.eos_token_id) if config.is_encoder_decoder else 0
            kinds.setdefault(kind, []).append(i)
        for members in kinds.values():
            for batch in padded_batches([len(texts[i].ids) for i in members], budget):
                yield [members[i] for i in batch]

    def _outputs(self, texts: Sequence[RewardText]) -> Outputs:
        inputs = pad(texts, self.padding, self.side or "right", self.model.device)
        if not self.takes_types:
            inputs.pop("token_type_ids", None)
        return read_heads(self.model(**inputs), self.heads, len(texts), self.source)


@dataclass(frozen=True)
class LongTextsFirst:
    """Runs the texts that are longer than `limit`, and then the others.

    For models in whose forward a longer text changes the others: `hidden.longest_together`.
    """

    runner: Runner
    limit: int

    @property
    def name(self) -> str:
        """See `Runner`."""
        return f"{self.runner.name}, texts of more than {self.limit} tokens first"

    def run(self, texts: Sequence[RewardText], tokens_per_batch: int) -> Batches:
        """See `Runner`."""
        longer = [len(text.ids) > self.limit for text in texts]
        for side in (True, False):
            members = [i for i, is_longer in enumerate(longer) if is_longer == side]
            for batch, found in self.runner.run([texts[i] for i in members], tokens_per_batch):
                yield [members[i] for i in batch], found


def _apply(head: torch.nn.Module, pooled: torch.Tensor) -> Outputs:
    return {LOGITS: head(pooled.float())}


def pad(
    texts: Sequence[RewardText],
    padding: int,
    side: Literal["left", "right"],
    device: torch.device | str,
) -> dict[str, torch.Tensor]:
    """Inputs [n, longest] of a transformers model; the mask says which tokens are real."""
    longest = max(len(text.ids) for text in texts)
    rows: dict[str, list[list[int]]]
    rows = {"input_ids": [], "attention_mask": [], "token_type_ids": []}

    def add(key: str, row: list[int], filling: int) -> None:
        surplus = [filling] * (longest - len(row))
        rows[key].append(row + surplus if side == "right" else surplus + row)

    for text in texts:
        add("input_ids", text.ids, padding)
        add("attention_mask", [1] * len(text.ids), 0)
        if text.types is not None:
            add("token_type_ids", text.types, 0)
    return {key: torch.tensor(row, device=device) for key, row in rows.items() if row}


def padded_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices, longest first, in batches of at most `tokens_per_batch` tokens with the padding."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
