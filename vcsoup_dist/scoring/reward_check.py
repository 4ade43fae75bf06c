"""What was understood of the rewards of a recipe, each on the first pairs of its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from vcsoup_dist.identity import Located
from vcsoup_dist.preferences.pair import Pair
from vcsoup_dist.recipe import CallableReward, ClassifierReward, ColumnsReward
from vcsoup_dist.records.scores import ROUNDING
from vcsoup_dist.scoring.classifier import Classifier
from vcsoup_dist.scoring.function import FunctionReward
from vcsoup_dist.scoring.heads import LOGITS, are_rounded
from vcsoup_dist.scoring.loading import DTYPES, Limit
from vcsoup_dist.scoring.probing import TOLERANCE
from vcsoup_dist.scoring.reward_findings import (
    Finding,
    length_findings,
    padding_findings,
    prompt_findings,
    rounding_findings,
    start_findings,
    template_findings,
)
from vcsoup_dist.scoring.reward_sample import sample_findings, take_sample
from vcsoup_dist.scoring.rewards import Scored
from vcsoup_dist.scoring.texts import RewardText, encode_text

SHOWN = 600  # characters of the example's text
REPEATED = 8  # pairs that a model scores again, and after another prompt
OTHER_PROMPT = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass(frozen=True)
class Checked:
    """One reward model, or one function or pair of columns, as it was understood."""

    name: str
    facts: Mapping[str, str]
    """What was understood, by its name, in the order in which to show it."""
    samples: Mapping[str, Mapping[str, str]]
    """Value -> figures over the first pairs, by their names."""
    findings: Sequence[Finding]


def check_classifier(
    rewards: Mapping[str, ClassifierReward],
    source: Located,
    pairs: Mapping[str, Sequence[Pair]],
    most_unscored: float,
) -> Checked:
    """Load a model that serves these values, and look at how it reads and scores their pairs.

    It runs on a GPU where there is one. Raises UserError where it cannot be loaded, such as for a
    fresh head.
    """
    # What they say is said better below.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values, settings = list(rewards), next(iter(rewards.values()))
    classifier = Classifier(
        list(rewards.values()), source, device=device, tokens_per_batch=None, values=values
    )
    tokenizer, config = classifier.tokenizer, classifier.model.config
    dtype = DTYPES[settings.dtype]
    samples, findings, scored, encoded = _samples(
        rewards, pairs, classifier, most_unscored, TOLERANCE[dtype]
    )
    first = encoded[0]
    ids: Sequence[int] = [] if isinstance(first, str) else first.ids
    facts = {
        "model": f"{type(classifier.model).__name__}, {settings.dtype} on {device}",
        **_outputs(rewards, config),
        "text": repr(settings.text) if "{" in settings.text else settings.text,
        "pad token": _token(tokenizer, tokenizer.pad_token_id),
        "start token": _start(tokenizer, ids),
        "end token": _token(tokenizer, tokenizer.eos_token_id),
        "length limit": _limit(settings, classifier.limit),
        "run": "; ".join([classifier.choice.runner.name, *classifier.choice.refused]),
        "example": f"{len(ids)} tokens: {_shown(tokenizer, ids)}",
        "its rewards": _rewards(values, scored.rewards),
    }
    with_prompt = settings.text != "response"
    encode = partial(encode_text, tokenizer, settings.text, max_length=None)
    findings += length_findings(encoded, classifier.limit.tokens)
    findings += [Finding(False, each) for each in classifier.unsaid]
    findings += rounding_findings(
        settings.dtype == "bf16" and are_rounded(classifier.choice.outputs)
    )
    findings += padding_findings(tokenizer)
    findings += start_findings(ids, tokenizer)
    findings += template_findings(tokenizer, encode, with_prompt)
    if with_prompt:
        rounding = ROUNDING[settings.dtype]
        findings += _deafness(classifier, pairs[values[0]], encoded, scored, values, rounding)
    return Checked(source.source, facts, samples, findings)


def _deafness(
    classifier: Classifier,
    pairs: Sequence[Pair],
    encoded: Sequence[RewardText | str],
    scored: Scored,
    values: Sequence[str],
    rounding: float,
) -> list[Finding]:
    """Whether rewards are the same after another prompt; `encoded`, `scored`: of the pairs."""
    chosen = range(0, 2 * min(len(pairs), REPEATED), 2)
    uncut = [
        i
        for i in chosen
        # Of one that was cut no prompt may be left.
        if isinstance(text := encoded[i], RewardText) and not text.truncated and not text.dropped
    ]
    if not uncut or any(i in scored.failures for i in uncut):
        return []
    other = classifier.score(
        classifier.encode([(OTHER_PROMPT, pairs[i // 2].chosen) for i in uncut])
    )
    if other.failures:
        return []
    return prompt_findings(scored.rewards[uncut], other.rewards, values, rounding)


def check_function(
    rewards: Mapping[str, CallableReward],
    source: Located,
    pairs: Mapping[str, Sequence[Pair]],
    most_unscored: float,
) -> Checked:
    """Call a function on pairs, twice; raises UserError where it cannot be imported."""
    settings, values = list(rewards.values()), list(rewards)
    function = FunctionReward(settings, source)
    samples, findings, scored, _ = _samples(rewards, pairs, function, most_unscored)
    facts = {"function": source.source, "its rewards": _rewards(values, scored.rewards)}
    return Checked(settings[0].callable, facts, samples, findings)


def check_columns(
    rewards: Mapping[str, ColumnsReward],
    pairs: Mapping[str, Sequence[Pair]],
    most_unscored: float,
) -> Checked:
    """The columns' values of pairs; the rewards name the same ones."""
    columns = next(iter(rewards.values())).columns
    samples, findings = {}, []
    shown = np.zeros((2, len(rewards)))
    for v, (value, reward) in enumerate(rewards.items()):
        numbers = [[pair.columns[name] for name in columns] for pair in pairs[value]]
        scores = Scored(reward.sign * np.array(numbers, dtype=np.float64).reshape(-1, 1))
        sample = take_sample(pairs[value], scores, scores.rewards, 0)
        samples[value] = sample.rows()
        findings += sample_findings(sample, value, most_unscored, reward.sign)
        shown[:, v] = scores.rewards[:2, 0]
    facts = {"its rewards": _rewards(list(rewards), shown)}
    return Checked(f"columns {' and '.join(columns)}", facts, samples, findings)


