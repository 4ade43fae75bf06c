"""Checkpoints, names and places nobody should meet: the soup is right, or one line says why not."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import vcsoup
from merging import files_of, forget, read_all, write_policy
from safetensors import safe_open
from safetensors.numpy import save_file

from vcsoup_dist.errors import UserError
from vcsoup_dist.souping import merge
from vcsoup_dist.souping.verify import verify_directory

pytestmark = pytest.mark.processes


def seen(folder: Path) -> dict[Path, tuple]:
    """All below a folder but `out` and `out.partial`, as it is on the disk."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in [*folders, *files]):
            if path.relative_to(folder).parts[0] not in ("out", "out.partial"):
                state = path.lstat()
                found[path] = (state.st_mode, state.st_size, state.st_mtime_ns, state.st_ino)
    return found


@pytest.fixture
def soup(tmp_path):
    """A function that merges `p` and `q` into `out` by the command; what it said."""

    def run(*more: object, code: int = 0, policies=("p", "q")) -> str:
        before = seen(tmp_path)
        command = ["merge", *policies, "--weights", "0.25,0.75", "--out", "out", *more]
        said = vcsoup(*command, folder=tmp_path, code=code)
        assert seen(tmp_path) == before
        assert not (tmp_path / "out.partial").exists()
        if code:
            assert not (tmp_path / "out").exists()
            assert len(said.splitlines()) == 1
        return said

    return run


def small(seed: float) -> dict:
    return {
        "a": ("F32", np.full((2, 3), seed, "<f4")),
        "b": ("BF16", np.full(5, 0x3F80 + int(seed), "<u2")),
    }


def put_header(file: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    file.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


def entry(begin: int, end: int, dtype: str = "U8") -> dict:
    return {"dtype": dtype, "shape": [end - begin], "data_offsets": [begin, end]}


def index(policy: Path, file_name: object) -> None:
    (policy / "model.safetensors").rename(policy / "other.safetensors")
    content = {"weight_map": {"a": file_name, "b": file_name}}
    (policy / "model.safetensors.index.json").write_text(json.dumps(content))


def header(policy: Path, tensors: dict, size: int, length: int | None = None) -> None:
    put_header(policy / "model.safetensors", json.dumps(tensors).encode(), bytes(size), length)


def truncate(policy: Path, size: int) -> None:
    file = policy / "model.safetensors"
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)


def replace(file: Path, make) -> None:
    file.unlink()
    make(file)


