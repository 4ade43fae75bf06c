"""The streaming merge of whole model directories."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from merging import bf16, files_of, forget, read_all, write_policy

from vcsoup_dist.checkpoints.digests import CHUNK
from vcsoup_dist.checkpoints.direct_io import PAGE, is_cached
from vcsoup_dist.checkpoints.layout import read_layout
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping import merge, stream
from vcsoup_dist.souping.chunks import cut_chunks
from vcsoup_dist.souping.kernels.kernel import weighted_sum
from vcsoup_dist.souping.merge_run import MergeRun
from vcsoup_dist.souping.options import MergeOptions
from vcsoup_dist.souping.output.write import write_soups
from vcsoup_dist.souping.plan import plan_merge
from vcsoup_dist.souping.verify import verify_directory

NAMES = ["helpful", "harmless"]


def merge_named(policies, soups, out, *, names=NAMES, dtype=None, shard_size=10**9, **options):
    """Soups as folders of `out`."""
    options = MergeOptions(dtype=dtype, shard_size=shard_size, **options)
    plan = plan_merge(policies, soups, names, options)
    return write_soups(MergeRun.into(out, plan, options, inside=True))


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


def summed(policies, weights, dtype, out_dtype=None):
    """policies: the same tensor of each, (dtype, array)"""
    if dtype == "I64":
        return policies[0][1].tobytes()
    chunks = [np.frombuffer(array.tobytes(), np.uint8) for _, array in policies]
    out_dtype = out_dtype or dtype
    expected = np.empty(policies[0][1].size * {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}[out_dtype],
                        np.uint8)  # fmt: skip
    weighted_sum(chunks, [kind for kind, _ in policies], np.array([weights]), out_dtype, [expected])
    return expected.tobytes()


def test_soups_of_policies_that_are_sharded_differently_are_right_tensor_by_tensor(pair, tmp_path):
    soups = {"a": (0.3, 0.7), "b": (1.0, 0.0), "c": (1.5, -0.5), "d": (0.8, 0.8)}
    report = merge_named(pair, soups, tmp_path / "out", shard_size=500)
    first, second = tensors_of(0), tensors_of(1)
    for soup, weights in soups.items():
        found = read_all(tmp_path / "out" / soup)
        assert set(found) == set(first)
        for name, (dtype, _) in first.items():
            assert found[name] == summed([first[name], second[name]], weights, dtype), name
    assert read_all(tmp_path / "out" / "b") == read_all(pair[0])
    size = sum(array.nbytes for _, array in first.values())
    assert (report.bytes_read, report.bytes_written) == (2 * size, 4 * size)
    assert report.finished and report.soups == tuple(soups) and report.chunks_kept == 0
    assert {each.name for each in (tmp_path / "out").iterdir()} == set(soups)
    assert not (tmp_path / "out.partial").exists()


def large_tensors(seed):
    """More than a chunk, more than a chunk, and starts at odd places within pages."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0x3C00, 0x3F80, CHUNK + 12_346, dtype=np.uint16)
    return {
        "odd": ("U8", np.arange(7, dtype=np.uint8)),
        "large": ("BF16", words.reshape(-1, 5)),
        "middle": ("F32", rng.standard_normal((3, 7001)).astype("<f4")),
        "small": ("F16", rng.standard_normal(4097).astype("<f2")),
    }


@pytest.fixture(scope="module")
def large_pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    return [write_policy(folder / f"p{seed}", large_tensors(seed)) for seed in range(2)]


def test_bytes_do_not_depend_on_memory_nor_on_which_soups_are_made_together(large_pair, tmp_path):
    soups = {"a": (0.3, 0.7), "b": (0.6, 0.4)}
    merge_named(large_pair, soups, tmp_path / "x")
    merge_named(large_pair, soups, tmp_path / "y", memory=1 << 20)
    merge_named(large_pair, {"b": (0.6, 0.4)}, tmp_path / "z")
    assert files_of(tmp_path / "x") == files_of(tmp_path / "y")
    assert files_of(tmp_path / "x" / "b") == files_of(tmp_path / "z" / "b")
    tensors = [large_tensors(seed) for seed in range(2)]
    for name, found in read_all(tmp_path / "x" / "b").items():
        policies = [each[name] for each in tensors]
        if name != "odd":
            assert found == summed(policies, (0.6, 0.4), policies[0][0]), name


