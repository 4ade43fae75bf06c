"""Any checkpoint that can be read tensor by tensor: what kind it is and where its tensors lie."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vcsoup_dist.checkpoints.folders import describe, require_floats
from vcsoup_dist.checkpoints.layout import Source, read_layout
from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log

__all__ = ["Source", "open_source"]


def open_source(path: Path, prefer: Literal["model", "deepspeed"] = "model") -> Source:
    """A Hugging Face model directory (safetensors or `.bin`) or a DeepSpeed checkpoint.

    A directory that holds a model and a checkpoint is read as what is preferred, which is logged.
    UserError where it holds no weights that can be read tensor by tensor, or contradicts itself.
    Imports torch for all but safetensors.
    """
    folder = describe(path)
    if not folder.holds:
        raise UserError(folder.line)
    kind = folder.holds[-1] if prefer == "deepspeed" else folder.holds[0]
    if len(folder.holds) > 1:
        log.info(
            "%s: %s; the %s is read",
            path,
            folder.what,
            "DeepSpeed checkpoint" if kind == "deepspeed" else "model",
        )
    if kind == "safetensors":
        source = Source(path, "safetensors", read_layout(path))
    elif kind == "bin":
        from vcsoup_dist.checkpoints import pickled

        source = pickled.open_checkpoint(path)
    else:
        from vcsoup_dist.checkpoints import zero3

        source = zero3.open_checkpoint(path)
    require_floats(folder, source.layout)
    return source
