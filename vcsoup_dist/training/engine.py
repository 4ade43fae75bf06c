"""Loading theta_0, sharded or whole, and wrapping it in a DeepSpeed engine."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from vcsoup_dist.checkpoints.auxiliary_files import auxiliary_files
from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.forward.answers import AnswerLogps
from vcsoup_dist.forward.attention import NAMES, choose_attention
from vcsoup_dist.forward.end_tokens import configured_ends, end_tokens, settle_sampling
from vcsoup_dist.progress import log
from vcsoup_dist.training.base_checks.architecture import check_architecture, open_config
from vcsoup_dist.training.base_checks.tensors import refuse_missing
from vcsoup_dist.training.deepspeed_config import fill_deepspeed_config, forward_only
from vcsoup_dist.training.distributed import is_first, local_device
from vcsoup_dist.training.job import Job
from vcsoup_dist.training.whole_model import every_rank_holds, use_linear_of_training


def start_engine(job: Job, *, train: bool, universal: bool = False) -> Any:
    """What a rank computes with: a DeepSpeed engine around `AnswerLogps(theta_0)`.

    Under ZeRO-3 weights are loaded straight into their partitions. Dropout is off: a policy must
    equal its reference at the start. train: with an optimizer; else `AnswerLogps` alone, where the
    model fits into every rank. universal: to load a universal checkpoint.
    """
    training = job.training
    config = fill_deepspeed_config(
        Path(job.deepspeed_config),
        training,
        int(os.environ["LOCAL_WORLD_SIZE"]),
        Path(job.swap_folder) if job.swap_folder else None,
    )
    dtype = torch.bfloat16 if training.dtype == "bf16" else torch.float32
    model_config = open_config(job.model, job.revision)
    intended = check_architecture(model_config, training.max_length)
    attention = choose_attention(training.attention, local_device(), dtype, model_config)
    whole = not train and every_rank_holds(intended, config, training)
    if is_first():
        stage = config["zero_optimization"]["stage"]
        log.info(
            "attention: %s; %s %s ranks, %s, %s; gradient checkpointing %s%s",
            next(known for known, name in NAMES.items() if name == attention),
            "whole on each of" if whole else f"{Path(job.deepspeed_config).stem} (ZeRO-{stage}) on",
            os.environ["WORLD_SIZE"],
            training.dtype,
            local_device().type,
            "on" if train and training.gradient_checkpointing else "off",
            ", activations in host memory" if train and training.activation_offload else "",
        )
    if whole:
        use_linear_of_training(config)
        return AnswerLogps(_load(job, dtype, attention, device_map={"": local_device()}))
    if not train:
        config = forward_only(config)
    if universal:
        config["checkpoint"] = {"load_universal": True}
    return _wrap(_load_sharded(job, config, dtype, attention), job, config, train)


def _load_sharded(job: Job, config: dict[str, Any], dtype: torch.dtype, attention: str) -> Any:
    from transformers.integrations import HfDeepSpeedConfig

    # While this object exists, from_pretrained partitions each tensor as it is read.
    sharding = HfDeepSpeedConfig(config)
    model = _load(job, dtype, attention)
    del sharding
    return model


def _wrap(model: Any, job: Job, config: dict[str, Any], train: bool) -> Any:
    import deepspeed

    if train and job.training.gradient_checkpointing:
        # Without dropout there is no random state to restore.
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    wrapped = AnswerLogps(model)
    if str(config.get("optimizer", {}).get("type")).lower() != "muon":
        _import_muon_uncompiled()
    parameters = {"model_parameters": wrapped.parameters()} if train else {}
    try:
        engine, *_ = deepspeed.initialize(model=wrapped, config=config, **parameters)
    except (AssertionError, ValueError, TypeError) as error:  # its checks of the configuration
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{job.deepspeed_config}: DeepSpeed refuses it: {reason}") from error
    return engine


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon, as its engine does for every optimizer, without PyTorch's compiler.

    torch.compile decorates its functions and imports the compiler, a fifth of a rank's start. For
    other optimizers, which never call them.
    """
    from deepspeed.runtime import compiler

    compile_, compiler.compile = compiler.compile, lambda: lambda function: function
    with contextlib.suppress(ImportError):  # another version of DeepSpeed
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    compiler.compile = compile_


def _load(job: Job, dtype: torch.dtype, attention: str, **where: Any) -> Any:
    """Load theta_0 without dropout; UserError where its files cannot be loaded, or lack weights."""
    from transformers import AutoModelForCausalLM

    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            job.model,
            revision=job.revision,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            output_loading_info=True,
            **where,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # transformers', safetensors', pickle's and DeepSpeed's
        raise UserError(f"{job.model}: its weights cannot be loaded: {reason_of(error)}") from error
    refuse_missing(job.model, model, found)
    switch_off_dropout(model)
    model.config.use_cache = False
    return model


def switch_off_dropout(model: Any) -> None:
    """Set every dropout and jitter to 0, in modules and in the attributes that their forward reads.

    `check_start` finds those of other names.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and any(kind in name for kind in ("drop", "jitter")):
                setattr(module, name, 0.0)


def full_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters and persistent buffers by name, however they are sharded.

    Tied ones occur once, under their first name.
    """
    shapes = {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in model.named_parameters()
    }
    kept = model.state_dict(keep_vars=True).keys()
    buffers = {name: tuple(buffer.shape) for name, buffer in model.named_buffers() if name in kept}
    return shapes | buffers


def save_auxiliary_files(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write config, generation config, tokenizer and chat template.

    The generation config names every end token, so that a server of the policy stops as evaluation
    does. A local base's other files (licence, processors, a `tokenizer.model`) are copied.
    """
    folder.mkdir(exist_ok=True)
    model.config.use_cache = True
    model.config.save_pretrained(folder)
    if model.can_generate():
        ends = end_tokens(tokenizer, model.generation_config)
        if ends != configured_ends(model.generation_config):
            model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
        try:
            settle_sampling(model.generation_config)
            model.generation_config.save_pretrained(folder)
        except ValueError as error:
            raise UserError(f"the base model's generation config is invalid: {error}") from error
    tokenizer.save_pretrained(folder)
    base = Path(model.config.name_or_path)
    for name, file in (auxiliary_files(base) if base.is_dir() else {}).items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
