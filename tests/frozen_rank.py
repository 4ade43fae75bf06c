"""A rank that saves a tiny Llama, part of it frozen, as DeepSpeed checkpoints of several kinds.

`python -m frozen_rank JOB`: {folder name: [ZeRO stage, frozen left out, wrapped as PEFT does]}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

FROZEN = ("layers.0.", "embed_tokens")


def tiny(**changes):
    """A Llama of 21 tensors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(3)
    return LlamaForCausalLM(LlamaConfig(**(sizes | changes))).to(torch.bfloat16)


class Adapted(torch.nn.Module):
    """A linear layer with a low-rank adapter, named as PEFT names it."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        like = {"bias": False, "dtype": base.weight.dtype}
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(base.in_features, 2, **like)})
        self.lora_B = torch.nn.ModuleDict(
            {"default": torch.nn.Linear(2, base.out_features, **like)}
        )

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Peft(torch.nn.Module):
    """A model under the names that PEFT gives it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.base_model = torch.nn.Module()
        self.base_model.model = model.requires_grad_(False)
        for layer in model.model.layers:
            layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj)

    def forward(self, **batch):
        return self.base_model.model(**batch)


def save(folder: Path, stage: int, exclude: bool, peft: bool) -> None:
    """Two steps, a checkpoint, and what DeepSpeed makes of it."""
    import deepspeed
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    model = tiny()
    if peft:
        model = Peft(model)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(each in name for each in FROZEN))
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
        "bf16": {"enabled": True},
    }
    trained = [each for each in model.parameters() if each.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(trained, lr=1e-2), config=config
    )
    ids = torch.arange(1, 9)[None]
    for _ in range(2):
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    engine.save_checkpoint(str(folder), tag="global_step2", exclude_frozen_parameters=exclude)
    if os.environ["RANK"] == "0":
        masters = get_fp32_state_dict_from_zero_checkpoint(
            str(folder), "global_step2", exclude_frozen_parameters=exclude
        )
        torch.save({name: each.clone() for name, each in masters.items()}, f"{folder}.expected")
    torch.distributed.barrier()
    engine.destroy()


if __name__ == "__main__":
    from vcsoup_dist.training.distributed import start_distributed

    start_distributed()
    job = Path(sys.argv[1])
    for name, (stage, exclude, peft) in json.loads(job.read_text()).items():
        save(job.parent / name, stage, exclude, peft)
    torch.distributed.destroy_process_group()
