"""Any checkpoint that can be read tensor by tensor: what kind it is and where its tensors lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vcsoup_dist.checkpoints.layout import INDEX_NAME, SINGLE_NAME, Layout, read_layout
from vcsoup_dist.errors import UserError


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk, of which only headers have been read."""

    path: Path
    kind: Literal["safetensors", "bin", "zero3"]
    layout: Layout
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Further names of tied weights -> the name in `layout`."""


def open_source(path: Path) -> Source:
    """A Hugging Face model directory (safetensors or `.bin`) or a DeepSpeed checkpoint.

    A directory that holds safetensors is read as these. UserError where it holds no weights that
    can be read tensor by tensor, or contradicts itself. Imports torch for all but safetensors.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no such model directory")
    if (path / INDEX_NAME).is_file() or (path / SINGLE_NAME).is_file():
        return Source(path, "safetensors", read_layout(path))
    from vcsoup_dist.checkpoints import pickled, zero3

    if zero3.is_checkpoint(path):
        return zero3.open_checkpoint(path)
    if pickled.is_checkpoint(path):
        return Source(path, "bin", pickled.read_layout(path))
    return Source(path, "safetensors", read_layout(path))  # says what is there instead