def cached(path) -> bool:
    """Whether the page cache holds a page a third into a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return is_cached(descriptor, path.stat().st_size // 3, 1)
    finally:
        os.close(descriptor)


def test_what_is_not_in_the_page_cache_is_read_right_and_past_it(large_pair, tmp_path):
    weights = {"a": (0.3, 0.7)}
    merge_named(large_pair, weights, tmp_path / "x")
    for policy in large_pair:
        file = policy / "model.safetensors"
        assert cached(file)
        forget(file)
        if cached(file):
            pytest.skip("this file system lives in the page cache")
    merge_named(large_pair, weights, tmp_path / "y", memory=64 << 20)
    assert not any(cached(policy / "model.safetensors") for policy in large_pair)
    assert not cached(tmp_path / "y" / "a" / "model.safetensors")
    assert files_of(tmp_path / "y") == files_of(tmp_path / "x")


def test_whatever_page_a_tensor_starts_in_its_bytes_are_right(tmp_path, monkeypatch):
    """Many starts, chunks that end within pages, several threads."""
    monkeypatch.setattr(stream, "SMALLEST_BLOCK", 1 << 6)
    rng = np.random.default_rng(5)
    sizes = [int(size) for size in rng.integers(1, 3 * PAGE, 60)]
    tensors = [
        {f"w{i}": ("BF16", bf16(rng, size)) for i, size in enumerate(sizes)} for _ in range(2)
    ]
    policies = [write_policy(tmp_path / f"p{i}", each) for i, each in enumerate(tensors)]
    merge_named(policies, {"a": (0.3, 0.7)}, tmp_path / "out", memory=1 << 18)
    found = read_all(tmp_path / "out" / "a")
    for name in tensors[0]:
        assert found[name] == summed([each[name] for each in tensors], (0.3, 0.7), "BF16"), name


def test_policies_of_different_dtypes_become_the_first_ones_or_what_is_asked(tmp_path):
    first, second = tensors_of(0), tensors_of(1)
    rng = np.random.default_rng(2)
    for name in ("embed.weight", "lm_head.weight"):
        second[name] = ("F32", rng.standard_normal((50, 7)).astype("<f4"))
    second["half"] = ("F64", rng.standard_normal((3, 3)))
    policies = [write_policy(tmp_path / "p0", first), write_policy(tmp_path / "p1", second)]
    for asked in (None, "F32", "F16"):
        out = tmp_path / str(asked)
        merge_named(policies, {"a": (0.3, 0.7)}, out, dtype=asked)
        layout, found = read_layout(out / "a"), read_all(out / "a")
        for name, (dtype, _) in first.items():
            written = dtype if asked is None or dtype == "I64" else asked
            assert layout[name].dtype == written
            expected = summed([first[name], second[name]], (0.3, 0.7), dtype, written)
            assert found[name] == expected, name


def test_progress_adds_up_to_the_data_read_and_written(pair, tmp_path, monkeypatch):
    from contextlib import contextmanager

    steps: list[float] = []

    @contextmanager
    def progress(title, total, unit):
        steps.append(-total)
        yield steps.append

    monkeypatch.setattr("vcsoup_dist.souping.output.write.progress", progress)
    merge_named(pair, {"a": (0.3, 0.7), "b": (0.6, 0.4), "c": (0, 1)}, tmp_path / "out")
    data = sum(spec.nbytes for spec in read_layout(pair[0]).values())
    assert -steps[0] * 1e9 == pytest.approx(data * 5)
    assert sum(steps) == pytest.approx(0, abs=1e-15)


def test_a_plan_says_what_it_will_cost_and_touches_nothing(pair, tmp_path):
    before = files_of(tmp_path)
    options = MergeOptions(shard_size=400)
    plan = plan_merge(pair, {"a": (0.5, 0.5)}, NAMES, options)
    assert plan.bytes_read == 2 * sum(spec.nbytes for spec in read_layout(pair[0]).values())
    assert files_of(tmp_path) == before
    write_soups(MergeRun.into(tmp_path / "out", plan, options, inside=False))
    written = {path: len(content) for path, content in files_of(tmp_path / "out").items()}
    extra = ("README.md", "manifest.json", "model.safetensors.index.json")
    assert plan.soup_bytes == sum(written.values()) - sum(written[name] for name in extra)


def test_chunks_cover_every_number_of_every_tensor_once(large_pair):
    plan = plan_merge(large_pair, {"a": (1, 0)}, NAMES, MergeOptions(shard_size=100_000))
    chunks = list(cut_chunks(plan.shards))
    assert [chunk.number for chunk in chunks] == list(range(len(chunks)))
    seen: dict[str, int] = {}
    for chunk in chunks:
        assert chunk.begin == seen.get(chunk.tensor, 0) < chunk.end <= chunk.begin + CHUNK
        seen[chunk.tensor] = chunk.end
    assert seen == {name: array.size for name, (_, array) in large_tensors(0).items()}


def test_the_manifest_says_what_was_summed_however_the_policies_are_cut(tmp_path):
    manifests = {}
    for cut in (400, 10**9):
        policies = [
            write_policy(tmp_path / f"{seed}-{cut}", tensors_of(seed), shard_size=cut)
            for seed in range(2)
        ]
        out = tmp_path / f"out-{cut}"
        merge_named(policies, {"a": (0.3, 0.7), "first": (1, 0)}, out)
        manifests[cut] = {
            soup: json.loads((out / soup / "manifest.json").read_text()) for soup in ("a", "first")
        }
    whole, cut = manifests[10**9], manifests[400]
    assert whole["a"]["lambda"] == {"helpful": 0.3, "harmless": 0.7}
    assert [each["name"] for each in whole["a"]["sources"]] == NAMES
    for one, other in zip(whole["a"]["sources"], cut["a"]["sources"], strict=True):
        assert one["weights"] == other["weights"]
        assert one["files"] != other["files"]
    # The soup of weights (1, 0) is the first policy, and has its digest.
    assert whole["first"]["weights"] == whole["a"]["sources"][0]["weights"]
    assert whole["first"]["weights"] != whole["a"]["sources"][1]["weights"]
    assert whole["a"]["tensors"] == cut["a"]["tensors"]
    assert set(whole["a"]["files"]) == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json"
    }  # fmt: skip
    card = (tmp_path / "out-400" / "a" / "README.md").read_text()
    for source in cut["a"]["sources"]:
        assert f"| {source['name']} | {source['weight']!r} | `xxh3:{source['weights']}` |" in card


def test_a_file_of_empty_tensors_only_is_written_whoever_does_it(tmp_path):
    tensors = {
        "a": ("F32", np.ones(8, "<f4")), "none": ("BF16", np.zeros((0, 4), "<u2")),
        "nothing": ("F32", np.zeros((3, 0), "<f4")),
    }  # fmt: skip
    policies = [write_policy(tmp_path / f"p{i}", tensors, shard_size=20) for i in range(2)]
    assert len(list(policies[0].glob("*.safetensors"))) == 2
    for ranks in ([0], [0, 1], [1, 0]):
        out = tmp_path / f"out-{ranks}"
        done = []
        for rank in ranks:
            options = MergeOptions(shard_size=20, rank=rank, world_size=len(ranks))
            plan = plan_merge(policies, {"a": (0.5, 0.5)}, NAMES, options)
            done.append(write_soups(MergeRun.into(out, plan, options, inside=False)))
        assert any(each.finished for each in done)
        assert read_all(out) == read_all(policies[0])
        verify_directory(out)


def test_policies_without_any_number_make_a_soup_without_any(tmp_path):
    tensors = {"none": ("BF16", np.zeros((0, 4), "<u2"))}
    policies = [write_policy(tmp_path / f"p{i}", tensors) for i in range(2)]
    assert merge_named(policies, {"a": (0.5, 0.5)}, tmp_path / "out").finished
    assert read_all(tmp_path / "out" / "a") == {"none": b""}


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


MISFITS = {
    "missing tensor": (lambda t: without(t, "half"), {}, "harmless lacks 'half' that policy h"),
    "extra tensor": (
        lambda t: t | {"x": t["half"]}, {}, "policy helpful lacks 'x' that policy harm",
    ),
    "several missing": (lambda t: {"half": t["half"]}, {}, "lacks 'positions' and 5 more tensors"),
    "tied head": (lambda t: without(t, "lm_head.weight"), {}, "harmless ties it to the embedding"),
    "shape": (
        lambda t: t | {"half": ("F16", np.zeros((9, 1), "<f2"))}, {},
        r"'half' has shape \[3, 3\] in policy helpful and \[9, 1\] in policy harmless",
    ),
    "integers for floats": (
        lambda t: t | {"half": ("I16", np.zeros((3, 3), "<i2"))}, {},
        "'half' is F16 in policy helpful and I16 in policy harmless",
    ),
    "integers of another width": (
        lambda t: t | {"positions": ("I32", np.arange(9, dtype="<i4"))}, {},
        "'positions' is I64 in policy helpful and I32 in policy harmless",
    ),
    "float8": (
        lambda t: t | {"half": ("F8_E4M3", np.zeros((3, 3), "u1"))}, {},
        r"quantised weights \(half of F8_E4M3\)",
    ),
    "quantised": (lambda t: t, {"config": {"quantization_config": {"bits": 4}}}, "quantization_co"),
    "tokenizer": (lambda t: t, {"tokenizer": {"model": {"a": 1}}}, "in tokenizer: its model"),
    "config": (
        lambda t: t, {"config": {"hidden_size": 9}}, "helpful and harmless differ in config.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_policies_that_do_not_fit_are_refused_before_anything_is_written(case, tmp_path):
    change, files, message = MISFITS[case]
    policies = [
        write_policy(tmp_path / "p0", tensors_of(0)),
        write_policy(tmp_path / "p1", change(tensors_of(1)), **files),
    ]
    with pytest.raises(UserError, match=message) as caught:
        merge_named(policies, {"a": (0.5, 0.5)}, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert {each.name for each in tmp_path.iterdir()} == {"p0", "p1"}


@pytest.mark.parametrize(
    ("soups", "message"),
    [({}, "at least one policy and one soup"), ({"a": (1.0,)}, "1 weights for 2 policies"),
     ({"a": (float("nan"), 1)}, "finite"), ({"a": (float("inf"), 1)}, "finite"),
     ({"../a": (1, 0)}, "not a plain folder name"), ({"..": (1, 0)}, "not a plain folder name"),
     ({"": (1, 0)}, "not a plain folder name"), ({"p0": (1, 0)}, "p0: already exists")],
)  # fmt: skip
def test_soups_that_cannot_be_are_refused(pair, tmp_path, soups, message):
    before = files_of(tmp_path)
    with pytest.raises(UserError, match=message):
        merge_named(pair, soups, tmp_path)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [({"weights": [(0.5, 0.6)]}, "sum to 1"), ({"weights": [(1.5, -0.5)]}, r"\[0, 1\]"),
     ({"weights": [(1.0,)]}, "1 weights for 2 policies"), ({}, "give one of --weights"),
     ({"weights": [(0.5, 0.5)], "grid": 0.5}, "give one of --weights"),
     ({"grid": 0.3}, "divide 1"), ({"weights": [(1, 0)], "dtype": "fp8"}, "fp8.* is not known"),
     ({"weights": [(0.5, 0.5), (0.5, 0.5)]}, "the same weights to six decimals"),
     ({"weights": [(1, 0)], "rank": 2, "world_size": 2}, "--rank must lie between 0 and 1"),
     ({"weights": [(1, 0)], "rank": -1}, "--rank must lie between 0 and 0"),
     ({"weights": [(1, 0)], "sample": 0.0}, "--sample")],
)  # fmt: skip
def test_options_without_sense_are_refused_before_anything_is_written(
    pair, tmp_path, options, message
):
    with pytest.raises(UserError, match=message):
        merge.merge(pair, out=tmp_path / "out", **options)
    assert {each.name for each in tmp_path.iterdir()} == {"p0", "p1"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_named_with_policy_and_tensor(tmp_path, value, caplog):
    bad = tensors_of(1)
    bad["norm.weight"][1][-1] = value
    policies = [write_policy(tmp_path / "p0", tensors_of(0)), write_policy(tmp_path / "p1", bad)]
    soups = {"a": (1.0, 0.0), "b": (0.5, 0.5)}
    with pytest.raises(UserError, match="policy harmless: 'norm.weight' holds NaN or infinity"):
        merge_named(policies, soups, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge_named(policies, soups, tmp_path / "out", allow_nonfinite=True)
    assert read_all(tmp_path / "out" / "a") == read_all(policies[0])  # of weight 0: no part of it
    norm = np.frombuffer(read_all(tmp_path / "out" / "b")["norm.weight"], "<f4")
    assert np.isfinite(norm[:-1]).all()
    assert np.array_equal(norm[-1:], np.array([value], "<f4"), equal_nan=True)
    assert "policy harmless: 'norm.weight' holds NaN or infinity" in caplog.text


def test_integer_buffers_that_differ_are_named(tmp_path):
    other = tensors_of(1) | {"positions": ("I64", np.arange(9)[::-1])}
    policies = [write_policy(tmp_path / "p0", tensors_of(0)), write_policy(tmp_path / "p1", other)]
    with pytest.raises(UserError, match="'positions' differs between policies helpful and harml"):
        merge_named(policies, {"a": (0.5, 0.5)}, tmp_path / "out")


def test_limits_of_the_machine_are_foreseen(pair, tmp_path, monkeypatch):
    soups = {"a": (0.5, 0.5), "b": (0.5, 0.5)}
    with pytest.raises(UserError, match=r"too few for 2 policies and 2 soups; allow at least \d+"):
        merge_named(pair, soups, tmp_path / "out", memory=10_000)
    shutil.rmtree(tmp_path / "out.partial")
    many = {f"s{i}": (0.5, 0.5) for i in range(2100)}
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    with pytest.raises(UserError, match="ulimit -Hn"):
        merge_named(pair, many, tmp_path / "out")
    shutil.rmtree(tmp_path / "out.partial")
    full = dataclasses.make_dataclass("Usage", ["free"])(2000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(UserError, match="0.00 GB are free"):
        merge_named(pair, soups, tmp_path / "out")
    assert not list(tmp_path.rglob("*-of-*.lock")) and not (tmp_path / "out").exists()


def test_the_memory_that_is_said_to_be_the_least_is_enough(pair, tmp_path):
    soups = {"a": (0.5, 0.5), "b": (0.5, 0.5)}
    with pytest.raises(UserError) as caught:
        merge_named(pair, soups, tmp_path / "out", memory=10_000)
    least = int(str(caught.value).rsplit(maxsplit=1)[1])
    assert merge_named(pair, soups, tmp_path / "out", memory=least).finished
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UserError, match="too few"):
        merge_named(pair, soups, tmp_path / "out", memory=least // 2)


def tiny_llama(torch, seed, dtype):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


@pytest.mark.models
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
    merge_named(policies, soups, tmp_path / "out", names=names, shard_size=30_000)
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
import contextlib, re, sys
from pathlib import Path
import vcsoup_dist.souping.merge
with contextlib.suppress(ImportError):  # newer versions of typer import it with the first command
    import typer._adapters
from vcsoup_dist.cli.main import main
def peak():  # ru_maxrss would begin with what the parent had
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
before = peak()
try:
    main()
finally:
    heavy = {"torch", "transformers", "ray", "deepspeed", "safetensors", "datasets", "pyarrow"}
    heavy |= {"vcsoup_dist.recipe"}  # and with it pydantic, which typer may import too
    print(peak() - before, peak(), *sorted(heavy & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def heavy_pair(tmp_path_factory):
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("heavy")
    policies = []
    for name in ("p", "q"):
        words = rng.integers(0x3C00, 0x3F80, 75 * 10**6, dtype=np.uint16)
        cuts = np.split(words, [12 * 10**6, 65 * 10**6])  # one tensor of 106 MB between smaller
        tensors = {f"w{i}": ("BF16", cut) for i, cut in enumerate(cuts)}
        policies.append(write_policy(folder / name, tensors))
        assert (policies[-1] / "model.safetensors").stat().st_size > 150 * 10**6
    return policies


def measured(policies, out, *options):
    """Bytes by which the process has grown, its peak, which frameworks it imported; what it said.

    The imports of an empty merge are not growth.
    """
    arguments = ["merge", *policies, "--weights", "0.3,0.7", "--weights", "0.6,0.4", "--out", out]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, [*arguments, *options])],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    grown, peak, *loaded = done.stdout.split()
    return int(grown), int(peak), loaded, done.stderr


@pytest.mark.processes
def test_memory_grows_by_less_than_was_allowed_and_no_framework_is_imported(heavy_pair, tmp_path):
    grown, _, loaded, _ = measured(heavy_pair, tmp_path / "out", "--memory", "64MiB", "--verify")
    assert loaded == []
    assert 12 * 2**20 < grown < 64 * 2**20


@pytest.mark.processes
def test_the_function_imports_no_framework_and_no_validation():
    code = "import sys, vcsoup_dist.souping.merge; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "ray", "deepspeed", "safetensors", "datasets", "pydantic"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.processes
def test_with_room_for_an_interpreter_the_whole_process_keeps_the_limit(heavy_pair, tmp_path):
    ballast = np.ones(300 << 20, np.uint8)  # what the parent holds is not the merge's
    _, peak, _, said = measured(heavy_pair, tmp_path / "out", "--memory", "256MiB", "--verify")
    del ballast
    assert 128 * 2**20 < peak < 256 * 2**20
    assert int(re.search(r"peak memory (\d+) MiB", said)[1]) <= peak / 2**20
