"""Check the attention kernels of this machine on packs with shared prompts, forward and backward.

    python tools/check_gpu.py                  every kernel that a GPU has, in bf16
    python tools/check_gpu.py --device cpu     the same script without one: segments in fp32

The oracle is one sequence at a time through transformers' own eager attention in float64. Prints
one line per kernel and architecture, and ends with exit code 1 where one is further off than the
dtype's rounding explains.
"""

from __future__ import annotations

import argparse
import copy
import sys

import torch
import transformers

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answers import AnswerLogps, pack_pairs
from vcsoup_dist.forward.attention import choose_attention
from vcsoup_dist.forward.template import Encoded
from vcsoup_dist.training.engine import switch_off_dropout

SIZES = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "mistral, sliding window": transformers.MistralConfig(**SIZES, sliding_window=50),
    "gemma2, soft-capped": transformers.Gemma2Config(**SIZES, sliding_window=50),
}
TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 0.15,
}  # nats of a token; share of a gradient's norm


def main() -> None:
    """Run all checks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    device = parser.parse_args().device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    kernels = ["flash_attn", "torch_varlen", "segments"] if device == "cuda" else ["segments"]
    failed = False
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        oracle = transformers.AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation="eager"
        )
        switch_off_dropout(oracle)
        pairs = draw_pairs()
        expected, gradients = one_by_one(oracle, pairs)
        for kernel in kernels:
            try:
                attention = choose_attention(kernel, device, dtype, config)
            except UserError as error:
                print(f"{name:28} {kernel:14} not here: {error}")
                continue
            model = copy.deepcopy(oracle).to(device, dtype)
            model.set_attn_implementation(attention)
            logps = AnswerLogps(model)(pack_pairs(pairs, device))
            (logps * weights(len(logps)).to(device)).sum().backward()
            token = (logps.detach().cpu().double() - expected).abs().max().item()
            gradient = max(
                apart(parameter.grad, gradients[each])
                for each, parameter in model.named_parameters()
            )
            wrong = max(token, gradient) > TOLERANCE[dtype]
            failed |= wrong
            print(
                f"{name:28} {kernel:14} {str(dtype).removeprefix('torch.')}: tokens off by at most "
                f"{token:.1e} nats, gradients by {gradient:.1e}{'  WRONG' if wrong else ''}"
            )
    sys.exit(failed)


def draw_pairs() -> list[tuple[Encoded, Encoded]]:
    """Pairs of several lengths; the last is alike in nothing."""

    def ids(count: int) -> list[int]:
        return torch.randint(2, 1000, (count,)).tolist()

    pairs = []
    for prompt, chosen, rejected in ((100, 60, 30), (7, 200, 150), (300, 5, 90)):
        shared = ids(prompt)
        pairs.append(
            (Encoded(shared + ids(chosen), prompt), Encoded(shared + ids(rejected), prompt))
        )
    return [*pairs, (Encoded(ids(40), 10), Encoded(ids(50), 20))]


def weights(count: int) -> torch.Tensor:
    """What each token's log-prob counts in the loss."""
    return torch.linspace(-1, 1, count)


def one_by_one(
    model: torch.nn.Module, pairs: list[tuple[Encoded, Encoded]]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs of all answer tokens, and gradients, in float64."""
    exact = copy.deepcopy(model).double()
    parts = []
    for each in (side for pair in pairs for side in pair):
        logps = exact(torch.tensor([list(each.ids)]), use_cache=False).logits[0].log_softmax(-1)
        targets = torch.tensor(list(each.ids[each.start :]))
        parts.append(logps[each.start - 1 : -1].gather(1, targets[:, None])[:, 0])
    total = torch.cat(parts)
    (total * weights(len(total))).sum().backward()
    return total.detach(), {name: p.grad for name, p in exact.named_parameters()}


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance of two gradients as a share of the expected one's norm."""
    return float((found.cpu().double() - expected).norm() / expected.norm())


if __name__ == "__main__":
    main()
