"""Loading theta_0 sharded, and wrapping it in a DeepSpeed engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from vcsoup_dist.errors import UserError
from vcsoup_dist.forward.answers import AnswerLogps
from vcsoup_dist.forward.attention import choose_attention
from vcsoup_dist.progress import log
from vcsoup_dist.training.deepspeed_config import fill_deepspeed_config
from vcsoup_dist.training.jobs import Job


def local_device() -> torch.device:
    """This rank's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")


def start_distributed() -> None:
    """Join the other ranks: NCCL on GPUs, gloo on CPUs."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    # Serves DeepSpeed's tensor-parallel inference alone, but is compiled at the first start, and
    # a kill in mid-compile leaves a lock file that the next start waits on for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = local_device()
    if device.type == "cuda":
        ranks, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if ranks > gpus:
            raise UserError(
                f"launch.ranks: {ranks} ranks on a machine with {gpus} GPUs; set it to {gpus}, or "
                "CUDA_VISIBLE_DEVICES= in the environment to train on the CPU"
            )
        torch.cuda.set_device(device)
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False
    )


def start_engine(job: Job, *, train: bool) -> tuple[Any, Any]:
    """DeepSpeed engine around `AnswerLogps(theta_0)`, and the tokenizer.

    Weights are loaded straight into ZeRO-3 partitions. Dropout is off: a policy must equal its
    reference at the start. Without `train` there is no optimizer.
    """
    import deepspeed
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations import HfDeepSpeedConfig

    training = job.training
    config = fill_deepspeed_config(Path(job.deepspeed_config), training)
    if not train:
        del config["optimizer"]
    dtype = torch.bfloat16 if training.dtype == "bf16" else torch.float32
    attention = choose_attention(training.attention, local_device(), dtype)
    # from_pretrained partitions each tensor as it is read while this object lives.
    sharding = HfDeepSpeedConfig(config)
    model = AutoModelForCausalLM.from_pretrained(
        job.model, revision=job.revision, dtype=dtype, attn_implementation=attention
    )
    del sharding
    switch_off_dropout(model)
    model.config.use_cache = False
    if train and training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    wrapped = AnswerLogps(model)
    parameters = {"model_parameters": wrapped.parameters()} if train else {}
    engine, *_ = deepspeed.initialize(model=wrapped, config=config, **parameters)
    tokenizer = AutoTokenizer.from_pretrained(job.model, revision=job.revision)
    if int(os.environ["RANK"]) == 0:
        stage = config["zero_optimization"]["stage"]
        log.info(
            "attention: %s; ZeRO-%d on %s ranks, %s, %s",
            attention,
            stage,
            os.environ["WORLD_SIZE"],
            training.dtype,
            local_device().type,
        )
    return engine, tokenizer


def switch_off_dropout(model: Any) -> None:
    """Set every dropout of a transformers model to 0, in modules and in what attention reads."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout_prob"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def save_companions(engine: Any, tokenizer: Any, folder: Path) -> None:
    """Config, generation config, tokenizer and chat template beside the weights."""
    folder.mkdir(exist_ok=True)
    model = engine.module.model
    model.config.use_cache = True
    model.config.save_pretrained(folder)
    if model.can_generate():
        try:
            model.generation_config.save_pretrained(folder)
        except ValueError as error:
            raise UserError(f"the base model's generation config is invalid: {error}") from error
    tokenizer.save_pretrained(folder)
