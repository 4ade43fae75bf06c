"""What a folder is that was given for a model, and what to do where it is none.

By names and first bytes of files alone: no weights are read, and torch is not imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from vcsoup_dist.checkpoints import deepspeed_files
from vcsoup_dist.checkpoints.foreign_formats import (
    FOLDERS,
    SUFFIXES,
    TORCH_FILES,
    TRAINER_STATE,
    Format,
    foreign_format,
    matching,
)
from vcsoup_dist.checkpoints.model_files import (
    BIN_INDEX_NAME,
    BIN_SINGLE_NAME,
    INDEX_NAME,
    SINGLE_NAME,
    Folder,
    Kind,
    adapter,
    broken_file,
    readable_model,
    weights_files,
)

_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-(\d+)\.(safetensors|bin)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_DEPTH = 2  # folders in folders that are looked into
_MOST_INSIDE = 64  # of each


def describe(path: Path) -> Folder:
    """What `path` is. Never raises; opens only small files and the first bytes of weights."""
    try:
        return _describe(path, _DEPTH)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return Folder(
            path,
            f"cannot be read: {getattr(error, 'strerror', None) or error}",
            "give another folder",
        )


def _describe(path: Path, depth: int) -> Folder:
    if not path.is_dir():
        return _no_folder(path)
    entries = {entry.name: _type(entry) for entry in os.scandir(path)}
    files = {name for name, type_ in entries.items() if type_ == "file"}
    folders = {name for name, type_ in entries.items() if type_ == "folder"}
    weights = weights_files(files)
    holds: list[Kind] = []
    if SINGLE_NAME in files or INDEX_NAME in files:
        holds.append("safetensors")
    elif BIN_SINGLE_NAME in files or BIN_INDEX_NAME in files:
        holds.append("bin")
    if deepspeed_files.is_checkpoint(path):
        holds.append("deepspeed")
    fault = adapter(path, files, weights) or broken_file(
        path, files, weights, entries.keys() - files - folders
    )
    if fault is not None:
        return fault
    if holds:
        return readable_model(path, files, tuple(holds))
    return (
        _cache(path, folders)
        or _without_index(path, files)
        or _foreign(path, entries)
        or _inside(path, folders, depth)
        or _foreign(path, files, [TORCH_FILES])
        or _nothing(path, files, folders)
    )


def _type(entry: os.DirEntry[str]) -> Literal["file", "folder", "other"]:
    try:
        return "file" if entry.is_file() else "folder" if entry.is_dir() else "other"
    except OSError:  # a link to itself
        return "other"


def _no_folder(path: Path) -> Folder:
    name = str(path)
    if path.is_symlink() and not path.exists():
        return Folder(
            path, f"is a link to {path.readlink()}, which is not there", "give the folder itself"
        )
    if not path.exists():
        if _HUB_ID.fullmatch(name) and not name.startswith("."):
            return Folder(
                path,
                "there is no such folder",
                f"if it is the hub's {name}, download it first: hf download {name} --local-dir"
                f" {path.name}",
            )
        return Folder(path, "there is no such model directory", "check the path")
    what, advice = "a file", "give the folder that holds the model"
    if path.suffix.lower() in SUFFIXES:
        what, advice = SUFFIXES[path.suffix.lower()]
    elif path.suffix in (".safetensors", ".bin", ".json"):
        advice = f"give the folder that it is in, {path.parent}"
    elif not path.is_file():
        what = "no folder"
    return Folder(path, f"is {what}, not a model directory", advice)


def _cache(path: Path, folders: set[str]) -> Folder | None:
    """A model's folder in the hub's cache, or the cache itself."""
    models = matching(folders, ["models--*"])
    if models:
        return Folder(
            path,
            f"is the hub's cache, of {_some(models)}",
            "give the snapshot of one model: models--ORG--NAME/snapshots/COMMIT",
            candidates=tuple(models),
        )
    if not ("snapshots" in folders and ("blobs" in folders or path.name.startswith("models--"))):
        return None
    snapshots = sorted((path / "snapshots").iterdir(), key=lambda each: each.lstat().st_mtime)
    names = [f"snapshots/{each.name}" for each in snapshots if each.is_dir()]
    if not names:
        return Folder(
            path,
            "is a model in the hub's cache whose download is not finished",
            "download it again",
        )
    main = path / "refs" / "main"
    if main.is_file():
        newest = f"snapshots/{main.read_text(errors='replace').strip()[:80]}"
        names.sort(key=lambda name: name == newest)
    return Folder(
        path,
        "is a model in the hub's cache, whose files are one level deeper",
        f"give {path / names[-1]}",
        candidates=tuple(names),
    )


def _without_index(path: Path, files: set[str]) -> Folder | None:
    shards = [found for name in sorted(files) if (found := _SHARD.fullmatch(name))]
    if not shards:
        return None
    index = BIN_INDEX_NAME if shards[0][3] == "bin" else INDEX_NAME
    promised = shards[0][2].lstrip("0")
    there = f"{len(shards)} of {promised[:20]} weights files"
    return Folder(
        path,
        f"has {there} ({shards[0][0]} ...) but no {index}",
        "copy that file from where these come from, or save the model again with save_pretrained",
    )


def _foreign(
    path: Path, names: Iterable[str], formats: Sequence[Format] = FOLDERS
) -> Folder | None:
    found = foreign_format(names, formats)
    if found is None:
        return None
    kind, sign = found
    return Folder(path, f"is {kind.what} ({sign})", kind.advice.format(str(path)))


def _inside(path: Path, folders: set[str], depth: int) -> Folder | None:
    """What the folders in it are: those that hold models, or else the first of a known kind."""
    if not depth:
        return None
    names = sorted((name for name in folders if not name.startswith(".")), key=_in_numbers)
    found = [(name, _describe(path / name, depth - 1)) for name in names[-_MOST_INSIDE:]]
    models = [
        f"{name}/{inner}" if inner else name
        for name, each in found
        for inner in (each.candidates or (("",) if each.holds else ()))
    ]
    if models:
        return Folder(
            path,
            f"holds no weights itself, but models in {_some(models)}",
            "give one of these folders",
            candidates=tuple(models),
        )
    for name, each in reversed(found):
        if each.known:
            return Folder(path, f"holds no weights itself; its {name} {each.what}", each.advice)
    return None


def _nothing(path: Path, files: set[str], folders: set[str]) -> Folder:
    others = matching(files, ["*.safetensors", "*.bin"])
    others = [name for name in others if not matching([name], TRAINER_STATE)]
    what, advice = f"holds neither {SINGLE_NAME} nor {INDEX_NAME}", "give a model's own folder"
    if not files and not folders:
        what = "is empty"
    elif any((path / ".cache" / "huggingface").rglob("*.incomplete")):
        what, advice = "is a download that was not finished", "run the same hf download again"
    elif "latest_checkpointed_iteration.txt" in files:
        what = "is a folder for checkpoints of Megatron or verl, and holds none"
    elif others:
        what = f"{what} but {_some(others)}"
        advice = f"if that is a whole model, rename it to {SINGLE_NAME} or {BIN_SINGLE_NAME}"
    elif state := matching(files, TRAINER_STATE):
        what = f"holds only a trainer's state ({state[0]}), no weights"
    elif "config.json" in files or matching(files, ["tokenizer*"]):
        what = f"holds a config or tokenizer, but neither {SINGLE_NAME} nor {INDEX_NAME}"
        advice = "copy or download the weights too"
    return Folder(path, what, advice, known=bool(others))


def _in_numbers(name: str) -> list[tuple[int, str]]:
    """A key that sorts checkpoint-9 before checkpoint-10."""
    return [
        (int(part[:18]), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)
    ]


def _some(names: Sequence[str]) -> str:
    """The last four of them, and how many there are."""
    shown = ", ".join(names[-4:])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
