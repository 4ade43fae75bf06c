"""Log-probabilities of given tokens, without a [tokens, vocabulary] matrix of logits.

The head's product, the log-softmax and its gradient are computed a chunk of tokens at a time, and
again in the backward pass: memory is chunk x vocabulary, whatever the number of tokens. Same idea
as TRL's `chunked_logprob` and Liger's fused linear losses.
"""

from __future__ import annotations

from typing import Any

import torch

CHUNK = 1024  # tokens


class _TokenLogps(torch.autograd.Function):
    """hidden [T, H], weight [V, H], bias [V] or None, targets [T] -> fp32 log-probs [T]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        logps = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = _logits(hidden[part], weight, bias)
            chosen = logits.gather(1, targets[part, None])[:, 0]
            logps[part] = chosen - logits.logsumexp(dim=1)
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (upstream,) = gradients
        hidden, weight, bias, targets = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        # Summed in fp32 over chunks, so that the chunk size does not decide the rounding.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            # d logp / d logits = onehot(target) - softmax(logits)
            grad_logits = -torch.softmax(_logits(hidden[part], weight, bias), dim=1)
            rows = torch.arange(len(grad_logits), device=hidden.device)
            grad_logits[rows, targets[part]] += 1
            grad_logits *= upstream[part, None].float()
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(hidden.dtype)
            grad_hidden[part] = grad_logits @ weight
            grad_weight += grad_logits.T @ hidden[part]
        return (
            grad_hidden,
            grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(weight.dtype),
            None,
        )


def _logits(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.nn.functional.linear(hidden, weight, bias).float()


def token_logps(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    """fp32 log-probs [T] of `targets` [T] under softmax(hidden [T, H] @ weight [V, H]^T + bias)."""
    result = _TokenLogps.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    assert isinstance(result, torch.Tensor)
    return result


class LogprobHead(torch.nn.Module):
    """Takes the place of a causal model's output embedding and shares its parameters.

    One module call per forward, so that ZeRO-3's hooks gather the head once on every rank,
    however many tokens a rank has.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log-probs [T]; see `token_logps`."""
        return token_logps(hidden, self.weight, self.bias, targets)
