"""The files that make weights a usable model: configs, tokenizer, templates, code, licence.

Nobody knows all their names, so whatever is small goes along unless it is known to be of another
kind: weights, states of a trainer, logs, a README. What stays behind is said.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vcsoup_dist.checkpoints.digests import digest
from vcsoup_dist.errors import UserError

CONFIG_NAME = "config.json"

SMALL = 1 << 26
"""Bytes: a larger file of no known name stays behind."""
MOST_IN_FOLDER = 100
"""Files: a folder that holds more is something else than a part of a model."""

_NEEDED = re.compile(
    r"config\.json|generation_config\.json|(pre)?processor_config\.json|tokenizer.*|vocab\..*"
    r"|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template\..*|tekken\.json"
    r"|.*\.(tiktoken|spm)|(spiece|spm|sentencepiece(\.bpe)?)\.model"
)
"""Without these a model cannot be used: they go along whatever their size."""

_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf|ggml|onnx|onnx_data|npz|npy|tflite|pkl"
    r"|pickle|distcp|engine|pdparams|ot|zip|tar|gz|parquet|arrow)(\..*)?|.*\.index\.json"
)
_OTHERS = re.compile(
    r"readme.*|manifest\.json|product\.json|trainer_.*|training\.json|training_.*|.*_results\.json|.*\.log"
    r"|.*log\.jsonl?|log_history.*|events\.out\..*|optimizer.*|scheduler.*|rng_state.*|scaler.*"
    r"|latest|zero_to_fp32\.py|adapter_config\.json|quantize_config\.json|hf_quant_config\.json"
    r"|mergekit_config\.ya?ml|.*\.(out|err|tmp|lock|partial)",
    re.IGNORECASE,
)
_OTHER_FOLDERS = re.compile(
    r"checkpoint-.*|global_step.*|step-.*|iter_.*|runs|logs?|wandb|tensorboard|mlruns|original"
    r"|onnx|openvino|metal|gguf|__pycache__"
)


@dataclass
class AuxiliaryFiles:
    """Of one model directory."""

    files: dict[str, Path] = field(default_factory=dict)
    """Relative name -> file, in order of name."""
    left: list[str] = field(default_factory=list)
    """Names of what stays behind, folders with a slash at the end, weights and READMEs not."""


def find_auxiliary_files(directory: Path) -> AuxiliaryFiles:
    """What goes along with the weights, and what does not.

    A link goes along where it leads to a file of the directory, or of the hub's cache that its
    config is in; others are left. UserError for a link to elsewhere that the model needs.
    """
    found = AuxiliaryFiles()
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            _look_into(path, directory, found)
        elif _goes_along(path, directory, found):
            found.files[path.name] = path
    found.files = dict(sorted(found.files.items()))
    return found


def auxiliary_files(directory: Path) -> dict[str, Path]:
    """The auxiliary files of a model directory: relative name -> file, in order of name."""
    return find_auxiliary_files(directory).files


def auxiliary_digests(directory: Path) -> dict[str, str]:
    """Relative name -> digest of every auxiliary file; UserError for one that cannot be read."""
    found = {}
    for name, file in auxiliary_files(directory).items():
        try:
            found[name] = digest(file.read_bytes()).hex()
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    return found


def copy_auxiliary_files(source: Path, target: Path) -> list[str]:
    """Copy all auxiliary files of `source` into the directory `target`; their relative names."""
    files = auxiliary_files(source)
    for name, file in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target / name)  # follows links: hub caches are made of them
    return list(files)


def _look_into(folder: Path, directory: Path, found: AuxiliaryFiles) -> None:
    """A folder such as `1_Pooling` or `additional_chat_templates` goes along as a whole."""
    name = folder.relative_to(directory).as_posix()
    inside = AuxiliaryFiles()
    files = list(_below(folder))
    whole = not _OTHER_FOLDERS.fullmatch(folder.name) and _is_inside(folder, directory)
    if whole and len(files) <= MOST_IN_FOLDER:
        for file in files:
            if _goes_along(file, directory, inside):
                inside.files[file.relative_to(directory).as_posix()] = file
            elif _WEIGHTS.fullmatch(file.name):
                whole = False
        size = sum(file.stat().st_size for file in inside.files.values())
        if whole and size <= SMALL:
            found.files |= inside.files
            found.left += inside.left
            return
    if files:
        found.left.append(f"{name}/")


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        yield from (Path(parent, each) for each in sorted(files) if not each.startswith("."))


def _goes_along(path: Path, directory: Path, found: AuxiliaryFiles) -> bool:
    """Whether a file does; notes in `found.left` what does not, but for weights and READMEs."""
    if _WEIGHTS.fullmatch(path.name) or path.name.lower().startswith("readme"):
        return False
    name = path.relative_to(directory).as_posix()
    needed = _NEEDED.fullmatch(name) or name.startswith("additional_chat_templates/")
    if not path.is_file() or _OTHERS.fullmatch(path.name) and not needed:
        if path.is_symlink() or path.is_file():
            found.left.append(name)
        return False
    if not _is_inside(path, directory):
        if needed:
            raise UserError(
                f"{path}: is a link to {path.resolve()}, outside of the model directory; put the"
                " file itself there"
            )
        found.left.append(f"{name} (a link to elsewhere)")
        return False
    if path.stat().st_size > SMALL and not needed:
        found.left.append(f"{name} (large)")
        return False
    return True


def _is_inside(path: Path, directory: Path) -> bool:
    """Whether a path leads to its directory, or to the blobs of the hub's cache that it is of."""
    where, own = path.resolve(), directory.resolve()
    if where.is_relative_to(own):
        return True
    blobs = (directory / CONFIG_NAME).resolve().parent
    return (
        blobs.name == "blobs" and blobs.parent.name.startswith("models--") and where.parent == blobs
    )
