"""Estimates of the memory that a training run needs.

Model states are DeepSpeed's own estimates (`estimate_zero*_model_states_mem_needs`). The formulas
below add what those leave out: other widths than 16 bits, NVMe, hierarchical partitioning, buffers
and activations.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcsoup_dist.checkpoints.sources import open_source
from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Training
from vcsoup_dist.training.deepspeed_config import device_of

HOST_FACTOR = 1.5  # the default of DeepSpeed's `additional_buffer_factor`
ADAM_BYTES = 12  # fp32 master weight and two moments, per parameter
GRADIENT_BYTES = 4  # fp32, per parameter


@dataclass(frozen=True)
class Decoder:
    """Sizes of a dense decoder with gated feed-forward layers, for its activations."""

    layers: int
    hidden: int
    intermediate: int
    key_values: int
    """Width of the keys, and of the values: heads times size of a head."""
    vocabulary: int


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a model that decide its memory."""

    parameters: int
    largest_layer: int
    """Parameters of the largest layer; embedding and head count as layers."""
    decoder: Decoder | None
    """None for architectures whose activations no formula here describes."""


@dataclass(frozen=True)
class TrainingMemory:
    """Estimated peaks in bytes. Without GPUs a rank's part is in host memory too."""

    states: int
    """Per GPU: weights, gradients and optimizer states."""
    buffers: int
    """Per GPU: gathered weights, buckets and the hierarchical copy."""
    activations: int | None
    """Per GPU; None where the architecture is not known."""
    step: int
    """Per GPU: temporaries of the optimizer's step, when no activations are there."""
    host: int
    """Per machine."""
    nvme: int
    """Per machine, on its disk."""

    @property
    def gpu(self) -> int:
        """Peak per GPU."""
        return self.states + self.buffers + max(self.activations or 0, self.step)


def estimate_memory(
    size: ModelSize, config: Mapping[str, Any], training: Training, ranks_per_node: int, nodes: int
) -> TrainingMemory:
    """Memory of a run with a filled configuration, one rank per GPU.

    Imports DeepSpeed, which takes seconds.
    """
    zero = config["zero_optimization"]
    ranks = ranks_per_node * nodes
    width = _width(training)
    share = math.ceil(size.parameters / ranks)
    gpu, host, nvme = _states(size, config, width, ranks_per_node, nodes)
    activations = host_activations = None
    if size.decoder is not None:
        activations, host_activations = activation_bytes(
            size.decoder,
            training.tokens_per_batch,
            width,
            checkpointing=training.gradient_checkpointing,
            offload=training.activation_offload,
        )
    # The step copies a group's gradients, and needs a tensor for Adam's denominator.
    group = min(share, zero["sub_group_size"]) if "sub_group_size" in zero else share
    step = 2 * GRADIENT_BYTES * group
    if device_of(dict(config), "optimizer") != "none":
        host, step = host + step * ranks_per_node, 0
    return TrainingMemory(
        states=gpu,
        buffers=_buffers(size, zero, width, ranks),
        activations=activations,
        step=step,
        host=host + (host_activations or 0) * ranks_per_node,
        nvme=nvme,
    )


def _width(training: Training) -> int:
    """Bytes of a weight and of an activation."""
    return 2 if training.dtype == "bf16" else 4


def _states(
    size: ModelSize, config: Mapping[str, Any], width: int, ranks_per_node: int, nodes: int
) -> tuple[int, int, int]:
    """Weights, gradients and optimizer: bytes per GPU, per host, and per host's NVMe."""
    zero2, zero3 = _deepspeed_estimators()
    zero = config["zero_optimization"]
    parameters, ranks = size.parameters, ranks_per_node * nodes
    offload = {states: device_of(dict(config), states) for states in ("param", "optimizer")}
    # Both assume 16-bit weights; `wider` is what fp32 ones add.
    wider = width - 2
    if zero["stage"] == 2:
        host, gpu = zero2(
            parameters, ranks_per_node, nodes, offload["optimizer"] != "none", HOST_FACTOR
        )
        return int(gpu + wider * parameters), int(host), 0
    host, gpu, _ = zero3(
        parameters,
        size.largest_layer,
        ranks_per_node,
        nodes,
        cpu_offload=offload["optimizer"] != "none",
        cpu_offload_params=offload["param"] != "none",
        zero_init=True,
        additional_buffer_factor=HOST_FACTOR,
    )
    gpu += 2 * wider * size.largest_layer
    if offload["param"] == "none":
        gpu += wider * parameters / ranks
    else:
        host += wider * parameters / nodes * HOST_FACTOR
        if offload["optimizer"] == "none":  # DeepSpeed's estimator lacks this case
            gpu -= 2 * parameters / ranks
            host += 2 * parameters / nodes * HOST_FACTOR
    nvme = 0.0
    if offload["optimizer"] == "nvme":
        host -= ADAM_BYTES * parameters / nodes * HOST_FACTOR
        buffers = zero["offload_optimizer"].get("buffer_count", 4)
        group = min(parameters / ranks, zero.get("sub_group_size", 1e9))
        host += buffers * group * 4 * ranks_per_node
        nvme += (ADAM_BYTES + GRADIENT_BYTES) * parameters / nodes
    if offload["param"] == "nvme":
        section = zero["offload_param"]
        host -= width * parameters / nodes * HOST_FACTOR
        buffers = section.get("buffer_count", 5) * section.get("buffer_size", 1e8)
        host += buffers * width * ranks_per_node
        nvme += width * parameters / nodes
    return int(gpu), int(host), int(nvme)


