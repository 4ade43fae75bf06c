"""`vcsoup export` as a function: a checkpoint as a Hugging Face model, streamed."""

from __future__ import annotations

import time

from vcsoup_dist.checkpoints.sources import open_source
from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log
from vcsoup_dist.souping.arguments import Folder, as_path
from vcsoup_dist.souping.kernels.formats import format_named
from vcsoup_dist.souping.model_agreement import fitted
from vcsoup_dist.souping.output.targets import placement, require_apart
from vcsoup_dist.souping.output.write import Written, write_soups
from vcsoup_dist.souping.plan import SHARD_SIZE, plan_merge, require_config
from vcsoup_dist.souping.progress_text import last_line


def export(
    checkpoint: Folder,
    *,
    out: Folder,
    model: Folder | None = None,
    frozen_from_model: bool = False,
    dtype: str | None = None,
    memory: int = 1 << 30,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
) -> Written:
    """Write `checkpoint` into the directory `out`: the soup of one policy, without a card.

    checkpoint: anything that `open_source` reads, a DeepSpeed checkpoint where it is a model too;
    model: whose config and tokenizer go along, and whose tensors' names and shapes it must have;
    frozen_from_model: take the tensors that the checkpoint lacks from there; dtype: as for
    `merge`; fp32 and fp64 are written from the masters of ZeRO-1 and -2.

    Goes on after a kill. UserError as for `merge`, and where `model` has other tensors.
    """
    checkpoint, out = as_path(checkpoint, "checkpoint"), as_path(out, "out")
    model = None if model is None else as_path(model, "model")
    began = time.monotonic()
    name = out.absolute().name
    written_as = format_named(dtype, "--dtype") if dtype else None
    if model is not None:
        require_config(model)
    elif frozen_from_model:
        raise UserError("--frozen-from-model needs --model, the base to take them from")
    source = open_source(checkpoint, "deepspeed", masters=written_as in ("F32", "F64"))
    if model is not None:
        source = fitted(source, model, frozen_from_model=frozen_from_model)
    plan = plan_merge(
        [source],
        {name: (1.0,)},
        names=[checkpoint.absolute().name],
        dtype=written_as,
        shard_size=shard_size,
        companions=model,
    )
    where = placement(plan, out, inside=False)
    require_apart(where, [checkpoint, *([model] if model else [])])
    written = write_soups(
        plan,
        where,
        memory=memory,
        overwrite=overwrite,
        card=False,
        title="export",
    )
    if written.soups:
        log.info("%s", last_line(written, time.monotonic() - began))
    else:
        log.info("nothing to do: %s is made of just this", out)
    return written
