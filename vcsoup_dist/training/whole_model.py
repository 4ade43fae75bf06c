"""A model that only computes log-probs: whole on every rank, where it fits there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from vcsoup_dist.recipe import Training
from vcsoup_dist.training.deepspeed_config import device_of
from vcsoup_dist.training.distributed import any_rank
from vcsoup_dist.training.memory import ModelSize, estimate_memory, forward_bytes, size_of

OF_FREE = 0.9
"""Share of a GPU's free memory that a whole model may take."""


def every_rank_holds(model: Any, config: Mapping[str, Any], training: Training) -> bool:
    """Whether the whole model fits into every rank, which then need not gather it for each batch.

    Called by all ranks together; the same answer on each. model: the one that is meant, on the meta
    device; config: DeepSpeed's, filled in.
    """
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    return not any_rank(not fits(size_of(model), config, training, dist.get_world_size(), free))


def fits(
    size: ModelSize,
    config: Mapping[str, Any],
    training: Training,
    ranks: int,
    free: int | None = None,
) -> bool:
    """Whether a rank can hold the whole model and compute log-probs.

    It can where that takes no more than a rank of the training does, by the estimate of `memory`,
    and than is free on its GPU, in bytes.
    """
    if config["zero_optimization"]["stage"] == 2:  # training holds it whole too
        return True
    needed = forward_bytes(size, training)
    if needed is None or device_of(dict(config), "param") != "none":
        return False
    # What a GPU takes depends on the number of ranks, not on their nodes.
    allowed = estimate_memory(size, config, training, ranks, nodes=1).gpu
    return needed <= allowed and (free is None or needed <= OF_FREE * free)


def use_linear_of_training(config: Mapping[str, Any]) -> None:
    """Replace PyTorch's linear function as `deepspeed.zero.Init` does for the ranks that train.

    It adds a bias after the product and rounds otherwise than PyTorch's; the reference's bits are
    to be those of the policy's first forward.
    """
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    zero = config["zero_optimization"]
    if zero["stage"] == 3 and zero.get("memory_efficient_linear", True):
        torch.nn.functional.linear = zero3_linear_wrap
