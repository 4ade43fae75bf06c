"""`training` and `sft`: stage 3."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vcsoup_dist.recipe.section import Section

Objective = Literal["dpo", "ipo", "hinge", "robust", "simpo", "sft"]
Attention = Literal["auto", "flash_attn", "torch_varlen", "segments"]
DecayRate = Annotated[float, Field(ge=0, lt=1)]
WITHOUT_REFERENCE: tuple[Objective, ...] = ("simpo", "sft")
OF_PAIRS = {"beta", "label_smoothing", "simpo_margin", "sft_weight", "pair_weights"}
"""Settings of losses over pairs, which SFT does not read."""


class Training(Section):
    """Stage 3: one full-parameter policy per value, all from the same initial weights."""

    objective: Objective = "dpo"
    """The loss of a pair: docs/training.md has the formulas."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull towards the reference; for `simpo` the scale of the log-prob per token,
    where 2 to 10 are usual."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of labels that `dpo` and `robust` take to be wrong."""
    simpo_margin: float = Field(0.5, ge=0)
    """SimPO's target margin gamma."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of an added negative log-likelihood per token of the chosen answers."""
    pair_weights: Literal["equal", "consistency"] = "equal"
    """`consistency` multiplies a pair's loss by (1 + c) / 2, scaled to a mean of 1 over the value's
    pairs, where c is the cosine that the filter gave it."""
    learning_rate: float = Field(5e-7, gt=0)
    """Its peak."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up; to 0, or not at all."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's, on all parameters."""
    adam_betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """AdamW's decay rates of its two moments."""
    adam_eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    pairs_per_step: int = Field(64, ge=1)
    """Pairs of one optimizer step over all ranks. Each step has so many: the last one reaches into
    the next pass, and of fewer pairs each is taken several times, which the log then says."""
    epochs: float = Field(1.0, gt=0, le=1e6)
    """Passes over the value's pairs. With `equal_steps` the pairs *before* filtering are counted,
    so that every method takes the same number of steps."""
    equal_steps: bool = True
    """`epochs` counts pairs before filtering (all methods alike), or after it (each its own)."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; overrules `epochs`."""
    max_length: int = Field(2048, ge=8)
    """Tokens of prompt and answer together."""
    overlong: Literal["truncate_prompt", "drop"] = "truncate_prompt"
    """A pair beyond `max_length`: cut its prompt's start, or drop it. Answers are never cut; a pair
    whose answer alone is too long is dropped and counted."""
    tokens_per_batch: int = Field(8192, ge=1)
    """Token budget of one micro-batch on one rank."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """What weights and activations are computed in; the policies are written in it too."""
    deepspeed: str = "zero3"
    """Name of a file in `ds_configs/`, or the path of your own (relative to the recipe)."""
    gradient_checkpointing: bool = True
    """Compute activations again in the backward pass instead of keeping them."""
    activation_offload: bool = False
    """Keep what the backward pass needs in host memory. With `gradient_checkpointing` that is one
    hidden state per layer and token."""
    nvme_path: str | None = None
    """Folder on a local disk, for DeepSpeed configurations that swap to one: `zero3_nvme`."""
    attention: Attention = "auto"
    """How attention runs over packed sequences; `auto` takes the fastest that is installed."""
    evaluate_every: int = Field(50, ge=1)
    """Steps between two evaluations on the held-out pairs."""
    heldout_pairs: int = Field(256, ge=1)
    """At most so many held-out pairs are evaluated."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps between two DeepSpeed checkpoints to resume from."""
    checkpoints_kept: int = Field(1, ge=1)
    """The newest so many stay while a policy is trained."""
    export: Literal["last", "best"] = "last"
    """Which checkpoint becomes the policy: the last, or that of the lowest held-out loss, which is
    then kept too. Checkpoints are evaluated when they are written."""

    @model_validator(mode="after")
    def _settings_of_the_objective(self) -> Training:
        if self.label_smoothing and self.objective not in ("dpo", "robust"):
            raise ValueError(f"label_smoothing: `{self.objective}` has none; `dpo` and `robust` do")
        if self.sft_weight and self.objective == "sft":
            raise ValueError("sft_weight: `sft` has nothing to add it to")
        return self


class Sft(Section):
    """A supervised stage that makes theta_0 from `model`: SFT on the chosen answers of all
    datasets, before any filter. What is not here is as in `training`."""

    learning_rate: float = Field(5e-6, gt=0)
    """Its peak."""
    pairs_per_step: int = Field(64, ge=1)
    """Chosen answers of one optimizer step over all ranks."""
    epochs: float = Field(1.0, gt=0, le=1e6)
    """Passes over the chosen answers."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps; overrules `epochs`."""
