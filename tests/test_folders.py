"""What a folder is that was given for a model: one line that names its kind and what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from merging import write_policy

from vcsoup_dist.checkpoints.folders import describe, require_model
from vcsoup_dist.checkpoints.sources import open_source
from vcsoup_dist.errors import UserError

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4f\nsize 4976698672\n"
PAGE = "<!DOCTYPE html>\n<html><head><title>Hugging Face</title></head></html>"


def model(path: Path, **options) -> Path:
    return write_policy(path, {"a.weight": ("F32", np.ones((2, 3), "<f4"))}, **options)


def put(path: Path, *names: str, content: str = "x") -> None:
    """Files of these names, with the folders that they are in."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content)


def adapter(path: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": "meta-llama/Llama-3.2-1B"}
    put(path, "adapter_config.json", content=json.dumps(config))
    put(path, "adapter_model.safetensors")


def shards(path: Path, kind: str = "safetensors") -> None:
    stem = "pytorch_model" if kind == "bin" else "model"
    put(path, "config.json", *(f"{stem}-0000{i}-of-00002.{kind}" for i in (1, 2)))


def index_alone(path: Path) -> None:
    places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    put(path, "model.safetensors.index.json", content=json.dumps({"weight_map": places}))


def hub_cache(path: Path) -> None:
    for commit in ("0123abc", "4567def"):
        model(path / "snapshots" / commit)
    put(path, "refs/main", content="0123abc")
    (path / "blobs").mkdir()


def dangling(path: Path) -> None:
    put(path, "config.json", content="{}")
    (path / "model.safetensors").symlink_to("../../blobs/0123")


def trainer_output(path: Path) -> None:
    for step in (9, 10, 100):
        model(path / f"checkpoint-{step}")


def tags_without_latest(path: Path) -> None:
    for step in (9, 10):
        put(path, f"global_step{step}/mp_rank_00_model_states.pt")


def replaced(path: Path, name: str, content: str) -> None:
    model(path)
    (path / name).write_text(content)


KINDS = {
    "adapter": (adapter, "is a LoRA adapter .*merge it into meta-llama/Llama-3.2-1B .*merge_and_"),
    "adapter beside weights": (
        lambda p: (model(p), adapter(p)), "a model and a LoRA adapter .* move the adapter's files",
    ),
    "adapters of a trainer": (
        lambda p: adapter(p / "checkpoint-7"), "its checkpoint-7 is a LoRA adapter",
    ),
    "shards without index": (
        shards, "2 of 2 weights files .* but no model.safetensors.index.json; copy that file",
    ),
    "bin shards without index": (
        lambda p: shards(p, "bin"), "2 of 2 weights files .* no pytorch_model.bin.index.json",
    ),
    "FSDP": (
        lambda p: put(p, ".metadata", "__0_0.distcp", "__1_0.distcp"),
        "sharded checkpoint of FSDP .*accelerate merge-weights",
    ),
    "FSDP of a trainer": (
        lambda p: put(
            p, "config.json", "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp",
            "trainer_state.json",
        ),
        "FSDP .*pytorch_model_fsdp_0.* accelerate merge-weights",
    ),
    "FSDP in checkpoints": (
        lambda p: put(p, "step-5/__0_0.distcp", "step-5/.metadata"), "its step-5 is .*FSDP",
    ),
    "verl": (
        lambda p: put(p, "model_world_size_2_rank_0.pt", "optim_world_size_2_rank_0.pt"),
        "checkpoint of verl .*verl.model_merger",
    ),
    "verl's output": (
        lambda p: put(
            p, "latest_checkpointed_iteration.txt", "global_step_4/data.pt",
            "global_step_4/actor/model_world_size_2_rank_0.pt",
            "global_step_4/actor/huggingface/config.json",
        ),
        "its global_step_4.* verl .*verl.model_merger",
    ),
    "Megatron": (
        lambda p: put(
            p, "latest_checkpointed_iteration.txt", "iter_0000010/mp_rank_00/model_optim_rng.pt"
        ),
        "Megatron checkpoint .*Megatron-Bridge",
    ),
    "Megatron iteration": (
        lambda p: put(p, "mp_rank_00_000/model_optim_rng.pt"), "Megatron checkpoint",
    ),
    "Megatron distributed": (
        lambda p: put(p, "common.pt", "metadata.json", "__0_0.distcp"), "Megatron checkpoint",
    ),
    "Megatron release": (
        lambda p: put(p, "latest_checkpointed_iteration.txt", "release/mp_rank_00/x.pt"),
        "its release is a Megatron checkpoint",
    ),
    "NeMo": (lambda p: put(p, "llama.nemo"), "NeMo model .*export_ckpt"),
    "GGUF": (lambda p: put(p, "llama-Q4_K_M.gguf", "config.json"), "GGUF model"),
    "Meta's": (
        lambda p: put(p, "consolidated.00.pth", "params.json", "tokenizer.model"),
        "format of Meta or Mistral .*convert_llama_weights_to_hf",
    ),
    "Mistral's": (
        lambda p: put(p, "consolidated.safetensors", "params.json"), "format of Meta or Mistral",
    ),
    "Flax": (lambda p: put(p, "flax_model.msgpack", "config.json"), "Flax model .*from_flax"),
    "TensorFlow": (lambda p: put(p, "tf_model.h5", "config.json"), "TensorFlow model .*from_tf"),
    "ONNX": (lambda p: put(p, "model.onnx", "config.json"), "ONNX model"),
    "ONNX folder": (lambda p: put(p, "onnx/model.onnx", "config.json"), "ONNX model"),
    "hub cache": (hub_cache, "model in the hub's cache.*give .*/snapshots/0123abc"),
    "hub cache root": (
        lambda p: hub_cache(p / "models--org--name"), "the hub's cache, of models--org--name",
    ),
    "unfinished hub cache": (
        lambda p: put(p / "models--o--n", "refs/main", "snapshots/x/.keep", "blobs/1.incomplete"),
        "cache",
    ),
    "unfinished download": (
        lambda p: put(p, "config.json", ".cache/huggingface/download/x.safetensors.1.incomplete"),
        "download that was not finished",
    ),
    "dangling": (dangling, "its model.safetensors is a link to a file that is missing"),
    "a trainer's output": (
        trainer_output, "models in checkpoint-9, checkpoint-10, checkpoint-100; give one of",
    ),
    "tags without latest": (
        tags_without_latest, "models in global_step9, global_step10; give one of these",
    ),
    "LFS weights": (
        lambda p: replaced(p, "model.safetensors", LFS), "its model.safetensors is a Git LFS poin",
    ),
    "LFS tokenizer": (
        lambda p: replaced(p, "tokenizer.json", LFS), "tokenizer.json is a Git LFS .*git lfs pull",
    ),
    "LFS config": (lambda p: replaced(p, "config.json", LFS), "its config.json is a Git LFS point"),
    "LFS tokenizer.model": (
        lambda p: replaced(p, "tokenizer.model", LFS), "its tokenizer.model is a Git LFS pointer",
    ),
    "page as weights": (
        lambda p: replaced(p, "model.safetensors", PAGE), "its model.safetensors is a web page",
    ),
    "page as config": (lambda p: replaced(p, "config.json", PAGE), "its config.json is a web page"),
    "answer as weights": (
        lambda p: replaced(p, "model.safetensors", "Entry not found"), "saved answer of a server",
    ),
    "JSON answer as weights": (
        lambda p: replaced(p, "model.safetensors", '{"error":"Repository not found"}'),
        "saved answer of a server",
    ),
    "bin as safetensors": (
        lambda p: replaced(p, "model.safetensors", "PK\3\4"), "torch.save file under another",
    ),
    "empty weights": (lambda p: replaced(p, "model.safetensors", ""), "truncated or not a safet"),
    "empty": (lambda p: p.mkdir(), "is empty"),
    "diffusers": (
        lambda p: put(p, "model_index.json", "unet/diffusion_pytorch_model.safetensors"),
        "diffusers pipeline",
    ),
    "optimizer only": (
        lambda p: put(p, "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json"),
        "only a trainer's state",
    ),
    "config only": (lambda p: put(p, "config.json", "tokenizer.json"), "copy or download the wei"),
    "other names": (
        lambda p: put(p, "config.json", "llama.safetensors"), "llama.safetensors; if that is a who",
    ),
    "PyTorch files": (lambda p: put(p, "weights.pth"), "PyTorch files .*save_pretrained"),
    "orbax": (lambda p: put(p, "_METADATA", "manifest.ocdbt", "d/x"), "Orbax"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_folder_is_named_with_what_to_do(tmp_path, kind):
    build, line = KINDS[kind]
    path = tmp_path / "folder"
    build(path)
    for refuse in (require_model, open_source):
        with pytest.raises(UserError, match=line) as error:
            refuse(path)
        assert "\n" not in str(error.value)


def test_candidates_are_named_oldest_first(tmp_path):
    trainer_output(tmp_path)
    assert describe(tmp_path).candidates == ("checkpoint-9", "checkpoint-10", "checkpoint-100")


def test_indexed_weights_that_are_missing_are_counted(tmp_path):
    index_alone(tmp_path / "p")
    put(tmp_path / "p", "config.json", content="{}")
    for refuse in (require_model, open_source):
        with pytest.raises(UserError, match="model-00001-of-00002.* 2 of the 2"):
            refuse(tmp_path / "p")


def test_paths_that_are_no_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("gone")
    put(tmp_path, "model.safetensors", "m.gguf", "m.pt", "m.tar", "m.txt")
    lines = {
        "org/name": "hf download org/name --local-dir name",
        "no/such/folder": "no such model directory",
        "link": "is a link to gone, which is not there",
        "model.safetensors": "give the folder that it is in",
        "m.gguf": "GGUF file",
        "m.pt": "PyTorch file",
        "m.tar": "unpack it",
        "m.txt": "is a file, not a model directory",
    }
    for path, line in lines.items():
        with pytest.raises(UserError, match=line):
            require_model(Path(path), "model")


QUANTISED = {
    "GPTQ": lambda p: put(p, "quantize_config.json"),
    "AWQ": lambda p: put(p, "quant_config.json"),
    "ModelOpt": lambda p: put(p, "hf_quant_config.json"),
    "config": lambda p: put(p, "config.json", content='{"quantization_config": {"bits": 4}}'),
    "mlx": lambda p: put(p, "config.json", content='{"quantization": {"group_size": 64}}'),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_files_that_say_quantised_are_believed(tmp_path, kind):
    QUANTISED[kind](model(tmp_path / "p"))
    for refuse in (require_model, open_source):
        with pytest.raises(UserError, match=r"holds quantised weights .*as it was trained"):
            refuse(tmp_path / "p")
    require_model(tmp_path / "p", quantised=True)


TENSORS = {
    "GPTQ": {"a.qweight": ("I32", 4), "a.qzeros": ("I32", 4), "a.scales": ("F16", 2)},
    "bitsandbytes int8": {"a.weight": ("I8", 1), "a.SCB": ("F32", 4)},
    "bitsandbytes nf4": {"a.weight": ("U8", 1), "a.weight.absmax": ("F32", 4)},
    "FP8": {"a.weight": ("F8_E4M3", 1), "a.weight_scale_inv": ("F32", 4)},
    "compressed-tensors": {"a.weight_packed": ("I32", 4), "a.weight_scale": ("BF16", 2)},
    "mlx": {"a.weight": ("U32", 4), "a.scales": ("F16", 2), "a.biases": ("F16", 2)},
    "MXFP4": {"a.blocks": ("U8", 1), "a.scales": ("F8_E8M0", 1)},
}


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_are_quantised_are_seen_without_a_config(tmp_path, kind):
    tensors = {
        name: (dtype, np.ones(size * 8, "u1").view(f"V{size}").reshape(4, 2))
        for name, (dtype, size) in TENSORS[kind].items()
    }
    write_policy(tmp_path / "p", tensors)
    for refuse in (require_model, open_source):
        with pytest.raises(UserError, match="holds quantised weights"):
            refuse(tmp_path / "p")


def test_a_model_is_one_also_beside_what_is_read_by_others(tmp_path):
    path = model(tmp_path / "p", shard_size=1)
    put(path, "tf_model.h5", "flax_model.msgpack", "consolidated.00.pth", "onnx/model.onnx")
    put(path, "optimizer.pt", "training_args.bin", "adapter_model.safetensors", "README.md")
    put(path, "checkpoint-7/model.safetensors")
    require_model(path)
    assert describe(path).what == "is a Hugging Face model (safetensors)"
    assert open_source(path).kind == "safetensors"


def test_the_key_begins_the_line_and_configs_are_read(tmp_path):
    path = model(tmp_path / "p")
    (path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"^model: .*config.json: its JSON is not an object"):
        require_model(path, "model")
    (path / "config.json").unlink()
    with pytest.raises(UserError, match=r"^values.a.reward: .*no config.json"):
        require_model(path, "values.a.reward")


def test_a_model_and_a_checkpoint_in_one_folder_are_read_as_is_preferred(tmp_path):
    path = model(tmp_path / "p")
    put(path, "latest", content="global_step7")
    put(path, "global_step7/mp_rank_00_model_states.pt")
    assert describe(path).holds == ("safetensors", "deepspeed")
    found = open_source(path)
    assert found.kind == "safetensors"
    assert "and a DeepSpeed checkpoint: the model is read" in found.notes[0]
    with pytest.raises(UserError, match="mp_rank_00_model_states"):
        open_source(path, prefer="deepspeed")


@pytest.mark.processes
def test_describing_is_quick_and_imports_no_torch(tmp_path):
    for i in range(300):
        put(tmp_path / "runs" / f"checkpoint-{i}", *(f"events.out.{j}" for j in range(10)))
    began = time.process_time()
    describe(tmp_path)
    assert time.process_time() - began < 1
    code = "import sys, vcsoup_dist.checkpoints.folders; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.getcwd())
