"""A Hugging Face sequence classifier as a reward.

Decoders run packed without padding, and the last token of each text is pooled by its position:
transformers pools the last token that is not by id the pad token, which is another one where pad
is eos. Which way of running is right for a model is not guessed but tried, on two short texts.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.attention import choose_attention
from vcsoup_dist.forward.hidden import can_pack, hidden_states
from vcsoup_dist.forward.packing import budget_batches, pack
from vcsoup_dist.forward.pooling import last_tokens
from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import ClassifierReward
from vcsoup_dist.scoring.rewards import Scored, Text, check_finite
from vcsoup_dist.scoring.texts import RewardText, encode_text

log = logging.getLogger("vcsoup")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Absolute and relative, of logits: between another order of summing and another text's influence.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
NO_LIMIT = 1_000_000  # tokenizers without a limit say 1e30

Logits = Callable[[Sequence[RewardText]], torch.Tensor]
"""Logits [n, outputs] of n texts."""


class Classifier:
    """See `rewards.Reward`."""

    def __init__(
        self, reward: ClassifierReward, source: Located, *, device: str, tokens_per_batch: int
    ) -> None:
        self.name = source.source
        self.reward = reward
        self.device = device
        self.tokens_per_batch = tokens_per_batch
        self.tokenizer, self.model = _load(reward, source)
        self.model.to(device).eval().requires_grad_(False)
        config = self.model.config
        self.pools_last_token = isinstance(getattr(self.model, "score", None), torch.nn.Module)
        if self.pools_last_token:
            config.pad_token_id = None  # so that transformers, too, pools a text's very last token
            # In fp32, since bf16 logits would tie answers that differ by less than 1 in 256.
            self.head = copy.deepcopy(self.model.score).float()
        self.output = _output_index(reward.output, config, self.name)
        self.max_length = _max_length(reward.max_length, config, self.tokenizer, self.name)
        self.way, self.logits = self._choose_way()
        limit = "no limit of" if self.max_length is None else f"at most {self.max_length}"
        self.description = f"{self.name}: {self.way}, {reward.dtype} on {device}, {limit} tokens"

    @torch.inference_mode()
    def score(self, texts: Sequence[Text], names: Sequence[str] | None = None) -> Scored:
        """Rewards of texts."""
        encoded = [
            encode_text(self.tokenizer, self.reward.text, prompt, response, self.max_length)
            for prompt, response in texts
        ]
        rewards = np.zeros(len(texts))
        for batch in self._batches([len(text.ids) for text in encoded]):
            logits = self.logits([encoded[i] for i in batch])
            rewards[batch] = logits[:, self.output].double().cpu().numpy()
        check_finite(rewards.tolist(), self.name, names)
        return Scored(
            self.reward.sign * rewards,
            sum(text.truncated for text in encoded),
            sum(text.response_truncated for text in encoded),
        )

    def _batches(self, lengths: Sequence[int]) -> list[list[int]]:
        if self.way.startswith("packed"):
            return budget_batches(lengths, self.tokens_per_batch)
        if self.way.startswith("padded"):
            return list(padded_batches(lengths, self.tokens_per_batch))
        return [[i] for i in range(len(lengths))]

    @torch.inference_mode()
    def _choose_way(self) -> tuple[str, Logits]:
        """The fastest way that gives two short texts the logits they get alone."""
        probes = _probes(len(self.tokenizer))
        alone = torch.cat([self._by_model([probe]) for probe in probes])
        tolerance = TOLERANCE[self.reward.dtype]
        ways: list[tuple[str, Logits]] = []
        if self.pools_last_token and can_pack(self.model):
            ways.append(("packed", self._packed))
        padded = self._padded_last_token if self.pools_last_token else self._by_model
        ways.append(("padded", padded))
        usual = self.model.config._attn_implementation
        for way, logits in ways:
            try:
                if way == "packed":
                    dtype = DTYPES[self.reward.dtype]
                    attention = choose_attention("auto", self.device, dtype, self.model.config)
                    self.model.set_attn_implementation(attention)
                    way = f"packed ({attention.removeprefix('vcsoup_')})"
                if torch.allclose(logits(probes), alone, rtol=tolerance, atol=tolerance):
                    return way, logits
                log.info("%s: not run %s, which changes its scores", self.name, way)
            except UserError as reason:
                log.info("%s: not run %s: %s", self.name, way, reason)
            self.model.set_attn_implementation(usual)
        return "one text at a time", self._by_model

    def _packed(self, texts: Sequence[RewardText]) -> torch.Tensor:
        packed = pack([text.ids for text in texts], self.device)
        return self._head(last_tokens(hidden_states(self.model, packed), packed))

    def _padded_last_token(self, texts: Sequence[RewardText]) -> torch.Tensor:
        inputs = self._pad(texts)
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state
        last = torch.tensor([len(text.ids) - 1 for text in texts], device=self.device)
        return self._head(hidden[torch.arange(len(texts), device=self.device), last])

    def _head(self, pooled: torch.Tensor) -> torch.Tensor:
        logits = self.head(pooled.float())
        assert isinstance(logits, torch.Tensor)
        return logits

    def _by_model(self, texts: Sequence[RewardText]) -> torch.Tensor:
        logits = self.model(**self._pad(texts)).logits
        assert isinstance(logits, torch.Tensor)
        if logits.ndim != 2:
            shape = list(logits.shape)
            raise UserError(f"{self.name}: its logits have the shape {shape}, not [texts, outputs]")
        return logits.float()

    def _pad(self, texts: Sequence[RewardText]) -> dict[str, torch.Tensor]:
        """Right-padded inputs [n, longest]; the mask says which tokens are real."""
        longest = max(len(text.ids) for text in texts)
        padding = self.tokenizer.pad_token_id
        rows: dict[str, list[list[int]]]
        rows = {"input_ids": [], "attention_mask": [], "token_type_ids": []}
        for text in texts:
            surplus = longest - len(text.ids)
            rows["input_ids"].append(text.ids + [0 if padding is None else padding] * surplus)
            rows["attention_mask"].append([1] * len(text.ids) + [0] * surplus)
            if text.types is not None:
                rows["token_type_ids"].append(text.types + [0] * surplus)
        return {key: torch.tensor(row, device=self.device) for key, row in rows.items() if row}


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


def _load(reward: ClassifierReward, source: Located) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    where = {"revision": source.revision, "trust_remote_code": reward.trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.source, **where)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            source.source, dtype=DTYPES[reward.dtype], output_loading_info=True, **where
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"{source.source}: cannot load it as a sequence classifier: "
            f"{' '.join(str(error).split())[:500]}"
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise UserError(
            f"{source.source}: its files lack {', '.join(missing[:3])}"
            f"{' and more' if len(missing) > 3 else ''}, so its rewards would be random; "
            "name a model that was trained as a sequence classifier"
        )
    return tokenizer, model


def _output_index(output: int | str, config: Any, name: str) -> int:
    labels = {index: label for index, label in sorted(config.id2label.items())}
    if isinstance(output, int) and output in labels:
        return output
    for index, label in labels.items():
        if label == output:
            return int(index)
    raise UserError(f"{name}: no output {output!r}; it has {labels}")


def _max_length(wanted: int | None, config: Any, tokenizer: Any, name: str) -> int | None:
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    own = min((limit for limit in limits if limit and limit < NO_LIMIT), default=None)
    if wanted is not None and own is not None and wanted > own:
        raise UserError(f"{name}: max_length {wanted} is more than the model's {own} tokens")
    return wanted or own


def _probes(vocabulary: int) -> list[RewardText]:
    """Two texts, 4 and 11 tokens long."""
    ids = [i % vocabulary for i in range(5, 20)]
    return [RewardText(part, range(0), range(0)) for part in (ids[:4], ids[4:])]
