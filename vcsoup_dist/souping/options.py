"""The settings of a merge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.arguments import as_bytes, as_path
from vcsoup_dist.souping.kernels.formats import format_named

SHARD_SIZE = 5 * 10**9
"""Bytes per weights file, the size that readers are used to."""


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """How soups are summed and written, whatever their policies and weights are."""

    base: Path | None = None
    """theta_0, for soups theta_0 + sum_i lambda_i (theta_i - theta_0)."""
    base_name: str | None = None
    """What manifest and card call it; its folder's name where None."""
    model: Path | None = None
    """Whose config and tokenizer soups get; where None, the first policy's that has them."""
    dtype: str | None = None
    """safetensors' name of what floats are written as; where None, as the first policy's."""
    shard_size: int | None = SHARD_SIZE
    """Bytes per weights file; None for files cut as the first policy's."""
    memory: int = 1 << 30
    """Bytes."""
    rank: int = 0
    """Which share of the files this process writes, of `world_size`."""
    world_size: int = 1
    publish: bool = True
    """Whether the rank that finds all shares done publishes the soups."""
    overwrite: bool = False
    """Replace what is at the targets."""
    allow_nonfinite: bool = False
    """Sum NaN and infinity as IEEE says."""
    card: bool = True
    """Write a README.md."""
    sha256: bool = False
    """Record also what `sha256sum` prints."""
    title: str = "merge"
    """Of the progress bar."""

    @classmethod
    def of(cls, **given: Any) -> MergeOptions:
        """From what a Python caller gives: folders as strings or paths, dtype "bf16" or alike."""
        for name in ("base", "model"):
            if given.get(name) is not None:
                given[name] = as_path(given[name], name)
        if given.get("dtype"):
            given["dtype"] = format_named(given["dtype"], "--dtype")
        return cls(**given)

    def __post_init__(self) -> None:
        as_bytes(self.memory, "memory")
        if not 0 <= self.rank < self.world_size:
            raise UserError(f"--rank must lie between 0 and {self.world_size - 1}, got {self.rank}")
        if self.shard_size is not None and self.shard_size < 1:
            raise UserError(
                f"a weights file cannot have {self.shard_size} bytes; give a larger shard size"
            )
