"""What was understood of the rewards of a recipe, each on one worked example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.recipe import CallableReward, ClassifierReward, ColumnsReward
from vcsoup_dist.scoring.classifier import Classifier
from vcsoup_dist.scoring.function import FunctionReward
from vcsoup_dist.scoring.heads import LOGITS
from vcsoup_dist.scoring.reward_findings import (
    Finding,
    example_findings,
    padding_findings,
    start_findings,
    template_findings,
)
from vcsoup_dist.scoring.texts import encode_text

SHOWN = 600  # characters of the example's text
OTHER_PROMPT = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass(frozen=True)
class Checked:
    """One reward model, or one function or pair of columns, as it was understood."""

    name: str
    facts: Mapping[str, str]
    """What was understood, by its name, in the order in which to show it."""
    findings: Sequence[Finding]


def check_classifier(
    rewards: Mapping[str, ClassifierReward], source: Located, example: Pair
) -> Checked:
    """Load a model that serves these values, and look at how it reads and scores a pair.

    It runs on a GPU where there is one.

    Raises UserError where it cannot be loaded, such as for a fresh head.
    """
    # What they say is said better below.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values, settings = list(rewards), next(iter(rewards.values()))
    classifier = Classifier(list(rewards.values()), source, device=device, tokens_per_batch=None)
    tokenizer, config = classifier.tokenizer, classifier.model.config
    texts = [(example.prompt, example.chosen), (example.prompt, example.rejected)]
    encoded = classifier.encode([*texts, (OTHER_PROMPT, example.chosen)])
    scored = classifier.score(encoded)
    first = encoded[0]
    ids: Sequence[int] = [] if isinstance(first, str) else first.ids
    facts = {
        "model": f"{type(classifier.model).__name__}, {settings.dtype} on {device}",
        **_outputs(rewards, config),
        "text": repr(settings.text) if "{" in settings.text else settings.text,
        "pad token": _token(tokenizer, tokenizer.pad_token_id),
        "start token": _start(tokenizer, ids),
        "end token": _token(tokenizer, tokenizer.eos_token_id),
        "length limit": _limit(settings, classifier.max_length),
        "run": classifier.way.name,
        "example": f"{len(ids)} tokens: {_shown(tokenizer, ids)}",
        "its rewards": _rewards(values, scored.rewards),
    }
    with_prompt = settings.text != "response"
    encode = partial(encode_text, tokenizer, settings.text, max_length=None)
    findings = [Finding(True, f"no reward: {reason}") for reason in scored.failures.values()]
    findings += padding_findings(tokenizer)
    findings += start_findings(ids, tokenizer)
    findings += template_findings(tokenizer, encode, with_prompt)
    if not scored.failures:
        chosen, swapped = scored.rewards[0].tolist(), scored.rewards[2].tolist()
        findings += example_findings(chosen, swapped, values, with_prompt)
    return Checked(source.source, facts, findings)


def check_function(
    rewards: Mapping[str, CallableReward], source: Located, example: Pair
) -> Checked:
    """Call a function on a pair; raises UserError where it cannot be imported."""
    settings = list(rewards.values())
    function = FunctionReward(settings, source)
    texts = [(example.prompt, example.chosen), (example.prompt, example.rejected)]
    scored = function.score(function.encode(texts))
    findings = [Finding(True, f"no reward: {reason}") for reason in scored.failures.values()]
    facts = {"function": source.source, "its rewards": _rewards(list(rewards), scored.rewards)}
    return Checked(settings[0].callable, facts, findings)


def check_columns(value: str, reward: ColumnsReward, example: Pair) -> Checked:
    """The columns' values of a pair."""
    scores = reward.sign * np.array([[example.columns[name]] for name in reward.columns])
    return Checked(
        f"columns {' and '.join(reward.columns)}",
        {"its rewards": _rewards([value], scores)},
        [],
    )


def _outputs(rewards: Mapping[str, ClassifierReward], config: Any) -> dict[str, str]:
    labels = getattr(config, "id2label", None) or {}
    facts = {}
    for value, reward in rewards.items():
        label = labels.get(reward.output) if isinstance(reward.output, int) else None
        parts = [f"output {reward.output} of `{reward.head}`"]
        if reward.head == LOGITS:
            parts = [f"output {reward.output}{f' ({label})' if label else ''} of {len(labels)}"]
        if reward.softmax:
            parts.append("its probability")
        if reward.sign == -1:
            parts.append("lower is better")
        facts[f"head of {value}"] = ", ".join(parts)
    return facts


def _token(tokenizer: Any, token: int | None) -> str:
    return "none" if token is None else f"{tokenizer.convert_ids_to_tokens(token)!r} ({token})"


def _start(tokenizer: Any, ids: Sequence[int]) -> str:
    start = tokenizer.bos_token_id
    if start is None:
        return "none"
    used = "stands first" if list(ids[:1]) == [start] else "does not stand first"
    return f"{_token(tokenizer, start)}, {used}"


def _limit(reward: ClassifierReward, limit: int | None) -> str:
    if limit is None:
        return "none; give `max_length` where memory is short"
    return f"{limit} tokens; what is longer loses the {reward.truncate} of its prompt"


def _shown(tokenizer: Any, ids: Sequence[int]) -> str:
    text = str(tokenizer.decode(list(ids)))
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]} [...] {text[-SHOWN // 2 :]}"
    return repr(text)


def _rewards(values: Sequence[str], rewards: np.ndarray) -> str:
    return "; ".join(
        f"{value}: chosen {chosen:.4g}, rejected {rejected:.4g}"
        for value, chosen, rejected in zip(values, rewards[0], rewards[1], strict=True)
    )
