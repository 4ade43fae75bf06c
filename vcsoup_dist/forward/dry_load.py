"""Loading shapes alone by transformers, which shows what a load would lack.

Tied weights, older names and fused experts count exactly as in a real load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from vcsoup_dist.checkpoints.layout import Source
from vcsoup_dist.checkpoints.pickled import DTYPES
from vcsoup_dist.errors import UserError, reason_of

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Name -> shape in the files, shape in the model."""


def dry_load(model: Any, source: Source) -> tuple[list[str], list[str], Shapes]:
    """Names that the files lack, names that the model lacks, and shapes that differ.

    model: on the meta device; source: opened `as_stored`. UserError where its tensors do not form
    such a model.
    """
    layout = {
        **source.layout,
        **{alias: source.layout[name] for alias, name in source.aliases.items()},
    }
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    tensors = {
        name: torch.empty(spec.shape, dtype=dtypes.get(spec.dtype, torch.uint8), device="meta")
        for name, spec in layout.items()
    }
    with _quiet():
        try:
            _, found = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=tensors,
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except Exception as error:  # such as of experts that cannot be laid together
            raise UserError(
                f"{source.path}: its tensors do not make up a {type(model).__name__}: "
                f"{reason_of(error)}"
            ) from error
    shapes = {name: (tuple(has), tuple(wants)) for name, has, wants in found["mismatched_keys"]}
    return sorted(found["missing_keys"]), sorted(found["unexpected_keys"]), shapes


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own report, which names the model's class and not its folder."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
