"""Trying the ways of running a classifier on a few texts in its own form."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.attention import choose_attention
from vcsoup_dist.forward.hidden import can_pack
from vcsoup_dist.recipe import Attention
from vcsoup_dist.scoring.heads import LOGITS, Outputs
from vcsoup_dist.scoring.rewards import Text
from vcsoup_dist.scoring.texts import RewardText
from vcsoup_dist.scoring.ways import ByModel, Packed, PaddedLastToken, Way, reason_of

log = logging.getLogger("vcsoup")

# Absolute and relative, of outputs: between another order of summing and another text's influence.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
UNLIMITED = 1 << 30  # tokens

QUESTION = [{"role": "user", "content": "What does the big dog do when it sees a small red cat?"}]
PROBES: Sequence[Text] = (
    (QUESTION, "It runs."),
    (QUESTION, "The old dog likes the cat, and both of them go down to the river and drink."),
    ([{"role": "user", "content": "the new tree"}], "no"),
)
"""Texts of different lengths, two of which begin alike."""


@torch.inference_mode()
def choose_way(
    model: Any,
    heads: Sequence[str],
    probes: Sequence[RewardText],
    *,
    name: str,
    padding: int,
    attention: Attention,
) -> tuple[Way, Outputs]:
    """The fastest way that gives the probes the outputs they get alone, and these.

    name: what errors call the model; padding: a token id. Raises UserError where the model fails on
    the probes, or `attention` asks for what it cannot have.
    """
    alone = ByModel(
        name="one text at a time",
        model=model,
        heads=heads,
        source=name,
        padding=padding,
        side=None,
        takes_types="token_type_ids" in inspect.signature(model.forward).parameters,
        forgiving=False,
    )
    pools_last_token = list(heads) == [LOGITS] and isinstance(
        getattr(model, "score", None), torch.nn.Module
    )
    if pools_last_token:
        # So that transformers, too, pools a text's very last token.
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = None
    try:
        expected = _outputs(alone, probes)
    except UserError:
        raise
    except Exception as error:  # a model may come with code of its own
        raise UserError(
            f"{name}: it fails on a plain text in the form of `text`: {reason_of(error)}"
        ) from error
    if not all(rows.isfinite().all() for rows in expected.values()):
        raise UserError(
            f"{name}: its outputs of plain texts are NaN or infinite; are its files whole, and is "
            "`dtype` right for it?"
        )
    way = _first_right(_faster(alone, pools_last_token, attention), probes, expected, alone)
    if isinstance(way, ByModel) and not type(model).__module__.startswith("transformers."):
        way = replace(way, forgiving=True)
    return way, expected


def _first_right(
    ways: Iterator[Way], probes: Sequence[RewardText], expected: Outputs, alone: ByModel
) -> Way:
    """The first of the ways that gives the expected outputs, else `alone`."""
    tolerance = TOLERANCE[alone.model.dtype]
    for way in ways:
        try:
            found = _outputs(way, probes)
        except Exception as error:  # such as of attention that cannot be packed
            log.info("%s: not run %s: %s", alone.source, way.name, reason_of(error))
            continue
        if all(
            torch.allclose(found[head], rows, rtol=tolerance, atol=tolerance)
            for head, rows in expected.items()
        ):
            return way
        log.info("%s: not run %s, which changes its outputs", alone.source, way.name)
    return alone


def _faster(alone: ByModel, pools_last_token: bool, attention: Attention) -> Iterator[Way]:
    """Ways to try, the fastest first; the model's attention is set for the one just given."""
    model = alone.model
    if pools_last_token:
        head = copy.deepcopy(model.score).float()
        if can_pack(model):
            usual = model.config._attn_implementation
            kernel = choose_attention(attention, model.device, model.dtype, model.config)
            model.set_attn_implementation(kernel)
            yield Packed(f"packed ({kernel.removeprefix('vcsoup_')})", model, head)
            model.set_attn_implementation(usual)
    if attention != "auto":
        raise UserError(
            f"{alone.source}: attention `{attention}` is for packed texts, which this model is not "
            "right for; leave out `attention`"
        )
    if pools_last_token:
        yield PaddedLastToken("padded", model, head, alone.padding)
    else:
        yield replace(alone, name="padded", side="right")
        yield replace(alone, name="padded on the left", side="left")


def _outputs(way: Way, texts: Sequence[RewardText]) -> Outputs:
    """Outputs of all texts in their order, together where the way can."""
    rows: dict[int, Outputs] = {}
    for batch, found in way.run(texts, UNLIMITED):
        assert not isinstance(found, str)  # no way is forgiving yet
        for row, i in enumerate(batch):
            rows[i] = {head: every[row] for head, every in found.items()}
    ordered = [rows[i] for i in range(len(texts))]
    return {head: torch.stack([row[head] for row in ordered]) for head in ordered[0]}
