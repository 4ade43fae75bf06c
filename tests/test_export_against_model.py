"""An export holds what its --model has, under the same names in the same shapes, or is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from command import vcsoup
from fork_server import call_forked
from frozen_rank import tiny
from merging import read_all
from safetensors.torch import load_file, save_file

from vcsoup_dist.launch.ranks import run_ranks

pytestmark = [pytest.mark.models, pytest.mark.processes, pytest.mark.ranks]

CHECKPOINTS = {
    "whole": (3, False, False),
    "excluded": (3, True, False),
    "zero2": (2, False, False),
    "zero2-excluded": (2, True, False),
    "peft": (2, False, True),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """DeepSpeed checkpoints of two ranks, and models they may be exported with."""
    root = tmp_path_factory.mktemp("export")
    job = root / "job.json"
    job.write_text(json.dumps(CHECKPOINTS))
    call_forked(run_ranks, "frozen_rank", job, 2, 1, root / "logs")
    tiny().save_pretrained(root / "base")
    tiny(vocab_size=56).save_pretrained(root / "vocabulary")
    tiny(num_hidden_layers=3).save_pretrained(root / "deeper")
    tiny(tie_word_embeddings=True).save_pretrained(root / "tied")
    tiny(attention_bias=True).save_pretrained(root / "biased")
    shutil.copytree(root / "base", root / "config")
    (root / "config" / "model.safetensors").unlink()
    return root


def export(world: Path, out: Path, checkpoint: str, *more: str, code: int = 0) -> str:
    return vcsoup("export", checkpoint, "--out", out, *more, folder=world, code=code)


def loaded(out: Path) -> dict[str, torch.Tensor]:
    """As transformers loads it, with nothing missing."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model.state_dict()


@pytest.mark.parametrize(
    ("checkpoint", "model", "line"),
    [
        ("excluded", "base", "9 more tensors of the 21 .*without its frozen.*--frozen-from"),
        ("zero2-excluded", "base", "9 more tensors of the 21 .*without its frozen.*--frozen-from"),
        ("excluded", "config", "without its frozen .*give as --model the base with its weights"),
        ("peft", "base", r"lora_A|base_layer.*merge_and_unload\(\)"),
        ("whole", "vocabulary", r"has shape \[48, 16\], in --model \[56, 16\]"),
        ("whole", "deeper", '"model.layers.2.* and 8 more tensors .*with its frozen parameters'),
        ("whole", "biased", "self_attn.[kqvo]_proj.bias"),
        ("whole", "tied", '"lm_head.weight" that tied does not have, as its config ties it'),
    ],
)
def test_what_differs_from_the_model_is_one_line(world, tmp_path, checkpoint, model, line):
    said = export(world, tmp_path / "out", checkpoint, "--model", model, code=2)
    assert len(said.splitlines()) == 1
    assert re.search(line, said), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("checkpoint", ["excluded", "zero2-excluded"])
@pytest.mark.parametrize("dtype", [None, "fp32", "bf16"])
def test_frozen_parameters_come_from_the_base_bit_for_bit(world, tmp_path, checkpoint, dtype):
    more = ["--dtype", dtype] if dtype else []
    out = tmp_path / "out"
    said = export(world, out, checkpoint, "--model", "base", "--frozen-from-model", *more)
    assert "10 of its tensors are taken from base" in said
    base, masters = load_file(world / "base" / "model.safetensors"), expected(world, checkpoint)
    found = load_file(out / "model.safetensors")
    assert found.keys() == base.keys() == loaded(out).keys()
    for name, tensor in base.items():
        if name not in masters:
            assert torch.equal(found[name], tensor.to(found[name].dtype)), name
        else:
            assert torch.equal(found[name], masters[name].to(found[name].dtype)), name
    assert "21 tensors" in vcsoup("verify", out, folder=world)


def expected(world: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    """What DeepSpeed's zero_to_fp32 makes of it."""
    return torch.load(world / f"{checkpoint}.expected")


@pytest.mark.parametrize("checkpoint", ["whole", "zero2"])
@pytest.mark.parametrize("model", ["base", "config"])
def test_fp32_exports_are_those_of_zero_to_fp32(world, tmp_path, checkpoint, model):
    export(world, tmp_path / "out", checkpoint, "--model", model, "--dtype", "fp32")
    found = load_file(tmp_path / "out" / "model.safetensors")
    masters = expected(world, checkpoint)
    assert found.keys() == masters.keys()
    assert all(torch.equal(found[name], masters[name].float()) for name in masters)


def test_zero2_says_what_is_read(world, tmp_path):
    said = export(world, tmp_path / "out", "zero2", "--model", "base")
    assert "read as the model used them, not from the optimizer's fp32 masters" in said


def test_a_checkpoint_in_a_model_folder_is_exported(world, tmp_path):
    folder = tmp_path / "checkpoint-2"
    shutil.copytree(world / "base", folder)
    shutil.copytree(world / "whole", folder, dirs_exist_ok=True)
    said = export(world, tmp_path / "out", str(folder), "--dtype", "fp32")
    assert "and a DeepSpeed checkpoint: the DeepSpeed checkpoint is read" in said
    found = load_file(tmp_path / "out" / "model.safetensors")
    masters = expected(world, "whole")
    assert all(torch.equal(found[name], masters[name].float()) for name in masters)


@pytest.mark.parametrize("prefix", ["model.", "actor.model.", "module."])
def test_a_prefix_that_the_model_has_not_is_left_out_with_a_word(world, tmp_path, prefix):
    policy = tmp_path / "policy"
    policy.mkdir()
    tensors = load_file(world / "base" / "model.safetensors")
    save_file({prefix + name: each for name, each in tensors.items()}, policy / "model.safetensors")
    said = export(world, tmp_path / "out", str(policy), "--model", "base")
    assert repr(prefix) in said
    assert read_all(tmp_path / "out") == read_all(world / "base")


def test_a_tied_head_may_be_there_or_not(world, tmp_path):
    tensors = load_file(world / "tied" / "model.safetensors")
    assert "lm_head.weight" not in tensors
    for name, more in (("alias", {"lm_head.weight": tensors["model.embed_tokens.weight"]}),):
        (tmp_path / name).mkdir()
        torch.save(more | tensors, tmp_path / name / "pytorch_model.bin")
        export(world, tmp_path / "out", str(tmp_path / name), "--model", "tied")
        assert read_all(tmp_path / "out") == read_all(world / "tied")


def test_frozen_from_model_needs_one_with_weights(world, tmp_path):
    said = export(world, tmp_path / "out", "excluded", "--frozen-from-model", code=2)
    assert "needs --model" in said
    more = ["--model", "config", "--frozen-from-model"]
    assert "has no weights" in export(world, tmp_path / "out", "excluded", *more, code=2)
