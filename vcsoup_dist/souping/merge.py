"""The streaming merge: one pass over N policies writes K soups, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vcsoup_dist.checkpoints.companions import copy_companions
from vcsoup_dist.checkpoints.layout import tensor_bytes
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.writer import ShardFile, write_index
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.formats import FLOAT_DTYPES, Bytes, has_nonfinite
from vcsoup_dist.souping.kernel import weighted_sum
from vcsoup_dist.souping.preflight import MergePlan, plan_merge

LARGEST_CHUNK = 1 << 25  # bytes; larger reads are no faster
SMALLEST_CHUNK = 1 << 12


@dataclass(frozen=True)
class MergeReport:
    """What a merge has done."""

    soups: tuple[str, ...]
    tensors: int
    """In one soup."""
    bytes_read: int
    bytes_written: int


def merge(
    policies: Sequence[Path],
    soups: Mapping[str, Sequence[float]],
    out: Path,
    *,
    policy_names: Sequence[str],
    shard_size: int = 5 * 10**9,
    memory: int = 1 << 30,
    on_bytes: Callable[[int], None] | None = None,
) -> MergeReport:
    """Write theta(lambda) = sum_i lambda_i theta_i for each soup into out/<its name>/.

    policies: N model directories; soups: name -> N weights in the policies' order;
    policy_names: for messages; shard_size: bytes of data per weights file; memory: bytes of all
    buffers for reading and writing; on_bytes: called with the bytes just read plus written.

    Every input byte is read once. Soups have the first policy's order of tensors, config,
    tokenizer and dtypes, and are the same bytes each time. UserError for anything `plan_merge`
    refuses, a NaN or infinity in a policy, integer buffers that differ, a disk that runs full. What
    is then in `out` is of no use: merge into a fresh place, publish by renaming, and fsync the
    small files then (weights are fsynced here).
    """
    plan = plan_merge(policies, soups, out, policy_names=policy_names, shard_size=shard_size)
    chunk = min(LARGEST_CHUNK, memory // (len(policies) + len(soups))) & -SMALLEST_CHUNK
    if chunk < SMALLEST_CHUNK:
        raise UserError(
            f"{memory} bytes of memory are too few for {len(policies)} policies and {len(soups)}"
            f" soups; allow at least {SMALLEST_CHUNK * (len(policies) + len(soups))}"
        )
    folders = [out / soup for soup in plan.soups]
    for folder in folders:
        folder.mkdir(parents=True)
        copy_companions(policies[0], folder)
        write_index(folder, plan.shards)
    _write_weights(plan, folders, policy_names, chunk, on_bytes)
    return MergeReport(plan.soups, len(plan.layouts[0]), plan.bytes_read, plan.bytes_written)


def _write_weights(
    plan: MergePlan,
    folders: Sequence[Path],
    policy_names: Sequence[str],
    chunk: int,
    on_bytes: Callable[[int], None] | None,
) -> None:
    inputs = [np.empty(chunk, np.uint8) for _ in plan.layouts]
    results = [np.empty(chunk, np.uint8) for _ in folders]
    with ExitStack() as readers_open:
        readers = [readers_open.enter_context(CheckpointReader(each)) for each in plan.layouts]
        for shard in plan.shards:
            with ExitStack() as files_open:
                files = [
                    files_open.enter_context(ShardFile.create(folder, shard)) for folder in folders
                ]
                for name, dtype, shape in shard.tensors:
                    nbytes = tensor_bytes(dtype, shape)
                    for offset in range(0, nbytes, chunk):
                        size = min(chunk, nbytes - offset)
                        parts = [buffer[:size] for buffer in inputs]
                        for reader, part in zip(readers, parts, strict=True):
                            reader.read_into(name, offset, part)
                        sums = _summed(parts, dtype, plan, results, name, policy_names)
                        for file, result in zip(files, sums, strict=True):
                            file.write(name, offset, result)
                        if on_bytes is not None:
                            on_bytes(size * (len(parts) + len(sums)))


def _summed(
    parts: Sequence[Bytes],
    dtype: str,
    plan: MergePlan,
    results: Sequence[Bytes],
    tensor: str,
    policy_names: Sequence[str],
) -> Sequence[Bytes]:
    """One chunk of every soup, from the same chunk of every policy."""
    if dtype not in FLOAT_DTYPES:
        for part, name in zip(parts, policy_names, strict=True):
            if not np.array_equal(part, parts[0]):
                raise UserError(
                    f"{tensor} ({dtype}) differs between policies {policy_names[0]} and {name};"
                    " integers have no weighted sum"
                )
        return [parts[0]] * len(results)
    for part, name in zip(parts, policy_names, strict=True):
        if has_nonfinite(part, dtype):
            raise UserError(
                f"policy {name}: {tensor} holds NaN or infinity; its training has failed, take an"
                " earlier checkpoint"
            )
    sums = [result[: parts[0].nbytes] for result in results]
    weighted_sum(parts, [dtype] * len(parts), plan.weights, dtype, sums)
    return sums
