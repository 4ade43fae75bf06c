"""`vcsoup export` as a function: a checkpoint as a Hugging Face model, streamed."""

from __future__ import annotations

from typing import Any

from vcsoup_dist.checkpoints.sources import open_source
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.arguments import Folder, as_path
from vcsoup_dist.souping.merge import write_and_log
from vcsoup_dist.souping.merge_run import MergeRun
from vcsoup_dist.souping.model_agreement import with_names_of
from vcsoup_dist.souping.options import MergeOptions
from vcsoup_dist.souping.output.write import MergeReport
from vcsoup_dist.souping.plan import plan_merge, require_config


def export(
    checkpoint: Folder, *, out: Folder, frozen_from_model: bool = False, **options: Any
) -> MergeReport:
    """Write `checkpoint` into the directory `out`: the soup of one policy, without a card.

    checkpoint: anything that `open_source` reads, a DeepSpeed checkpoint where it is a model too;
    frozen_from_model: take the tensors that the checkpoint lacks from `model`; options: fields of
    `MergeOptions`, as for `merge`. The checkpoint must have the names and shapes of `model`; fp32
    and fp64 are written from the masters of ZeRO-1 and -2.

    Resumes after a kill. UserError as for `merge`, and where `model` has other tensors.
    """
    folder, target = as_path(checkpoint, "checkpoint"), as_path(out, "out")
    settings = MergeOptions.of(card=False, title="export", **options)
    if settings.model is not None:
        require_config(settings.model)
    elif frozen_from_model:
        raise UserError("--frozen-from-model needs --model, the base to take them from")
    source = open_source(folder, "deepspeed", masters=settings.dtype in ("F32", "F64"))
    if settings.model is not None:
        source = with_names_of(source, settings.model, frozen_from_model=frozen_from_model)
    soups = {target.absolute().name: (1.0,)}
    plan = plan_merge([source], soups, [folder.absolute().name], settings)
    run = MergeRun.into(target, plan, settings, inside=False)
    run.require_outside([folder, settings.model])
    return write_and_log(run, target)
