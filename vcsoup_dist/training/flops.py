"""Floating-point operations of a step, for its MFU (Chowdhery et al. 2022, PaLM, appendix B).

Counted are the multiplications and additions that the model and the loss need, once forward and
twice backward: a shared prompt once, and not what gradient checkpointing recomputes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from vcsoup_dist.forward.answers import AnswerPack
from vcsoup_dist.progress import log
from vcsoup_dist.training.job import Job

FULL, SLIDING = "full_attention", "sliding_attention"

PEAK_TFLOPS = {
    # Dense bf16, by the vendors' data sheets; the first name that occurs in the device's.
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H800": 989.0,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "MI300X": 1307.0,
}


def flop_counter(
    job: Job, config: Any, shapes: Mapping[str, tuple[int, ...]]
) -> FlopCounter | None:
    """A counter for the model of a job; None where the peak or the architecture is not known.

    config: the model's; shapes: of its parameters by name.
    """
    peak = job.launch.peak_tflops or _known_peak(job.training.dtype)
    experts = any("experts" in name for name in shapes)  # of which a token uses a few
    if peak is None or experts:
        return None
    try:
        return FlopCounter(config, shapes, peak * 1e12)
    except AttributeError as error:
        log.warning("no MFU: this architecture's config lacks what it needs (%s)", error)
        return None


def _known_peak(dtype: str) -> float | None:
    """TFLOP/s of this device by its name."""
    if dtype != "bf16" or not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for known, peak in PEAK_TFLOPS.items() if known in name), None)


class FlopCounter:
    """Floating-point operations of a training step on one rank's packs."""

    def __init__(self, config: Any, shapes: Mapping[str, tuple[int, ...]], peak: float) -> None:
        """config: the model's; shapes: of its parameters by name; peak: of a device, per second.

        Raises AttributeError where the config lacks what is needed.
        """
        self.peak = peak
        config = config.get_text_config()
        sizes = {name: math.prod(shape) for name, shape in shapes.items() if len(shape) > 1}
        outside = ("embed", "lm_head", "wte.weight", "wpe.weight")
        self._layers = sum(
            size for name, size in sizes.items() if not any(part in name for part in outside)
        )
        self._head = config.vocab_size * config.hidden_size
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kinds = getattr(config, "layer_types", None) or (
            [FULL] * config.num_hidden_layers
            if getattr(config, "sliding_window", None) is None
            else [SLIDING] * config.num_hidden_layers
        )
        self._window = getattr(config, "sliding_window", None) or 1
        self._full = heads * width * sum(kind == FULL for kind in kinds)
        self._sliding = heads * width * sum(kind == SLIDING for kind in kinds)

    def of(self, answers: AnswerPack) -> torch.Tensor:
        """Forward and backward over one pack; a float64 scalar on the pack's device.

        6 per weight and token (of the head: per answer token), and 12 x heads x width per layer and
        per pair of a query and a key that it sees.
        """
        seen = answers.pack.position_ids.double() + 1
        total: torch.Tensor = (
            6.0 * self._layers * seen.numel()
            + 6.0 * self._head * len(answers.targets)
            + 12.0 * self._full * seen.sum()
            + 12.0 * self._sliding * seen.clamp(max=self._window).sum()
        )
        return total
