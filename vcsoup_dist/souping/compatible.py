"""Whether policies can be summed: what the headers say, before a weight is read."""

from __future__ import annotations

import re

from vcsoup_dist.checkpoints.layout import Layout
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.kernels.formats import FLOAT_DTYPES

_EXPERT = re.compile(r"\.experts\.\d+\.")
_FUSED = re.compile(r"\.experts\.[a-z]\w*(\.weight)?$")

COPIED_DTYPES = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})
"""Buffers of these must be equal in all policies, and are copied."""


def require_summable(layout: Layout, name: str) -> None:
    """UserError for a tensor of policy `name` that cannot be summed and is not a buffer to copy."""
    for spec in layout.values():
        if spec.dtype not in FLOAT_DTYPES and spec.dtype not in COPIED_DTYPES:
            raise UserError(
                f"policy {name}: {spec.name!r} is {spec.dtype}; quantised or complex numbers"
                " cannot be summed: save the policy in bf16, fp16 or fp32"
            )


def require_same(first: Layout, first_name: str, other: Layout, other_name: str) -> None:
    """UserError unless two policies have the same tensors, in the same shapes."""
    for with_it, has, without, lacks in (
        (first, first_name, other, other_name),
        (other, other_name, first, first_name),
    ):
        missing = [name for name in with_it if name not in without]
        if missing == ["lm_head.weight"]:
            raise UserError(
                f"policy {has} has its own lm_head.weight, policy {lacks} ties it to the embedding;"
                " save both the same way"
            )
        if missing and (reason := _how_named(without, with_it)):
            raise UserError(f"policies {has} and {lacks}: {reason}")
        if missing:
            more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
            raise UserError(
                f"policy {lacks} lacks {missing[0]!r}{more} that policy {has} has; they are not"
                " policies of one model"
            )
    for spec in first.values():
        twin = other[spec.name]
        if twin.shape != spec.shape:
            raise UserError(
                f"{spec.name!r} has shape {list(spec.shape)} in policy {first_name} and"
                f" {list(twin.shape)} in policy {other_name}"
            )
        if twin.dtype != spec.dtype and not {twin.dtype, spec.dtype} <= FLOAT_DTYPES.keys():
            raise UserError(
                f"{spec.name!r} is {spec.dtype} in policy {first_name} and {twin.dtype} in policy"
                f" {other_name}"
            )


def _how_named(one: Layout, other: Layout) -> str | None:
    """Why the names of two layouts differ although the tensors may be the same."""
    for shorter, longer in ((one, other), (other, one)):
        parts = next(iter(longer)).split(".")
        for n in range(1, min(4, len(parts))):
            prefix = ".".join(parts[:n]) + "."
            agreeing = sum(prefix + name in longer for name in shorter)
            if agreeing and 10 * agreeing >= 9 * len(shorter):
                return (
                    f"their tensors' names agree but for {prefix!r} before those of one; save both"
                    " as the same class of model"
                )
    for apart, fused in ((one, other), (other, one)):
        if any(_EXPERT.search(name) for name in apart) and any(
            _FUSED.search(name) for name in fused if not _EXPERT.search(name)
        ):
            return (
                "one holds a tensor for each expert and the other all experts in one; save both"
                " with the same version of transformers"
            )
    return None
