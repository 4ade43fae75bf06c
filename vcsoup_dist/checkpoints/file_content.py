"""What a file really is, from its first bytes: files that are not what their names say."""

from __future__ import annotations

import stat
from pathlib import Path

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
LFS_ADVICE = "fetch the content with `git lfs pull`, or download the file again"
AGAIN = "download it again"

_FIRST = 512  # bytes that are looked at
_NO_MODEL_IS_SMALLER = 256  # bytes; saved error messages are

_BEGINNINGS = (
    (LFS_POINTER, "a Git LFS pointer", LFS_ADVICE),
    (b"GGUF", "a GGUF file", "give the model that it was made from"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"BZh", "a bzip2 archive", "unpack it"),
    (b"\xfd7zXZ", "an xz archive", "unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it"),
    (b"\x89HDF", "an HDF5 file", "convert it with the framework that wrote it"),
)
_SAVED_ANSWERS = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")
_REFUSALS = (
    b"entry not found", b"access to model", b"invalid username", b"not found",
    b"repository not found",
)  # fmt: skip


def fault_of_weights(file: Path) -> str | None:
    """Why a safetensors or `.bin` file holds no weights, and what to do; None where it may.

    Reads the first bytes alone; a sentence's end that follows the file's name.
    """
    first, size, fault = _begin(file)
    if fault:
        return fault
    if found := _other_content(first, size):
        return found
    if file.suffix == ".safetensors" and first.startswith(b"PK\3\4"):
        return "is a torch.save file under another name; rename it to pytorch_model.bin"
    if file.suffix == ".bin" and first[8:9] == b"{" and int.from_bytes(first[:8], "little") < size:
        return "is a safetensors file under another name; rename it to model.safetensors"
    if first.startswith(b"{") and size < _NO_MODEL_IS_SMALLER:
        return f"is a saved answer of a server, not weights; {AGAIN}"
    return None


def fault_of_text(file: Path) -> str | None:
    """Why a config or tokenizer file is none, and what to do; None where it may be one."""
    first, size, fault = _begin(file)
    if fault:
        return fault
    if size == 0:
        return f"is empty; {AGAIN}"
    return _other_content(first, size)


def _begin(file: Path) -> tuple[bytes, int, str | None]:
    """First bytes, size, and a fault where it cannot be read."""
    try:
        state = file.stat()
        if not stat.S_ISREG(state.st_mode):
            return b"", 0, "is not a regular file; give a folder of files"
        with open(file, "rb") as opened:
            return opened.read(_FIRST), state.st_size, None
    except OSError as error:
        if file.is_symlink() and not file.exists():
            return b"", 0, f"is a link to a file that is missing ({_target(file)}); {AGAIN}"
        return b"", 0, f"cannot be read: {error.strerror}"


def _target(link: Path) -> str:
    target = str(link.readlink())
    return target if len(target) <= 60 else f"...{target[-57:]}"


def _other_content(first: bytes, size: int) -> str | None:
    for beginning, what, advice in _BEGINNINGS:
        if first.startswith(beginning):
            return f"is {what}; {advice}"
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_SAVED_ANSWERS):
        return f"is a web page that was saved under this name; {AGAIN}"
    if size < _NO_MODEL_IS_SMALLER and text.startswith(_REFUSALS):
        said = text[:40].decode(errors="replace").strip()
        return f"is a saved answer of a server ({said!r}); {AGAIN}"
    return None
