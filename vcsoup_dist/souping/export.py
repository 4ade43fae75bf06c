"""`vcsoup export` as a function: a checkpoint as a Hugging Face model, streamed."""

from __future__ import annotations

import time
from pathlib import Path

from vcsoup_dist.progress import log
from vcsoup_dist.souping.formats import format_named
from vcsoup_dist.souping.preflight import SHARD_SIZE, plan_merge
from vcsoup_dist.souping.screen import last_line
from vcsoup_dist.souping.targets import placement, require_apart
from vcsoup_dist.souping.write import Written, write_soups


def export(
    checkpoint: Path,
    *,
    out: Path,
    model: Path | None = None,
    dtype: str | None = None,
    memory: int = 1 << 30,
    shard_size: int = SHARD_SIZE,
    overwrite: bool = False,
) -> Written:
    """Write `checkpoint` into the directory `out`: the soup of one policy, without a card.

    checkpoint: anything that `open_source` reads; model: whose config and tokenizer go along;
    dtype: as for `merge`. Goes on after a kill. UserError as for `merge`.
    """
    began = time.monotonic()
    name = out.absolute().name
    plan = plan_merge(
        [checkpoint],
        {name: (1.0,)},
        names=[checkpoint.absolute().name],
        dtype=format_named(dtype, "--dtype") if dtype else None,
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