HOSTILE = {
    "index to the parent": (
        lambda p: index(p, "../q/model.safetensors"), "is not a file of its directory",
    ),
    "index to an absolute path": (
        lambda p: index(p, "/etc/passwd"), "is not a file of its directory",
    ),
    "index to a missing file": (lambda p: index(p, "gone.safetensors"), "weights file is missing"),
    "index to a number": (lambda p: index(p, 7), "is not a file of its directory"),
    "length beyond all files": (
        lambda p: header(p, {"a": entry(0, 4)}, 4, 1 << 62), "truncated or not a safetensors",
    ),
    "length within the header": (lambda p: header(p, {"a": entry(0, 4)}, 4, 9), "JSON cannot be"),
    "overlap": (
        lambda p: header(p, {"a": entry(0, 4), "b": entry(3, 7)}, 7), "'b' overlaps the one before",
    ),
    "hole": (lambda p: header(p, {"a": entry(0, 4), "b": entry(5, 7)}, 7), "'b' leaves a hole"),
    "terabytes that are not there": (
        lambda p: header(p, {"a": entry(0, 1 << 45)}, 4), "'a' ends at byte .* truncated",
    ),
    "truncated data": (lambda p: truncate(p, -1), "it is truncated"),
    "truncated header": (lambda p: truncate(p, 30), "it is truncated or not a safetensors"),
    "truncated length": (lambda p: truncate(p, 3), "it is truncated or not a safetensors"),
    "empty file": (lambda p: truncate(p, 0), "it is truncated or not a safetensors"),
    "more than the header says": (
        lambda p: (p / "model.safetensors").open("ab").write(b"x"), "1 bytes that its header does",
    ),
    "a pipe for weights": (
        lambda p: replace(p / "model.safetensors", os.mkfifo), "model.safetensors is not a regular",
    ),
    "a pipe for a tokenizer": (
        lambda p: replace(p / "tokenizer.json", os.mkfifo), "tokenizer.json is not a regular file",
    ),
    "a link to itself": (
        lambda p: replace(p / "model.safetensors", lambda file: file.symlink_to(file)),
        "model.safetensors is a link to a file that is missing",
    ),
    "a config that is no JSON": (
        lambda p: (p / "config.json").write_text('{"hidden_size": 8'), "config.json: its JSON cann",
    ),
    "a config that is a list": (
        lambda p: (p / "config.json").write_text("[]"), "config.json: its JSON is not an object",
    ),
    "a config without end": (
        lambda p: (p / "config.json").write_text("[" * 100_000), "config.json: its JSON cannot be",
    ),
    "no directory": (lambda p: (shutil.rmtree(p), p.write_text("x")), "is a file, not a model"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_checkpoint_is_one_line_and_nothing_is_written(tmp_path, soup, case):
    damage, message = HOSTILE[case]
    for name in ("p", "q"):
        write_policy(tmp_path / name, small(1))
    damage(tmp_path / "p")
    said = soup(code=2)
    assert re.search(message, said), said


class Hostile:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, soup, legacy):
    torch = pytest.importorskip("torch")
    for name in ("p", "q"):
        write_policy(tmp_path / name, small(1))
    ran = tmp_path / "ran"
    state = {"a": torch.ones(2, 3), "b": Hostile(os.system, f"touch {ran}")}
    (tmp_path / "p" / "model.safetensors").unlink()
    file = tmp_path / "p" / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    said = soup(code=2)
    assert ("not a zip archive" if legacy else "wants to call") in said and not ran.exists()
    torch.save({"a": torch.ones(2, 3)}, file)
    os.truncate(file, file.stat().st_size - 20)
    assert "not a whole zip archive" in soup(code=2)


ODD_NAMES = [
    "new\nline", "tab\t", "quote\"s'", "back\\slash", "wörter.权重.🙂", "\u202egnp.exe", ".hidden",
    "..", "../../etc/passwd", "a/b/c", "nul\0", " ", "-", "x" * 300, "{}", "__metadata__ ",
    "\ufeffbom", "%s",
]  # fmt: skip


def test_tensors_of_any_name_without_elements_or_dimensions_are_right(tmp_path, soup):
    rng = np.random.default_rng(3)
    shapes = [(), (0,), (0, 4), (3, 0), (1,), (1, 1, 1), (2, 3), (1025,)]
    policies = []
    for policy in ("p", "q"):
        tensors = {
            name: rng.standard_normal(shapes[i % len(shapes)]).astype(["f4", "f2", "f8"][i % 3])
            for i, name in enumerate([*ODD_NAMES, *(f"w{i}" for i in range(16))])
        }
        (tmp_path / policy).mkdir()
        save_file(tensors, tmp_path / policy / "model.safetensors")
        policies.append(tensors)
    soup("--shard-size", "64", "--verify")
    places = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    places = places["weight_map"]
    assert places.keys() == policies[0].keys() and len(set(places.values())) > 5
    for name, first in policies[0].items():
        with safe_open(tmp_path / "out" / places[name], "np") as opened:
            found = opened.get_tensor(name)
        exact = 0.25 * first.astype("f8") + 0.75 * policies[1][name].astype("f8")
        assert (found.dtype, found.shape) == (first.dtype, first.shape)
        assert np.array_equal(found, exact.astype(first.dtype)), name
    assert f"{len(places)} tensors" in vcsoup("verify", "out", folder=tmp_path)


@pytest.mark.parametrize("padding", range(8))
def test_data_that_begin_anywhere_are_read_right(tmp_path, padding):
    """Headers of every length: the safetensors library pads them, others need not."""
    words = np.arange(1, 50_001, dtype="<f4")
    tensors = {"a": ("F32", words), "b": ("BF16", words[:99].view("<u2")[1::2].copy())}
    for name, factor in (("p", 1), ("q", 2)):
        write_policy(tmp_path / name, tensors)
        file = tmp_path / name / "model.safetensors"
        raw = file.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        data = (words * factor).tobytes() + raw[end + words.nbytes :]
        put_header(file, raw[8:end].rstrip() + b" " * (padding if name == "p" else 0), data)
        forget(file)
    merge.merge(
        [tmp_path / "p", tmp_path / "q"], out=tmp_path / "out", weights=[(0.25, 0.75)], verify=True
    )
    assert read_all(tmp_path / "out") == {
        "a": (words * 1.75).tobytes(),
        "b": tensors["b"][1].tobytes(),
    }
    file = tmp_path / "out" / "model.safetensors"
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0  # soups are padded


def test_very_many_tiny_tensors_take_time_by_their_number(tmp_path):
    def seconds(count: int) -> float:
        folder = tmp_path / str(count)
        tensors = {f"w{i}": ("F32", np.full(1 + i % 3, i, "<f4")) for i in range(count)}
        policies = [write_policy(folder / name, tensors) for name in ("p", "q")]
        began = time.process_time()
        merge.merge(policies, out=folder / "out", weights=[(0.25, 0.75)])
        spent = time.process_time() - began
        assert read_all(folder / "out") == read_all(policies[0])
        return spent

    few, many = seconds(1_000), seconds(10_000)
    assert many < 30 * few + 2


def hub_cache(policy: Path, cache: Path) -> Path:
    """As the Hub's client stores a model: a snapshot of links to blobs."""
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(policy.iterdir())):
        file.rename(blobs / f"blob{i}")
        (snapshot / file.name).symlink_to(Path("../../blobs", f"blob{i}"))
    policy.rmdir()
    return snapshot


