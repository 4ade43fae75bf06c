"""`evaluation`: stage 5."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vcsoup_dist.recipe.pools import Amount
from vcsoup_dist.recipe.section import Section


class Evaluation(Section):
    """Stage 5."""

    prompts: int = Field(64, ge=2)
    """Held-out prompts per dataset (the first by content hash)."""
    heldout_pairs: int = Field(0, ge=0)
    """Held-out pairs per dataset whose DPO loss the report shows along the lines between policies;
    0: none."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""
    max_prompt_tokens: int = Field(1024, ge=8)
    """Longer prompts are left out, and counted."""
    temperature: float = Field(1.0, ge=0)
    """0 decodes greedily."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Sample from the likeliest tokens that hold this probability together."""
    seed: int = 0
    """Of the sampling; the same for every soup."""
    batch: int = Field(64, ge=1)
    """Prompts generated together."""
    actors: int = Field(1, ge=1)
    """Ray actors; each holds one soup and all rewards."""
    cpus_per_actor: Amount = 1
    """CPUs that Ray sets aside for each actor."""
    gpus_per_actor: Amount = 0
    """GPUs for each actor; several hold a large soup together, 0 runs on the CPU."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """What the soups compute in."""
    bootstrap: int = Field(1000, ge=100)
    """Resamples over prompts for the intervals."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of the intervals."""
    samples: int = Field(3, ge=0)
    """Prompts whose answers the report shows side by side."""