def _buffers(size: ModelSize, zero: Mapping[str, Any], width: int, ranks: int) -> int:
    """At most so many bytes per GPU that DeepSpeed's estimators leave out."""
    buckets = zero.get("reduce_bucket_size", 500_000_000) * (2 if zero.get("overlap_comm") else 1)
    total = min(buckets, 2 * size.parameters) * width
    if zero["stage"] == 3:
        live = min(size.parameters, zero.get("stage3_max_live_parameters", 1_000_000_000))
        # The largest layer's is in the estimate of the states.
        total += max(0, live - size.largest_layer) * width
        together = min(zero.get("zero_hpz_partition_size", 1), ranks)
        if together > 1:
            total += math.ceil(size.parameters / together) * width
    return int(total)


def activation_bytes(
    decoder: Decoder, tokens: int, width: int, *, checkpointing: bool, offload: bool
) -> tuple[int, int]:
    """Peak bytes per GPU, and per rank in host memory, of a micro-batch of `tokens`.

    width: bytes of an activation. With hidden size H, intermediate size I and width of the keys K,
    a layer keeps 8 H + width (6 H + 2 K + 4 I) of a token for its backward pass: per norm the input
    in fp32, the normed and the scaled state (4 H + 2 width H, twice); queries and attention's
    output (2 width H); keys and values (2 width K); gate, its activation, the other branch and
    their product (4 width I). Attention matrices are never kept. With checkpointing each layer
    keeps only its input (width H), and the running layer all. Offloading moves what waits for its
    backward pass, not the running layer. The head adds its logits, a chunk at a time, and its
    gradient in fp32; no layer runs meanwhile.
    """
    from vcsoup_dist.forward.logprobs import CHUNK

    layer = tokens * (
        8 * decoder.hidden
        + width * (6 * decoder.hidden + 2 * decoder.key_values + 4 * decoder.intermediate)
    )
    boundary = tokens * width * decoder.hidden
    waiting = decoder.layers * (boundary if checkpointing else layer)
    logits = min(CHUNK, tokens * decoder.vocabulary)
    chunk = logits * (4 if width == 4 else 4 + width)
    head = chunk + decoder.vocabulary * decoder.hidden * (4 if width == 4 else 4 + width)
    # Without checkpointing a running layer's activations are among those kept.
    running = layer if checkpointing or offload else boundary
    return (0 if offload else waiting) + max(running, head), waiting if offload else 0


def model_size(folder: Path) -> ModelSize:
    """Of a model directory, from its config and the headers of its weights."""
    shapes = {name: spec.shape for name, spec in open_source(folder).layout.items()}
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its config.json cannot be read: {error}") from error
    parameters, largest = count_parameters(shapes.items())
    return ModelSize(parameters, largest, _decoder(config))


def size_of(model: Any) -> ModelSize:
    """Of a model on any device, also the meta device."""
    shapes = ((name, tuple(each.shape)) for name, each in model.named_parameters())
    parameters, largest = count_parameters(shapes)
    return ModelSize(parameters, largest, _decoder(model.config.to_dict()))


def forward_bytes(size: ModelSize, training: Training) -> int | None:
    """Peak of a rank that holds a whole model and only computes log-probs; None where unknown.

    An upper bound: the activations of training with gradient checkpointing.
    """
    if size.decoder is None:
        return None
    width = _width(training)
    activations, _ = activation_bytes(
        size.decoder, training.tokens_per_batch, width, checkpointing=True, offload=False
    )
    return size.parameters * width + activations


def count_parameters(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> tuple[int, int]:
    """All parameters, and those of the largest layer; shapes: names and shapes of the tensors.

    A layer is all tensors with the same name up to its first number ("model.layers.7."), or one
    tensor such as the embedding or the head.
    """
    layers: dict[str, int] = {}
    for name, shape in shapes:
        numbered = re.match(r".*?\.\d+\.", name)
        layer = numbered.group() if numbered else name
        layers[layer] = layers.get(layer, 0) + math.prod(shape)
    return sum(layers.values()), max(layers.values())


def _decoder(config: Mapping[str, Any]) -> Decoder | None:
    config = config.get("text_config") or config
    experts = any("expert" in key and value for key, value in config.items())
    try:
        heads = config["num_attention_heads"]
        of_keys = config.get("num_key_value_heads") or heads
        head = config.get("head_dim") or config["hidden_size"] // heads
        decoder = Decoder(
            config["num_hidden_layers"],
            config["hidden_size"],
            config["intermediate_size"],
            of_keys * head,
            config["vocab_size"],
        )
    except (KeyError, TypeError, ZeroDivisionError):
        return None
    return None if experts else decoder


def has_gpu() -> bool:
    """Whether ranks on this machine would train on GPUs."""
    import torch

    return torch.cuda.is_available()


def can_use_nvme() -> bool:
    """Whether DeepSpeed can build its asynchronous file access."""
    _deepspeed_estimators()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(AsyncIOBuilder().is_compatible(verbose=False))


def _deepspeed_estimators() -> tuple[Callable[..., Any], Callable[..., Any]]:
    if not has_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    return estimate_zero2_model_states_mem_needs, estimate_zero3_model_states_mem_needs
