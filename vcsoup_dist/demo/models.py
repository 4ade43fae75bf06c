"""The demo world's models, trained on one CPU core: the base policy and two rewards."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from vcsoup_dist.demo.language import draw_answer, draw_prompt
from vcsoup_dist.demo.pairs import draw_pairs
from vcsoup_dist.demo.tokenizer import MAX_LENGTH
from vcsoup_dist.forward.template import Encoded, encode_answer, encode_prompt

THREADS = 1  # fixes the bits; two threads on shared cores are several times slower than one
POLICY_BATCH = 24  # dialogues per step
REWARD_BATCH = 16  # pairs per step
SORTED_BATCHES = 16  # batches cut from one length-sorted chunk
POLICY_RATE, REWARD_RATE = 3e-3, 5e-4  # peak learning rates
WARM_UP = 0.05  # of the steps
LINES = 8  # progress lines per model
# A small model is slow to learn to copy names from the prompt. Three things make it quick: loss
# where a name may follow counts more (by the word before it, so nothing is learned askew),
# embeddings start wide, and the head starts as their copy (but is not tied to them).
COPY_WEIGHT = 20.0
COPY_AFTER = "the"
EMBEDDING_STD = 0.07

Row = TypeVar("Row")


@contextmanager
def fixed_bits(seed: int) -> Iterator[None]:
    """Torch with THREADS threads and the given seed, and as it was before on leaving."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """A Llama of one million parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=3,
        num_attention_heads=10,
        num_key_value_heads=10,
        max_position_embeddings=MAX_LENGTH,
        initializer_range=EMBEDDING_STD,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


def padded(rows: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """Token ids [rows, longest], padded on the right.

    No mask is needed with it: under causal attention no real token sees the padding.
    """
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])


def answer_loss(
    model: LlamaForCausalLM, rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerFast
) -> torch.Tensor:
    """Cross-entropy in nats per answer token, weighted towards what follows COPY_AFTER."""
    ids = padded([list(row.ids) for row in rows], tokenizer.pad_token_id)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    position = torch.arange(1, ids.shape[1])
    starts = torch.tensor([[row.start] for row in rows])
    ends = torch.tensor([[len(row.ids)] for row in rows])
    is_answer = (position >= starts) & (position < ends)
    before = ids[:, :-1][is_answer]
    weight = torch.where(before == tokenizer.convert_tokens_to_ids(COPY_AFTER), COPY_WEIGHT, 1.0)
    loss = F.cross_entropy(logits[is_answer], ids[:, 1:][is_answer], reduction="none")
    return (weight * loss).sum() / weight.sum()


def pair_loss(
    model: LlamaForSequenceClassification, rows: Sequence[tuple[Encoded, Encoded]], pad: int
) -> torch.Tensor:
    """Bradley-Terry: mean -log sigmoid(r(chosen) - r(rejected)) of (chosen, rejected) rows."""
    texts = [list(row[side].ids) for side in (0, 1) for row in rows]
    hidden = model.model(input_ids=padded(texts, pad), use_cache=False).last_hidden_state
    last = torch.tensor([len(text) - 1 for text in texts])
    score = model.score(hidden[torch.arange(len(texts)), last])[:, 0]
    return -F.logsigmoid(score[: len(rows)] - score[len(rows) :]).mean()


def batches_by_length(
    rows: list[Row], length: Callable[[Row], int], size: int, rng: random.Random
) -> Iterator[list[Row]]:
    """All rows in batches of `size` of nearly equal length, in random order."""
    for start in range(0, len(rows), size * SORTED_BATCHES):
        chunk = sorted(rows[start : start + size * SORTED_BATCHES], key=length)
        batches = [chunk[first : first + size] for first in range(0, len(chunk), size)]
        rng.shuffle(batches)
        yield from batches


def fit(
    model: torch.nn.Module,
    batches: Iterator[list[Row]],
    loss_of: Callable[[list[Row]], torch.Tensor],
    steps: int,
    rate: float,
    report: Callable[[str], None],
) -> None:
    """AdamW with a short warm-up and a cosine to zero, one step per batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    warm_up = max(1, round(WARM_UP * steps))

    def share(step: int) -> float:
        return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    model.train()
    for step, batch in enumerate(batches, start=1):
        loss = loss_of(batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // LINES) == 0 or step == steps:
            report(f"step {step} of {steps}, loss {loss.item():.3f}")
    model.eval()


def train_policy(
    tokenizer: PreTrainedTokenizerFast, steps: int, seed: int, report: Callable[[str], None]
) -> LlamaForCausalLM:
    """The base policy theta_0: trained on answers in every style, so that its samples vary."""
    rng = random.Random(f"{seed}/policy")
    rows: list[Encoded] = []
    for _ in range(steps * POLICY_BATCH):
        prompt = draw_prompt(rng, for_test=False)
        prompt_ids = encode_prompt(tokenizer, prompt)
        rows.append(encode_answer(tokenizer, prompt, prompt_ids, draw_answer(prompt, rng)))
    with fixed_bits(seed):
        model = LlamaForCausalLM(model_config(tokenizer))
        model.lm_head.load_state_dict(model.model.embed_tokens.state_dict())
        batches = batches_by_length(rows, lambda row: len(row.ids), POLICY_BATCH, rng)
        fit(model, batches, lambda b: answer_loss(model, b, tokenizer), steps, POLICY_RATE, report)
    return model


def train_reward(
    value: str,
    policy: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    seed: int,
    report: Callable[[str], None],
) -> LlamaForSequenceClassification:
    """A one-logit reward of a value, from the policy's body and fresh noisy pairs."""
    rng = random.Random(f"{seed}/reward/{value}")
    rows: list[tuple[Encoded, Encoded]] = []
    for pair in draw_pairs(value, steps * REWARD_BATCH, rng, for_test=False):
        prompt_ids = encode_prompt(tokenizer, pair.prompt)
        chosen = encode_answer(tokenizer, pair.prompt, prompt_ids, pair.chosen)
        rows.append((chosen, encode_answer(tokenizer, pair.prompt, prompt_ids, pair.rejected)))
    pad = tokenizer.pad_token_id
    with fixed_bits(seed):
        config = model_config(tokenizer)
        config.num_labels = 1
        model = LlamaForSequenceClassification(config)
        model.model.load_state_dict(policy.model.state_dict())
        batches = batches_by_length(
            rows, lambda row: max(len(text.ids) for text in row), REWARD_BATCH, rng
        )
        fit(model, batches, lambda b: pair_loss(model, b, pad), steps, REWARD_RATE, report)
    return model
