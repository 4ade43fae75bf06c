"""`vcsoup merge` as a function: policies in, soups out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log
from vcsoup_dist.souping.arguments import Folder, as_bytes, as_path, as_paths, as_rows
from vcsoup_dist.souping.grids import (
    distinct_random_weights,
    simplex_grid,
    validate_weights,
    weights_name,
)
from vcsoup_dist.souping.kernels.formats import format_named
from vcsoup_dist.souping.mergekit_config import read_mergekit_config
from vcsoup_dist.souping.output.targets import Placement, placement, require_apart
from vcsoup_dist.souping.output.write import (
    Written,
    due,
    finish,
    missing_ranks,
    narrowed,
    write_soups,
)
from vcsoup_dist.souping.plan import SHARD_SIZE, MergePlan, check_disk, plan_merge
from vcsoup_dist.souping.progress_text import describe, expected_seconds, last_line, not_done
from vcsoup_dist.souping.verify import verify_soups


def merge(
    policies: Sequence[Folder],
    *,
    out: Folder,
    weights: Sequence[float] | Sequence[Sequence[float]] | None = None,
    grid: float | None = None,
    random: int | None = None,
    seed: int = 0,
    config: Folder | None = None,
    base: Folder | None = None,
    model: Folder | None = None,
    dtype: str | None = None,
    memory: int = 1 << 30,
    shard_size: int | None = SHARD_SIZE,
    rank: int = 0,
    world_size: int = 1,
    finalise: bool = False,
    dry_run: bool = False,
    verify: bool = False,
    sample: float = 1.0,
    overwrite: bool = False,
    extrapolate: bool = False,
    allow_nonfinite: bool = False,
    sha256: bool = False,
) -> Written | None:
    """Write linear soups of checkpoints, streaming every input once; None for a dry run.

    policies: N Hugging Face directories (safetensors or `.bin`) or DeepSpeed checkpoints;
    weights: K rows of N numbers; grid: step of the simplex grid instead; random: how many draws
    by `seed` from the uniform distribution on the simplex instead; config: a mergekit YAML
    instead of policies and weights; out: the soup's directory, or with several soups the one in
    which each gets a directory named by its weights; base: theta_0, for
    theta_0 + sum_i lambda_i (theta_i - theta_0); model: whose config and tokenizer the soups get,
    the first policy's that has them where None; dtype: "bf16", "fp16", "fp32" or "fp64" of what
    is written, the first policy's where None; memory: bytes; shard_size: bytes per file, None
    for files cut as the first policy's; rank, world_size: which share of the files this process
    writes; finalise: only publish what all ranks have written; dry_run: only say what would be
    done; verify: compare the soups with their sources afterwards, a `sample` of all chunks;
    overwrite: replace what is at `out`; extrapolate: allow weights outside [0, 1];
    allow_nonfinite: sum NaN and infinity as IEEE says; sha256: record also these hashes.

    Folders are strings or paths; one row of weights may be given by itself.

    Run again it goes on, or has nothing to do. UserError for whatever a person can mend, TypeError
    for an argument of another type.
    """
    policies, out = as_paths(policies, "policies"), as_path(out, "out")
    config = None if config is None else as_path(config, "config")
    base = None if base is None else as_path(base, "base")
    model = None if model is None else as_path(model, "model")
    weights = None if weights is None else as_rows(weights, "weights")
    memory = as_bytes(memory, "memory")
    if config is not None:
        if policies or weights or grid is not None or random is not None or base is not None:
            raise UserError("--config names policies, weights and base; give no others")
        asked = read_mergekit_config(config)
        policies, base = asked.policies, asked.base
        rows: list[Sequence[float]] = [asked.weights]
        written_as = format_named(dtype, "--dtype") if dtype else asked.dtype
    else:
        rows = _rows(policies, weights, grid, random, seed, base, extrapolate)
        written_as = format_named(dtype, "--dtype") if dtype else None
    if not 0 <= rank < world_size:
        raise UserError(f"--rank must lie between 0 and {world_size - 1}, got {rank}")
    if not 0 < sample <= 1:
        raise UserError(f"--sample is a share, above 0 and up to 1, got {sample}")
    names = policy_names(policies)
    inside = grid is not None or random is not None or len(rows) > 1
    soups = {weights_name(row) if inside else out.absolute().name: row for row in rows}
    if len(soups) < len(rows):
        raise UserError("two soups have the same weights to six decimals; give one of them")
    plan = plan_merge(
        policies,
        soups,
        names=names,
        base=base,
        dtype=written_as,
        shard_size=shard_size,
        companions=model,
    )
    where = placement(plan, out, inside=inside)
    require_apart(where, [*policies, *(each for each in (base, model) if each)])
    if finalise:
        return _finalise(plan, where, world_size, overwrite, sha256)
    for line in describe(plan, where, memory=memory):
        log.info("%s", line)
    if dry_run:
        plan = narrowed(plan, due(plan, where, overwrite))
        if not plan.soups:
            log.info("nothing to do: %s is made of just this", out)
            return None
        check_disk(plan, where.work)
        seconds = expected_seconds(plan, where, memory=memory)
        log.info("expected  %.0f s, by a measured sample; nothing was kept", seconds)
        return None
    began = time.monotonic()
    written = write_soups(
        plan,
        where,
        memory=memory,
        rank=rank,
        world_size=world_size,
        overwrite=overwrite,
        allow_nonfinite=allow_nonfinite,
        sha256=sha256,
    )
    if written.soups:
        log.info("%s", last_line(written, time.monotonic() - began))
    else:
        log.info("nothing to do: %s is made of just this", out)
    if not written.finished:
        log.info("other ranks are not done; the last one publishes, or --finalise does")
    elif verify:
        found = verify_soups(
            plan, list(where.targets.values()), memory=memory, sample=sample, seed=seed
        )
        log.info(
            "verified: %d tensors, %.3f GB of soups equal the sums of their sources",
            found.tensors,
            found.nbytes / 1e9,
        )
    return written


def policy_names(policies: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart: `helpful`, or `helpful-seed-0`."""
    parts = [[each for each in path.absolute().parts if each != "/"] for path in policies]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["-".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            # They are shown on one line each, and two may differ in what cannot be shown.
            shown = ["".join(c if c.isprintable() else "_" for c in name) for name in names]
            once = len(set(shown)) == len(shown)
            return shown if once else [f"{i} {name}" for i, name in enumerate(shown, start=1)]
    raise UserError("the same policy is named twice; give it once, with the sum of its weights")


def _rows(
    policies: Sequence[Path],
    weights: Sequence[Sequence[float]] | None,
    grid: float | None,
    random: int | None,
    seed: int,
    base: Path | None,
    extrapolate: bool,
) -> list[Sequence[float]]:
    if not policies:
        raise UserError("a merge needs policies, or a --config that names them")
    if sum(given is not None for given in (weights, grid, random)) != 1:
        raise UserError("give one of --weights, --grid, --random and --config")
    if grid is not None:
        return list(simplex_grid(len(policies), grid))
    if random is not None:
        return list(distinct_random_weights(len(policies), random, seed))
    assert weights is not None
    for row in weights:
        if len(row) != len(policies):
            raise UserError(f"{len(row)} weights for {len(policies)} policies: {list(row)}")
        validate_weights(row, extrapolate=extrapolate, any_sum=base is not None)
    return list(weights)


def _finalise(
    plan: MergePlan, where: Placement, world_size: int, overwrite: bool, sha256: bool
) -> Written:
    if not finish(plan, where, overwrite=overwrite, sha256=sha256):
        if not where.work.is_dir():
            raise UserError(f"{where.work}: there is nothing to finalise")
        missing = missing_ranks(plan, where, world_size)
        raise UserError(f"{where.work}: {not_done(missing, world_size)}")
    return Written(tuple(plan.soups), 0, 0, 0, True)
