"""Where every tensor of a safetensors checkpoint lies, from the headers alone.

A file is: 8 bytes of little-endian header length, a JSON header, then the tensors' bytes back to
back (https://github.com/huggingface/safetensors, "Format"). Nothing a header or an index says is
believed before it is checked against the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TypeGuard

from vcsoup_dist.checkpoints.file_content import fault_of_weights
from vcsoup_dist.checkpoints.folder_kinds import describe
from vcsoup_dist.checkpoints.model_files import INDEX_NAME, SINGLE_NAME
from vcsoup_dist.errors import UserError

EXPORT = "write it as a model first: vcsoup export CHECKPOINT --model BASE --out MODEL"
MAX_HEADER = 100_000_000  # bytes; the safetensors library refuses more
MAX_COUNT = 1 << 63
MAX_DIMENSIONS = 64  # numpy has no more

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "BF16": 16, "F16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits per element of safetensors' own dtype names."""


class Extent(NamedTuple):
    """A run of bytes in a file."""

    file: Path
    start: int
    """Offset from the beginning of `file`."""
    nbytes: int


class TensorSpec(NamedTuple):
    """One tensor of a checkpoint: what it is, and where its bytes are."""

    name: str
    dtype: str
    """safetensors' own name: "BF16", "F32", ..."""
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]
    """Its bytes in order: one run in a safetensors file, one a rank in a ZeRO-3 checkpoint."""

    @property
    def nbytes(self) -> int:
        return sum(extent.nbytes for extent in self.extents)

    @property
    def file(self) -> Path:
        """Where its first byte is."""
        return self.extents[0].file


Layout = Mapping[str, TensorSpec]
"""All tensors of a checkpoint by name, in the order in which they are best read."""


