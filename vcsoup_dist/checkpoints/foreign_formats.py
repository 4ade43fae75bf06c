"""Formats of weights that are not a Hugging Face model, and what converts each to one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

ORIGINAL = "give the model in Hugging Face format that it was made from"


class Format(NamedTuple):
    """How a foreign format is known, and what turns it into a model folder."""

    patterns: Sequence[str]
    """Of names of files and folders; one that is there suffices."""
    what: str
    """As in "is a GGUF model"."""
    advice: str
    """{0} stands for the folder."""


FOLDERS = (
    Format(
        ("model_index.json",),
        "a diffusers pipeline, not a language model",
        "give a text model",
    ),
    Format(
        ("model_world_size_*_rank_*.pt",),
        "a checkpoint of verl",
        "convert it: python -m verl.model_merger merge --backend fsdp --local_dir {0}"
        " --target_dir MODEL",
    ),
    Format(
        ("*.nemo", "model_weights.ckpt", "model_weights"),
        "a NeMo model",
        "convert it with nemo.collections.llm.export_ckpt(..., target='hf')",
    ),
    Format(
        ("iter_[0-9]*", "mp_rank_[0-9][0-9]*", "model_optim_rng.pt", "common.pt"),
        "a Megatron checkpoint",
        "convert it with Megatron-Bridge (AutoBridge.export_ckpt) or Megatron-LM's"
        " tools/checkpoint/convert.py",
    ),
    Format(
        ("*.distcp", ".metadata", "pytorch_model_fsdp_[0-9]*", "pytorch_model_fsdp*.bin"),
        "a sharded checkpoint of FSDP (torch.distributed.checkpoint)",
        "convert it: accelerate merge-weights {0} MODEL, where the *.distcp files are not in"
        " {0} itself give the folder that they are in",
    ),
    Format(
        ("*.gguf", "ggml-model*.bin"),
        "a GGUF model",
        f"{ORIGINAL}; from_pretrained(FOLDER, gguf_file=...) reads it with its rounding",
    ),
    Format(
        ("consolidated.*",),
        "a model in the format of Meta or Mistral",
        "convert it: python -m transformers.models.llama.convert_llama_weights_to_hf (or the same"
        " of mistral)",
    ),
    Format(
        ("hf_model_*.pt", "meta_model_*.pt"),
        "a checkpoint of torchtune",
        "let torchtune write safetensors (safe_serialization: True)",
    ),
    Format(
        ("lit_model.pth",),
        "a LitGPT model",
        "convert it: litgpt convert_from_litgpt {0} MODEL",
    ),
    Format(
        ("params_shard_*.bin", "mlc-chat-config.json", "ndarray-cache.json", "tensor-cache.json"),
        "an MLC model",
        ORIGINAL,
    ),
    Format(("weights.npz", "weights.*.npz"), "an MLX model", ORIGINAL),
    Format(("*.engine",), "a TensorRT engine", ORIGINAL),
    Format(
        ("*.onnx", "*.onnx_data", "onnx"),
        "an ONNX model",
        ORIGINAL,
    ),
    Format(("openvino_*.xml", "openvino_*.bin"), "an OpenVINO model", ORIGINAL),
    Format(
        ("flax_model*.msgpack",),
        "a Flax model (JAX)",
        "convert it with transformers 4: from_pretrained({0!r}, from_flax=True).save_pretrained",
    ),
    Format(
        ("tf_model*.h5", "*.ckpt.index", "*.ckpt-*.index", "saved_model.pb", "*.keras"),
        "a TensorFlow model",
        "convert it with transformers 4: from_pretrained({0!r}, from_tf=True).save_pretrained",
    ),
    Format(
        ("_CHECKPOINT_METADATA", "manifest.ocdbt", "ocdbt.process_*", "_METADATA"),
        "an Orbax checkpoint (JAX)",
        "convert it with the tool of the project that wrote it",
    ),
    Format(("rust_model.ot",), "a model of rust-bert", ORIGINAL),
    Format(
        ("*.tflite", "*.mlpackage", "*.mlmodel", "*.pte"),
        "a model for phones (TensorFlow Lite, Core ML or ExecuTorch)",
        ORIGINAL,
    ),
    Format(
        ("*.ckpt",),
        "a checkpoint of Lightning",
        "load it with the code that trained it, and save_pretrained its model",
    ),
)
TORCH_FILES = Format(
    ("*.pt", "*.pth"),
    "a folder of PyTorch files under no name that a loader looks for",
    "load them with the code that wrote them, and save_pretrained the model",
)
"""So general that whatever is in the folder's own folders says more."""

_UNPACK = "unpack it, and give the folder"
_LOAD = "load it with the code that wrote it, and save_pretrained the model"
SUFFIXES = {
    ".gguf": ("a GGUF file", ORIGINAL),
    ".ggml": ("a GGML file", ORIGINAL),
    ".nemo": ("a NeMo archive", "convert it with nemo.collections.llm.export_ckpt"),
    ".onnx": ("an ONNX model", ORIGINAL),
    ".ckpt": ("a checkpoint of Lightning or another trainer", _LOAD),
    ".pt": ("a PyTorch file", _LOAD),
    ".pth": ("a PyTorch file", _LOAD),
    ".msgpack": ("a Flax file", ORIGINAL),
    ".h5": ("an HDF5 file of TensorFlow", ORIGINAL),
    ".zip": ("an archive", _UNPACK),
    ".tar": ("an archive", _UNPACK),
    ".gz": ("an archive", _UNPACK),
    ".tgz": ("an archive", _UNPACK),
    ".zst": ("an archive", _UNPACK),
}
"""Of single files."""

# What trainers save along with weights, and models do not need.
TRAINER_STATE = (
    "optimizer*", "scheduler*", "rng_state*", "random_states_*", "trainer_state.json",
    "training_args*", "scaler.pt", "custom_checkpoint_*.pkl", "zero_to_fp32.py", "latest",
    "bf16_*optim_states.pt", "fp16_*optim_states.pt", "*_optim_states.pt", "events.out.*",
)  # fmt: skip


def matching(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Those names that one of the patterns fits, in order."""
    return sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def foreign_format(
    names: Iterable[str], formats: Sequence[Format] = FOLDERS
) -> tuple[Format, str] | None:
    """What a folder with these entries is, and the entry that says so; None where unknown."""
    names = [name for name in names if not matching([name], TRAINER_STATE)]
    for each in formats:
        if found := matching(names, each.patterns):
            return each, found[0]
    return None
