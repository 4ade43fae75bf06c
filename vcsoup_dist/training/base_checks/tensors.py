"""Whether the files of a base hold the weights of the model that its config.json describes.

transformers loads the tensors that it finds and initialises the rest at random.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from vcsoup_dist.checkpoints.layout import Source, TensorSpec
from vcsoup_dist.checkpoints.pickled import DTYPES
from vcsoup_dist.checkpoints.sources import open_source
from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.dry_load import Shapes, dry_load

FLOATS = ("BF16", "F16", "F32", "F64")
CHUNK = 1 << 20  # bytes
SAMPLE = 1 << 19  # elements at each end of two tied tensors that are compared

# Tensors that some programs store with the weights, and no forward reads.
UNREAD = re.compile(
    r"(inv_freq|masked_bias|position_ids|num_batches_tracked|_extra_state|attn\.bias"
    r"|attention\.bias)$"
)
HEADS = re.compile(r"^(score|classifier|classification_head|qa_outputs|reward_head|score_head)\b")


def check_tensors(model: Any, folder: Path) -> list[str]:
    """Warnings about the weights files of a local base; UserError where they are not its model's.

    model: the transformers model of its config, on the meta device. Reads headers and a few
    numbers: of tied weights that are stored twice, and of each matrix until one is not 0.
    """
    source = open_source(folder, as_stored=True)
    missing, unexpected, shapes = dry_load(model, source)
    if shapes:
        raise UserError(f"{folder}: {_wrong_shapes(shapes)}")
    _check_dtypes(model, source, unexpected, folder)
    misplaced = [name for name in unexpected if _has_a_place(model, name)]
    if missing:
        raise UserError(f"{folder}: {_lacks(model, missing, unexpected)}")
    if misplaced:
        raise UserError(
            f"{folder}: its files hold {_some(misplaced)}, for which {type(model).__name__} has no "
            f"place{_layers(model, misplaced)}; the weights are of another model than its "
            "config.json describes"
        )
    if heads := [name for name in unexpected if HEADS.match(name)]:
        raise UserError(
            f"{folder}: its files hold {_some(heads)}, the head of a classifier or a reward model; "
            "name a causal language model"
        )
    _check_tied(model, source, folder)
    warnings = []
    if empty := [name for name, spec in source.layout.items() if _is_zero(spec)]:
        warnings.append(
            f"{folder}: {_some(sorted(empty))} hold nothing but zeros; is the download whole?"
        )
    others = [name for name in unexpected if not UNREAD.search(name)]
    if others:
        warnings.append(
            f"{folder}: {_some(others)} in its files are no part of {type(model).__name__}; "
            "policies will not have them"
        )
    return warnings


def refuse_missing(source: str, model: Any, found: Mapping[str, Any]) -> None:
    """UserError where a load left weights at random; found: its `output_loading_info`."""
    missing = sorted(found["missing_keys"])
    if missing:
        raise UserError(f"{source}: {_lacks(model, missing, sorted(found['unexpected_keys']))}")
    if found["mismatched_keys"]:
        shapes = {name: (tuple(a), tuple(b)) for name, a, b in found["mismatched_keys"]}
        raise UserError(f"{source}: {_wrong_shapes(shapes)}")


def _check_dtypes(model: Any, source: Source, unexpected: Iterable[str], folder: Path) -> None:
    left_out = set(unexpected)
    # Masks and counters, which training does not change.
    allowed = dict.fromkeys(dict(model.named_buffers()), (*FLOATS, "I64", "BOOL"))
    packed = {
        spec.dtype
        for name, spec in source.layout.items()
        if spec.dtype not in allowed.get(name, FLOATS) and name not in left_out
    }
    if packed:
        raise UserError(
            f"{folder}: holds weights in {', '.join(sorted(packed))}, so it is quantised; only "
            "weights in bf16, fp16 or fp32 can be trained"
        )


def _lacks(model: Any, missing: list[str], unexpected: list[str]) -> str:
    """What files lack, and the likely reason."""
    lacks = (
        f"its files lack {_some(missing)}, {len(missing)} of the {len(model.state_dict())} tensors "
        f"of {type(model).__name__}, which would be random"
    )
    if prefix := _shared_prefix(missing, unexpected):
        return f"{lacks}; they have all names with `{prefix}` before them, remove it"
    if layers := _layers(model, missing):
        return lacks + layers
    if heads := [name for name in unexpected if HEADS.match(name)]:
        return (
            f"{lacks}; they have {_some(heads)} instead, as of a classifier or a reward model: "
            "name a causal language model"
        )
    if missing == ["lm_head.weight"]:
        return (
            f"{lacks}; where the head is the embedding, config.json must say "
            "`tie_word_embeddings: true`"
        )
    if unexpected:
        return f"{lacks}; they have {_some(unexpected)} instead"
    return f"{lacks}; download or save it again"


def _shared_prefix(missing: list[str], unexpected: list[str]) -> str | None:
    """The prefix that the missing names have in the files."""
    wanted = set(missing)
    for name in unexpected[:1]:
        for at in [i + 1 for i, letter in enumerate(name) if letter == "."]:
            if name[at:] in wanted and all(each.startswith(name[:at]) for each in unexpected):
                return name[:at]
    return None


def _layers(model: Any, names: list[str]) -> str:
    """A remark where the names are whole layers at the end: the config's number, and the files'."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    numbers = {int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))}
    if count is None or not numbers or not all(re.search(r"\.\d+\.", name) for name in names):
        return ""
    if min(numbers) >= count:
        return f"; config.json says num_hidden_layers: {count}, the files have {max(numbers) + 1}"
    of_layer = len([name for name in model.state_dict() if f".{count - 1}." in name])
    whole = numbers == set(range(min(numbers), count)) and len(names) == of_layer * len(numbers)
    if whole:
        return f"; config.json says num_hidden_layers: {count}, the files have {min(numbers)}"
    return ""


