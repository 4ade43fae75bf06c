"""What a person reads before and after a merge: one screen of plain text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from vcsoup_dist.checkpoints.auxiliary_files import find_auxiliary_files
from vcsoup_dist.souping.kernels.kernel import implementation
from vcsoup_dist.souping.merge_run import MergeRun
from vcsoup_dist.souping.output.write import MergeReport
from vcsoup_dist.souping.process_memory import peak_memory
from vcsoup_dist.souping.resources import free_bytes

MOST_SOUPS = 8  # that are listed by name
MOST_LEFT = 8  # the same of files that are not copied


def plan_lines(run: MergeRun) -> list[str]:
    """What will be read and written, and what that takes."""
    plan = run.plan
    numbers = Counter[str]()
    for shard in plan.shards:
        for _, dtype, shape in shard.tensors:
            numbers[dtype] += math.prod(shape)
    tensors = sum(len(shard.tensors) for shard in plan.shards)
    written = plan.soup_bytes * len(plan.soups)
    kinds = zip(plan.names, plan.sources, strict=True)
    policies = ", ".join(f"{name} ({source.kind})" for name, source in kinds)
    config = "none: no policy has a config.json, soups will be weights only"
    if plan.model:
        config = f"and tokenizer of {plan.model.name}"
    lines = [
        f"policies  {len(plan.sources)}: {policies}",
        f"tensors   {tensors:,}, {numbers.total():,} numbers,"
        f" written as {', '.join(dtype for dtype, _ in numbers.most_common())}",
        f"read      {plan.bytes_read / 1e9:.2f} GB, each byte once",
        f"write     {written / 1e9:.2f} GB: {len(plan.soups)} x {plan.soup_bytes / 1e9:.2f} GB in"
        f" {len(plan.shards)} files, to {run.out}",
        f"disk      {free_bytes(run.out) / 1e9:.2f} GB free",
        f"memory    at most {run.options.memory / 2**30:.2f} GiB; kernel: {implementation()}",
        f"config    {config}",
    ]
    left = find_auxiliary_files(plan.model).left if plan.model else []
    if left:
        more = f" and {len(left) - MOST_LEFT} more" if len(left) > MOST_LEFT else ""
        lines.append(f"left      of its files: {', '.join(left[:MOST_LEFT])}{more}")
    formula = "sum" if plan.base is None else f"difference from {plan.base}"
    for soup, row in list(plan.soups.items())[:MOST_SOUPS]:
        lines.append(f"soup      {soup} ({formula}): {', '.join(map(repr, row))}")
    if len(plan.soups) > MOST_SOUPS:
        lines.append(f"soup      and {len(plan.soups) - MOST_SOUPS} more")
    return lines


def report_line(report: MergeReport, seconds: float) -> str:
    """Bytes, seconds, GB/s, peak memory."""
    moved = report.bytes_read + report.bytes_written
    kept = f"; {report.chunks_kept} chunks were done before" if report.chunks_kept else ""
    return (
        f"{report.bytes_read / 1e9:.3f} GB read, {report.bytes_written / 1e9:.3f} GB written in"
        f" {seconds:.1f} s, {moved / 1e9 / max(seconds, 1e-9):.2f} GB/s, peak memory"
        f" {peak_memory() / 2**20:.0f} MiB{kept}"
    )


def missing_line(ranks: Sequence[int], world_size: int) -> str:
    """The ranks whose share is missing, as far as their number was given."""
    if world_size == 1:
        return "not done yet; give the --world-size of the ranks to see which are missing"
    return f"not done yet: ranks {', '.join(map(str, ranks))} of {world_size}"
