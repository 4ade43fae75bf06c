"""The trainer's flavours on two real ranks: objective x ZeRO configuration x architecture."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from conftest import save_tiny_model, save_tiny_tokenizer
from training_world import World
from transformers import AutoModelForCausalLM

from vcsoup_dist.recipe import WITHOUT_REFERENCE

pytestmark = [pytest.mark.models, pytest.mark.ranks]

LN2 = math.log(2)


@dataclass(frozen=True)
class Flavour:
    """What a policy is trained with, and what is known of its first loss."""

    model: str = "llama"
    reference: str = "llama"
    first_loss: float | None = LN2
    like: str | None = None
    """A flavour with the same loss curve."""
    settings: dict[str, Any] = field(default_factory=dict)


FLAVOURS = {
    # objectives
    "dpo": Flavour(),
    "dpo, smoothed": Flavour(settings={"label_smoothing": 0.1}),
    "dpo + sft": Flavour(first_loss=None, settings={"sft_weight": 0.2}),
    "dpo, weighted": Flavour(first_loss=None, settings={"pair_weights": "consistency"}),
    "ipo": Flavour(first_loss=25.0, settings={"objective": "ipo"}),
    "hinge": Flavour(first_loss=1.0, settings={"objective": "hinge"}),
    "robust": Flavour(settings={"objective": "robust", "label_smoothing": 0.1}),
    "simpo": Flavour(first_loss=None, settings={"objective": "simpo", "beta": 2.0}),
    "sft": Flavour(first_loss=None, settings={"objective": "sft"}),
    # ZeRO configurations
    "zero2": Flavour(like="dpo", settings={"deepspeed": "zero2"}),
    "zero3, optimizer in host memory": Flavour(like="dpo", settings={"deepspeed": "zero3_offload"}),
    "zero3, all in host memory": Flavour(like="dpo", settings={"deepspeed": "zero3_offload_param"}),
    "zero3, hierarchical": Flavour(like="dpo", settings={"deepspeed": "zero3_hpz"}),
    # memory and precision
    "gradient checkpointing, offloaded": Flavour(
        like="dpo", settings={"gradient_checkpointing": True, "activation_offload": True}
    ),
    "bf16": Flavour(reference="llama-bf16", settings={"dtype": "bf16", "learning_rate": 3e-3}),
    "bf16, zero2": Flavour(
        reference="llama-bf16",
        settings={"dtype": "bf16", "deepspeed": "zero2", "learning_rate": 3e-3},
    ),
    # architectures
    "tied llama": Flavour("tied", "tied"),
    "tied llama, zero2": Flavour(
        "tied", "tied", like="tied llama", settings={"deepspeed": "zero2"}
    ),
    "qwen3": Flavour("qwen3", "qwen3"),
    "mistral": Flavour("mistral", "mistral", settings={"gradient_checkpointing": True}),
    "gemma2": Flavour("gemma2", "gemma2", settings={"gradient_checkpointing": True}),
    "gemma3": Flavour("gemma3", "gemma3"),
}

# Two epochs, with two micro-batches in a step.
QUICK = {"pairs_per_step": 12, "steps": 4, "tokens_per_batch": 192, "checkpoint_every": 4}

SMALL = {
    "vocab_size": 25,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "qwen3": transformers.Qwen3Config(**SMALL),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=6),
    "gemma2": transformers.Gemma2Config(**SMALL, sliding_window=6),
    "gemma3": transformers.Gemma3TextConfig(**SMALL, sliding_window=6),
}
ONLY_REFERENCES = {
    "qwen2": transformers.Qwen2Config(**SMALL),  # has biases
    "mixtral": transformers.MixtralConfig(**SMALL, num_local_experts=2),
}

WHOLE_AND_SHARDED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {}, {"deepspeed": "zero3_offload_param"}),
    "tied": ("tied", {}, {"deepspeed": "zero3_offload_param"}),
    "biased, bf16": (
        "qwen2",
        {"dtype": "bf16"},
        {"dtype": "bf16", "deepspeed": "zero3_offload_param"},
    ),
    "experts": ("mixtral", {"deepspeed": "zero2"}, {}),
}
"""Name -> a model, and settings by which ranks hold it whole and sharded."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("flavours")
    save_tiny_model(root / "llama")
    save_tiny_model(root / "tied", tied=True)
    for name, config in (ARCHITECTURES | ONLY_REFERENCES).items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for key, parameter in model.named_parameters():
            if key.endswith(".bias"):
                torch.nn.init.normal_(parameter)
        model.save_pretrained(root / name)
        save_tiny_tokenizer(root / name)
    world = World(root, root / "llama")
    jobs, after = [], []
    jobs += [
        world.reference_job(f"reference-{name}", root / name)
        for name in ("llama", "tied", *ARCHITECTURES)
    ]
    jobs.append(world.reference_job("reference-llama-bf16", dtype="bf16"))
    for name, (model, whole, sharded) in WHOLE_AND_SHARDED.items():
        jobs.append(world.reference_job(f"whole-{name}", root / model, **whole))
        after.append(world.reference_job(f"sharded-{name}", root / model, **sharded))
    for name, flavour in FLAVOURS.items():
        needed = flavour.settings.get("objective") not in WITHOUT_REFERENCE
        reference = f"reference-{flavour.reference}" if needed else None
        changes = QUICK | flavour.settings
        jobs.append(world.policy_job(name, reference, root / flavour.model, **changes))
    world.run(*jobs, *after)
    return world


@pytest.mark.parametrize("name", WHOLE_AND_SHARDED)
def test_a_reference_has_the_same_bytes_from_whole_and_from_sharded_weights(world, name):
    whole, sharded = (
        {file.name: file.read_bytes() for file in (world.root / f"{kind}-{name}").glob("*/*")}
        for kind in ("whole", "sharded")
    )
    assert whole == sharded
    assert any(name.endswith(".npy") for name in whole)


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_flavour_learns_and_its_policy_loads(world, name):
    flavour = FLAVOURS[name]
    losses = [each["loss"] for each in world.metrics(name)]
    assert len(losses) == 4
    if flavour.first_loss is not None:
        assert losses[0] == pytest.approx(flavour.first_loss, rel=2e-2 if "bf16" in name else 1e-5)
    assert losses[-1] < losses[0]
    if flavour.like:
        theirs = [each["loss"] for each in world.metrics(flavour.like)]
        assert losses == pytest.approx(theirs, abs=1e-5)

    policy, info = AutoModelForCausalLM.from_pretrained(
        world.root / name / "output", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    stored = world.weights(name)
    expected = torch.bfloat16 if flavour.settings.get("dtype") == "bf16" else torch.float32
    assert {tensor.dtype for tensor in stored.values()} == {expected}
    base = AutoModelForCausalLM.from_pretrained(world.root / flavour.model).state_dict()
    moved = [key for key, tensor in stored.items() if not torch.equal(base[key], tensor)]
    assert moved == list(stored) or expected is torch.bfloat16
    tied = policy.config.tie_word_embeddings
    assert ("lm_head.weight" in stored) != tied
    if flavour.like:
        for key, tensor in world.weights(flavour.like).items():
            # On average: where a gradient is next to nothing, Adam makes a step of its rounding.
            assert (stored[key] - tensor).abs().mean() < 1e-6, key
