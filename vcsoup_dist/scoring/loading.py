"""Loading of a sequence classifier: with consent to its code, and never with a fresh head."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vcsoup_dist.checkpoints.folders import require_model
from vcsoup_dist.checkpoints.sources import open_source
from vcsoup_dist.errors import UserError, is_stop, reason_of
from vcsoup_dist.forward.dry_load import Shapes, dry_load
from vcsoup_dist.forward.template import choose_template
from vcsoup_dist.identity import Located
from vcsoup_dist.locks import exclusive
from vcsoup_dist.recipe import ClassifierReward

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
AUTO_CLASS = "AutoModelForSequenceClassification"
VALUE_HEADS = ("value_head.safetensors", "value_head.bin")
IN_A_LAYER = re.compile(r"\.(layers?|h|blocks?)\.\d+\.")
BUFFER = re.compile(r"(inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias|position_ids)$")
"""Names of constants that old versions stored."""
NO_LIMIT = 1_000_000  # tokenizers without a limit say 1e30


def load_classifier(reward: ClassifierReward, source: Located) -> tuple[Any, Any]:
    """Tokenizer and model, on the CPU. Raises UserError naming the model."""
    name, trusted = source.source, reward.trust_remote_code
    if Path(name).is_dir():
        require_model(Path(name), quantised=True)
    with _loading_errors(name):
        settings = _settings(source)
    own = settings.get("auto_map") or {}
    if AUTO_CLASS in own and not trusted:
        raise UserError(
            f"{name}: it comes with Python code of its own for classification; read it, and "
            "consent with `trust_remote_code: true`"
        )
    with _loading_errors(name, own_code=bool(own)), _alone_with_code(trusted):
        tokenizer = load_tokenizer(reward, source)
        model, found = _load(name, source.revision, reward.dtype, trusted)
    missing, others = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    shapes = {key: (tuple(has), tuple(wants)) for key, has, wants in found["mismatched_keys"]}
    _refuse_unlike(source, missing, others, shapes)
    return tokenizer, model


def check_classifier_files(source: Located) -> None:
    """UserError, as of `load_classifier`, where a local folder lacks what its config promises.

    Reads headers alone. Quantised models and those with code of their own are not judged.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    name = source.source
    require_model(Path(name), quantised=True)
    settings = _settings(source)
    if settings.get("auto_map") or settings.get("quantization_config"):
        return
    with _loading_errors(name), torch.device("meta"):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    _refuse_unlike(source, *dry_load(model, open_source(Path(name), as_stored=True)))


def _refuse_unlike(
    source: Located, missing: Sequence[str], others: Sequence[str], shapes: Shapes
) -> None:
    """UserError where files lack tensors, have others of a layer, or have them in other shapes."""
    if missing:
        raise UserError(_fresh_head(source, missing, others))
    for key, (stored, wanted) in sorted(shapes.items()):
        raise UserError(
            f"{source.source}: its files hold {key} of the shape {list(stored)}, where its config "
            f"asks for {list(wanted)}; correct the config (`num_labels` decides the head's), or "
            "give the files that belong to it"
        )
    if surplus := [key for key in others if IN_A_LAYER.search(key) and not BUFFER.search(key)]:
        raise UserError(
            f"{source.source}: its files have {_some(surplus)}, for which its config has no place, "
            "so a part of the model would be left out; give the config that belongs to it"
        )


def _settings(source: Located) -> dict[str, Any]:
    from transformers import PretrainedConfig

    settings, _ = PretrainedConfig.get_config_dict(source.source, revision=source.revision)
    return dict(settings)


def load_tokenizer(reward: ClassifierReward, source: Located) -> Any:
    """A classifier's tokenizer, with the chat template that the recipe names."""
    from transformers import AutoTokenizer

    with _loading_errors(source.source):
        tokenizer = AutoTokenizer.from_pretrained(
            source.source, revision=source.revision, trust_remote_code=reward.trust_remote_code
        )
    if reward.text == "chat_template":
        choose_template(tokenizer, reward.template, "template")
    return tokenizer


def _load(name: str, revision: str | None, dtype: str, trusted: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification

    model, found = AutoModelForSequenceClassification.from_pretrained(
        name,
        dtype=DTYPES[dtype],
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that we can say which
        revision=revision,
        trust_remote_code=trusted,
    )
    return model, found


@contextmanager
def _loading_errors(name: str, own_code: bool = False) -> Iterator[None]:
    """own_code: whether the model comes with some."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # of transformers, safetensors, Rust, a model's own code
        if is_stop(error) and not isinstance(error, SystemExit):
            raise
        reason = reason_of(error)
        advice = ""
        if own_code or "Unrecognized configuration class" in reason:
            advice = "; where it has no class for that, score it with a `callable`"
        raise UserError(
            f"{name}: cannot load it as a sequence classifier: {reason}{advice}"
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
    with exclusive(cache / ".vcsoup.lock"):
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


@dataclass(frozen=True)
class Limit:
    """How many tokens a text may have."""

    tokens: int | None
    """None: any number."""
    whose: str
    """What says so."""


def length_limit(wanted: int | None, model: Any, tokenizer: Any, name: str) -> Limit:
    """The recipe's `max_length`, or else the smaller one of the model's limit and its tokenizer's.

    Raises UserError where the recipe wants more than the model can; the tokenizer's number is but
    a default.
    """
    table = _positions(model)
    if wanted is not None:
        if table is not None and wanted > table:
            raise UserError(
                f"{name}: max_length {wanted} is more than the {table} positions of the model"
            )
        return Limit(wanted, "max_length")
    usual = tokenizer.model_max_length
    if 0 < usual < NO_LIMIT and (table is None or usual < table):
        return Limit(usual, "the tokenizer's limit")
    return Limit(table, "the model's positions")


def _positions(model: Any) -> int | None:
    """Tokens for which a model has positions; None where it does not say."""
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from the pad token's id + 1.
        if (
            isinstance(module, torch.nn.Embedding)
            and name.endswith("position_embeddings")
            and module.padding_idx is not None
        ):
            return module.num_embeddings - module.padding_idx - 1
    count = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return count if count and 0 < count < NO_LIMIT else None