@dataclass(frozen=True)
class Source:
    """A checkpoint on disk, of which only headers have been read."""

    path: Path
    kind: Literal["safetensors", "bin", "zero3"]
    layout: Layout
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Further names of tied weights -> the name in `layout`."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it is read."""
    lacks_frozen: bool | None = None
    """Whether DeepSpeed was asked to leave out frozen parameters, if there were any; None where
    nothing says so."""


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor; KeyError for an unknown dtype, ValueError for what no file can hold."""
    size, rest = divmod(DTYPE_BITS[dtype] * element_count(shape), 8)
    if rest:
        raise ValueError(f"{dtype} of shape {list(shape)} does not fill whole bytes")
    return size


def element_count(shape: Sequence[int]) -> int:
    """Of a tensor; ValueError where there are more than a file can hold, or too many dimensions.

    Numbers in a file can be of any length: nothing is multiplied that has become too large.
    """
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a shape of {len(shape)} dimensions is not a tensor's")
    if 0 in shape:
        return 0
    count = 1
    for size in shape:
        count *= size
        if size >= MAX_COUNT or count >= MAX_COUNT:
            raise ValueError("its shape has more elements than any file can hold")
    return count


def read_layout(directory: Path) -> dict[str, TensorSpec]:
    """All tensors of a Hugging Face model directory, in file order (files by name, then offset).

    Reads `model.safetensors.index.json` or `model.safetensors`, and of the weights only the
    headers. UserError where a file is missing, truncated or contradicts itself or the index.
    """
    return read_weights_files(directory, SINGLE_NAME, INDEX_NAME, read_header)


def read_weights_files(
    directory: Path,
    single_name: str,
    index_name: str,
    read_file: Callable[[Path], Mapping[str, TensorSpec]],
) -> dict[str, TensorSpec]:
    """All tensors of the file `single_name`, or of the files that `index_name` lists.

    `read_file` gives a file's tensors. UserError where the files contradict the index.
    """
    index, single = directory / index_name, directory / single_name
    files: Mapping[str, set[str] | None]
    if index.is_file():
        files = indexed_files(index)
        missing = [name for name in sorted(files) if not (directory / name).is_file()]
        if missing:
            raise UserError(
                f"{directory / missing[0]}: this weights file is missing, {len(missing)} of the"
                f" {len(files)} that {index_name} lists are missing; copy or download them again"
            )
        if single.is_file() and single_name not in files:
            raise UserError(
                f"{directory}: has both {single_name} and {index_name} of other files;"
                " remove the one that is out of date"
            )
    elif single.is_file():
        files = {single_name: None}
    else:
        _say_what_is_there_instead(directory)
    layout: dict[str, TensorSpec] = {}
    for file_name, promised in sorted(files.items()):
        found = read_file(directory / file_name)
        for name in sorted(promised or ()):
            if name not in found:
                raise UserError(
                    f"{index}: says {name!r} is in {file_name}, which lacks that tensor"
                )
        for name, spec in found.items():
            if promised is not None and name not in promised:
                raise UserError(
                    f"{spec.file}: holds {name!r}, which {index_name} does not place there"
                )
            layout[name] = spec
    if not layout:
        raise UserError(f"{directory}: its weights files hold no tensor")
    return layout


def indexed_files(index: Path) -> dict[str, set[str]]:
    """The index's weight_map inverted: file name -> names of the tensors in it.

    UserError where it is not such a map, or names files outside of its directory.
    """
    try:
        weight_map = _parse_json(index.read_bytes(), index).get("weight_map")
    except OSError as error:
        raise UserError(f"{index}: cannot be read: {error.strerror}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map from tensor to file")
    files: dict[str, set[str]] = {}
    for tensor, file_name in weight_map.items():
        # A plain name cannot leave the directory; links inside it are how hub caches are made.
        if (
            not isinstance(file_name, str)
            or not file_name.isprintable()
            or file_name in ("", ".", "..")
            or "/" in file_name
            or "\\" in file_name
        ):
            raise UserError(
                f"{index}: places {tensor!r} in {file_name!r}, which is not a file of its directory"
            )
        files.setdefault(file_name, set()).add(tensor)
    return files


def raw_header(file: Path) -> bytes:
    """Length and JSON of a safetensors file, as they stand there; `read_header` has checked it."""
    with open(file, "rb") as opened:
        length = opened.read(8)
        return length + opened.read(int.from_bytes(length, "little"))


def read_header(file: Path) -> dict[str, TensorSpec]:
    """The tensors of one safetensors file by offset; UserError where the header is not valid."""
    try:
        if not file.is_file():
            raise UserError(f"{file}: this weights file is missing; copy or download it again")
        with open(file, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                if fault := fault_of_weights(file):
                    raise UserError(f"{file}: {fault}")
                raise UserError(
                    f"{file}: says its header has {length} bytes, the file has {size} in all;"
                    " it is truncated or not a safetensors file"
                )
            raw = opened.read(length)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error
    header = _parse_json(raw, file)
    header.pop("__metadata__", None)
    specs = [_entry(name, entry, file, 8 + length) for name, entry in header.items()]
    specs.sort(key=lambda spec: (spec.extents[0].start, spec.nbytes))
    _check_coverage(specs, file, 8 + length, size)
    return {spec.name: spec for spec in specs}


def _entry(name: str, entry: Any, file: Path, data_start: int) -> TensorSpec:
    where = f"{file}: tensor {name[:200]!r}"
    if not isinstance(entry, dict):
        raise UserError(f"{where}: its header entry is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise UserError(f"{where}: unknown dtype {str(dtype)[:40]!r}")
    if not _are_counts(shape):
        raise UserError(f"{where}: its shape is not a list of non-negative whole numbers")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UserError(
            f"{where}: data_offsets is not a pair of ascending non-negative whole numbers"
        )
    begin, end = offsets
    try:
        nbytes = tensor_bytes(dtype, shape)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if end - begin != nbytes:
        raise UserError(
            f"{where}: {dtype} of shape {shape} has {nbytes} bytes, its offsets span {end - begin}"
        )
    return TensorSpec(name, dtype, tuple(shape), (Extent(file, data_start + begin, nbytes),))


def _check_coverage(specs: list[TensorSpec], file: Path, data_start: int, size: int) -> None:
    """The tensors must fill the file behind the header without overlap, hole or remainder."""
    reached = data_start
    for spec in specs:
        (_, start, nbytes) = spec.extents[0]
        if start + nbytes > size:
            raise UserError(
                f"{file}: tensor {spec.name!r} ends at byte {start + nbytes}, the file"
                f" at {size}; it is truncated, copy or download it again"
            )
        if start != reached:
            fault = "overlaps the one before" if start < reached else "leaves a hole before it"
            raise UserError(f"{file}: tensor {spec.name!r} {fault} (offset {start - data_start})")
        reached += nbytes
    if reached != size:
        raise UserError(f"{file}: has {size - reached} bytes that its header does not describe")


def _parse_json(raw: bytes, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_without_repeats, parse_int=_count
        )
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file}: its JSON cannot be read ({reason})") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: its JSON is not an object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} occurs twice")
        key.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
        found[key] = value
    return found


def _count(digits: str) -> int:
    """The number; ValueError where it counts nothing in a file (nor is it converted, if long)."""
    if len(digits) > 19 or abs(number := int(digits)) >= MAX_COUNT:
        raise ValueError(f"the number {digits[:20]}... is larger than any file")
    return number


def _are_counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _say_what_is_there_instead(directory: Path) -> NoReturn:
    found = describe(directory)
    if "bin" in found.holds:
        raise UserError(
            f"{directory}: holds only pickled weights (pytorch_model*.bin); convert them to"
            " safetensors with AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    if "deepspeed" in found.holds:
        raise UserError(f"{found.line}; {EXPORT}")
    raise UserError(found.line)
