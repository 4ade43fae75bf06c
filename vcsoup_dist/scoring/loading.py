"""Loading of a sequence classifier: with consent to its code, and never with a fresh head."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import ClassifierReward

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AUTO_CLASS = "AutoModelForSequenceClassification"
VALUE_HEADS = ("value_head.safetensors", "value_head.bin")
NO_LIMIT = 1_000_000  # tokenizers without a limit say 1e30


def load_classifier(reward: ClassifierReward, source: Located) -> tuple[Any, Any]:
    """Tokenizer and model, on the CPU. Raises UserError naming the model."""
    name, trusted = source.source, reward.trust_remote_code
    with _loading_errors(name):
        settings = _settings(source)
    if AUTO_CLASS in (settings.get("auto_map") or {}) and not trusted:
        raise UserError(
            f"{name}: it comes with Python code of its own for classification; read it, and "
            "consent with `trust_remote_code: true`"
        )
    with _loading_errors(name), _alone_with_code(trusted):
        tokenizer, model, found = _load(name, source.revision, reward.dtype, trusted)
    if missing := sorted(found["missing_keys"]):
        raise UserError(_fresh_head(source, missing, sorted(found["unexpected_keys"])))
    return tokenizer, model


def _settings(source: Located) -> dict[str, Any]:
    from transformers import PretrainedConfig

    settings, _ = PretrainedConfig.get_config_dict(source.source, revision=source.revision)
    return dict(settings)


def _load(name: str, revision: str | None, dtype: str, trusted: bool) -> tuple[Any, Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    where = {"revision": revision, "trust_remote_code": trusted}
    tokenizer = AutoTokenizer.from_pretrained(name, **where)
    model, found = AutoModelForSequenceClassification.from_pretrained(
        name, dtype=DTYPES[dtype], output_loading_info=True, **where
    )
    return tokenizer, model, found


@contextmanager
def _loading_errors(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers', safetensors', and those of a model's own code
        raise UserError(
            f"{name}: cannot load it as a sequence classifier: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:500]}"
        ) from error


@contextmanager
def _alone_with_code(trusted: bool) -> Iterator[None]:
    """Keep the actors of a machine apart: transformers copies a model's code into one cache."""
    if not trusted:
        yield
        return
    from transformers import dynamic_module_utils

    cache = Path(dynamic_module_utils.HF_MODULES_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".vcsoup.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fresh_head(source: Located, missing: Sequence[str], others: Sequence[str]) -> str:
    """Why a model whose files lack weights is refused, and what to do with those it has instead."""
    lacks = f"{source.source}: its files lack {_some(missing)}, so its rewards would be random"
    if file := _value_head(source):
        return (
            f"{lacks}; the head in {file} (of TRL or LLaMA-Factory) is not loaded by transformers: "
            "save the model as a sequence classifier whose `score.weight` is that file's "
            "`v_head.summary.weight`"
        )
    heads = [key for key in others if "score" in key or ("head" in key and "lm_head" not in key)]
    if heads:
        return (
            f"{lacks}; they have {_some(heads)} instead, a head of another library (safe-rlhf's is "
            "`score_head`): save the model as a sequence classifier under the first names, or "
            "score with a `callable`"
        )
    return f"{lacks}; name a model that was trained as a sequence classifier"


def _some(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:3])}{' and more' if len(keys) > 3 else ''}"


def _value_head(source: Located) -> str | None:
    """Name of the file beside the model that holds its head."""
    from transformers.utils import cached_file

    for file in VALUE_HEADS:
        found = cached_file(
            source.source,
            file,
            revision=source.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None:
            return file
    return None


def longest_text(wanted: int | None, config: Any, tokenizer: Any, name: str) -> int | None:
    """Tokens that a text may have: the recipe's `max_length`, or else the model's own limit."""
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    own = min((limit for limit in limits if limit and limit < NO_LIMIT), default=None)
    if wanted is not None and own is not None and wanted > own:
        raise UserError(f"{name}: max_length {wanted} is more than the model's {own} tokens")
    return wanted or own
