"""Checkpoints to measure a merger with: llama-shaped, sharded, bf16, with config and tokenizer.

`write_policies` writes P0, P1, ... where P1 and later are P0 plus noise, as policies trained from
one model are. Values come from a pool of normal numbers that repeats every 8 million elements, so
that a large checkpoint is made at the speed of the disk. Sparse checkpoints have the true layout
and sizes and no data: every weight reads as zero and the files take no room.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import IO

POOL = 8_388_593  # elements; prime, so that the pattern does not line up with rows
NOISE_POOL = 8_388_587
PIECE = 1 << 22  # elements
SPECIAL_TOKENS = ("<unk>", "<pad>", "<end>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of an untied llama model, and how large a shard may get."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    kv_heads: int
    shard_bytes: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes in the order in which the model holds them."""
        hidden, wide = self.hidden, self.intermediate
        narrow = hidden // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            yield at + "self_attn.q_proj.weight", (hidden, hidden)
            yield at + "self_attn.k_proj.weight", (narrow, hidden)
            yield at + "self_attn.v_proj.weight", (narrow, hidden)
            yield at + "self_attn.o_proj.weight", (hidden, hidden)
            yield at + "mlp.gate_proj.weight", (wide, hidden)
            yield at + "mlp.up_proj.weight", (wide, hidden)
            yield at + "mlp.down_proj.weight", (hidden, wide)
            yield at + "input_layernorm.weight", (hidden,)
            yield at + "post_attention_layernorm.weight", (hidden,)
        yield "model.norm.weight", (hidden,)
        yield "lm_head.weight", (self.vocabulary, hidden)

    def shards(self) -> list[dict[str, tuple[int, ...]]]:
        """The tensors by file: greedily in the model's order, then by name within a file."""
        shards: list[dict[str, tuple[int, ...]]] = [{}]
        room = self.shard_bytes
        for name, shape in self.tensors():
            size = 2 * prod(shape)
            if size > room and shards[-1]:
                shards.append({})
                room = self.shard_bytes
            shards[-1][name] = shape
            room -= size
        return [dict(sorted(shard.items())) for shard in shards]


SHAPES = {
    "4MB": Shape(2, 256, 704, 1_000, 8, 4, 1_500_000),
    "1.9GB": Shape(18, 2048, 5632, 32_000, 32, 8, 450_000_000),  # 165 tensors, 5 shards
    "15GB": Shape(32, 4096, 14_336, 64_000, 32, 8, 5_000_000_000),  # a 7B model
}
LLAMA_70B = Shape(80, 8192, 28_672, 128_256, 64, 8, 5_000_000_000)  # 723 tensors, 30 shards


def write_policies(folder: Path, shape: Shape, count: int, sparse: bool) -> None:
    """Write P0 ... P(count - 1) below `folder`, each with its index, config and tokenizer.

    Example:
        write_policies(Path("bench"), SHAPES["1.9GB"], count=2, sparse=False)
    """
    shards = shape.shards()
    names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    policies = [folder / f"P{i}" for i in range(count)]
    if existing := [policy for policy in policies if policy.exists()]:
        raise SystemExit(f"{existing[0]} exists already")
    for policy in policies:
        policy.mkdir(parents=True)
        _write_companions(policy, shape, dict(zip(names, shards, strict=True)))
    fill = None if sparse else _Fill()
    for name, shard in zip(names, shards, strict=True):
        for number, policy in enumerate(policies):
            with open(policy / name, "wb") as file:
                file.write(_header(shard))
                if fill is None:
                    file.truncate(file.tell() + sum(2 * prod(s) for s in shard.values()))
                else:
                    fill.write(file, shard, number)
                file.flush()
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resized(shape: Shape, **changes: int | None) -> Shape:
    """`shape` with those of the fields that are given."""
    return replace(shape, **{name: value for name, value in changes.items() if value is not None})


def _header(shard: dict[str, tuple[int, ...]]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shard.items():
        start, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Fill:
    """Writes the values of a shard; a tensor's values depend on its name and the policy alone."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        generator = torch.Generator().manual_seed(0)
        # Twice over, so that a piece that runs over the end of the pool is one slice.
        self.base = torch.randn(POOL, generator=generator).mul_(0.02).repeat(2)
        self.noise = torch.randn(NOISE_POOL, generator=generator).mul_(1e-3).repeat(2)

    def write(self, file: IO[bytes], shard: dict[str, tuple[int, ...]], policy: int) -> None:
        for name, shape in shard.items():
            start = int.from_bytes(name.encode(), "big")
            level = 1.0 if len(shape) == 1 else 0.0  # norms are near one
            for done in range(0, prod(shape), PIECE):
                count = min(PIECE, prod(shape) - done)
                at = (start + done) % POOL
                values = self.base[at : at + count] + level
                if policy:
                    at = (start * policy + done) % NOISE_POOL
                    values += self.noise[at : at + count]
                file.write(values.to(self.torch.bfloat16).view(self.torch.uint8).numpy().data)


def _write_companions(
    policy: Path, shape: Shape, files: dict[str, dict[str, tuple[int, ...]]]
) -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    words = [*SPECIAL_TOKENS, *(f"w{i}" for i in range(shape.vocabulary - len(SPECIAL_TOKENS)))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    tokenizer.save(str(policy / "tokenizer.json"))

    parameters = sum(prod(s) for shard in files.values() for s in shard.values())
    ids = {"pad_token_id": 1, "eos_token_id": 2}
    documents = {
        "model.safetensors.index.json": {
            "metadata": {"total_size": 2 * parameters, "total_parameters": parameters},
            "weight_map": {tensor: file for file, shard in files.items() for tensor in shard},
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.hidden // shape.heads,
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            **ids,
        },
        "generation_config.json": ids,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "eos_token": "<end>",
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, document in documents.items():
        (policy / name).write_text(json.dumps(document, indent=2) + "\n")
