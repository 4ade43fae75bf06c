"""Estimates of a training's memory against hand arithmetic, DeepSpeed and real autograd."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import save_tiny_model, write_pairs
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from vcsoup_dist.check.show import show_check
from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe import Training
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.training.deepspeed_config import FOLDERS, fill_deepspeed_config
from vcsoup_dist.training.memory import (
    Decoder,
    ModelSize,
    TrainingMemory,
    activation_bytes,
    count_parameters,
    estimate_memory,
    model_size,
)
from vcsoup_dist.workspace import Workspace

sys.path.append(str(Path(__file__).parents[1] / "tools"))

from memory_table import TABLE_SIZES, table

NAMES = [file.stem for file in sorted(FOLDERS[0].glob("*.json"))]
SIZE = ModelSize(8_000_000_000, 500_000_000, Decoder(32, 4096, 14_336, 1024, 128_256))


def estimate(
    name: str, ranks_per_node: int = 8, nodes: int = 1, size: ModelSize = SIZE, **training: object
) -> TrainingMemory:
    recipe = Training(**({"nvme_path": "/nvme"} | training))
    config = fill_deepspeed_config(FOLDERS[0] / f"{name}.json", recipe, ranks_per_node)
    return estimate_memory(size, config, recipe, ranks_per_node, nodes)


DEEPSPEEDS = {
    "zero3": (False, False),
    "zero3_offload": (True, False),
    "zero3_offload_param": (True, True),
}


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("name, offload", DEEPSPEEDS.items())
def test_states_of_bf16_are_deepspeeds_own_estimate(name, offload, nodes):
    host, gpu, _ = estimate_zero3_model_states_mem_needs(
        SIZE.parameters, SIZE.largest_layer, 8, nodes, *offload, zero_init=True
    )
    ours = estimate(name, 8, nodes)
    assert ours.states == gpu
    assert ours.nvme == 0
    # On the host the optimizer's temporaries come on top of DeepSpeed's figure.
    temporaries = 8 * 8 * 100_000_000 if offload[0] else 0
    assert ours.host == pytest.approx(host + temporaries, abs=2)


def test_zero2s_states_are_deepspeeds_own_estimate():
    host, gpu = estimate_zero2_model_states_mem_needs(SIZE.parameters, 8, 2, cpu_offload=False)
    ours = estimate("zero2", 8, 2)
    assert (ours.states, ours.host) == (gpu, host)


def test_an_8b_model_on_eight_gpus_by_hand():
    zero3 = estimate("zero3")
    # 18 bytes a parameter over 8 ranks, and 4 for each of the largest layer's.
    assert zero3.states == 18_000_000_000 + 2_000_000_000
    # Two buckets of 50 million, and a thousand million gathered weights less the largest layer.
    assert zero3.buffers == 2 * 2 * 50_000_000 + 2 * 500_000_000
    # Gradients and Adam's denominator of one group of 100 million parameters, in fp32.
    assert zero3.step == 800_000_000
    hpz = estimate("zero3_hpz")
    assert hpz.buffers - zero3.buffers == 2 * 1_000_000_000


def test_fp32_takes_two_bytes_more_for_every_weight_wherever_it_lies():
    changes = {"dtype": "fp32"}
    more = {name: estimate(name, **changes).states - estimate(name).states for name in NAMES}
    layer = 2 * 2 * SIZE.largest_layer
    assert more["zero2"] == 2 * SIZE.parameters
    assert more["zero3"] == more["zero3_offload"] == layer + 2 * SIZE.parameters // 8
    assert more["zero3_offload_param"] == layer
    host = estimate("zero3_offload_param", **changes).host - estimate("zero3_offload_param").host
    assert host == 1.5 * 2 * SIZE.parameters


def test_nvme_takes_the_optimizers_bytes_from_the_host():
    nvme, offload = estimate("zero3_nvme"), estimate("zero3_offload_param")
    assert nvme.states == offload.states
    assert nvme.nvme == 16 * SIZE.parameters
    buffers = 4 * 4 * 100_000_000 * 8
    assert offload.host - nvme.host == 1.5 * 12 * SIZE.parameters - buffers


@pytest.mark.parametrize("name", NAMES)
def test_more_gpus_never_need_more_memory_each(name):
    grown = [estimate(name, 8, nodes) for nodes in (1, 2, 4, 8)]
    for fewer, more in zip(grown, grown[1:], strict=False):
        assert more.states <= fewer.states
        assert more.gpu <= fewer.gpu
        assert more.nvme <= fewer.nvme
        assert more.host <= fewer.host


def test_what_is_offloaded_leaves_the_gpu():
    gpu = {name: estimate(name).gpu for name in NAMES}
    assert gpu["zero3_offload_param"] < gpu["zero3_offload"] < gpu["zero3"] < gpu["zero2"]
    plain, offloaded = estimate("zero3"), estimate("zero3", activation_offload=True)
    assert offloaded.activations < plain.activations
    assert offloaded.host - plain.host == 8 * 32 * 8192 * 2 * 4096


def test_checkpointing_keeps_a_state_a_layer_and_one_layers_inside():
    decoder = Decoder(layers=10, hidden=64, intermediate=256, key_values=32, vocabulary=100)
    layer = 1000 * (8 * 64 + 2 * (6 * 64 + 2 * 32 + 4 * 256))
    on, _ = activation_bytes(decoder, 1000, 2, checkpointing=True, offload=False)
    off, _ = activation_bytes(decoder, 1000, 2, checkpointing=False, offload=False)
    assert on == 10 * 1000 * 2 * 64 + layer
    # The head's logits and gradient are more than a state of 64.
    head = 1000 * 100 * 6 + 100 * 64 * 6
    assert off == 10 * layer + head


@pytest.mark.models
@pytest.mark.parametrize("dtype, width", [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_layers_activations_are_what_autograd_keeps(dtype, width):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    tokens = 256
    kept = []
    for layers in (2, 4):
        config.num_hidden_layers = layers
        model = LlamaForCausalLM(config).to(dtype)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        seen: dict[int, int] = {}

        def keep(tensor, weights=weights, seen=seen):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model.model(torch.randint(0, 50, (1, tokens)), use_cache=False)
        kept.append(sum(seen.values()))
        del output
    a_layer = (kept[1] - kept[0]) / 2
    decoders = [Decoder(layers, 64, 160, 32, 1) for layers in (2, 4)]
    two, four = (
        activation_bytes(each, tokens, width, checkpointing=False, offload=False)[0]
        for each in decoders
    )
    assert (four - two) / 2 == pytest.approx(a_layer, rel=0.1)


@pytest.mark.models
def test_a_models_size_is_read_from_its_headers(tmp_path):
    save_tiny_model(tmp_path)
    size = model_size(tmp_path)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert size.parameters == sum(each.numel() for each in model.parameters())
    assert size.largest_layer == sum(each.numel() for each in model.model.layers[0].parameters())
    assert size.decoder == Decoder(2, 32, 64, 16, 25)


def test_the_largest_layer_may_be_the_embedding():
    shapes = [
        ("model.embed_tokens.weight", (100, 8)),
        ("model.layers.0.mlp.weight", (8, 8)),
        ("model.layers.1.mlp.weight", (8, 8)),
        ("model.layers.1.norm.weight", (8,)),
        ("model.norm.weight", (8,)),
    ]
    assert count_parameters(shapes) == (800 + 64 + 72 + 8, 800)
    assert count_parameters(shapes[1:]) == (64 + 72 + 8, 72)


def test_the_readmes_table_is_what_the_command_prints():
    assert table() in (FOLDERS[0] / "README.md").read_text()


def test_the_tables_models_have_the_parameters_their_shapes_give():
    for name, size in TABLE_SIZES.items():
        d = size.decoder
        layer = 2 * d.hidden * (d.hidden + d.key_values) + 3 * d.hidden * d.intermediate
        embedding = d.vocabulary * d.hidden
        ends = embedding if name == "1.5B" else 2 * embedding
        assert size.parameters == pytest.approx(d.layers * layer + ends, rel=1e-3)
        assert size.largest_layer == max(layer, embedding)


RECIPE = {
    "name": "small",
    "model": "base",
    "values": {
        "long": {"data": {"path": "pairs.jsonl"}, "reward": {"callable": "rewards.py:longer"}}
    },
    "launch": {"ranks": 2},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_tiny_model(tmp_path / "base")
    write_pairs(tmp_path / "pairs.jsonl", 5)
    (tmp_path / "rewards.py").write_text("def longer(prompt, response): ...\n")
    return tmp_path


def checked(folder: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> str:
    """What `vcsoup check` prints of a recipe."""
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE | changes))
    recipe = load_recipe(file)
    plan = make_plan(recipe, Hashes(folder / "hashes.json"))
    show_check(recipe, Workspace(folder / "run"), plan)
    return capsys.readouterr().out


@pytest.mark.models
def test_check_prints_what_training_needs(folder, capsys):
    printed = checked(folder, capsys, training={"learning_rate": 1e-3})
    assert "training by                      zero3 on 2 ranks" in printed
    assert "  memory of a rank (no GPU)" in printed
    assert "  host memory, about" in printed
    assert "NVMe" not in printed
    assert "warning" not in printed


@pytest.mark.models
def test_check_warns_of_a_machine_that_is_too_small(folder, capsys):
    printed = checked(folder, capsys, training={"tokens_per_batch": 10**12})
    assert "warning: training needs about" in printed
    assert "of host memory, this machine has" in printed


@pytest.mark.models
def test_check_prints_nvme_and_refuses_a_recipe_without_its_folder(folder, capsys):
    with pytest.raises(UserError, match="training.nvme_path"):
        checked(folder, capsys, training={"deepspeed": "zero3_nvme"})
    training = {"deepspeed": "zero3_nvme", "nvme_path": str(folder)}
    assert "  on NVMe, about" in checked(folder, capsys, training=training)
