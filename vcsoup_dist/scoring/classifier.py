"""A Hugging Face sequence classifier as the rewards of one or several values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import ClassifierReward
from vcsoup_dist.scoring.heads import choose_columns, chosen_by_default, take_columns
from vcsoup_dist.scoring.loading import length_limit, load_classifier
from vcsoup_dist.scoring.probing import PROBES, choose_runner
from vcsoup_dist.scoring.rewards import Scored, Text, failures_of
from vcsoup_dist.scoring.texts import RewardText, encode_text, text_or_reason

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}


class Classifier:
    """See `rewards.Reward`; the tokenizer serves `encode` alone, and the model `score`."""

    def __init__(
        self,
        rewards: Sequence[ClassifierReward],
        source: Located,
        *,
        device: str,
        tokens_per_batch: int | None,
        values: Sequence[str] = (),
    ) -> None:
        self.reward = reward = rewards[0]
        self.tokens_per_batch = tokens_per_batch or TOKENS_PER_BATCH[torch.device(device).type]
        self.tokenizer, self.model = load_classifier(reward, source)
        self.model.to(device).eval().requires_grad_(False)
        config, name = self.model.config, source.source
        config.use_cache = False
        self.limit = length_limit(reward.max_length, self.model, self.tokenizer, name)
        # Probes that `max_length` cuts would all have one length.
        longest = length_limit(None, self.model, self.tokenizer, name).tokens
        padding = self.tokenizer.pad_token_id
        self.choice = choose_runner(
            self.model,
            sorted({each.head for each in rewards}),
            [
                encode_text(self.tokenizer, reward.text, *probe, longest, reward.truncate)
                for probe in PROBES
            ],
            name=name,
            padding=0 if padding is None else padding,
            attention=reward.attention,
        )
        self.columns = choose_columns(rewards, self.choice.outputs, config.id2label, name, values)
        self.unsaid = chosen_by_default(rewards, self.choice.outputs, config.id2label or {})
        tokens, whose = self.limit.tokens, self.limit.whose
        limit = "no limit of tokens" if tokens is None else f"at most {tokens} tokens ({whose})"
        self.description = (
            f"{name}: {self.choice.runner.name}, {self.tokens_per_batch} tokens per batch, "
            f"{reward.dtype} on {device}, {limit} per text"
            f"{''.join(f'; {each}' for each in [*self.choice.refused, *self.unsaid])}"
        )

    def encode(self, texts: Sequence[Text]) -> list[RewardText | str]:
        """Tokens of texts, or why one has none."""
        return [
            text_or_reason(self.tokenizer, self.reward, *text, self.limit.tokens) for text in texts
        ]

    @torch.inference_mode()
    def score(self, encoded: Sequence[RewardText | str]) -> Scored:
        """Rewards of encoded texts; those with the same tokens are run once."""
        failures = {i: each for i, each in enumerate(encoded) if isinstance(each, str)}
        first = _first_equal(encoded)
        usable = [i for i in range(len(encoded)) if i not in failures and first[i] == i]
        texts = [cast(RewardText, encoded[i]) for i in usable]
        rewards = np.full((len(encoded), len(self.columns)), np.nan)
        done: list[int] = []
        parts = []
        for batch, found in self.choice.runner.run(texts, self.tokens_per_batch):
            if isinstance(found, str):
                failures[usable[batch[0]]] = found
            else:
                done += [usable[i] for i in batch]
                parts.append(take_columns(found, self.columns))
        if parts:  # fetched at once, so that a GPU never waits
            rewards[done] = torch.cat(parts).cpu().numpy()
        rewards = rewards[first]
        failures |= {i: failures[one] for i, one in enumerate(first) if one in failures}
        whole = [each for each in encoded if isinstance(each, RewardText)]
        return Scored(
            rewards,
            dict(sorted((failures_of(rewards) | failures).items())),
            sum(text.truncated for text in whole),
            sum(text.response_truncated for text in whole),
            frozenset(
                i for i, each in enumerate(encoded) if isinstance(each, RewardText) and each.dropped
            ),
            first,
        )


def _first_equal(encoded: Sequence[RewardText | str]) -> list[int]:
    """Of each text the first one with the same tokens, which is itself for one that has none."""
    firsts: dict[object, int] = {}
    return [
        i if isinstance(each, str) else firsts.setdefault(each.key, i)
        for i, each in enumerate(encoded)
    ]
