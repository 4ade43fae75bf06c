"""Which files a DeepSpeed checkpoint has: found by their names, none of them opened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vcsoup_dist.errors import UserError

COMPLETE = "COMPLETE"
"""The file that the project's trainer puts last into a checkpoint."""

_WHOLE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_MODEL = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")
OPTIM_NAME = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")


@dataclass(frozen=True)
class RankFiles:
    """The files of one checkpoint, those of ranks in order of rank."""

    whole: Path | None
    """The model states of ZeRO-0 to -2."""
    model: Sequence[Path]
    optim: Sequence[Path]


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a folder of DeepSpeed checkpoints, or one of them."""
    return (
        (path / "latest").is_file()
        or (path / "latest_universal").is_file()
        or any(path.glob("*_states.pt"))
        or any(path.glob("step-*/*_states.pt"))
    )


def find_tag(path: Path) -> Path:
    """The folder of the checkpoint's files."""
    latest = path / "latest"
    if any(path.glob("*_states.pt")):
        tag = path
    elif latest.is_file():
        name = latest.read_text(errors="replace").strip()
        tag = path / name
        if not name.isprintable() or name in ("", ".", "..") or "/" in name or not tag.is_dir():
            raise UserError(f"{latest}: names {name[:80]!r}, which is not a folder next to it")
    elif (path / "latest_universal").is_file():
        _refuse_universal(path)
    else:
        complete = [each.parent for each in path.glob(f"step-????????/{COMPLETE}")]
        if not complete:
            raise UserError(f"{path}: none of its checkpoints is complete ({COMPLETE} is missing)")
        tag = max(complete)
    if tag.resolve().name.endswith(".partial"):
        raise UserError(f"{tag}: was not finished; use a complete checkpoint")
    if (tag / "zero").is_dir():
        _refuse_universal(tag)
    return tag


def _refuse_universal(path: Path) -> NoReturn:
    raise UserError(
        f"{path}: universal checkpoints cannot be read; use the one that it was converted from"
    )


def list_files(tag: Path) -> RankFiles:
    whole: dict[int, Path] = {}
    model: dict[int, Path] = {}
    optim: dict[int, Path] = {}
    for file in sorted(tag.glob("*_states.pt")):
        if found := _WHOLE.fullmatch(file.name):
            model_rank, rank, ranks = found[1], 0, whole
        elif found := _MODEL.fullmatch(file.name):
            rank, model_rank, ranks = int(found[1]), found[2], model
        elif found := OPTIM_NAME.fullmatch(file.name):
            rank, model_rank, ranks = int(found[1]), found[2], optim
        elif "exp" in file.name:  # layer_0_expert_0_..., expp_rank_0_...
            raise UserError(f"{file}: expert-parallel checkpoints cannot be read")
        elif file.name.startswith("layer_"):
            raise UserError(f"{file}: pipeline-parallel checkpoints cannot be read")
        else:
            continue
        if int(model_rank) > 0:
            raise UserError(
                f"{file}: model-parallel checkpoints cannot be read; gather the model first"
            )
        if rank in ranks:
            raise UserError(f"{tag}: has two files of rank {rank}: {ranks[rank].name}, {file.name}")
        ranks[rank] = file
    if whole and model:
        raise UserError(
            f"{tag}: has {whole[0].name} and {min(model.values()).name}, of two checkpoints;"
            " remove those of one"
        )
    if not whole and not model:
        raise UserError(f"{tag}: holds no model states; copy the files of all ranks into it")
    if model and not optim:
        raise UserError(
            f"{tag}: holds no optimizer states, in which ZeRO-3 keeps the weights;"
            " copy the files of all ranks into it"
        )
    if whole:
        return RankFiles(whole[0], (), [optim[rank] for rank in sorted(optim)])
    world = max(*model, *optim) + 1
    for ranks, kind in ((model, "model"), (optim, "optimizer")):
        for rank in range(world):
            if rank not in ranks:
                raise UserError(
                    f"{tag}: lacks the {kind} states of rank {rank};"
                    " copy the files of all ranks into it"
                )
    order = range(world)
    return RankFiles(None, [model[rank] for rank in order], [optim[rank] for rank in order])
