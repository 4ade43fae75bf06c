"""Any checkpoint that can be read tensor by tensor: what kind it is and where its tensors lie."""

from __future__ import annotations

from pathlib import Path

from vcsoup_dist.checkpoints.layout import INDEX_NAME, SINGLE_NAME, Source, read_layout
from vcsoup_dist.errors import UserError

__all__ = ["Source", "open_source"]


def open_source(path: Path) -> Source:
    """A Hugging Face model directory (safetensors or `.bin`) or a DeepSpeed checkpoint.

    A directory that holds several is read as the first of these. UserError where it holds no
    weights that can be read tensor by tensor, or contradicts itself. Imports torch for all but
    safetensors.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no such model directory")
    if (path / INDEX_NAME).is_file() or (path / SINGLE_NAME).is_file():
        return Source(path, "safetensors", read_layout(path))
    from vcsoup_dist.checkpoints import pickled, zero3

    if pickled.is_checkpoint(path):
        return pickled.open_checkpoint(path)
    if zero3.is_checkpoint(path):
        return zero3.open_checkpoint(path)
    return Source(path, "safetensors", read_layout(path))  # says what is there instead
