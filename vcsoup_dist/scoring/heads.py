"""What a classifier returns as rewards: outputs of its heads by index or name, signs, softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import ClassifierReward

LOGITS = "logits"

LAST_LAYERS = ("score", "classifier", "classification_head", "logits_proj")
"""What transformers calls the last layers of its classifiers."""

Outputs = Mapping[str, torch.Tensor]
"""Head -> its outputs [texts, outputs]."""


@dataclass(frozen=True)
class Column:
    """The reward of one value: an output of a head."""

    head: str
    index: int
    softmax: bool
    sign: int


def is_from_transformers(model: Any) -> bool:
    """Whether a model's class is one of transformers, and no code that comes with the model."""
    return type(model).__module__.startswith("transformers.")


def compute_head_in_fp32(model: Any) -> None:
    """Let the last layer of a transformers classifier compute in fp32.

    bf16 logits would tie answers that differ by less than 1 in 256. Code that comes with a model
    stays as it is, since it may not take the other dtype.
    """
    if not is_from_transformers(model):
        return
    for name in LAST_LAYERS:
        if isinstance(layer := getattr(model, name, None), torch.nn.Module):
            layer.float().register_forward_pre_hook(
                lambda module, inputs: tuple(each.float() for each in inputs)
            )


def are_rounded(outputs: Outputs) -> bool:
    """Whether outputs were rounded to bf16, so that close ones tie."""
    return all(bool((rows == rows.bfloat16()).all()) for rows in outputs.values())


def read_heads(returned: Any, heads: Sequence[str], texts: int, name: str) -> Outputs:
    """The named fields of what a model returned for `texts` texts, as fp32 [texts, outputs].

    A field [texts] is one output. Raises UserError naming the model and the field.
    """
    outputs = {}
    for head in heads:
        named = isinstance(returned, Mapping)
        field = returned.get(head) if named else getattr(returned, head, None)
        if not isinstance(field, torch.Tensor):
            fields = _fields(returned)
            advice = "fix `head`" if fields.startswith("`") else "score it with a `callable`"
            raise UserError(f"{name}: it returns no `{head}`, but {fields}; {advice}")
        rows = field[:, None] if field.ndim == 1 else field
        if rows.ndim != 2 or len(rows) != texts:
            raise UserError(
                f"{name}: its `{head}` for {texts} texts have the shape {list(field.shape)}, "
                "not [texts, outputs]; score it with a `callable`"
            )
        outputs[head] = rows.float()
    return outputs


def _fields(returned: Any) -> str:
    named = returned if isinstance(returned, Mapping) else getattr(returned, "__dict__", {})
    return ", ".join(f"`{key}`" for key in named) or f"a {type(returned).__name__}"


def choose_columns(
    rewards: Sequence[ClassifierReward],
    outputs: Outputs,
    labels: Mapping[int, str],
    name: str,
    values: Sequence[str] = (),
) -> list[Column]:
    """Where the reward of each value stands; `labels`: the model's id2label.

    Raises UserError where a head has no such output, by the name in `values` if there are any.
    """
    columns = []
    for i, reward in enumerate(rewards):
        owner = f"{name}, values.{values[i]}" if values else name
        count = outputs[reward.head].shape[1]
        # Labels are of the logits; a head of another size has no names.
        named = labels if len(labels) == count else {}
        index = _index(reward.output, count, named)
        if index is None:
            known = f"names {dict(sorted(named.items()))}" if named else "no names"
            raise UserError(
                f"{owner}: no output {reward.output!r}; its `{reward.head}` has the outputs 0 to "
                f"{count - 1} and {known}"
            )
        if reward.softmax and count == 1:
            raise UserError(f"{owner}: `softmax` of its only output is always 1; leave it out")
        columns.append(Column(reward.head, index, reward.softmax, reward.sign))
    return columns


def chosen_by_default(
    rewards: Sequence[ClassifierReward], outputs: Outputs, labels: Mapping[int, str]
) -> list[str]:
    """What to know where a head has several outputs and a recipe does not say which it means."""
    found = []
    for reward in rewards:
        count = outputs[reward.head].shape[1]
        if count > 1 and "output" not in reward.model_fields_set:
            names = f" ({', '.join(map(str, labels.values()))})" if len(labels) == count else ""
            found.append(
                f"its `{reward.head}` has {count} outputs{names} and `output` is not given: the "
                "first, 0, is taken"
            )
    return found


def _index(output: int | str, count: int, labels: Mapping[int, str]) -> int | None:
    if isinstance(output, int):
        return output if 0 <= output < count else None
    return next((int(i) for i, label in labels.items() if label == output), None)


def take_columns(outputs: Outputs, columns: Sequence[Column]) -> torch.Tensor:
    """Rewards [texts, V] in float64, on the device of the outputs."""
    taken = []
    for column in columns:
        rows = outputs[column.head].double()
        rows = rows.softmax(dim=1) if column.softmax else rows
        taken.append(column.sign * rows[:, column.index])
    return torch.stack(taken, dim=1)
