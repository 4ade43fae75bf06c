"""Whether a folder is a model whose weights can be read, and in which numbers they are."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from vcsoup_dist.checkpoints.folder_kinds import describe
from vcsoup_dist.checkpoints.layout import EXPORT, TensorSpec, indexed_files, read_layout
from vcsoup_dist.checkpoints.model_files import BIN_INDEX_NAME, BIN_SINGLE_NAME, Folder
from vcsoup_dist.errors import UserError

__all__ = ["Folder", "describe", "require_floats", "require_model"]

GIVE_FLOATS = "give the model in bf16, fp16 or fp32, as it was trained"

_CONFIG_NAME = "config.json"
_INTEGERS = ("U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
_PACKED = (
    ".qweight", ".qzeros", ".g_idx", ".SCB", ".absmax", ".quant_map", ".weight_packed",
    ".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".weight_format",
)  # fmt: skip
"""Ends of names that GPTQ, AWQ, bitsandbytes, compressed-tensors and FP8 models have."""


def require_model(path: Path, key: str = "", *, quantised: bool = False) -> None:
    """UserError unless `path` is a complete Hugging Face model folder with weights to read.

    Looks at config, index and headers (safetensors), or at the ends of `.bin` files; reads no
    weights and imports no torch. key: what named the folder, which begins the line; quantised:
    whether the weights may be.
    """
    try:
        folder = describe(path)
        if not folder.holds:
            raise UserError(folder.line)
        if folder.holds[0] == "deepspeed":
            raise UserError(f"{folder.line}; {EXPORT}")
        _require_config(path)
        if folder.holds[0] == "bin":
            _require_archives(path)
        layout = read_layout(path) if folder.holds[0] == "safetensors" else {}
        if not quantised:
            require_floats(folder, layout)
    except UserError as error:
        if not key:
            raise
        raise UserError(f"{key}: {error}") from None


def require_floats(folder: Folder, layout: Mapping[str, TensorSpec]) -> None:
    """UserError where a file, a config or the tensors of a folder say that it is quantised."""
    sign = folder.quantised or _quantised_tensor(layout)
    if sign:
        raise UserError(f"{folder.path}: holds quantised weights ({sign}); {GIVE_FLOATS}")


def _quantised_tensor(layout: Mapping[str, TensorSpec]) -> str | None:
    for name, spec in layout.items():
        packed = name.endswith(_PACKED) or ".quant_state." in name
        if packed or spec.dtype.startswith(("F8_", "F6_", "F4")):
            return f"{name} of {spec.dtype}"
        if name.endswith(".weight") and spec.dtype in _INTEGERS:
            return f"{name} of {spec.dtype}"
    return None


def _require_config(path: Path) -> None:
    file = path / _CONFIG_NAME
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{path}: holds weights but no {_CONFIG_NAME}; copy it from the model it was made from"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file}: its JSON cannot be read ({reason}); copy it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: its JSON is not an object; copy it again")


def _require_archives(path: Path) -> None:
    """All `.bin` files there and whole; torch itself also reads its format before archives."""
    index = path / BIN_INDEX_NAME
    for name in sorted(indexed_files(index)) if index.is_file() else [BIN_SINGLE_NAME]:
        file = path / name
        try:
            with open(file, "rb") as opened:
                first = opened.read(4)
                whole = bool(first) and (first != b"PK\3\4" or zipfile.is_zipfile(opened))
        except FileNotFoundError:
            raise UserError(
                f"{file}: this weights file is missing; copy or download it again"
            ) from None
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from None
        if not whole:
            raise UserError(f"{file}: is truncated; copy or download it again")
