"""Which runner is right for a classifier, found by trying each on a few texts in its own form."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.forward.attention import choose_attention
from vcsoup_dist.forward.hidden import can_pack, longest_together
from vcsoup_dist.recipe import Attention
from vcsoup_dist.scoring.heads import LOGITS, Outputs, compute_head_in_fp32, is_from_transformers
from vcsoup_dist.scoring.rewards import Text
from vcsoup_dist.scoring.runners import (
    LastTokenRunner,
    LongTextsFirst,
    ModelRunner,
    PackedRunner,
    Runner,
)
from vcsoup_dist.scoring.texts import RewardText

# Of an output's spread over the probes: between another order of summing and another text's
# influence.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
UNLIMITED = 1 << 30  # tokens

QUESTION = "What does the big dog do when it sees a small red cat?"
STORY = "a red cat and a new tree , the old river , no dog , "
PROBES: Sequence[Text] = tuple(
    ([{"role": "user", "content": prompt}], response)
    for prompt, response in (
        (QUESTION, "It runs."),
        (QUESTION, "The old dog likes the cat, and both of them go down to the river and drink."),
        ("the new tree", "no"),
        ("yes", "a cat"),
        ("no and no", f"{STORY * 3} and the cat"),
        (f"{STORY * 2} is it small or big ?", "the cat likes the big river"),
        ("the dog runs or the cat runs or the dog sees the new cat", "yes yes yes yes"),
    )
)
"""Texts of different lengths and endings, the first two of which begin alike."""


@dataclass(frozen=True)
class Choice:
    """How a model is run."""

    runner: Runner
    outputs: Outputs
    """Those of the probes."""
    refused: Sequence[str]
    """Which faster runners are not right for the model, and why."""


@torch.inference_mode()
def choose_runner(
    model: Any,
    heads: Sequence[str],
    probes: Sequence[RewardText],
    *,
    name: str,
    padding: int,
    attention: Attention,
) -> Choice:
    """The fastest runner that gives the probes the outputs they get alone.

    name: what errors call the model; padding: a token id. Raises UserError where the model fails on
    the probes, or `attention` asks for what it cannot have.
    """
    dtype = model.dtype
    compute_head_in_fp32(model)
    alone = ModelRunner(
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
    expected = _expected(alone, probes)
    limit = longest_together(model.config)
    refused: list[str] = []
    runner: Runner = alone
    outputs = expected
    for faster in _faster(alone, pools_last_token, attention, refused):
        try:
            found = _outputs(faster if limit is None else LongTextsFirst(faster, limit), probes)
        except Exception as error:  # such as of attention that cannot be packed
            refused.append(f"not {faster.name}: {reason_of(error)}")
            continue
        if all(_alike(found[head], rows, dtype) for head, rows in expected.items()):
            runner, outputs = faster, found
            break
        refused.append(f"not {faster.name}, which changes its outputs")
    if isinstance(runner, ModelRunner) and not is_from_transformers(model):
        runner = replace(runner, forgiving=True)
    if limit is not None and runner.name != alone.name:
        runner = LongTextsFirst(runner, limit)
    return Choice(runner, outputs, refused)


def _expected(alone: ModelRunner, probes: Sequence[RewardText]) -> Outputs:
    """The outputs of the probes one at a time; UserError where the model fails on them."""
    try:
        expected = _outputs(alone, probes)
    except UserError:
        raise
    except Exception as error:  # a model may come with code of its own
        raise UserError(
            f"{alone.source}: it fails on a plain text in the form of `text`: {reason_of(error)}"
        ) from error
    if not all(rows.isfinite().all() for rows in expected.values()):
        raise UserError(
            f"{alone.source}: its outputs of plain texts are NaN or infinite; are its files whole, "
            "and is `dtype` right for it?"
        )
    return expected


def _alike(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether outputs [probes, outputs] differ by roundings alone, whatever their scale."""
    spread = expected.amax(dim=0) - expected.amin(dim=0)
    rounding = torch.finfo(dtype).eps * expected.abs().amax(dim=0)
    return bool(((found - expected).abs() <= TOLERANCE[dtype] * spread + rounding).all())


def _faster(
    alone: ModelRunner, pools_last_token: bool, attention: Attention, refused: list[str]
) -> Iterator[Runner]:
    """Runners to try, the fastest first; the model's attention is set for the one just given.

    refused: why those before were not right.
    """
    model = alone.model
    if pools_last_token:
        head = copy.deepcopy(model.score).float()
        if can_pack(model):
            usual = model.config._attn_implementation
            kernel = choose_attention(attention, model.device, model.base_model.dtype, model.config)
            model.set_attn_implementation(kernel)
            yield PackedRunner(f"packed ({kernel.removeprefix('vcsoup_')})", model, head)
            model.set_attn_implementation(usual)
        else:
            refused.append("not packed: it has no attention kernel that can be replaced")
    if attention != "auto":
        raise UserError(
            f"{alone.source}: attention `{attention}` is for packed texts, which this model is not "
            f"right for{''.join(f' ({reason})' for reason in refused)}; leave out `attention`"
        )
    if pools_last_token:
        yield LastTokenRunner("padded", model, head, alone.padding)
    else:
        yield replace(alone, name="padded", side="right")
        yield replace(alone, name="padded on the left", side="left")


def _outputs(runner: Runner, texts: Sequence[RewardText]) -> Outputs:
    """Outputs of all texts in their order, together where the runner can."""
    rows: dict[int, Outputs] = {}
    for batch, found in runner.run(texts, UNLIMITED):
        assert not isinstance(found, str)  # none is forgiving yet
        for row, i in enumerate(batch):
            rows[i] = {head: every[row] for head, every in found.items()}
    ordered = [rows[i] for i in range(len(texts))]
    return {head: torch.stack([row[head] for row in ordered]) for head in ordered[0]}
