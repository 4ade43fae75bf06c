"""What the names and shapes of a checkpoint's tensors say of how it was saved.

Wrappers (torch.compile, FSDP, data parallel, PEFT, TRL) put their own names before the model's, and
no loader finds such tensors: it initialises the model at random. ZeRO-3 leaves empty placeholders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from vcsoup_dist.checkpoints.layout import Source, TensorSpec
from vcsoup_dist.errors import UserError

_INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Of wrappers around any part of a model; no model has parts of these names."""
_OUTER = ("module.", "base_model.model.", "pretrained_model.", "_fsdp_wrapped_module.")
"""Of wrappers around a whole model."""
_BESIDE = ("v_head.",)
"""A value head that TRL puts beside the model that it wraps."""
_INNER_PART = re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(_INNER)})\.")
_LORA = re.compile(
    r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b|\.base_layer\.|\.modules_to_save\."
)
_RECOMPUTED = re.compile(
    r"(^|\.)(rotary_emb|rotary_pos_emb|rope)\.(inv_freq|original_inv_freq)$"
    r"|(^|\.)(masked_bias|position_ids)$"
)
_MASKS = re.compile(r"(^|\.)(attn|attention)\.bias$")  # of GPT-2 and GPT-NeoX: [1, 1, n, n]
_FLOATS = ("BF16", "F16", "F32", "F64")


def without_wrapper_names(source: Source) -> Source:
    """The checkpoint under the names that its model has without wrappers, with a note of them.

    UserError where names are those of an unmerged adapter or tensors are placeholders, or where
    two names become one.
    """
    require_whole(source)
    removed, renamed = _without_wrappers([*source.layout, *source.aliases])
    if not removed:
        return source
    if len(set(renamed.values())) < len(renamed):
        raise UserError(
            f"{source.path}: some names begin with {removed!r} and others do not, and two of them"
            " are the same without it; save the unwrapped model"
        )
    note = f"its tensors' names hold {removed!r} of a wrapper, which is left out"
    return replace(with_names(source, renamed), notes=(*source.notes, note))


def with_names(source: Source, renamed: Mapping[str, str]) -> Source:
    """The checkpoint under other names. renamed: of all its names, aliases too, each to one."""
    layout = {
        renamed[name]: spec._replace(name=renamed[name]) for name, spec in source.layout.items()
    }
    aliases = {renamed[name]: renamed[of] for name, of in source.aliases.items()}
    return replace(source, layout=layout, aliases=aliases)


def require_whole(source: Source) -> None:
    """UserError for an adapter that is not merged, and for placeholders of ZeRO-3."""
    for name in source.layout:
        if _LORA.search(name):
            raise UserError(
                f"{source.path}: holds {name!r} of a LoRA or PEFT model that was not merged; call"
                " merge_and_unload() on it, and save that model"
            )
    empty = [spec for spec in source.layout.values() if _is_placeholder(spec)]
    floats = sum(spec.dtype in _FLOATS for spec in source.layout.values())
    if any(spec.name.endswith(("weight", "bias")) for spec in empty) or 2 * len(empty) > floats:
        raise UserError(
            f"{source.path}: {empty[0].name!r} and {len(empty) - 1} more tensors have shape [0]:"
            " they are placeholders of a ZeRO-3 model; gather it before saving"
            " (stage3_gather_16bit_weights_on_model_save), or give the DeepSpeed folder"
        )


def is_recomputed(spec: TensorSpec) -> bool:
    """Whether it is a buffer of old versions, which models compute from their config today."""
    return bool(_RECOMPUTED.search(spec.name)) or (
        bool(_MASKS.search(spec.name)) and len(spec.shape) == 4
    )


def _is_placeholder(spec: TensorSpec) -> bool:
    return spec.shape == (0,) and spec.dtype in _FLOATS


def _without_wrappers(names: list[str]) -> tuple[str, Mapping[str, str]]:
    """What wrappers have added, and name -> name without it."""
    removed = ""
    renamed = {name: name for name in names}
    while True:
        now = [name for name in renamed.values() if not name.startswith(_BESIDE)]
        outer = [each for each in _OUTER if now and all(name.startswith(each) for name in now)]
        inside = [found[0] for name in now if (found := _INNER_PART.search(name))]
        if not outer and not inside:
            return removed, renamed
        removed += (outer or inside)[0]
        if outer:
            renamed = {name: each.removeprefix(outer[0]) for name, each in renamed.items()}
        else:
            renamed = {name: _INNER_PART.sub("", each) for name, each in renamed.items()}
