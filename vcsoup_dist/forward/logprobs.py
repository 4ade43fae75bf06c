"""Log-probabilities of given tokens, without a [tokens, vocabulary] matrix of logits.

The head's product, the log-softmax and its gradient are computed a chunk of tokens at a time, and
again in the backward pass: memory is that of a chunk, whatever the tokens and the vocabulary. Same
idea as TRL's `chunked_logprob` and Liger's fused linear losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vcsoup_dist.errors import UserError

CHUNK = 1 << 26
"""Logits at a time: 256 MiB of fp32, 512 tokens of a vocabulary of 131,072."""


@dataclass(frozen=True)
class Transform:
    """What an architecture does to its logits z: softcap * tanh(scale z / softcap)."""

    scale: float = 1.0
    softcap: float | None = None
    """None: only the scale."""


def head_transform(config: Any) -> Transform:
    """A model's own, by its config: Gemma-2's soft cap, Granite's and Cohere's scales.

    UserError where the config names an unknown one.
    """
    config = config.get_text_config()
    for key in ("output_multiplier", "lm_head_multiplier"):
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise UserError(f"{config.model_type}: `{key}` in its config is not supported")
    scale = getattr(config, "logit_scale", None) or 1.0
    scaling = getattr(config, "logits_scaling", None) or 1.0
    # Granite divides by what HyperCLOVA X multiplies with.
    scale = scale * scaling if config.model_type == "hyperclovax" else scale / scaling
    return Transform(scale, getattr(config, "final_logit_softcapping", None) or None)


class _TokenLogps(torch.autograd.Function):
    """hidden [T, H], weight [V, H], bias [V] or None, targets [T] -> fp32 log-probs [T]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        transform: Transform,
    ) -> torch.Tensor:
        logps = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        norms = torch.empty_like(logps)
        for part in _chunks(targets, weight):
            logits = _logits(hidden[part], weight, bias, transform)
            norms[part] = logits.logsumexp(dim=1)
            logps[part] = logits.gather(1, targets[part, None])[:, 0] - norms[part]
        ctx.save_for_backward(hidden, weight, bias, targets, norms)
        ctx.transform = transform
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (upstream,) = gradients
        hidden, weight, bias, targets, norms = ctx.saved_tensors
        scale, softcap = ctx.transform.scale, ctx.transform.softcap
        grad_hidden = torch.empty_like(hidden)
        # Summed in fp32 over chunks, so that the chunk size does not decide the rounding.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for part in _chunks(targets, weight):
            logits = _logits(hidden[part], weight, bias, ctx.transform)
            slope = None if softcap is None else 1 - (logits / softcap) ** 2
            # d logp / d logits = onehot(target) - softmax(logits)
            grad = logits.sub_(norms[part, None]).exp_().neg_()
            rows = torch.arange(len(grad), device=hidden.device)
            grad[rows, targets[part]] += 1
            grad *= scale * upstream[part, None].float()
            if slope is not None:
                grad *= slope
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(hidden.dtype)
            grad_hidden[part] = grad @ weight
            grad_weight += _fp32_product(grad.T, hidden[part])
        return (
            grad_hidden,
            grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(weight.dtype),
            None,
            None,
        )


def _chunks(targets: torch.Tensor, weight: torch.Tensor) -> list[slice]:
    rows = max(1, CHUNK // len(weight))
    return [slice(start, start + rows) for start in range(0, len(targets), rows)]


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transform: Transform
) -> torch.Tensor:
    logits = _fp32_product(hidden, weight.T)
    if bias is not None:
        logits += bias
    if transform.scale != 1.0:
        logits *= transform.scale
    if transform.softcap is not None:
        logits = transform.softcap * torch.tanh(logits / transform.softcap)
    return logits


def _fp32_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right in fp32: a logit of 20 rounded to bf16 is off by 0.05 nats."""
    if left.dtype == torch.float32:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def token_logps(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    transform: Transform = Transform(),
) -> torch.Tensor:
    """fp32 log-probs [T] of `targets` [T] under softmax(hidden [T, H] @ weight [V, H]^T + bias)."""
    result = _TokenLogps.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, transform
    )
    assert isinstance(result, torch.Tensor)
    return result


class LogprobHead(torch.nn.Module):
    """Takes the place of a causal model's output embedding and shares its parameters.

    One module call per forward, so that ZeRO-3's hooks gather the head once on every rank,
    however many tokens a rank has.
    """

    def __init__(self, linear: torch.nn.Linear, transform: Transform) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.transform = transform

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probs [T]; see `token_logps`. Without targets the raw logits, as the linear layer."""
        if targets is None:
            return torch.nn.functional.linear(hidden, self.weight, self.bias)
        return token_logps(hidden, self.weight, self.bias, targets, self.transform)