def test_snapshots_of_the_hub_cache_are_read_and_copied_by_content(tmp_path, soup):
    for name, seed in (("p", 1), ("q", 2)):
        write_policy(tmp_path / name, small(seed), shard_size=20)
        shutil.copytree(tmp_path / name, tmp_path / "plain" / name)
    snapshots = [hub_cache(tmp_path / name, tmp_path / f"models--{name}") for name in ("p", "q")]
    soup(policies=snapshots)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    found = files_of(tmp_path / "out")
    plain = [tmp_path / "plain" / name for name in ("p", "q")]
    merge.merge(plain, out=tmp_path / "other", weights=[(0.25, 0.75)])
    expected = files_of(tmp_path / "other")
    differing = {name for name in expected if found.get(name) != expected[name]}
    assert found.keys() == expected.keys() and differing <= {"README.md", "manifest.json"}
    names = [each["name"] for each in json.loads(found["manifest.json"])["sources"]]
    assert len(set(names)) == 2 and "models--p" in names[0] and "models--q" in names[1]


def test_links_go_along_only_where_they_lead_into_the_policy(tmp_path, soup):
    outside = tmp_path / "outside"
    (outside / "templates").mkdir(parents=True)
    (outside / "templates" / "tools.jinja").write_text("tools")
    (outside / "secret").write_text("root:x:0:0")
    for name in ("p", "q"):
        policy = write_policy(tmp_path / name, small(1))
        (policy / "tokenizer.json").rename(policy / "tokenizer-v2.json")
        (policy / "tokenizer.json").symlink_to("tokenizer-v2.json")
        (policy / "extra").symlink_to(outside / "templates")
        (policy / "modeling_x.py").symlink_to(outside / "secret")
        (policy / "modeling_y.py").symlink_to("/dev/null")
        (policy / "README.md").write_text("of the policy")
        (policy / "manifest.json").write_text("of the policy")
    said = soup("--dtype", "bf16")
    for left in ("modeling_x.py (a link to elsewhere)", "extra/", "modeling_y.py"):
        assert left in said
    out = tmp_path / "out"
    assert not [path for path in out.rglob("*") if path.is_symlink()]
    assert set(files_of(out)) == {
        "README.md", "config.json", "manifest.json", "model.safetensors", "tokenizer-v2.json",
        "tokenizer.json",
    }  # fmt: skip
    assert (out / "tokenizer.json").read_text() == '{"model": {"a": 0}}'
    assert "of the policy" not in (out / "README.md").read_text()
    verify_directory(out)
    (tmp_path / "p" / "tokenizer_config.json").symlink_to(outside / "secret.json")
    (outside / "secret.json").write_text("{}")
    command = ["merge", "p", "q", "--weights", "0.5,0.5", "--out", "other"]
    assert "outside of the model directory" in vcsoup(*command, folder=tmp_path, code=2)


POLICY_NAMES = [
    ("a b", "a_b"), ("有用", "无害"), ("é", "e\u0301"), ("p\nq", "p\tq"), ("'", '"'), (".p", ".q"),
    ("-p", "--out"), ("p|q", "p`q"), ("$(touch x)", "%s{0}"), ("p" * 250, "q" * 250),
    (os.fsdecode(b"p\xff"), os.fsdecode(b"q\xfe")), ("x/same", "y/same"),
    ("manifest.json", "soups"),
]  # fmt: skip


@pytest.mark.parametrize("names", POLICY_NAMES, ids=map(ascii, POLICY_NAMES))
def test_policies_may_have_any_names(tmp_path, soup, names):
    for seed, name in enumerate(names, start=1):
        write_policy(tmp_path / name, small(seed))
    said = soup(policies=[f"./{name}" for name in names])
    assert len([line for line in said.splitlines() if line.startswith("policies  2: ")]) == 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len({source["name"] for source in manifest["sources"]}) == 2
    assert list(manifest["lambda"].values()) == [0.25, 0.75]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    rows = [line for line in card.splitlines() if line.endswith("` |")]
    assert [row.rsplit(" | ", 2)[1] for row in rows] == ["0.25", "0.75"]
    verify_directory(tmp_path / "out")


