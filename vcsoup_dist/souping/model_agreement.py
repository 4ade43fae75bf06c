"""Whether a checkpoint holds the tensors of the model whose config it is exported with.

What does not fit is refused: a loader would initialise it at random, or not load at all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vcsoup_dist.checkpoints.auxiliary_files import CONFIG_NAME
from vcsoup_dist.checkpoints.folders import describe
from vcsoup_dist.checkpoints.layout import Source, TensorSpec
from vcsoup_dist.checkpoints.reader import are_equal
from vcsoup_dist.checkpoints.sources import open_source
from vcsoup_dist.checkpoints.tensor_names import is_recomputed, with_names
from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.json_file import read_json
from vcsoup_dist.souping.tied_heads import is_head, says_tied

RIGHT_MODEL = "give as --model the model that was trained, with its config and tokenizer"


@dataclass(frozen=True)
class Expected:
    """The tensors that a model has."""

    layout: Mapping[str, TensorSpec]
    aliases: Mapping[str, str]
    weights: bool
    """Whether `layout` says where they lie; else it is of names and shapes alone."""
    tied: frozenset[str] = frozenset()
    """Names in `layout` of heads that the config ties to the embedding: they may be absent."""


def with_names_of(source: Source, model: Path, *, frozen_from_model: bool = False) -> Source:
    """A checkpoint as the model in the folder `model` has it: its names, and all of them.

    frozen_from_model: take tensors that the checkpoint lacks from `model`, bit for bit. Where
    `model` has no weights but a config alone, transformers says what it has. UserError where names
    or shapes differ.
    """
    expected = _expected(model)
    if expected is None:
        if frozen_from_model:
            raise UserError(f"{model}: has no weights, so --frozen-from-model takes none from it")
        note = f"not compared with {model}, which has no weights and is not of transformers itself"
        return replace(source, notes=(*source.notes, note))
    named = _under_names_of(expected, source)
    found, missing, extra = _matched(named, expected)
    if extra and expected.weights and not frozen_from_model:
        live = _live(model)
        if live is not None and not any(_matched(source, live)[1:]):
            named, expected = source, live
            found, missing, extra = _matched(named, expected)
    _require_shapes(found, expected, source.path)
    if extra:
        raise UserError(
            f"{source.path}: holds {_some(extra)} that {model} does not have{_head(extra)};"
            f" {RIGHT_MODEL}"
        )
    if missing and not frozen_from_model:
        raise UserError(_lacks(source, missing, expected, model))
    if missing and not expected.weights:
        raise UserError(f"{model}: has no weights, so --frozen-from-model takes none from it")
    if missing and source.lacks_frozen is False and source.kind == "zero3":
        raise UserError(_lacks(source, missing, expected, model))
    notes = list(named.notes)
    if frozen_from_model:
        taken = f"{len(missing)} of its tensors are" if missing else "it lacks none, nothing is"
        notes.append(f"{taken} taken from {model}")
    layout = found | {name: expected.layout[name] for name in missing}
    return replace(named, layout=layout, aliases={}, notes=tuple(notes))


def _expected(model: Path) -> Expected | None:
    folder = describe(model)
    if not folder.holds:
        if folder.known or not (model / CONFIG_NAME).is_file():
            raise UserError(f"--model {folder.line}")
        return _live(model)
    base = open_source(model)
    tied = frozenset(name for name in base.layout if is_head(name) and says_tied(base))
    return Expected(base.layout, base.aliases, True, tied)


def _live(model: Path) -> Expected | None:
    """What transformers builds from a config; None where it cannot. Imports torch."""
    architecture = (read_json(model / CONFIG_NAME).get("architectures") or [None])[0]
    if read_json(model / CONFIG_NAME).get("auto_map") or not isinstance(architecture, str):
        return None
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(model, local_files_only=True)
        with torch.device("meta"):
            built = getattr(transformers, architecture)(config)
        built.tie_weights()
    except Exception as error:  # whatever a config makes foreign code raise
        raise UserError(
            f"--model {model}: transformers cannot build it ({reason_of(error)})"
        ) from None
    layout: dict[str, TensorSpec] = {}
    aliases: dict[str, str] = {}
    owners: dict[int, str] = {}
    for name, tensor in built.state_dict(keep_vars=True).items():
        owner = owners.setdefault(id(tensor), name)
        if owner == name:
            layout[name] = TensorSpec(name, "F32", tuple(tensor.shape), ())
        else:
            aliases[name] = owner
    return Expected(layout, aliases, False)


def _under_names_of(expected: Expected, source: Source) -> Source:
    """The checkpoint with what stands before all names taken off or added, where that fits."""
    wanted = expected.layout.keys() | expected.aliases.keys()
    names = [*source.layout, *source.aliases]
    best, renamed = sum(name in wanted for name in names), {name: name for name in names}
    note = ""
    for prefix in _prefixes(names):
        shorter = {name: name.removeprefix(prefix) for name in names}
        fits = sum(name in wanted for name in shorter.values())
        if fits > best and len(set(shorter.values())) == len(names):
            best, renamed = fits, shorter
            note = f"its tensors' names begin with {prefix!r}, which is left out as in the model"
    for prefix in _prefixes(wanted):
        longer = {name: prefix + name if prefix + name in wanted else name for name in names}
        fits = sum(name in wanted for name in longer.values())
        if fits > best and len(set(longer.values())) == len(names):
            best, renamed = fits, longer
            note = f"{prefix!r} is put before its tensors' names, as in the model"
    if not note:
        return source
    return replace(with_names(source, renamed), notes=(*source.notes, note))


def _prefixes(names: Iterable[str]) -> list[str]:
    """Beginnings that more than half of the names share, of one to three parts."""
    names = list(names)
    counted = Counter[str]()
    for name in names:
        parts = name.split(".")
        counted.update(".".join(parts[:n]) + "." for n in range(1, min(4, len(parts))))
    return [prefix for prefix, count in counted.items() if 2 * count > len(names)]


def _matched(
    source: Source, expected: Expected
) -> tuple[dict[str, TensorSpec], list[str], list[str]]:
    """The checkpoint's tensors under the model's names, those it lacks, and those it has beyond."""
    names: dict[str, list[str]] = {name: [name] for name in source.layout}
    for alias, owner in source.aliases.items():
        names[owner].append(alias)
    found: dict[str, TensorSpec] = {}
    extra: list[str] = []
    for owner, all_names in names.items():
        spec = source.layout[owner]
        known = [name for name in all_names if name in expected.layout]
        tied = [expected.aliases[name] for name in all_names if name in expected.aliases]
        if not known and any(
            each in source.layout and not are_equal(source.layout, owner, each) for each in tied
        ):
            tied = []  # the model would tie what was trained apart
        for name in dict.fromkeys(known or tied):
            found.setdefault(name, spec._replace(name=name))
        if not known and not tied:
            if is_recomputed(spec):
                found[owner] = spec
            else:
                extra.append(owner)
    missing = [
        name
        for name, spec in expected.layout.items()
        if name not in found and name not in expected.tied and not is_recomputed(spec)
    ]
    return found, missing, extra


def _require_shapes(found: Mapping[str, TensorSpec], expected: Expected, path: Path) -> None:
    for name, spec in found.items():
        twin = expected.layout.get(name)
        if twin is not None and twin.shape != spec.shape:
            raise UserError(
                f"{path}: {name!r} has shape {list(spec.shape)}, in --model {list(twin.shape)};"
                f" {RIGHT_MODEL}"
            )


def _lacks(source: Source, missing: list[str], expected: Expected, model: Path) -> str:
    lacks = f"{source.path}: lacks {_some(missing)} of the {len(expected.layout)} of {model}"
    take = "--frozen-from-model takes them from there"
    if not expected.weights:
        take = "give as --model the base with its weights, and --frozen-from-model"
    if source.lacks_frozen:
        return (
            f"{lacks}: it was saved without its frozen parameters (exclude_frozen_parameters);"
            f" {take}"
        )
    if source.lacks_frozen is False:
        return f"{lacks}, and it was saved with its frozen parameters; {RIGHT_MODEL}"
    return f"{lacks}; if those were frozen and not saved {take}, or else {RIGHT_MODEL}"


def _head(extra: list[str]) -> str:
    return ", as its config ties it to the embedding" if is_head(extra[0]) else ""


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
    return f"{json.dumps(names[0], ensure_ascii=False)}{more}"
