"""The streaming merge of whole model directories."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vcsoup_dist.checkpoints.layout import read_layout
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.writer import ShardFile, plan_shards, write_index
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.kernel import weighted_sum
from vcsoup_dist.souping.merge import merge
from vcsoup_dist.souping.preflight import plan_merge

NAMES = ["helpful", "harmless"]


def write_policy(directory: Path, tensors, shard_size=10**9, config=None, tokenizer=None) -> Path:
    """tensors: name -> (dtype, array)"""
    directory.mkdir()
    metas = [(name, dtype, array.shape) for name, (dtype, array) in tensors.items()]
    shards = plan_shards(metas, shard_size)
    for shard in shards:
        with ShardFile.create(directory, shard) as file:
            for name, _, _ in shard.tensors:
                file.write(name, 0, tensors[name][1].tobytes())
    write_index(directory, shards)
    (directory / "config.json").write_text(json.dumps(config or {"hidden_size": 8}))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer or {"model": {"a": 0}}))
    return directory


def bf16(rng, *shape):
    return (rng.standard_normal(shape).astype("<f4").view("<u4") >> 16).astype("<u2")


def tensors_of(seed):
    rng = np.random.default_rng(seed)
    return {
        "embed.weight": ("BF16", bf16(rng, 50, 7)),
        "norm.weight": ("F32", rng.standard_normal(33).astype("<f4")),
        "empty": ("BF16", bf16(rng, 0, 4)),
        "half": ("F16", rng.standard_normal((3, 3)).astype("<f2")),
        "positions": ("I64", np.arange(9)),
        "scalar": ("F64", rng.standard_normal(())),
        "lm_head.weight": ("BF16", bf16(rng, 50, 7)),
    }


@pytest.fixture
def pair(tmp_path):
    return [
        write_policy(tmp_path / "p0", tensors_of(0), shard_size=400),
        write_policy(tmp_path / "p1", dict(reversed(tensors_of(1).items())), shard_size=900),
    ]


def read_all(directory: Path) -> dict[str, bytes]:
    layout = read_layout(directory)
    with CheckpointReader(layout) as reader:
        found = {}
        for name, spec in layout.items():
            buffer = np.empty(spec.nbytes, np.uint8)
            reader.read_into(name, 0, buffer)
            found[name] = buffer.tobytes()
    return found


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def test_soups_of_policies_that_are_sharded_differently_are_right_tensor_by_tensor(pair, tmp_path):
    soups = {"a": (0.3, 0.7), "b": (1.0, 0.0), "c": (1.5, -0.5)}
    # 20 KB of memory: chunks of 4 KiB
    report = merge(
        pair, soups, tmp_path / "out", policy_names=NAMES, memory=5 << 12, shard_size=500
    )
    first, second = tensors_of(0), tensors_of(1)
    for soup, weights in soups.items():
        found = read_all(tmp_path / "out" / soup)
        assert set(found) == set(first)
        for name, (dtype, array) in first.items():
            expected = np.empty(array.nbytes, np.uint8)
            chunks = [np.frombuffer(each[name][1].tobytes(), np.uint8) for each in (first, second)]
            if dtype == "I64":
                expected = chunks[0]
            else:
                weighted_sum(chunks, [dtype] * 2, np.array([weights]), dtype, [expected])
            assert found[name] == expected.tobytes(), name
    assert read_all(tmp_path / "out" / "b") == read_all(pair[0])
    size = sum(array.nbytes for _, array in first.values())
    assert report.bytes_read == 2 * size and report.tensors == 7
    written = sum(len(content) for content in files_of(tmp_path / "out").values())
    index = (tmp_path / "out" / "a" / "model.safetensors.index.json").stat().st_size
    assert report.bytes_written == written - 3 * index


def test_bytes_do_not_depend_on_memory_nor_on_which_soups_are_made_together(pair, tmp_path):
    soups = {"a": (0.3, 0.7), "b": (0.6, 0.4)}
    merge(pair, soups, tmp_path / "x", policy_names=NAMES)
    merge(pair, soups, tmp_path / "y", policy_names=NAMES, memory=1 << 14)
    merge(pair, {"b": (0.6, 0.4)}, tmp_path / "z", policy_names=NAMES)
    assert files_of(tmp_path / "x") == files_of(tmp_path / "y")
    assert files_of(tmp_path / "x" / "b") == files_of(tmp_path / "z" / "b")


def test_progress_adds_up_to_the_data_read_and_written(pair, tmp_path):
    steps: list[int] = []
    soups = {"a": (0.3, 0.7), "b": (0.6, 0.4), "c": (0, 1)}
    merge(pair, soups, tmp_path / "out", policy_names=NAMES, memory=1 << 15, on_bytes=steps.append)
    data = sum(spec.nbytes for spec in read_layout(pair[0]).values())
    assert sum(steps) == data * 5


def test_a_plan_says_what_it_will_cost_and_touches_nothing(pair, tmp_path):
    before = files_of(tmp_path)
    plan = plan_merge(pair, {"a": (0.5, 0.5)}, tmp_path / "deep" / "out", policy_names=NAMES)
    assert plan.bytes_read == 2 * sum(spec.nbytes for spec in plan.layouts[0].values())
    assert files_of(tmp_path) == before and not (tmp_path / "deep").exists()


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


MISFITS = {
    "missing tensor": (lambda t: without(t, "half"), {}, "harmless lacks half that policy h"),
    "extra tensor": (lambda t: t | {"x": t["half"]}, {}, "policy helpful lacks x that policy harm"),
    "several missing": (lambda t: {"half": t["half"]}, {}, "lacks positions and 5 more tensors"),
    "tied head": (lambda t: without(t, "lm_head.weight"), {}, "harmless ties it to the embedding"),
    "shape": (
        lambda t: t | {"half": ("F16", np.zeros((9, 1), "<f2"))}, {},
        r"half has shape \[3, 3\] in policy helpful and \[9, 1\] in policy harmless",
    ),
    "dtype": (
        lambda t: t | {"half": ("BF16", np.zeros((3, 3), "<u2"))}, {},
        "half is F16 in policy helpful and BF16 in policy harmless",
    ),
    "float8": (
        lambda t: t | {"half": ("F8_E4M3", np.zeros((3, 3), "u1"))}, {},
        "policy harmless: half is F8_E4M3; quantised",
    ),
    "quantised": (lambda t: t, {"config": {"quantization_config": {"bits": 4}}}, "quantization_co"),
    "tokenizer": (lambda t: t, {"tokenizer": {"model": {"a": 1}}}, "tokenizer.json of policies"),
    "config": (lambda t: t, {"config": {"hidden_size": 9}}, "config.json of policies helpful and"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_policies_that_do_not_fit_are_refused_before_anything_is_written(case, tmp_path):
    change, files, message = MISFITS[case]
    policies = [
        write_policy(tmp_path / "p0", tensors_of(0)),
        write_policy(tmp_path / "p1", change(tensors_of(1)), **files),
    ]
    with pytest.raises(UserError, match=message) as caught:
        merge(policies, {"a": (0.5, 0.5)}, tmp_path / "out", policy_names=NAMES)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("soups", "message"),
    [({}, "at least one policy and one soup"), ({"a": (1.0,)}, "1 weights for 2 policies"),
     ({"a": (0.5, 0.6)}, "sum to 1"), ({"a": (float("nan"), 1)}, "finite"),
     ({"../a": (1, 0)}, "no plain folder name"), ({"..": (1, 0)}, "no plain folder name"),
     ({"": (1, 0)}, "no plain folder name"), ({"p0": (1, 0)}, "p0: is there already")],
)  # fmt: skip
def test_soups_that_cannot_be_are_refused(pair, tmp_path, soups, message):
    with pytest.raises(UserError, match=message):
        merge(pair, soups, tmp_path, policy_names=NAMES)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_named_with_policy_and_tensor(tmp_path, value):
    bad = tensors_of(1)
    bad["norm.weight"][1][-1] = value
    policies = [write_policy(tmp_path / "p0", tensors_of(0)), write_policy(tmp_path / "p1", bad)]
    with pytest.raises(UserError, match="policy harmless: norm.weight holds NaN or infinity"):
        merge(policies, {"a": (1.0, 0.0)}, tmp_path / "out", policy_names=NAMES)


def test_integer_buffers_that_differ_are_named(tmp_path):
    other = tensors_of(1) | {"positions": ("I64", np.arange(9)[::-1])}
    policies = [write_policy(tmp_path / "p0", tensors_of(0)), write_policy(tmp_path / "p1", other)]
    with pytest.raises(UserError, match=r"positions \(I64\) differs between policies helpful and"):
        merge(policies, {"a": (0.5, 0.5)}, tmp_path / "out", policy_names=NAMES)


def test_limits_of_the_machine_are_foreseen(pair, tmp_path, monkeypatch):
    soups = {"a": (0.5, 0.5), "b": (0.5, 0.5)}
    with pytest.raises(UserError, match="allow at least 16384"):
        merge(pair, soups, tmp_path / "out", policy_names=NAMES, memory=10_000)
    many = {f"s{i}": (0.5, 0.5) for i in range(100_000)}
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    with pytest.raises(UserError, match="ulimit -n"):
        plan_merge(pair, many, tmp_path / "out", policy_names=NAMES)
    full = dataclasses.make_dataclass("Usage", ["free"])(2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(UserError, match="0.00 GB are free"):
        merge(pair, soups, tmp_path / "out", policy_names=NAMES)
    assert not (tmp_path / "out").exists()


def tiny_llama(torch, seed, dtype):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


@pytest.mark.parametrize("dtype_name", ["bfloat16", "float32"])
def test_a_merged_llama_loads_and_equals_the_float64_merge_of_torch(tmp_path, dtype_name):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, dtype_name)
    models = [tiny_llama(torch, seed, dtype) for seed in range(3)]
    policies = [tmp_path / f"p{i}" for i in range(3)]
    for model, policy, size in zip(models, policies, ["50GB", "40KB", "15KB"], strict=True):
        model.save_pretrained(policy, max_shard_size=size)
    assert len(list(policies[0].glob("*.safetensors"))) < len(
        list(policies[2].glob("*.safetensors"))
    )
    soups = {"dyadic": (0.25, 0.625, 0.125), "decimal": (0.1, 0.2, 0.7)}
    names = ["a", "b", "c"]
    merge(policies, soups, tmp_path / "out", policy_names=names, shard_size=30_000)
    states = [model.state_dict() for model in models]
    for soup, weights in soups.items():
        loaded, info = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out" / soup, dtype="auto", output_loading_info=True
        )
        assert loaded.dtype == dtype and not any(info.values()), info
        for name, tensor in loaded.state_dict().items():
            total = sum(w * state[name].double() for w, state in zip(weights, states, strict=True))
            if soup == "dyadic":  # float64 holds this sum exactly
                assert torch.equal(tensor, total.to(dtype)), name
            else:  # float64's own error decides ties and cancelled sums: half a unit at most
                half_unit = 2.0 ** -(8 if dtype_name == "bfloat16" else 24) * (1 + 1e-6)
                assert torch.allclose(tensor.double(), total, rtol=half_unit, atol=1e-12), name


MEASURE = """
import re, sys
from pathlib import Path
from vcsoup_dist.souping.merge import merge
def peak():  # ru_maxrss would begin with what the parent had
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
before = peak()
p, q, out = map(Path, sys.argv[1:])
soups = {"x": (0.3, 0.7), "y": (0.6, 0.4)}
merge([p, q], soups, out, policy_names=["p", "q"], memory=64 << 20)
loaded = {"torch", "transformers", "ray", "deepspeed", "safetensors"} & set(sys.modules)
print(peak() - before, sorted(loaded))
"""


def test_memory_is_bounded_and_no_framework_is_imported(tmp_path):
    rng = np.random.default_rng(0)
    policies = []
    for name in ("p", "q"):
        words = rng.integers(0x3C00, 0x3F80, 75 * 10**6, dtype=np.uint16)
        cuts = np.split(words, [12 * 10**6, 65 * 10**6])  # one tensor of 106 MB between smaller
        tensors = {f"w{i}": ("BF16", cut) for i, cut in enumerate(cuts)}
        policies.append(write_policy(tmp_path / name, tensors))
        assert (policies[-1] / "model.safetensors").stat().st_size > 150 * 10**6
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, policies), str(tmp_path / "out")],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    grown, loaded = done.stdout.split(maxsplit=1)
    assert loaded.strip() == "[]"
    # Buffers, and about a dozen float64 blocks of the kernel.
    assert 48 * 2**20 < int(grown) < 64 * 2**20 + 16 * 2**20