OUT_NAMES = [
    "new\nline", "wörter 权重", ".hidden", "-x", "a.b", "'\"`$", "%s", "deep/er/out", "# x",
    os.fsdecode(b"\xff"), "x" * 240,
]  # fmt: skip


@pytest.mark.parametrize("name", OUT_NAMES, ids=map(ascii, OUT_NAMES))
def test_outputs_may_have_any_names(tmp_path, name):
    for policy in ("p", "q"):
        write_policy(tmp_path / policy, small(1))
    command = ["merge", "p", "q", "--weights", "0.25,0.75", f"--out=./{name}"]
    before = set(tmp_path.iterdir())
    vcsoup(*command, "--verify", folder=tmp_path)
    assert set(tmp_path.iterdir()) - before == {tmp_path / Path(name).parts[0]}
    verify_directory(tmp_path / name)
    assert "nothing to do" in vcsoup(*command, folder=tmp_path)


PLACES = {
    "too long a name": ("x" * 300, "too long"),
    "no room for .partial": ("x" * 252, "too long"),
    "below a file": ("p/config.json/out", ""),
    "a file": ("p/config.json", "is "),
    "a pipe": ("pipe", "is "),
    "below no file system": ("/proc/nowhere/out", ""),
    "the parent": ("..", "not a plain folder name"),
    "the root": ("/", "not a plain folder name"),
}


@pytest.mark.parametrize("case", PLACES)
def test_places_where_nothing_can_be_written_are_one_line(tmp_path, case):
    out, message = PLACES[case]
    folder = tmp_path / "folder"
    for policy in ("p", "q"):
        write_policy(folder / policy, small(1))
    os.mkfifo(folder / "pipe")
    before = seen(tmp_path)
    several = [] if message.startswith("not a plain") else [["--grid", "0.5"]]
    for weights in (["--weights", "0.25,0.75"], *several):
        for more in ([], ["--dry-run"], ["--overwrite"]):
            command = ["merge", "p", "q", *weights, "--out", out, *more]
            said = vcsoup(*command, folder=folder, code=2)
            assert message in said.splitlines()[-1]
            assert seen(tmp_path) == before


def test_an_output_that_is_a_link_is_written_where_it_leads(tmp_path, soup):
    for policy in ("p", "q"):
        write_policy(tmp_path / policy, small(1))
    (tmp_path / "out").symlink_to("elsewhere/soup")
    merge.merge([tmp_path / "p"], out=tmp_path / "out", weights=[(1,)])
    assert (tmp_path / "out").is_symlink()
    verify_directory(tmp_path / "elsewhere" / "soup")
    assert {path.name for path in tmp_path.iterdir()} == {"p", "q", "out", "elsewhere"}
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["soup"]


def test_a_merge_in_a_locale_of_ascii_writes_the_same_bytes(tmp_path, soup):
    for seed, policy in enumerate(("p", "q")):
        write_policy(tmp_path / policy, small(seed), config={"hidden_size": 8, "author": "Ö"})
    soup("--dtype", "fp16")
    expected = files_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = ["merge", "p", "q", "--weights", "0.25,0.75", "--out", "out", "--dtype", "fp16"]
    subprocess.run(
        [sys.executable, "-m", "vcsoup_dist.cli", *command],
        cwd=tmp_path, check=True, env=os.environ | plain,
    )  # fmt: skip
    assert files_of(tmp_path / "out") == expected


def test_a_manifest_cannot_name_files_outside_its_directory(tmp_path):
    policy = write_policy(tmp_path / "p", small(1))
    merge.merge([policy], out=tmp_path / "out", weights=[(1,)])
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("../p/config.json", "/etc/passwd", "a/../../p/config.json"):
        manifest["files"][name] = manifest["files"]["config.json"]
        path.write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="is not a file of its directory"):
            verify_directory(tmp_path / "out")
        del manifest["files"][name]
    whole = json.dumps(manifest)
    damaged = (
        whole.replace('"format": 1', '"format": 9'),
        whole.replace('"bytes": ', '"bytes": 1e999, "was": '),
        whole.replace('"weight": ', '"weight": "heavy", "was": '),
    )
    for broken in (
        "{",
        "[]",
        '{"format": 9}',
        *damaged,
        '{"format": 1, "files": {"a": 1}, "tensors": {}}',
    ):
        path.write_text(broken)
        said = vcsoup("verify", "out", folder=tmp_path, code=2)
        assert said.startswith("vcsoup: out/manifest.json: ") and said.count("\n") == 1
