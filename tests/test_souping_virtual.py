"""Soups summed straight into live models, equal bit for bit to written ones."""

import gc
import hashlib
import math
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from vcsoup_dist.checkpoints.auxiliary_files import copy_auxiliary_files
from vcsoup_dist.checkpoints.layout import DTYPE_BITS, read_layout
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.sources import Source, open_source
from vcsoup_dist.checkpoints.writer import ShardFile, plan_shards, write_index
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping import virtual
from vcsoup_dist.souping.kernels.formats import FLOAT_DTYPES
from vcsoup_dist.souping.kernels.kernel import weighted_sum
from vcsoup_dist.souping.virtual import load_soup, reweight

SMALL = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {
    "llama": ("Llama", {**SMALL, "intermediate_size": 40, "num_key_value_heads": 2}),
    "tied llama": (
        "Llama",
        {**SMALL, "intermediate_size": 40, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "gpt2": ("GPT2", {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4}),
    "qwen3": (
        "Qwen3",
        {**SMALL, "intermediate_size": 40, "num_key_value_heads": 2, "head_dim": 8},
    ),
    "moe": (
        "Qwen3Moe",
        {**SMALL, "intermediate_size": 40, "num_key_value_heads": 2, "head_dim": 8,
         "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
}  # fmt: skip


def new_model(kind: str, seed: int, dtype=torch.float32):
    name, settings = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**settings)
    torch.manual_seed(seed)
    # Not `.to(dtype)`, which would also round the rotary frequencies.
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def save_policies(folder: Path, kind: str, dtype, count: int = 3) -> list[Path]:
    """Of different seeds, cut into different shards."""
    policies = [folder / f"p{i}" for i in range(count)]
    for seed, (policy, size) in enumerate(zip(policies, ["1GB", "9KB", "5KB"], strict=False)):
        new_model(kind, seed, dtype).save_pretrained(policy, max_shard_size=size)
    return policies


def write_checkpoint(folder: Path, tensors) -> Path:
    """tensors: name -> (dtype, array)"""
    folder.mkdir()
    shards = plan_shards([(name, d, a.shape) for name, (d, a) in tensors.items()], 5000)
    for shard in shards:
        with ShardFile.create(folder, shard) as file:
            for name, _, _ in shard.tensors:
                file.write(name, 0, tensors[name][1].tobytes())
    write_index(folder, shards)
    return folder


def read_bytes(policy: Path, name: str) -> np.ndarray:
    layout = read_layout(policy)
    buffer = np.empty(layout[name].nbytes, np.uint8)
    with CheckpointReader(layout) as reader:
        reader.read_into(name, 0, buffer)
    return buffer


def write_soup(folder: Path, policies: list[Path], weights) -> Path:
    """A soup tensor by tensor, with the first policy's dtypes and auxiliary files."""
    layouts = [read_layout(policy) for policy in policies]
    tensors = {}
    for name, spec in layouts[0].items():
        chunks = [read_bytes(policy, name) for policy in policies]
        out = chunks[0].copy()
        if spec.dtype in FLOAT_DTYPES:
            dtypes = [layout[name].dtype for layout in layouts]
            weighted_sum(chunks, dtypes, np.array([weights], float), spec.dtype, [out])
        word = f"u{DTYPE_BITS[spec.dtype] // 8}"
        tensors[name] = (spec.dtype, out.view(word).reshape(spec.shape))
    write_checkpoint(folder, tensors)
    copy_auxiliary_files(policies[0], folder)
    return folder


def loaded(folder: Path, dtype, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options).eval()


def assert_same(model: nn.Module, other: nn.Module) -> None:
    state, expected = model.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(20).reshape(2, 10) % 61).logits


WEIGHTS = (0.3, 0.5, 0.2)


@pytest.mark.models
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_a_filled_model_is_the_written_soup_bit_for_bit(tmp_path, kind, stored, monkeypatch):
    monkeypatch.setattr(virtual, "ELEMENTS", 77)  # several chunks to a tensor
    policies = save_policies(tmp_path, kind, stored)
    soup = write_soup(tmp_path / "soup", policies, WEIGHTS)
    for computed in (torch.bfloat16, torch.float32):
        expected = loaded(soup, computed)
        model = new_model(kind, 9, computed)
        load_soup(model, policies, WEIGHTS)
        assert_same(model, expected)
        assert torch.equal(logits(model), logits(expected))


@pytest.mark.models
def test_reweighting_is_a_fresh_load(tmp_path):
    policies = save_policies(tmp_path, "tied llama", torch.bfloat16)
    model = loaded(policies[0], torch.bfloat16)
    soup = load_soup(model, policies, WEIGHTS)
    expected = loaded(write_soup(tmp_path / "soup", policies, WEIGHTS), torch.bfloat16)
    for weights in [(0, 1, 0), (1.5, -0.25, -0.25), (0.1, 0.2, 0.7), (1, 0, 0)]:
        reweight(model, weights)
        assert soup.weights == weights
        fresh = new_model("tied llama", 5, torch.bfloat16)
        load_soup(fresh, policies, weights)
        assert_same(model, fresh)
    assert_same(model, loaded(policies[0], torch.bfloat16))
    for change in (soup.reweight, lambda weights: reweight(soup, weights)):
        change(WEIGHTS)
        assert_same(model, expected)
        reweight(model, (0, 0, 1))


@pytest.mark.models
@pytest.mark.parametrize("kind", ["tied llama", "gpt2"])
def test_with_a_base_it_is_the_base_and_the_weighted_differences(tmp_path, kind):
    *policies, base = save_policies(tmp_path, kind, torch.bfloat16)
    model = loaded(policies[0], torch.bfloat16)
    load_soup(model, policies, (0.3, 0.7), base)
    for weights in [(0.8, 0.5), (0.3, 0.7), (1.25, 0), (0, 0), (0.5, 0.4999999)]:
        reweight(model, weights)
        rest = math.fsum([1, *(-weight for weight in weights)])
        of_base = rest if abs(rest) > 1e-6 else 0
        soup = write_soup(tmp_path / str(weights), [*policies, base], (*weights, of_base))
        assert_same(model, loaded(soup, torch.bfloat16))
    with pytest.raises(UserError, match="sum to 1"):
        load_soup(model, policies, (0.8, 0.5))


@pytest.mark.models
def test_a_base_that_is_saved_in_another_way_than_its_policies_is_their_base(tmp_path):
    *policies, base = save_policies(tmp_path, "tied llama", torch.float32)
    tensors = {
        name: ("F32", each.numpy())
        for name, each in loaded(base, torch.float32).state_dict().items()
    }
    tensors["model.rotary_emb.inv_freq"] = ("F32", np.ones(3, "<f4"))
    assert "lm_head.weight" in tensors  # a copy, as some published models have
    published = write_checkpoint(tmp_path / "published", tensors)
    models = [new_model("tied llama", 9) for _ in range(2)]
    for model, each in zip(models, (base, published), strict=True):
        load_soup(model, policies, (0.8, 0.5), each)
    assert_same(*models)


@pytest.mark.models
def test_policies_are_never_written_to(tmp_path):
    """A model that was loaded without a cast lies in a mapping of its file."""

    def digest():
        files = sorted(tmp_path.rglob("*.safetensors"))
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]

    policies = save_policies(tmp_path, "llama", torch.float32)
    before = digest()
    model = loaded(policies[0], torch.float32)
    load_soup(model, policies, WEIGHTS)
    reweight(model, (0, 0.5, 0.5))
    del model
    assert digest() == before


@pytest.mark.models
def test_policies_of_different_dtypes_round_to_the_first_ones(tmp_path):
    policies = save_policies(tmp_path, "qwen3", torch.bfloat16, 1)
    policies += save_policies(tmp_path / "wide", "qwen3", torch.float32, 2)[1:]
    for name, order in (("narrow", policies), ("broad", policies[::-1])):
        soup = write_soup(tmp_path / name, order, (0.3, 0.7))
        model = new_model("qwen3", 9)
        load_soup(model, order, (0.3, 0.7))
        assert_same(model, loaded(soup, torch.float32))


@pytest.mark.models
def test_a_checkpoint_with_both_names_of_tied_weights_fills_a_tied_model(tmp_path):
    policies = []
    for seed in range(2):
        model = new_model("tied llama", seed)
        tensors = {name: ("F32", tensor.numpy()) for name, tensor in model.state_dict().items()}
        assert "lm_head.weight" in tensors
        policies.append(write_checkpoint(tmp_path / f"p{seed}", tensors))
        model.config.save_pretrained(policies[-1])
    model = new_model("tied llama", 9)
    load_soup(model, policies, (0.3, 0.7))
    assert_same(model, loaded(write_soup(tmp_path / "s", policies, (0.3, 0.7)), torch.float32))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.models
def test_names_of_one_tensor_in_the_checkpoint_fill_an_untied_model(tmp_path):
    policies = save_policies(tmp_path, "tied llama", torch.float32, 2)
    alias = {"lm_head.weight": "model.embed_tokens.weight"}
    sources = [Source(each, "bin", read_layout(each), alias) for each in policies]
    model = new_model("llama", 9)
    load_soup(model, sources, (0.3, 0.7))
    expected = loaded(write_soup(tmp_path / "s", policies, (0.3, 0.7)), torch.float32)
    assert_same(model, expected)
    assert model.lm_head.weight is not model.model.embed_tokens.weight


@pytest.mark.models
def test_tied_weights_with_a_copy_each_are_both_filled(tmp_path):
    policies = save_policies(tmp_path, "tied llama", torch.float32, 2)
    model = new_model("tied llama", 9)
    # As on two devices.
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    load_soup(model, policies, (0.3, 0.7))
    assert_same(model, loaded(write_soup(tmp_path / "s", policies, (0.3, 0.7)), torch.float32))
    # The checkpoint may have the other of the two names.
    other = []
    for policy in policies:
        names = {name: name for name in read_layout(policy)}
        names["model.embed_tokens.weight"] = "lm_head.weight"
        tensors = {
            new: (
                "F32",
                read_bytes(policy, old).view("<f4").reshape(read_layout(policy)[old].shape),
            )
            for old, new in names.items()
        }
        other.append(write_checkpoint(tmp_path / f"other-{policy.name}", tensors))
    twin = new_model("tied llama", 9)
    load_soup(twin, other, (0.3, 0.7))
    assert_same(twin, model)


@pytest.mark.models
def test_experts_under_the_names_of_the_model_or_of_checkpoints(tmp_path):
    policies = save_policies(tmp_path, "moe", torch.float32, 2)
    assert any("experts.2.gate_proj" in name for name in read_layout(policies[0]))
    fused = []
    for seed in range(2):
        state = new_model("moe", seed).state_dict()
        tensors = {name: ("F32", tensor.numpy()) for name, tensor in state.items()}
        assert any("experts.gate_up_proj" in name for name in tensors)
        fused.append(write_checkpoint(tmp_path / f"fused{seed}", tensors))
    models = [new_model("moe", 9) for _ in range(2)]
    load_soup(models[0], policies, (0.3, 0.7))
    load_soup(models[1], fused, (0.3, 0.7))
    assert_same(*models)


class Buffers(nn.Module):
    """Parameters of other layouts, and buffers of both kinds."""

    def __init__(self, columns: int = 9) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(7)
        self.turned = nn.Parameter(torch.zeros(columns, 50).t())
        self.number = nn.Parameter(torch.zeros(()))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("not_saved", torch.ones(2), persistent=False)
        self.register_buffer("only_here", torch.ones(2))


def buffers_checkpoint(folder: Path, seed: int, **changes) -> Path:
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return "F32", rng.standard_normal(shape).astype("<f4")

    tensors = {
        "norm.weight": draw(7), "norm.bias": draw(7), "norm.running_mean": draw(7),
        "norm.running_var": draw(7), "norm.num_batches_tracked": ("I64", np.array(5)),
        "turned": draw(50, 9), "number": draw(), "empty": draw(0, 3),
        "model.rotary_emb.inv_freq": draw(3),
    } | changes  # fmt: skip
    return write_checkpoint(folder, {name: each for name, each in tensors.items() if each})


@pytest.mark.parametrize("elements", [1, 20, 1 << 20])
def test_buffers_strides_scalars_and_dtypes(tmp_path, monkeypatch, elements):
    monkeypatch.setattr(virtual, "ELEMENTS", elements)
    policies = [buffers_checkpoint(tmp_path / f"p{seed}", seed) for seed in range(2)]
    soup = write_soup(tmp_path / "s", policies, (0.3, 0.7))
    for dtype in (torch.float32, torch.bfloat16):
        model = Buffers().to(dtype)
        load_soup(model, policies, (0.3, 0.7))
        for name, tensor in model.state_dict().items():
            if name == "only_here":
                assert tensor.tolist() == [1, 1]
                continue
            stored = {torch.int64: "<i8"}.get(tensor.dtype, "<f4")
            expected = torch.from_numpy(read_bytes(soup, name).view(stored).copy())
            assert torch.equal(tensor, expected.reshape(tensor.shape).to(tensor.dtype)), name
        assert model.norm.num_batches_tracked == 5
        assert not model.turned.is_contiguous()


@pytest.mark.models
def test_parameters_that_accelerate_keeps_in_host_memory(tmp_path):
    import accelerate

    for kind in ("llama", "tied llama"):
        policies = save_policies(tmp_path / kind, kind, torch.float32, 2)
        expected = loaded(write_soup(tmp_path / kind / "s", policies, (0.3, 0.7)), torch.float32)
        whole = accelerate.cpu_offload(new_model(kind, 9), execution_device=torch.device("cpu"))
        assert all(each.is_meta for each in whole.parameters())
        part = new_model(kind, 9)
        accelerate.hooks.attach_align_device_hook(
            part.model.layers[1], "cpu", offload=True, preload_module_classes=["LlamaMLP"]
        )
        accelerate.hooks.add_hook_to_module(
            part.model.layers[1].mlp, accelerate.hooks.ModelHook(), append=True
        )
        assert {each.is_meta for each in part.parameters()} == {True, False}
        mapped = loaded(policies[0], torch.float32, device_map={"": "cpu"})
        for model in (whole, part, mapped):
            load_soup(model, policies, (0.9, 0.1))
            assert not torch.equal(logits(model), logits(expected))
            reweight(model, (0.3, 0.7))
            assert torch.equal(logits(model), logits(expected))


@pytest.mark.models
def test_parameters_on_disk_are_refused(tmp_path):
    import accelerate

    policies = save_policies(tmp_path, "llama", torch.float32, 2)
    files = tmp_path / "offloaded"
    parts = ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"]
    mixed = loaded(
        policies[0],
        torch.float32,
        device_map=dict.fromkeys(parts, "cpu") | {"model.layers.1": "disk"},
        offload_folder=files / "a",
    )
    whole = accelerate.disk_offload(
        new_model("llama", 9), files / "b", execution_device=torch.device("cpu")
    )
    for model, name in ((mixed, "model.layers.1."), (whole, "model.embed_tokens")):
        before = logits(model)
        with pytest.raises(UserError, match=f"^{name}.* is offloaded to disk by accelerate"):
            load_soup(model, policies, (0.3, 0.7))
        assert torch.equal(logits(model), before)


def mark(model: nn.Module, attribute: str) -> nn.Module:
    setattr(model.turned, attribute, 1)
    return model


def tie(model: nn.Module) -> nn.Module:
    model.norm.bias = model.norm.weight
    return model


def without_memory() -> nn.Module:
    with torch.device("meta"):
        return Buffers()


ZERO3 = "turned is sharded by DeepSpeed ZeRO-3; load the soup into a model before DeepSpeed"
REFUSED = {
    "no such tensor": ({"new": ("F32", np.ones(3, "<f4"))}, {}, "p0: holds new, for which Buffers"),
    "missing": ({"turned": None, "number": None}, {}, "Buffers: .* not fill turned and 1 more$"),
    "shape": ({"number": ("F32", np.ones(1, "<f4"))}, {}, r"number has shape \[1\], in Buf"),
    "float8": ({"number": ("F8_E4M3", np.ones((), "u1"))}, {}, r"quantised weights \(number of"),
    "integer": ({"number": ("I8", np.ones((), "i1"))}, {}, "is I8, in Buffers torch.float32;"),
    "other integer": (
        {"norm.num_batches_tracked": ("I32", np.array(5, "<i4"))}, {},
        "num_batches_tracked is I32, in Buffers torch.int64",
    ),
    "integers differ": (
        {}, {"norm.num_batches_tracked": ("I64", np.array(6))},
        r"p1: norm.num_batches_tracked differs from that of .*p0; integers have no weighted sum",
    ),
    "policy lacks": ({}, {"number": None}, "p1 lacks 'number' that policy .*p0 has"),
    "policy has more": (
        {}, {"new": ("F32", np.ones(3, "<f4"))}, "p0 lacks 'new' that policy .*p1 has",
    ),
    "policies' shapes": (
        {}, {"number": ("F32", np.ones(1, "<f4"))},
        r"'number' has shape \[\] in policy .*p0 and \[1\] in policy .*p1",
    ),
    "policies' kinds": (
        {}, {"number": ("I32", np.ones((), "<i4"))},
        "'number' is F32 in policy .*p0 and I32 in policy .*p1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_overwritten(tmp_path, case):
    first, second, message = REFUSED[case]
    both = dict(first) if not second else {}
    policies = [
        buffers_checkpoint(tmp_path / "p0", 0, **first),
        buffers_checkpoint(tmp_path / "p1", 1, **both, **second),
    ]
    assert_refused(Buffers(), policies, (0.3, 0.7), message)


def assert_refused(model: nn.Module, policies, weights, message: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_soup(model, policies, weights)
    assert "\n" not in str(caught.value)
    for name, tensor in model.state_dict().items():
        assert tensor.is_meta or torch.equal(tensor, before[name])
    with pytest.raises(UserError, match="no soup was loaded into this model; call load_soup first"):
        reweight(model, weights)


def test_models_that_cannot_be_filled_are_refused(tmp_path):
    policies = [buffers_checkpoint(tmp_path / f"p{seed}", seed) for seed in range(2)]
    cases = [
        (mark(Buffers(), "ds_id"), (0.3, 0.7), ZERO3),
        (mark(Buffers(), "device_mesh"), (0.3, 0.7), "turned is distributed over processes"),
        (without_memory(), (0.3, 0.7), "has no memory .it is on the meta device.; load the model"),
        (tie(Buffers()), (0.3, 0.7), "p0: norm.weight and norm.bias differ, Buffers ties them"),
        (Buffers(columns=8), (0.3, 0.7), r"turned has shape \[50, 9\], in Buffers \[50, 8\]"),
        (Buffers(), (0.3, 0.6), "sum to 1"),
        (Buffers(), (1.0,), "1 weights for 2 policies"),
        (Buffers(), (float("nan"), 1), "finite"),
    ]
    for model, weights, message in cases:
        assert_refused(model, policies, weights, message)
    assert_refused(Buffers(), [], (), "at least one policy")
    assert_refused(Buffers(), [tmp_path / "nowhere"], (1,), "there is no such model directory")


@pytest.mark.models
def test_an_untied_policy_does_not_fill_a_tied_model(tmp_path):
    policies = save_policies(tmp_path, "llama", torch.float32, 2)
    with pytest.raises(UserError, match="differ, LlamaForCausalLM ties them"):
        load_soup(new_model("tied llama", 9), policies, (0.3, 0.7))
    tied = save_policies(tmp_path / "tied", "tied llama", torch.float32, 2)
    with pytest.raises(
        UserError, match="LlamaForCausalLM: the policies do not fill lm_head.weight"
    ):
        load_soup(new_model("llama", 9), tied, (0.3, 0.7))


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_number_that_is_none_is_named_and_the_model_says_that_it_is_no_soup(tmp_path, bad):
    values = np.ones((50, 9), "<f4")
    values[-1, -1] = bad
    policies = [
        buffers_checkpoint(tmp_path / "p0", 0),
        buffers_checkpoint(tmp_path / "p1", 1, turned=("F32", values)),
    ]
    model = Buffers()
    soup = load_soup(model, policies, (1, 0))
    with pytest.raises(
        UserError, match="p1: turned holds NaN or infinity; its training has failed"
    ):
        reweight(model, (0.5, 0.5))
    assert soup.weights is None
    reweight(model, (1, 0))
    assert soup.weights == (1, 0)


def test_a_soup_does_not_keep_its_model_alive(tmp_path):
    policies = [buffers_checkpoint(tmp_path / f"p{seed}", seed) for seed in range(2)]
    model = Buffers()
    soup = load_soup(model, [open_source(each) for each in policies], (0.5, 0.5))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(UserError, match="the model that this soup was loaded into is gone"):
        soup.reweight((0, 1))


MEASURE = """
import re, sys
from pathlib import Path
import torch
from vcsoup_dist.souping.virtual import load_soup, reweight
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
model = torch.nn.Module()
model.w = torch.nn.Parameter(torch.ones(80_000_000, dtype=getattr(torch, sys.argv[1])))
before = peak()
load_soup(model, sys.argv[2:], (0.5, 0.5))
reweight(model, (0.2, 0.8))
print(peak() - before)
"""


@pytest.mark.processes
def test_memory_is_bounded(tmp_path):
    rng = np.random.default_rng(0)
    policies = []
    for name in ("p", "q"):
        words = rng.integers(0x3C00, 0x3F80, 80_000_000, dtype=np.uint16)
        policies.append(write_checkpoint(tmp_path / name, {"w": ("BF16", words)}))
    for dtype in ("bfloat16", "float32"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, dtype, *map(str, policies)],
            capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert int(done.stdout) < 64 * 2**20  # a policy has 160 MB