def _has_a_place(model: Any, name: str) -> bool:
    """Whether a tensor that the model lacks is named as if in a module that it has."""
    if UNREAD.search(name):
        return False
    modules = {each for each, _ in model.named_modules() if each}
    parts = name.split(".")[:-1]
    known = next(
        (".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in modules),
        None,
    )
    return known is not None and known != model.base_model_prefix


def _wrong_shapes(shapes: Shapes) -> str:
    name, (has, wants) = sorted(shapes.items())[0]
    more = f" (and {len(shapes) - 1} more)" if len(shapes) > 1 else ""
    return (
        f"{name!r} is {list(has)} in its files and {list(wants)} by its config.json{more}; they "
        "are of different models"
    )


def _check_tied(model: Any, source: Source, folder: Path) -> None:
    """UserError where the config ties weights that differ in the files."""
    for one, other in model.all_tied_weights_keys.items():
        specs = [source.layout[name] for name in (one, other) if name in source.layout]
        if len(specs) < 2 or specs[0] is specs[1]:
            continue
        if not torch.equal(*_in_one_dtype([_ends(spec) for spec in specs])):
            raise UserError(
                f"{folder}: its config.json ties {one!r} to {other!r} (tie_word_embeddings), but "
                "its files hold other numbers for each; set `tie_word_embeddings: false`"
            )


def _ends(spec: TensorSpec) -> torch.Tensor:
    """The first and the last SAMPLE elements of a tensor, flat."""
    dtype = next(each for each, name in DTYPES.items() if name == spec.dtype)
    size, start = dtype.itemsize, spec.extents[0].start
    count = min(SAMPLE, spec.nbytes // size)
    with open(spec.file, "rb") as file:
        file.seek(start)
        first = file.read(count * size)
        file.seek(start + spec.nbytes - count * size)
        return torch.frombuffer(bytearray(first + file.read(count * size)), dtype=dtype)


def _is_zero(spec: TensorSpec) -> bool:
    """Whether a matrix is all zeros; reads up to the first other number."""
    if len(spec.shape) < 2:
        return False
    with open(spec.file, "rb") as file:
        file.seek(spec.extents[0].start)
        left, size = spec.nbytes, 4096
        while left:
            part = file.read(min(size, left))
            if not part or any(part):
                return False
            left, size = left - len(part), CHUNK
    return True


def _in_one_dtype(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """All in their narrowest dtype: one may have been rounded."""
    narrowest = min((each.dtype for each in tensors), key=lambda dtype: dtype.itemsize)
    return [each.to(narrowest) for each in tensors]


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
