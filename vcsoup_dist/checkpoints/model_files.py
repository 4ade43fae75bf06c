"""The files of a model folder: which its weights are, and which are not what their names say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vcsoup_dist.checkpoints.file_content import fault_of_text, fault_of_weights
from vcsoup_dist.checkpoints.foreign_formats import matching

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
BIN_SINGLE_NAME = "pytorch_model.bin"
BIN_INDEX_NAME = "pytorch_model.bin.index.json"

Kind = Literal["safetensors", "bin", "deepspeed"]

_TEXTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
)  # fmt: skip
_QUANTISED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


@dataclass(frozen=True)
class Folder:
    """What is at a path that was given for a model."""

    path: Path
    what: str
    """Its kind, as a sentence's end: "is a LoRA adapter (adapter_config.json)"."""
    advice: str = ""
    """What converts it, or what to do; "" where its weights can be read as they are."""
    holds: tuple[Kind, ...] = ()
    """How its weights can be read, the usual way first; () where they cannot."""
    candidates: tuple[str, ...] = ()
    """Folders in it that hold weights, the newest last."""
    quantised: str = ""
    """What says that its weights are quantised; "" where nothing does."""
    known: bool = True
    """False where it holds weights of no kind at all."""

    @property
    def line(self) -> str:
        """All of it in one line."""
        return "; ".join(filter(None, [f"{self.path}: {self.what}", self.advice]))


def weights_files(files: set[str]) -> list[str]:
    """The files that would be read as Hugging Face weights."""
    for single, index, pattern in (
        (SINGLE_NAME, INDEX_NAME, "model-*.safetensors"),
        (BIN_SINGLE_NAME, BIN_INDEX_NAME, "pytorch_model-*.bin"),
    ):
        if single in files or index in files:
            shards = matching(files, [pattern]) if index in files else []
            return [name for name in (index, single) if name in files] + shards
    return []


def adapter(path: Path, files: set[str], weights: Sequence[str]) -> Folder | None:
    sign = next(iter(matching(files, ["adapter_config.json", "adapter_model*"])), None)
    if sign is None:
        return None
    config = _small_json(path / sign) if sign == "adapter_config.json" else {}
    kind = str(config.get("peft_type") or "PEFT").replace("LORA", "LoRA")[:40]
    base = str(config.get("base_model_name_or_path") or "its base model")[:80]
    if weights:
        if sign != "adapter_config.json":
            return None  # no loader looks at it
        return Folder(
            path,
            f"holds a model and a {kind} adapter ({sign}) as well, and transformers would load"
            f" the adapter on {base} instead",
            "move the adapter's files away if the model is complete without them",
        )
    # Merged as a language model, a reward would lose its head.
    head = "SequenceClassification" if config.get("task_type") == "SEQ_CLS" else "CausalLM"
    return Folder(
        path,
        f"is a {kind} adapter ({sign}), not a whole model",
        f"merge it into {base} first: AutoPeftModelFor{head}.from_pretrained(...)"
        ".merge_and_unload().save_pretrained(MODEL)",
    )


def broken_file(
    path: Path, files: set[str], weights: Sequence[str], others: set[str]
) -> Folder | None:
    """A file that is a pointer, a link to nowhere, a web page ..., not what its name says.

    others: entries that are no files or folders.
    """
    lost = matching(
        others, [SINGLE_NAME, INDEX_NAME, BIN_SINGLE_NAME, BIN_INDEX_NAME, "model-*", *_TEXTS]
    )
    texts = [name for name in (*_TEXTS, *weights) if name in files and not _is_weights(name)]
    tensors = [name for name in weights if _is_weights(name)]
    for name in (*tensors, *texts, *lost):
        look = fault_of_weights if _is_weights(name) else fault_of_text
        if fault := look(path / name):
            what, _, advice = fault.partition("; ")
            return Folder(path, f"its {name} {what}", advice)
    return None


def _is_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def readable_model(path: Path, files: set[str], holds: tuple[Kind, ...]) -> Folder:
    if holds[0] == "deepspeed":
        return Folder(path, "is a DeepSpeed checkpoint", holds=holds)
    quantised = next((name for name in _QUANTISED if name in files), "")
    config = _small_json(path / "config.json") if "config.json" in files else {}
    for key in ("quantization_config", "quantization"):  # the second is mlx's
        quantised = quantised or (f"{key} in config.json" if config.get(key) else "")
    what = f"is a Hugging Face model ({holds[0]})"
    what += ", and a DeepSpeed checkpoint" if holds[1:] else ""
    return Folder(path, what, holds=holds, quantised=quantised)


def _small_json(file: Path) -> dict[str, Any]:
    """{} where it is not a JSON object: then it is described without."""
    try:
        with open(file, "rb") as opened:
            value = json.loads(opened.read(1 << 20))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
