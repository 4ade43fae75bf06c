"""Where every tensor of a `torch.save` file lies, without reading data or running code.

Such a file is a zip archive of one pickle and one member a storage, stored uncompressed
(https://docs.pytorch.org/docs/stable/notes/serialization.html), so a tensor is a run of bytes of
the file. A pickle can name any function to be called: only torch's restricted unpickler reads it,
and what it says of offsets and sizes is checked against the archive.
"""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vcsoup_dist.checkpoints.layout import (
    Extent,
    Source,
    TensorSpec,
    read_weights_files,
    tensor_bytes,
)
from vcsoup_dist.checkpoints.model_files import BIN_INDEX_NAME, BIN_SINGLE_NAME
from vcsoup_dist.errors import UserError

DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.uint16: "U16",
    torch.int16: "I16", torch.uint32: "U32", torch.int32: "I32", torch.uint64: "U64",
    torch.int64: "I64", torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32",
    torch.float64: "F64", torch.complex64: "C64", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
}  # fmt: skip
"""torch's dtypes -> safetensors' names; torch's few others have none."""

SAVE_AGAIN = "save the weights again with a recent torch, best as safetensors"

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # its last fields: lengths of name and extra field


@dataclass(frozen=True)
class Pickled:
    """What a `torch.save` file holds; its tensors have shapes and places but no data."""

    file: Path
    content: Any
    members: Mapping[int, int]
    """Where the data of each member of the archive begins -> its bytes."""

    def spec(self, name: str, tensor: torch.Tensor) -> TensorSpec:
        """Where `tensor`, a part of `content`, lies; UserError where that is not one run."""
        where = f"{self.file}: tensor {name!r}"
        dtype = DTYPES.get(tensor.dtype)
        if dtype is None:
            raise UserError(f"{where}: {tensor.dtype} cannot be stored as safetensors")
        if tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg():
            raise UserError(f"{where}: is sparse or a lazy view; {SAVE_AGAIN}")
        if not tensor.is_contiguous():
            raise UserError(
                f"{where}: its elements do not lie in order (strides {list(tensor.stride())});"
                " save its .contiguous() copy"
            )
        begin: int = getattr(tensor.untyped_storage(), "_checkpoint_offset", -1)
        if begin not in self.members:
            raise UserError(f"{where}: has no data in this file; {SAVE_AGAIN}")
        skipped = int(tensor.storage_offset()) * tensor.element_size()
        try:
            nbytes = tensor_bytes(dtype, tensor.shape)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        if skipped + nbytes > self.members[begin]:
            raise UserError(
                f"{where}: needs {skipped + nbytes} bytes of storage, the file has"
                f" {self.members[begin]}; copy or download it again"
            )
        return TensorSpec(
            name, dtype, tuple(tensor.shape), (Extent(self.file, begin + skipped, nbytes),)
        )


def load_without_data(
    file: Path, allowed: Sequence[tuple[Callable[..., Any], str]] = ()
) -> Pickled:
    """Unpickle a `torch.save` file but for its tensors' data.

    Of classes only tensors, containers and plain values are known, and `allowed`: (stand-in, full
    name in the pickle). UserError for any other, for old formats and for damaged files.
    """
    members = _stored_members(file)
    try:
        with FakeTensorMode(), torch.serialization.safe_globals(list(allowed)):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{file}: its pickle wants to call {named[1]}, which was not done; {SAVE_AGAIN}"
            ) from None
        raise UserError(f"{file}: cannot be unpickled ({_reason(error)}); {SAVE_AGAIN}") from None
    return Pickled(file, content, members)


def open_checkpoint(directory: Path) -> Source:
    """A Hugging Face model directory of `pytorch_model*.bin`, in file order.

    UserError where a file is missing, damaged, holds more than tensors or contradicts the index.
    """
    specs = read_weights_files(directory, BIN_SINGLE_NAME, BIN_INDEX_NAME, _read_file)
    layout, aliases = separate_aliases(specs)
    return Source(directory, "bin", layout, aliases)


