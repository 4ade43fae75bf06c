"""Pickled weights read in place, and pickles that must not be believed."""

from __future__ import annotations

import json
import os
import random
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from vcsoup_dist.checkpoints.layout import TensorSpec
from vcsoup_dist.checkpoints.model_files import BIN_INDEX_NAME, BIN_SINGLE_NAME
from vcsoup_dist.checkpoints.pickled import (
    DTYPES,
    load_without_data,
    open_checkpoint,
)
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.sources import open_source
from vcsoup_dist.errors import UserError


def read(spec: TensorSpec) -> bytes:
    raw = np.empty(spec.nbytes, np.uint8)
    with CheckpointReader({spec.name: spec}) as reader:
        reader.read_into(spec.name, 0, raw)
    return raw.tobytes()


def as_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().clone().untyped_storage())


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    size = torch.empty(shape, dtype=dtype).nbytes
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (size,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def test_every_dtype_and_place_is_found(tmp_path):
    flat = torch.arange(20.0)
    state = {str(dtype): random_tensor((3, 4), dtype) for dtype in DTYPES}
    state |= {
        "view": flat[3:9].view(2, 3),
        "parameter": torch.nn.Parameter(torch.ones(4)),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "whole": flat,
    }
    torch.save(state, tmp_path / BIN_SINGLE_NAME)
    source = open_checkpoint(tmp_path)
    assert (source.path, source.kind, source.aliases) == (tmp_path, "bin", {})
    assert source.layout.keys() == state.keys()
    for name, spec in source.layout.items():
        assert (spec.name, spec.shape) == (name, tuple(state[name].shape))
        assert spec.dtype == DTYPES[state[name].dtype]
        assert read(spec) == as_bytes(state[name])
    starts = [spec.extents[0].start for spec in source.layout.values()]
    assert starts == sorted(starts)


def test_tied_weights_are_read_once_under_their_first_name(tmp_path):
    weight = torch.randn(5, 3)
    torch.save(
        {"embed": weight, "other": weight.clone(), "head": weight}, tmp_path / BIN_SINGLE_NAME
    )
    source = open_source(tmp_path)
    assert set(source.layout) == {"embed", "other"}
    assert source.aliases == {"head": "embed"}


@pytest.mark.models
def test_a_model_of_transformers(tmp_path, tiny_model):
    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    torch.save(state, tmp_path / BIN_SINGLE_NAME)
    source = open_source(tmp_path)
    assert source.layout.keys() == state.keys()
    assert all(read(source.layout[name]) == as_bytes(tensor) for name, tensor in state.items())


def test_weights_of_a_gpu_need_no_gpu(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save({"a": torch.ones(2)}, tmp_path / BIN_SINGLE_NAME)
    assert b"cuda:0" in (tmp_path / BIN_SINGLE_NAME).read_bytes()
    assert read(open_source(tmp_path).layout["a"]) == as_bytes(torch.ones(2))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes that Linux counts")
def test_no_data_is_read(tmp_path):
    def read_so_far() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    torch.save({"a": torch.ones(10_000_000)}, tmp_path / BIN_SINGLE_NAME)
    before = read_so_far()
    open_source(tmp_path)
    assert read_so_far() - before < 1_000_000


def write_sharded(directory: Path) -> dict[str, torch.Tensor]:
    shards = {
        "pytorch_model-00001-of-00002.bin": {"b": torch.randn(3), "a": torch.randn(2)},
        "pytorch_model-00002-of-00002.bin": {"c": torch.randn(4)},
    }
    for name, state in shards.items():
        torch.save(state, directory / name)
    placed = {tensor: name for name, state in shards.items() for tensor in state}
    (directory / BIN_INDEX_NAME).write_text(json.dumps({"weight_map": placed}))
    return {name: tensor for state in shards.values() for name, tensor in state.items()}


def test_shards_are_read_in_file_order(tmp_path):
    state = write_sharded(tmp_path)
    layout = open_source(tmp_path).layout
    assert list(layout) == ["b", "a", "c"]
    assert all(read(layout[name]) == as_bytes(tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "place, message",
    [
        ({"c": "../outside.bin"}, "is not a file of its directory"),
        ({"d": "pytorch_model-00002-of-00002.bin"}, "lacks that tensor"),
        ({"d": "pytorch_model-00003-of-00003.bin"}, "this weights file is missing"),
        ({"a": None}, f"holds 'a', which {BIN_INDEX_NAME} does not place there"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path, place, message):
    write_sharded(tmp_path)
    index = json.loads((tmp_path / BIN_INDEX_NAME).read_text())["weight_map"] | place
    placed = {name: file for name, file in index.items() if file}
    (tmp_path / BIN_INDEX_NAME).write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(UserError, match=message):
        open_source(tmp_path)


def test_two_sets_of_weights_are_refused(tmp_path):
    write_sharded(tmp_path)
    torch.save({"a": torch.ones(2)}, tmp_path / BIN_SINGLE_NAME)
    with pytest.raises(UserError, match="remove the one that is out of date"):
        open_source(tmp_path)


REFUSED = {
    "strides": ({"x": torch.ones(3, 4).t()}, "do not lie in order"),
    "expanded": ({"x": torch.ones(1).expand(3)}, "do not lie in order"),
    "sparse": ({"x": torch.eye(3).to_sparse()}, "is sparse"),
    "conjugate": ({"x": torch.ones(2, dtype=torch.complex64).conj()}, "a lazy view"),
    "dtype": ({"x": torch.ones(2, dtype=torch.complex128)}, "cannot be stored as safetensors"),
    "no data": ({"x": torch.empty(3, device="meta")}, "has no data in this file"),
    "number": ({"step": 3}, "'step' is not a tensor but of type int"),
    "nested": ({"model": {"x": torch.ones(2)}}, "'model' is not a tensor but of type dict"),
    "list": ([torch.ones(2)], "holds no state_dict"),
    "name": ({3: torch.ones(2)}, "3 is not a name"),
    "surrogate": ({"\ud800": torch.ones(2)}, "is not a name"),
    "empty": ({}, "hold no tensor"),
    "class": ({"x": Path("a")}, r"wants to call pathlib\."),
    "counter": (Counter("a"), "is not a tensor but of type int"),
}


@pytest.mark.parametrize("content, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_plain_tensor_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / BIN_SINGLE_NAME)
    with pytest.raises(UserError, match=message) as refused:
        open_checkpoint(tmp_path)
    assert "\n" not in str(refused.value)


class Hostile:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_does_not_run(tmp_path, legacy):
    ran = tmp_path / "ran"
    for call in (
        (os.system, f"touch {ran}"),
        (eval, f"open({str(ran)!r}, 'w')"),
        (Path.touch, ran),
        (getattr, Path, "cwd"),
    ):
        state = {"a": torch.ones(2), "b": Hostile(*call)}
        file = tmp_path / BIN_SINGLE_NAME
        torch.save(state, file, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match="not a zip archive" if legacy else "wants to call"):
            open_source(tmp_path)
        assert not ran.exists()


def test_stand_ins_take_the_place_of_named_classes_alone(tmp_path):
    file = tmp_path / "states.pt"
    torch.save({"step": Counter("aa"), "at": Path("b")}, file)
    with pytest.raises(UserError, match="pathlib"):
        load_without_data(file, [(int, "pathlib.Pfad")])
    torch.save({"stage": Hostile(Fraction, 3)}, file)
    with pytest.raises(UserError, match="Fraction"):
        load_without_data(file)
    loaded = load_without_data(file, [(int, f"{Fraction.__module__}.{Fraction.__qualname__}")])
    assert loaded.content == {"stage": 3} and type(loaded.content["stage"]) is int


class Fraction(int):
    """A class that only its own name allows."""


def rewrite(file: Path, changed: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, changed.get(name.partition("/")[2], content))


@pytest.mark.parametrize(
    "changed, compression, message",
    [
        ({}, zipfile.ZIP_DEFLATED, "is compressed"),
        ({"data/0": b"1234"}, zipfile.ZIP_STORED, "needs 8 bytes of storage, the file has 4"),
        ({"byteorder": b"big"}, zipfile.ZIP_STORED, "big-endian"),
        ({"data.pkl": b"\x80\x02."}, zipfile.ZIP_STORED, "cannot be unpickled"),
        ({"data.pkl": b"\x80\x02\xff."}, zipfile.ZIP_STORED, r"unpickled \(Unsupported operand"),
    ],
)
def test_an_archive_of_other_content_is_refused(tmp_path, changed, compression, message):
    file = tmp_path / BIN_SINGLE_NAME
    torch.save({"a": torch.ones(2)}, file)
    rewrite(file, {})
    assert read(open_source(tmp_path).layout["a"]) == as_bytes(torch.ones(2))
    rewrite(file, changed, compression)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path)


def test_damaged_files_are_refused_in_one_line(tmp_path):
    file = tmp_path / BIN_SINGLE_NAME
    torch.save({"a": torch.ones(5), "b": torch.ones(2, 2)}, file)
    whole, draw = file.read_bytes(), random.Random(0)
    for length in range(0, len(whole), 97):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match="zip archive"):
            open_source(tmp_path)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        file.write_bytes(damaged)
        try:
            layout = open_source(tmp_path).layout
        except UserError as error:
            assert str(error).startswith(f"{file}: ") and "\n" not in str(error)
        else:
            assert all(len(read(spec)) == spec.nbytes for spec in layout.values())
