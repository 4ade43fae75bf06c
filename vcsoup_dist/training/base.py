"""What a base must be before ranks start: said by `vcsoup check`, `reference` and `train` alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vcsoup_dist.checkpoints.companions import companion_files
from vcsoup_dist.checkpoints.folders import require_model
from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.forward.end_tokens import configured_ends, settle_sampling, template_end
from vcsoup_dist.forward.template import RefusedByTemplate
from vcsoup_dist.recipe import Evaluation, Training
from vcsoup_dist.training.base_limits import check_lengths, check_vocabulary
from vcsoup_dist.training.base_model import check_architecture, has_own_code, open_config
from vcsoup_dist.training.base_template import Texts, check_template
from vcsoup_dist.training.base_tensors import check_tensors


def check_base(
    source: str,
    revision: str | None,
    training: Training,
    evaluation: Evaluation | None,
    datasets: Mapping[str, Iterable[Texts]] | None = None,
) -> list[str]:
    """What to warn of; UserError where a base cannot be trained as the recipe says.

    source: a folder or hub id; evaluation: absent where this model answers no prompts; datasets:
    the pairs of each, of which the first are tried. Reads config, tokenizer and the headers of
    local weights. Imports transformers.
    """
    folder = Path(source) if Path(source).exists() else None
    if folder:
        require_model(folder)
        companion_files(folder)  # a link that leads elsewhere is refused now, not after training
    config = open_config(source, revision)
    model = check_architecture(config, training.max_length)
    warnings = []
    if has_own_code(config):
        warnings.append(
            f"{source}: the Python code that comes with it is not run; it is trained as "
            f"transformers' own {type(model).__name__}"
        )
    if folder:
        warnings += check_tensors(model, folder)
    tokenizer = open_tokenizer(source, revision)
    check_vocabulary(config, tokenizer)
    check_lengths(config, training, evaluation)
    generation_config, said = open_generation_config(source, revision, config)
    warnings += said
    _require_template(source, tokenizer)
    for name, pairs in (datasets or {}).items():
        warnings += check_template(tokenizer, name, pairs, training)
    return warnings + _end_warnings(source, tokenizer, generation_config)


def _require_template(source: str, tokenizer: Any) -> None:
    """UserError where no conversation at all can be encoded."""
    template, fix = tokenizer.chat_template, "give the model directory a chat_template.jinja"
    if template is None:
        raise UserError(f"{source}: its tokenizer has no chat template; {fix}")
    if isinstance(template, dict) and "default" not in template:
        known = ", ".join(sorted(map(str, template)))
        raise UserError(
            f"{source}: its tokenizer has several chat templates and none called `default`: "
            f"{known}; {fix} that is one of them"
        )
    if isinstance(template, str) and not template.strip():
        raise UserError(f"{source}: its tokenizer's chat template is empty; {fix}")


def open_tokenizer(source: str, revision: str | None) -> Any:
    """The tokenizer of a base; UserError naming it where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision, trust_remote_code=False
        )
    except Exception as error:  # files that are missing, or that its library refuses
        raise UserError(f"{source}: its tokenizer cannot be loaded: {reason_of(error)}") from error
    # Long texts are dropped or cut here, so this warning would be wrong.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def open_generation_config(source: str, revision: str | None, config: Any) -> tuple[Any, list[str]]:
    """The generation config of a base, or what follows from its config, and what to warn of.

    UserError where transformers would not save it with a policy.
    """
    from transformers import GenerationConfig
    from transformers.utils import cached_file

    name = "generation_config.json"
    try:
        file = cached_file(
            source, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        if file is None:
            return GenerationConfig.from_model_config(config), []
        found = GenerationConfig.from_pretrained(source, revision=revision)
        sampling = settle_sampling(found)
    except Exception as error:  # no JSON, or values that contradict each other
        raise UserError(f"{source}: its {name} is wrong: {reason_of(error)}") from error
    ends = found.eos_token_id
    if not all(type(each) is int for each in (ends if isinstance(ends, list) else [ends or 0])):
        raise UserError(f"{source}: eos_token_id in its {name} is {ends!r}, not the ids of tokens")
    said = [f"{source}: its {name} has {sampling}; policies will say do_sample: true"]
    return found, said if sampling else []


def _end_warnings(source: str, tokenizer: Any, generation_config: Any) -> list[str]:
    """Whether policies learn to end their answers, and others know when to stop."""
    try:
        end = template_end(tokenizer)
    except RefusedByTemplate:  # said where the pairs are read
        return []
    if end is None:
        return [
            f"{source}: its chat template ends an answer with no special token, so policies cannot "
            "learn when to stop"
        ]
    known = configured_ends(generation_config)
    if end in known:
        return []
    stops = ", ".join(_named(tokenizer, each) for each in known) or "nothing"
    return [
        f"{source}: its chat template ends an answer with {_named(tokenizer, end)}, its generation "
        f"config stops at {stops}; policies will stop at all of them"
    ]


def _named(tokenizer: Any, token: int) -> str:
    name = tokenizer.convert_ids_to_tokens(token) if token >= 0 else None
    return f"{token} ({name!r})" if name is not None else f"{token} (no token)"
