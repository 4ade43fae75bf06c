"""Any checkpoint that can be read tensor by tensor: what kind it is and where its tensors lie."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from vcsoup_dist.checkpoints.folders import describe, require_floats
from vcsoup_dist.checkpoints.layout import Source, read_layout
from vcsoup_dist.checkpoints.tensor_names import require_whole, without_wrapper_names
from vcsoup_dist.errors import UserError

__all__ = ["Source", "open_source"]


def open_source(
    path: Path,
    prefer: Literal["model", "deepspeed"] = "model",
    *,
    masters: bool = False,
    as_stored: bool = False,
) -> Source:
    """A Hugging Face model directory (safetensors or `.bin`) or a DeepSpeed checkpoint.

    A directory that holds a model and a checkpoint is read as what is preferred, which is noted.
    masters: of ZeRO-1 and -2 the fp32 masters, where they are there, in place of the weights as
    the model used them. as_stored: with the names of wrappers, which transformers' own loader does
    not leave out. UserError where it holds no weights that can be read tensor by tensor, or
    contradicts itself, or has tensors that no loader could use. Imports torch for all but
    safetensors.
    """
    folder = describe(path)
    if not folder.holds:
        raise UserError(folder.line)
    kind = folder.holds[-1] if prefer == "deepspeed" else folder.holds[0]
    if kind == "safetensors":
        source = Source(path, "safetensors", read_layout(path))
    elif kind == "bin":
        from vcsoup_dist.checkpoints import pickled

        source = pickled.open_checkpoint(path)
    else:
        from vcsoup_dist.checkpoints import zero2, zero3

        source = zero3.open_checkpoint(path)
        if masters:
            source = zero2.with_masters(source)
    if len(folder.holds) > 1:
        read = "DeepSpeed checkpoint" if kind == "deepspeed" else "model"
        source = replace(source, notes=(f"{folder.what}: the {read} is read", *source.notes))
    require_floats(folder, source.layout)
    if as_stored:
        require_whole(source)
        return source
    return without_wrapper_names(source)
