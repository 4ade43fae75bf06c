"""`vcsoup merge`, `verify` and `export` as a user meets them."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import vcsoup
from merging import bf16, files_of, read_all, write_policy
from safetensors import safe_open

from vcsoup_dist.checkpoints.layout import read_layout
from vcsoup_dist.souping.kernels.kernel import weighted_sum

pytestmark = [pytest.mark.models, pytest.mark.processes]

WEIGHTS = (0.3, 0.7)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """`helpful`, `harmless` and `base`: two-layer Llamas in bf16, fp32 and bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=None,
    )  # fmt: skip
    sizes = {"helpful": "30KB", "harmless": "50GB", "base": "15KB"}
    for seed, (name, size) in enumerate(sizes.items()):
        torch.manual_seed(seed)
        dtype = torch.float32 if name == "harmless" else torch.bfloat16
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder / name, max_shard_size=size)
        (folder / name / "tokenizer.json").write_text('{"model": {"a": 0}}')
        (folder / name / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def folder(models, tmp_path) -> Path:
    """A folder with the models, which stay as they are."""
    before = files_of(models)
    for name in ("helpful", "harmless", "base"):
        (tmp_path / name).symlink_to(models / name)
    yield tmp_path
    assert files_of(models) == before


TWO = ("merge", "helpful", "harmless")


def expected(models: Path, names, weights, out_dtype: str) -> dict[str, bytes]:
    """The sum, tensor by tensor, by the kernel."""
    layouts = [read_layout(models / name) for name in names]
    tensors = [read_all(models / name) for name in names]
    found = {}
    for name, spec in layouts[0].items():
        chunks = [np.frombuffer(each[name], np.uint8) for each in tensors]
        out = np.empty(int(np.prod(spec.shape)) * {"BF16": 2, "F32": 4, "F16": 2}[out_dtype], "u1")
        dtypes = [layout[name].dtype for layout in layouts]
        weighted_sum(chunks, dtypes, np.array([weights]), out_dtype, [out])
        found[name] = out.tobytes()
    return found


def test_one_vector_of_weights_is_written_to_out_and_several_into_it(models, folder):
    said = vcsoup(*TWO, "--weights", "0.3,0.7", "--out", "soup", folder=folder)
    assert re.search(r"GB read, .* GB written in .* s, .* GB/s, peak memory \d+ MiB\n$", said)
    one = read_all(folder / "soup")
    assert one == expected(models, ["helpful", "harmless"], WEIGHTS, "BF16")
    vcsoup(
        *TWO, "--weights", "0.3,0.7", "--weights", "1,0", "--out", "deep/er/soups", folder=folder
    )
    assert {path.name for path in (folder / "deep" / "er").iterdir()} == {"soups"}
    soups = folder / "deep" / "er" / "soups"
    assert {path.name for path in soups.iterdir()} == {"soup_0.30_0.70", "soup_1.00_0.00"}
    assert read_all(soups / "soup_0.30_0.70") == one
    assert read_all(soups / "soup_1.00_0.00") == read_all(models / "helpful")


def test_a_grid_is_every_vector_of_weights_in_one_pass(models, folder):
    said = vcsoup(*TWO, "--grid", "0.25", "--out", "soups", folder=folder)
    names = [f"soup_{i / 4:.2f}_{1 - i / 4:.2f}" for i in range(5)]
    assert sorted(path.name for path in (folder / "soups").iterdir()) == names
    for i, name in enumerate(names):
        soup = expected(models, ["helpful", "harmless"], (i / 4, 1 - i / 4), "BF16")
        assert read_all(folder / "soups" / name) == soup
    size = sum(len(tensor) for name in TWO[1:] for tensor in read_all(models / name).values())
    assert f"{size / 1e9:.3f} GB read" in said


def test_random_vectors_of_weights_are_those_of_the_seed(folder):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        vcsoup(*TWO, "--random", 3, "--seed", seed, "--out", out, folder=folder)
    names = [{path.name for path in (folder / out).iterdir()} for out in "abc"]
    assert len(names[0]) == 3 and names[0] == names[1] and not names[0] & names[2]


def test_with_a_base_the_soup_is_the_base_and_the_weighted_differences(models, folder):
    sources = ["helpful", "harmless", "base"]
    vcsoup(
        *TWO, "--weights", "0.8,0.5", "--base", "base", "--out", "soup", "--verify", folder=folder
    )
    rest = 1 - 0.8 - 0.5
    assert read_all(folder / "soup") == expected(models, sources, (0.8, 0.5, rest), "BF16")
    manifest = json.loads((folder / "soup" / "manifest.json").read_text())
    assert manifest["lambda"] == {"helpful": 0.8, "harmless": 0.5} and manifest["base"] == "base"
    assert [each["weight"] for each in manifest["sources"]] == [0.8, 0.5, pytest.approx(rest)]
    assert "θ₀ + Σ λᵢ (θᵢ − θ₀)" in (folder / "soup" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("weights", ["0.8,0.5", "0.3,0.7"], ids=["read", "cancelled"])
def test_a_base_that_is_called_as_a_policy_is_told_from_it(models, folder, weights):
    shutil.copytree(models / "base", folder / "step" / "helpful")
    arguments = ["--weights", weights, "--base", "step/helpful", "--out", "soup"]
    vcsoup(*TWO, *arguments, folder=folder)
    manifest = json.loads((folder / "soup" / "manifest.json").read_text())
    digests = {source["name"]: source["weights"] for source in manifest["sources"]}
    card = (folder / "soup" / "README.md").read_text(encoding="utf-8")
    [row] = [line for line in card.splitlines() if "(θ₀)" in line]
    shown = f"xxh3:{digests['base helpful']}" if weights == "0.8,0.5" else "cancels"
    assert row == f"| base helpful (θ₀) | | `{shown}` |"


def test_a_base_that_cancels_is_not_read(models, folder):
    arguments = ["--weights", "0.3,0.7", "--base", "base", "--out", "soup"]
    vcsoup(*TWO, *arguments, folder=folder)
    assert read_all(folder / "soup") == expected(models, TWO[1:], WEIGHTS, "BF16")
    assert "| base (θ₀) | | `cancels` |" in (folder / "soup" / "README.md").read_text("utf-8")
    assert len(json.loads((folder / "soup" / "manifest.json").read_text())["sources"]) == 2


@pytest.mark.parametrize("dtype, name", [("fp32", "F32"), ("bf16", "BF16"), ("float16", "F16")])
def test_the_dtype_that_is_asked_is_written_and_said_in_the_config(models, folder, dtype, name):
    vcsoup(*TWO, "--weights", "0.3,0.7", "--dtype", dtype, "--out", "soup", folder=folder)
    assert {spec.dtype for spec in read_layout(folder / "soup").values()} == {name}
    assert read_all(folder / "soup") == expected(models, TWO[1:], WEIGHTS, name)
    config = json.loads((folder / "soup" / "config.json").read_text())
    theirs = json.loads((models / "helpful" / "config.json").read_text())
    said = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[name]
    assert config == theirs | {"dtype": said}


def test_shards_are_cut_by_size_or_as_the_first_policy_is(models, folder):
    for size in ("20KB", "inputs", "5GB"):
        arguments = ["--weights", "0.3,0.7", "--shard-size", size, "--out", size]
        vcsoup(*TWO, *arguments, folder=folder)
        assert read_all(folder / size) == expected(models, TWO[1:], WEIGHTS, "BF16")
    files = [
        {name: spec.file.name for name, spec in read_layout(where).items()}
        for where in (models / "helpful", folder / "inputs")
    ]
    assert files[0] == files[1] and len(set(files[0].values())) > 1
    assert all(
        path.stat().st_size < 20_000 + 4096 + 4096
        for path in (folder / "20KB").glob("*.safetensors")
    )
    assert len(list((folder / "20KB").glob("*.safetensors"))) > len(set(files[0].values()))
    assert [path.name for path in (folder / "5GB").glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("size", ["512MiB", "1GB", "300m", "536870912", "0.5 GiB", "1e9B"])
def test_sizes_are_read_as_people_write_them(folder, size):
    arguments = ["--weights", "0.3,0.7", "--memory", size, "--dry-run", "--out", "soup"]
    said = vcsoup(*TWO, *arguments, folder=folder)
    amount = {"1GB": 0.93, "1e9B": 0.93, "300m": 0.29}.get(size, 0.5)
    assert f"memory    at most {amount:.2f} GiB" in said


@pytest.mark.parametrize("option", ["--memory", "--shard-size"])
@pytest.mark.parametrize("size", ["", "much", "1XB", "GB", "nan", "inf", "1e400MB", "-1GB", "0"])
def test_sizes_that_are_none_are_refused(folder, option, size):
    arguments = ["--weights", "0.3,0.7", f"{option}={size}", "--out", "soup"]
    said = vcsoup(*TWO, *arguments, folder=folder, code=2).splitlines()[-1]
    if size not in ("-1GB", "0"):
        assert said.startswith(f"vcsoup: {option} {size}: give a size such as 1GiB")
    elif option == "--memory":
        assert re.search(r"bytes of memory are too few .*; allow at least \d+$", said)
    else:
        assert "give a larger shard size" in said
    assert not (folder / "soup").exists()


MISTAKES = {
    "no output": (TWO, "needs --out"),
    "no weights": ((*TWO, "--out", "x"), "give one of --weights"),
    "two kinds of weights": (
        (*TWO, "--weights", "1,0", "--grid", "0.5", "--out", "x"), "give one of --weights",
    ),
    "words for weights": (
        (*TWO, "--weights", "much,little", "--out", "x"),
        "--weights much,little: give numbers with commas between them",
    ),
    "sum": ((*TWO, "--weights", "0.3,0.6", "--out", "x"), "must sum to 1"),
    "outside": ((*TWO, "--weights", "1.5,-0.5", "--out", "x"), "unless extrapolation is asked"),
    "too many": ((*TWO, "--weights", "0.3,0.3,0.4", "--out", "x"), "3 weights for 2 policies"),
    "one twice": (
        ("merge", "helpful", "./helpful", "--weights", "0.5,0.5", "--out", "x"), "is named twice",
    ),
    "no policy": (("merge", "--weights", "1", "--out", "x"), "needs policies"),
    "gone": (("merge", "helpful", "gone", "--weights", "1,0", "--out", "x"), "gone: there is no"),
    "dtype": ((*TWO, "--weights", "1,0", "--dtype", "fp8", "--out", "x"), "'fp8' is not known"),
    "rank": ((*TWO, "--weights", "1,0", "--rank", "4", "--out", "x"), "must lie between 0 and 0"),
    "sample": ((*TWO, "--weights", "1,0", "--sample", "0", "--out", "x"), "--sample is a share"),
    "export of nothing": (("export", "gone", "--out", "x"), "gone: there is no"),
    "export without a config": (
        ("export", "helpful", "--model", "gone", "--out", "x"), "gone",
    ),
    "verify of nothing": (("verify", "gone"), "`vcsoup verify` checks what `vcsoup merge` wrote"),
    "verify of a policy": (("verify", "helpful"), "manifest.json: is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(folder, case):
    arguments, message = MISTAKES[case]
    before = set(folder.rglob("*"))
    said = vcsoup(*arguments, folder=folder, code=2)
    assert message in said and len(said.splitlines()) == 1
    assert set(folder.rglob("*")) == before


def test_a_dry_run_says_what_would_be_done_and_keeps_nothing(folder):
    before = set(folder.rglob("*"))
    arguments = ["--grid", "0.5", "--out", "deep/soups", "--dry-run"]
    said = vcsoup(*TWO, *arguments, folder=folder)
    assert re.search(r"expected  \d+ s, by a measured sample; nothing was kept\n$", said)
    for line in (
        "policies  2: helpful (safetensors), harmless (safetensors)",
        "written as BF16",
        "soup      soup_0.50_0.50 (sum): 0.5, 0.5",
        "config    and tokenizer of helpful",
        "kernel: compiled",
    ):
        assert line in said
    assert set(folder.rglob("*")) == before
    (folder / "taken").mkdir()
    (folder / "taken" / "file").write_text("")
    arguments = ["--weights", "1,0", "--out", "taken", "--dry-run"]
    assert "already exists" in vcsoup(*TWO, *arguments, folder=folder, code=2)


def flip(file: Path, at: int) -> None:
    """Change one bit."""
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)


def test_verify_after_a_merge_sums_again_and_finds_a_flipped_bit(folder):
    arguments = [*TWO, "--grid", "0.5", "--out", "soups", "--verify"]
    said = vcsoup(*arguments, folder=folder)
    assert re.search(r"verified: \d+ tensors, .* of soups equal the sums of their sources\n$", said)
    victim = folder / "soups" / "soup_0.50_0.50" / "model.safetensors"
    state = victim.stat()
    flip(victim, -2)
    os.utime(victim, ns=(state.st_atime_ns, state.st_mtime_ns))
    said = vcsoup(*arguments, folder=folder, code=2)
    assert "nothing to do" in said
    assert "soup_0.50_0.50: '" in said and "differs from the sum of its sources, from byte" in said


@pytest.fixture(scope="module")
def soup(models) -> Path:
    """Of several files, with a template in a folder."""
    templates = models / "templates"
    if not templates.exists():
        shutil.copytree(models / "helpful", templates)
        (templates / "additional_chat_templates").mkdir()
        (templates / "additional_chat_templates" / "tools.jinja").write_text("tools")
        arguments = ["--weights", "1", "--shard-size", "20KB", "--sha256", "--out", "soup"]
        vcsoup("merge", "templates", *arguments, folder=models)
    return models / "soup"


def rewritten(path: Path, **changes: object) -> None:
    """Give a weights file another header."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end]) | changes
    text = json.dumps(header, separators=(",", ":")).encode().ljust(end - 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])


FILE = "model-00002-of-00003.safetensors"
DAMAGE = {
    "a flipped bit of weights": (lambda d: flip(d / FILE, -1), f"{FILE}: '.*' is not what was"),
    "a flipped bit of a config": (lambda d: flip(d / "config.json", 0), "config.json: is not what"),
    "a flipped bit of a template": (
        lambda d: flip(d / "additional_chat_templates" / "tools.jinja", 0), "tools.jinja: is not",
    ),
    "a flipped bit of the card": (lambda d: flip(d / "README.md", 9), "README.md: is not what"),
    "a flipped bit of the index": (
        lambda d: flip(d / "model.safetensors.index.json", 60), "model.safetensors.index.json",
    ),
    "a missing weights file": (lambda d: (d / FILE).unlink(), f"{FILE}"),
    "a missing tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json: is miss"),
    "a missing index": (
        lambda d: (d / "model.safetensors.index.json").unlink(), "model.safetensors.index.json",
    ),
    "a longer file": (
        lambda d: (d / "tokenizer.json").open("a").write(" "), "tokenizer.json: has .* bytes, was",
    ),
    "a cut weights file": (lambda d: os.truncate(d / FILE, 900), f"{FILE}: .*truncated"),
    "an extra weights file": (
        lambda d: shutil.copy(d / FILE, d / "model.safetensors"), "has both model.safetensors and",
    ),
    "another header": (
        lambda d: rewritten(d / FILE, __metadata__={"format": "np"}), f"{FILE}: its header is not",
    ),
}  # fmt: skip


def test_verify_finds_an_intact_soup_intact(soup):
    assert re.search(
        r"soup: \d+ tensors, 0\.000 GB, as they were written\n$",
        vcsoup("verify", "soup", folder=soup.parent),
    )


@pytest.mark.parametrize("case", DAMAGE)
def test_verify_names_the_file_that_is_not_as_it_was_written(soup, tmp_path, case):
    damage, message = DAMAGE[case]
    shutil.copytree(soup, tmp_path / "soup")
    assert (tmp_path / "soup" / FILE).is_file()
    damage(tmp_path / "soup")
    said = vcsoup("verify", "soup", folder=tmp_path, code=2)
    assert re.search(message, said) and len(said.splitlines()) == 1, said


def test_the_manifest_has_what_sha256sum_prints_where_that_is_asked(soup):
    import hashlib

    manifest = json.loads((soup / "manifest.json").read_text())
    assert manifest["files"].keys() == files_of(soup).keys() - {"manifest.json"}
    for name, entry in manifest["files"].items():
        raw = (soup / name).read_bytes()
        assert entry["bytes"] == len(raw)
        assert entry["sha256"] == hashlib.sha256(raw).hexdigest()


def test_transformers_loads_a_soup_and_computes_as_with_the_sum_in_memory(models, folder):
    import torch
    from transformers import AutoModelForCausalLM

    arguments = ["--weights", "0.25,0.75", "--shard-size", "20KB", "--out", "soup"]
    vcsoup(*TWO, *arguments, folder=folder)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        folder / "soup", dtype="auto", output_loading_info=True
    )
    assert loaded.dtype == torch.bfloat16 and not any(info.values()), info
    summed, other = (
        AutoModelForCausalLM.from_pretrained(models / name, dtype="auto") for name in TWO[1:]
    )
    with torch.no_grad():
        for tensor, twin in zip(summed.parameters(), other.parameters(), strict=True):
            tensor.copy_(0.25 * tensor.double() + 0.75 * twin.double())  # exact but for this copy
        tokens = torch.arange(24).reshape(2, 12)
        for key, tensor in summed.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], tensor), key
        assert torch.equal(loaded(tokens).logits, summed(tokens).logits)


def test_files_are_those_of_a_model_directory_and_readable_by_others(models, folder):
    before = os.umask(0o022)
    try:
        arguments = ["--weights", "0.3,0.7", "--shard-size", "20KB", "--out", "soup"]
        vcsoup(*TWO, *arguments, folder=folder)
    finally:
        os.umask(before)
    found = {}
    for path in (folder / "soup").iterdir():
        assert path.stat().st_mode & 0o777 == 0o644, path
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as opened:
                assert opened.metadata() == {"format": "pt"}
                names = opened.keys()
                found |= {name: opened.get_slice(name).get_shape() for name in names}
    layout = read_layout(models / "helpful")
    assert found == {name: list(spec.shape) for name, spec in layout.items()}
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / "soup" / name).read_bytes() == (models / "helpful" / name).read_bytes()
    assert (folder / "soup").stat().st_mode & 0o777 == 0o755


def test_nan_is_refused_unless_allowed(tmp_path):
    numbers = np.arange(6, dtype="<f4")
    write_policy(tmp_path / "p", {"w": ("F32", numbers)})
    write_policy(tmp_path / "q", {"w": ("F32", np.where(numbers == 3, np.nan, numbers))})
    command = ["merge", "p", "q", "--weights", "0.5,0.5", "--out", "out"]
    said = vcsoup(*command, folder=tmp_path, code=2)
    assert said.splitlines()[-1].startswith("vcsoup: policy q: 'w' holds NaN or infinity")
    said = vcsoup(*command, "--allow-nonfinite", "--verify", folder=tmp_path)
    assert "policy q: 'w' holds NaN or infinity" in said
    found = np.frombuffer(read_all(tmp_path / "out")["w"], "<f4")
    assert np.array_equal(found, np.where(numbers == 3, np.nan, numbers), equal_nan=True)


def test_weights_outside_the_simplex_are_taken_where_that_is_asked(models, folder):
    arguments = ["--weights", "1.5,-0.5", "--extrapolate", "--out", "soup"]
    vcsoup(*TWO, *arguments, folder=folder)
    assert read_all(folder / "soup") == expected(models, TWO[1:], (1.5, -0.5), "BF16")


def test_without_configs_the_soup_is_weights_only(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("p", "q"):
        policy = write_policy(tmp_path / name, {"w": ("BF16", bf16(rng, 9))})
        (policy / "config.json").unlink()
    said = vcsoup("merge", "p", "q", "--weights", "0.3,0.7", "--out", "out", folder=tmp_path)
    assert "no policy has a config.json, soups will be weights only" in said
    assert set(files_of(tmp_path / "out")) == {"README.md", "manifest.json", "model.safetensors"}


def test_what_lies_at_the_output_is_replaced_only_when_asked(models, folder):
    (folder / "soup").mkdir()
    command = [*TWO, "--weights", "0.3,0.7", "--out", "soup"]
    vcsoup(*command, folder=folder)  # an empty folder is in nobody's way
    (folder / "soup" / "notes.txt").write_text("mine")
    other = [*TWO, "--weights", "0.4,0.6", "--out", "soup"]
    before = files_of(folder / "soup")
    assert "--overwrite replaces it" in vcsoup(*other, folder=folder, code=2)
    assert files_of(folder / "soup") == before
    vcsoup(*other, "--overwrite", folder=folder)
    assert "notes.txt" not in files_of(folder / "soup")
    assert read_all(folder / "soup") == expected(models, TWO[1:], (0.4, 0.6), "BF16")


CONFIGS = {
    "linear, normalised": (
        "{models: [{model: helpful, parameters: {weight: 1}},"
        " {model: harmless, parameters: {weight: 3}}], merge_method: linear}",
        (0.25, 0.75), None,
    ),
    "linear, not normalised": (
        "{models: [{model: helpful, parameters: {weight: 0.5}},"
        " {model: harmless, parameters: {weight: 1}}], merge_method: linear,"
        " parameters: {normalize: false}, dtype: float32}",
        (0.5, 1.0), "F32",
    ),
    "linear with a base, a model like any other": (
        "{models: [{model: helpful, parameters: {weight: 0.3}},"
        " {model: {model: {path: harmless}}, parameters: {weight: 0.7}}],"
        " merge_method: linear, base_model: ./harmless, dtype: float32, out_dtype: float16}",
        (0.3, 0.7), "F16",
    ),
    "task arithmetic": (
        "{models: [{model: ./base}, {model: helpful, parameters: {weight: 0.5}},"
        " {model: harmless}], merge_method: task_arithmetic, base_model: base,"
        " parameters: {weight: 0.25, lambda: 2}}",
        (1.0, 0.5, -0.5), None,
    ),
    "task arithmetic, normalised": (
        "{models: [{model: helpful, parameters: {weight: 1}},"
        " {model: harmless, parameters: {weight: 3}}], merge_method: task_arithmetic,"
        " base_model: base, parameters: {normalize: true, lambda: 0.5}}",
        (0.125, 0.375, 0.5), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_of_mergekit_means_what_it_means_there(models, folder, case):
    text, weights, dtype = CONFIGS[case]
    (folder / "configs").mkdir()  # paths are of the current folder, or of the file's
    (folder / "configs" / "merge.yml").write_text(text)
    vcsoup("merge", "--config", "configs/merge.yml", "--out", "soup", folder=folder)
    sources = ["helpful", "harmless", "base"][: len(weights)]
    assert read_all(folder / "soup") == expected(models, sources, weights, dtype or "BF16")


def linear(models: str = "[{model: helpful, parameters: {weight: 1}}]", **others: str) -> str:
    keys = {"models": models, "merge_method": "linear"} | others
    return "{" + ", ".join(f"{key}: {value}" for key, value in keys.items() if value) + "}"


def one_model(text: str) -> str:
    return linear("[{model: helpful, " + text + "}]")


REFUSED = {
    "slices": (linear(slices="[]"), "`slices` is not supported"),
    "modules": (linear(modules="{}"), "`modules` is not supported"),
    "tokenizer_source": (linear(tokenizer_source="union"), "`tokenizer_source` is not supported"),
    "tokenizer": (linear(tokenizer="{}"), "`tokenizer` is not supported"),
    "chat_template": (linear(chat_template="auto"), "`chat_template` is not supported"),
    "ties": (linear(merge_method="ties"), "merge_method is 'ties'"),
    "slerp": (linear(merge_method="slerp"), "merge_method is 'slerp'"),
    "passthrough": (linear(merge_method="passthrough"), "merge_method is 'passthrough'"),
    "no method": (linear(merge_method=""), "merge_method is None"),
    "a list of methods": (linear(merge_method="[linear]"), "merge_method is"),
    "no base": (linear(merge_method="task_arithmetic"), "task_arithmetic needs a base_model"),
    "a base beside the models": (
        linear(base_model="base"), "mergekit sums the base_model of a linear merge too",
    ),
    "density": (linear(parameters="{density: 0.5}"), "parameters: supported parameters are"),
    "int8_mask": (linear(parameters="{int8_mask: true}"), "parameters: supported parameters are"),
    "a weight for every layer": (
        one_model("parameters: {weight: [0, 0.5, 1]}"), "only one number for the whole model",
    ),
    "a weight by filter": (
        one_model("parameters: {weight: [{filter: mlp, value: 1}]}"), "only one number for the",
    ),
    "a weight that is a word": (one_model("parameters: {weight: much}"), "weight is 'much'"),
    "a weight that is none": (one_model("parameters: {weight: .nan}"), "weight is nan"),
    "a weight without end": (one_model("parameters: {weight: .inf}"), "weight is inf"),
    "density of a model": (one_model("parameters: {weight: 1, density: 1}"), "models[0]: supp"),
    "normalise of a model": (
        one_model("parameters: {weight: 1, normalize: false}"), "models[0]: supported parameters",
    ),
    "no weight": (one_model("parameters: {}"), "models[0] has no weight"),
    "layer_range": (one_model("layer_range: [0, 1]"), "models[0] must have `model` and `parame"),
    "a lora": (
        linear("[{model: {model: {path: helpful}, lora: x}, parameters: {weight: 1}}]"),
        "a model is given by the path of its directory",
    ),
    "a name of the hub": (
        linear("[{model: meta-llama/Llama-3, parameters: {weight: 1}}]"),
        "meta-llama/Llama-3 is not a directory; download the model first",
    ),
    "weights that cancel": (
        linear("[{model: helpful, parameters: {weight: 1}},"
               " {model: harmless, parameters: {weight: -1}}]"), "sum to 0 and cannot be normali",
    ),
    "a model twice": (
        linear("[{model: helpful, parameters: {weight: 1}},"
               " {model: helpful, parameters: {weight: 1}}]"), "the same policy is named twice",
    ),
    "no models": (linear("[]"), "`models` is not a list of models"),
    "models that are a word": (linear("helpful"), "`models` is not a list of models"),
    "a model that is a word": (linear("[helpful]"), "models[0] must have `model` and `parameters`"),
    "an unknown dtype": (linear(dtype="int8"), "dtype 'int8' is not known"),
    "a list of dtypes": (linear(dtype="[float16]"), "dtype"),
    "no mapping": ("[1, 2]", "a mergekit configuration is a YAML mapping of keys"),
    "no YAML": ("models: [", "not YAML"),
    "code": ("!!python/object/apply:os.system ['touch ran']", "a mergekit configuration is a"),
    "code inside": ("models: !!python/object/apply:os.system ['touch ran']", "is not supported"),
    "nothing": ("", "empty; a mergekit configuration is a YAML mapping of keys"),
    "another's home": (linear("[{model: ~nobody-here/x, parameters: {weight: 1}}]"), "models[0]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_linear_soup_is_not_is_refused_by_name(folder, case):
    text, message = REFUSED[case]
    (folder / "merge.yml").write_text(text)
    before = set(folder.iterdir())
    said = vcsoup("merge", "--config", "merge.yml", "--out", "soup", folder=folder, code=2)
    assert message in said and len(said.splitlines()) == 1, said
    assert set(folder.iterdir()) == before


def test_a_configuration_leaves_nothing_to_say_beside_it(folder):
    (folder / "merge.yml").write_text(linear())
    for more in (["helpful"], ["--weights", "1"], ["--grid", "1"], ["--base", "base"]):
        command = ["merge", *more, "--config", "merge.yml", "--out", "soup"]
        assert "give no others" in vcsoup(*command, folder=folder, code=2)
    vcsoup("merge", "--config", "merge.yml", "--dtype", "fp32", "--out", "soup", folder=folder)
    assert {spec.dtype for spec in read_layout(folder / "soup").values()} == {"F32"}


def test_an_export_of_pickled_weights_is_the_model_as_safetensors(models, folder):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models / "helpful", dtype="auto")
    (folder / "pickled").mkdir()
    torch.save(model.state_dict(), folder / "pickled" / "pytorch_model.bin")
    command = ["export", "pickled", "--model", "helpful", "--shard-size", "20KB", "--out", "out"]
    vcsoup(*command, folder=folder)
    assert read_all(folder / "out") == read_all(models / "helpful")
    loaded, info = AutoModelForCausalLM.from_pretrained(
        folder / "out", dtype="auto", output_loading_info=True
    )
    assert loaded.dtype == torch.bfloat16 and not any(info.values()), info
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (folder / "out" / name).read_bytes() == (models / "helpful" / name).read_bytes()
    assert not (folder / "out" / "README.md").exists()
    assert "as they were written" in vcsoup("verify", "out", folder=folder)
    assert "nothing to do" in vcsoup(*command, folder=folder)
    vcsoup(*command, "--dtype", "fp32", "--overwrite", folder=folder)
    assert {spec.dtype for spec in read_layout(folder / "out").values()} == {"F32"}
    assert json.loads((folder / "out" / "config.json").read_text())["dtype"] == "float32"


def test_pickled_and_other_weights_are_merged_alike(models, folder):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models / "harmless", dtype="auto")
    shutil.copytree(models / "harmless", folder / "pickled")
    (folder / "pickled" / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pickled" / "pytorch_model.bin")
    said = vcsoup(
        "merge", "helpful", "pickled", "--weights", "0.3,0.7", "--out", "soup", folder=folder
    )
    assert "policies  2: helpful (safetensors), pickled (bin)" in said
    assert read_all(folder / "soup") == expected(models, TWO[1:], WEIGHTS, "BF16")


def test_overwriting_replaces_models_and_no_other_folder(folder):
    (folder / "home").mkdir()
    (folder / "home" / "thesis.txt").write_text("years")
    arguments = ["--weights", "0.3,0.7", "--out", "home", "--overwrite"]
    said = vcsoup(*TWO, *arguments, folder=folder, code=2)
    assert "not a model directory" in said
    assert [path.name for path in (folder / "home").iterdir()] == ["thesis.txt"]
    assert not (folder / "home.partial").exists()
    (folder / "home" / "config.json").write_text("{}")
    vcsoup(*TWO, *arguments, folder=folder)
    assert (folder / "home" / "manifest.json").exists()