def _samples(
    rewards: Mapping[str, ClassifierReward | CallableReward],
    pairs: Mapping[str, Sequence[Pair]],
    loaded: Any,
    most_unscored: float,
    tolerance: float = ROUNDING["fp32"],
) -> tuple[dict[str, Mapping[str, str]], list[Finding], Scored, Sequence[Any]]:
    """Figures and findings by value; and of the first value's pairs, scores and encoded texts.

    A function is asked everything twice, a model some, in other packs; tolerance: the share by
    which those may differ.
    """
    samples: dict[str, Mapping[str, str]] = {}
    findings: list[Finding] = []
    done: dict[int, tuple[Scored, Any, NDArray[np.float64]]] = {}
    for v, (value, reward) in enumerate(rewards.items()):
        own = pairs[value]
        if id(own) not in done:
            encoded = loaded.encode(
                [(pair.prompt, text) for pair in own for text in (pair.chosen, pair.rejected)]
            )
            repeated = len(encoded) if isinstance(loaded, FunctionReward) else 2 * REPEATED
            scored = loaded.score(encoded)
            done[id(own)] = scored, encoded, loaded.score(encoded[:repeated]).rewards
        scored, _, again = done[id(own)]
        softmax = isinstance(reward, ClassifierReward) and reward.softmax
        dtype = "fp32" if softmax else getattr(reward, "dtype", "fp32")
        sample = take_sample(own, scored, again, v, tolerance, ROUNDING[dtype])
        samples[value] = sample.rows()
        findings += sample_findings(sample, value, most_unscored, reward.sign)
    first, texts, _ = done[id(pairs[next(iter(rewards))])]
    return samples, findings, first, texts


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


def _limit(reward: ClassifierReward, limit: Limit) -> str:
    if limit.tokens is None:
        return "none; give `max_length` where memory is short"
    lost = f"what is longer loses the {reward.truncate} of its prompt"
    return f"{limit.tokens} tokens ({limit.whose}); {lost}"


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
