"""The DeepSpeed configuration of a run: a file of `ds_configs/` with `auto` filled in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Recipe, Training

# Beside the package in a checkout, inside it when installed.
FOLDERS = (Path(__file__).parents[2] / "ds_configs", Path(__file__).parents[1] / "ds_configs")


def find_deepspeed_config(recipe: Recipe) -> Path:
    """The file that `training.deepspeed` names."""
    name = recipe.training.deepspeed
    local = recipe.local_path(name)
    if local is not None and local.is_file():
        return local
    for folder in FOLDERS:
        if (folder / f"{name}.json").exists():
            return folder / f"{name}.json"
    known = sorted(path.stem for folder in FOLDERS for path in folder.glob("*.json"))
    raise UserError(
        f"training.deepspeed: `{name}` is no file and none of ds_configs/ ({', '.join(known)})"
    )


def fill_deepspeed_config(path: Path, training: Training) -> dict[str, Any]:
    """Read a configuration and fill in what the recipe decides.

    Raises UserError where the file states a value that contradicts the recipe.
    """
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    decided = {
        ("bf16", "enabled"): training.dtype == "bf16",
        ("optimizer", "params", "lr"): training.learning_rate,
        ("optimizer", "params", "betas"): list(training.adam_betas),
        ("optimizer", "params", "eps"): training.adam_eps,
        ("optimizer", "params", "weight_decay"): training.weight_decay,
        ("gradient_clipping",): training.max_grad_norm,
    }
    for keys, value in decided.items():
        section = config
        for key in keys[:-1]:
            section = section.setdefault(key, {})
        stated = section.setdefault(keys[-1], "auto")
        if stated not in ("auto", value):
            raise UserError(
                f'{path}: {".".join(keys)} is {stated}, the recipe says {value}; write "auto"'
            )
        section[keys[-1]] = value
    if config.get("zero_optimization", {}).get("stage") != 3:
        raise UserError(f"{path}: zero_optimization.stage must be 3, the stage supported so far")
    if "type" not in config["optimizer"]:
        raise UserError(f'{path}: the section `optimizer` needs a `type`, such as "AdamW"')
    # Steps are cut into micro-batches by token budget, so DeepSpeed must not count them.
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        if config.setdefault(key, 1) != 1:
            raise UserError(f"{path}: {key} must be 1; training.tokens_per_batch sets the batch")
    return dict(config)
