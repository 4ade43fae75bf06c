"""The DeepSpeed configuration of a run: a file of `ds_configs/` with `auto` filled in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Recipe, Training

# Beside the package in a checkout, inside it when installed.
FOLDERS = (Path(__file__).parents[2] / "ds_configs", Path(__file__).parents[1] / "ds_configs")

Keys = tuple[str, ...]

# Token budgets cut steps into micro-batches and the trainer sets the learning rate, so DeepSpeed
# must neither count nor schedule.
FORBIDDEN = {
    "train_batch_size": "training.pairs_per_step and training.tokens_per_batch set the batch",
    "scheduler": "training.schedule and training.warmup_ratio set the learning rate",
}
ALWAYS_ONE = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def find_deepspeed_config(recipe: Recipe) -> Path:
    """The file that `training.deepspeed` names."""
    name = recipe.training.deepspeed
    local = recipe.local_path(name)
    if local is not None and local.is_file():
        return local
    for folder in FOLDERS:
        if (folder / f"{name}.json").exists():
            return folder / f"{name}.json"
    known = ", ".join(sorted({path.stem for each in FOLDERS for path in each.glob("*.json")}))
    raise UserError(
        f"training.deepspeed: `{name}` is neither a file nor one of ds_configs/ ({known})"
    )


def fill_deepspeed_config(
    path: Path, training: Training, ranks_per_node: int = 1, nvme_folder: Path | None = None
) -> dict[str, Any]:
    """Read a configuration and fill in every "auto".

    ranks_per_node: the value of a hierarchical partitioning of "auto"; LOCAL_WORLD_SIZE in a rank.
    nvme_folder: instead of `training.nvme_path`, where that is relative to the recipe.

    UserError where the file contradicts the recipe, has a forbidden key, or leaves something
    "auto" that nothing fills in.
    """
    config = _read(path)
    for key, instead in FORBIDDEN.items():
        if key in config:
            raise UserError(f"{path}: remove `{key}`: {instead}")
    for key in ALWAYS_ONE:
        if _fill(path, config, (key,), 1) != 1:
            raise UserError(f"{path}: {key} must be 1; training.tokens_per_batch sets the batch")
    for keys, value in _decided_by(training).items():
        stated = _fill(path, config, keys, value)
        if stated != value:
            raise UserError(
                f'{path}: {".".join(keys)} is {stated}, the recipe says {value}; write "auto"'
            )
    if _fill(path, config, ("fp16", "enabled"), False) is not False:
        raise UserError(f"{path}: fp16 is not supported; training.dtype is bf16 or fp32")
    _fill(path, config, ("communication_data_type",), training.dtype)
    _fill(path, config, ("data_types", "grad_accum_dtype"), "fp32")
    zero = _section(path, config, ("zero_optimization",))
    stage = zero.get("stage")
    if stage not in (2, 3) or isinstance(stage, bool):
        raise UserError(f"{path}: zero_optimization.stage is {stage!r}, it must be 2 or 3")
    if zero.get("zero_hpz_partition_size") == "auto":
        zero["zero_hpz_partition_size"] = ranks_per_node
    _fill_nvme_paths(path, zero, nvme_folder or training.nvme_path)
    if "type" not in config["optimizer"]:
        raise UserError(f'{path}: the section `optimizer` needs a `type`, such as "AdamW"')
    for keys in _autos(config):
        raise UserError(f'{path}: {".".join(keys)} is "auto", which nothing in a recipe fills in')
    return config


def forward_only(config: dict[str, Any]) -> dict[str, Any]:
    """A filled ZeRO-3 configuration for ranks that only compute log-probs."""
    config = {key: value for key, value in config.items() if key != "optimizer"}
    zero = dict(config["zero_optimization"])
    zero.pop("offload_optimizer", None)
    return config | {"zero_optimization": zero}


def device_of(config: dict[str, Any], states: str) -> str:
    """Where a filled configuration keeps `states`, "param" or "optimizer": none, cpu or nvme."""
    section = config["zero_optimization"].get(f"offload_{states}") or {}
    return str(section.get("device", "none"))


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: holds no JSON object")
    return config


def _decided_by(training: Training) -> dict[Keys, Any]:
    """Keys that the recipe alone decides."""
    return {
        ("bf16", "enabled"): training.dtype == "bf16",
        ("optimizer", "params", "lr"): training.learning_rate,
        ("optimizer", "params", "betas"): list(training.adam_betas),
        ("optimizer", "params", "eps"): training.adam_eps,
        ("optimizer", "params", "weight_decay"): training.weight_decay,
        ("gradient_clipping",): training.max_grad_norm,
    }


def _section(path: Path, config: dict[str, Any], keys: Keys) -> dict[str, Any]:
    section = config
    for depth, key in enumerate(keys, 1):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UserError(f"{path}: {'.'.join(keys[:depth])} must be a section, a JSON object")
    return section


def _fill(path: Path, config: dict[str, Any], keys: Keys, value: Any) -> Any:
    """Set a key that is absent or "auto" to `value`; returns what it then is."""
    section = _section(path, config, keys[:-1])
    if section.setdefault(keys[-1], "auto") == "auto":
        section[keys[-1]] = value
    return section[keys[-1]]


def _fill_nvme_paths(path: Path, zero: dict[str, Any], folder: Path | str | None) -> None:
    for states in ("param", "optimizer"):
        offload = zero.get(f"offload_{states}")
        if not isinstance(offload, dict) or offload.get("device") != "nvme":
            continue
        if offload.get("nvme_path", "auto") != "auto":
            raise UserError(
                f'{path}: offload_{states}.nvme_path must be "auto"; the recipe\'s '
                "training.nvme_path says where, and every policy gets its own folder there"
            )
        if folder is None:
            raise UserError(
                f"{path}: keeps the {states}'s states on NVMe; give a folder by the "
                "recipe's training.nvme_path"
            )
        offload["nvme_path"] = str(folder)


def _autos(section: Any, keys: Keys = ()) -> Iterator[Keys]:
    if section == "auto":
        yield keys
    elif isinstance(section, dict):
        for key, value in section.items():
            yield from _autos(value, (*keys, key))
    elif isinstance(section, list):
        for value in section:
            yield from _autos(value, keys)