def separate_aliases(
    specs: Mapping[str, TensorSpec],
) -> tuple[dict[str, TensorSpec], dict[str, str]]:
    """Split off names for the same bytes: what is left, and further name -> first name."""
    layout: dict[str, TensorSpec] = {}
    aliases: dict[str, str] = {}
    first: dict[TensorSpec, str] = {}
    for name, spec in specs.items():
        owner = first.setdefault(spec._replace(name=""), name) if spec.nbytes else name
        if owner == name:
            layout[name] = spec
        else:
            aliases[name] = owner
    return layout, aliases


def state_dict_specs(pickled: Pickled, state_dict: Any) -> dict[str, TensorSpec]:
    """All entries of a state dict by offset; UserError where one is not a named tensor."""
    if not isinstance(state_dict, dict):
        raise UserError(f"{pickled.file}: holds no state_dict; {SAVE_AGAIN}")
    specs = []
    for name, tensor in state_dict.items():
        if not is_name(name):
            raise UserError(f"{pickled.file}: {name!r} is not a name for a tensor; {SAVE_AGAIN}")
        if not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"{pickled.file}: {name!r} is not a tensor but of type {type(tensor).__name__};"
                " save the model's state_dict() alone"
            )
        specs.append(pickled.spec(name, tensor))
    return {spec.name: spec for spec in sorted(specs, key=lambda spec: spec.extents[0].start)}


def is_name(name: Any) -> bool:
    """Whether a safetensors file can hold a tensor of this name."""
    try:
        return bool(cast(str, name).encode()) and name != "__metadata__"
    except (AttributeError, UnicodeEncodeError):
        return False


def _read_file(file: Path) -> dict[str, TensorSpec]:
    pickled = load_without_data(file)
    return state_dict_specs(pickled, pickled.content)


def _stored_members(file: Path) -> dict[int, int]:
    """Start of data -> bytes, of all members; UserError where the file is not such an archive."""
    if not file.is_file():
        raise UserError(f"{file}: this weights file is missing; copy or download it again")
    members: dict[int, int] = {}
    try:
        with open(file, "rb") as opened:
            size, magic = os.fstat(opened.fileno()).st_size, opened.read(4)
            if magic != b"PK\3\4":
                raise UserError(
                    f"{file}: is not a zip archive, so not of torch.save since 1.6; {SAVE_AGAIN}"
                )
            with zipfile.ZipFile(opened) as archive:
                entries = archive.infolist()
                for entry in entries:
                    if entry.filename.endswith("/byteorder") and archive.read(entry) != b"little":
                        raise UserError(f"{file}: was written big-endian; {SAVE_AGAIN}")
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise UserError(
                        f"{file}: its member {entry.filename!r} is compressed; {SAVE_AGAIN}"
                    )
                opened.seek(entry.header_offset)
                magic, *lengths = _LOCAL_HEADER.unpack(opened.read(_LOCAL_HEADER.size))
                begin = entry.header_offset + _LOCAL_HEADER.size + sum(lengths)
                if magic != b"PK\3\4" or begin + entry.file_size > size:
                    raise zipfile.BadZipFile(f"{entry.filename!r} lies outside")
                members[begin] = entry.file_size
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or _reason(error)}") from error
    except UserError:
        raise
    except Exception as error:  # zipfile raises half a dozen kinds for damaged archives
        raise UserError(
            f"{file}: is not a whole zip archive ({_reason(error)}); copy or download it again"
        ) from None
    return members


def _reason(error: Exception) -> str:
    # torch wraps its reason in advice that does not apply here.
    if found := re.search(r"WeightsUnpickler error:\s*(.+)", str(error)):
        return found[1][:120]
    return " ".join(str(error).split())[:120] or type(error).__name__
