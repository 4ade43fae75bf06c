"""Safetensors layout, reader, writer and auxiliary files, against the safetensors library."""

import errno
import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from vcsoup_dist.checkpoints.auxiliary_files import (
    auxiliary_files,
    copy_auxiliary_files,
)
from vcsoup_dist.checkpoints.layout import read_layout, tensor_bytes
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.writer import Shard, ShardFile, plan_shards, write_index
from vcsoup_dist.errors import UserError

names = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    unique=True,
    min_size=1,
    max_size=6,
)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def write_checkpoint(directory, tensors, shard_size=10**9):
    """tensors: (name, dtype, shape) -> bytes"""
    shards = plan_shards(list(tensors), shard_size)
    for shard in shards:
        with ShardFile.create(directory, shard) as file:
            for meta in shard.tensors:
                file.write(meta[0], 0, tensors[meta])
    write_index(directory, shards)
    return shards


@settings(deadline=None, max_examples=60)
@given(names, st.data())
def test_the_library_reads_what_the_writer_wrote(tmp_path_factory, found, data):
    directory = tmp_path_factory.mktemp("written")
    tensors = {}
    for name in found:
        dtype = data.draw(st.sampled_from(["BF16", "F16", "F32", "F64", "I64", "U8", "BOOL"]))
        shape = data.draw(shapes)
        size = tensor_bytes(dtype, shape)
        tensors[name, dtype, shape] = data.draw(st.binary(min_size=size, max_size=size))
    shards = write_checkpoint(directory, tensors, data.draw(st.integers(1, 400)))
    read = {}
    for shard in shards:
        for name, entry in safetensors.deserialize((directory / shard.file_name).read_bytes()):
            read[name, entry["dtype"], tuple(entry["shape"])] = bytes(entry["data"])
    assert read == tensors
    layout = read_layout(directory)
    assert {(spec.name, spec.dtype, spec.shape) for spec in layout.values()} == set(tensors)
    for shard in shards:
        for name, dtype, _ in shard.tensors:
            assert layout[name].extents[0].start % tensor_bytes(dtype, (1,)) == 0
            assert layout[name].file.name == shard.file_name


@settings(deadline=None, max_examples=60)
@given(names, st.data())
def test_the_layout_finds_the_bytes_that_the_library_wrote(tmp_path_factory, found, data):
    directory = tmp_path_factory.mktemp("library")
    arrays = {
        name: np.arange(math.prod(shape)).reshape(shape).astype(dtype)
        for name in found
        for shape, dtype in [
            (data.draw(shapes), data.draw(st.sampled_from(["f2", "f4", "f8", "i8", "u1", "?"])))
        ]
    }
    safetensors.numpy.save_file(arrays, directory / "model.safetensors", {"format": "pt"})
    layout = read_layout(directory)
    assert set(layout) == set(arrays)
    with CheckpointReader(layout) as reader:
        for name, array in arrays.items():
            buffer = np.empty(layout[name].nbytes, np.uint8)
            middle = buffer.size // 3
            reader.read_into(name, middle, buffer[middle:])
            reader.read_into(name, 0, buffer[:middle])
            assert buffer.tobytes() == array.tobytes()
            assert layout[name].shape == array.shape


def test_shards_are_cut_greedily_in_order_and_a_larger_tensor_stands_alone():
    sizes = {"a": 4, "b": 4, "huge": 50, "c": 6, "d": 4, "e": 1}
    shards = plan_shards([(name, "U8", (size,)) for name, size in sizes.items()], 10)
    assert [[name for name, _, _ in shard.tensors] for shard in shards] == [
        ["a", "b"], ["huge"], ["c", "d"], ["e"],
    ]  # fmt: skip
    assert shards[1].file_name == "model-00002-of-00004.safetensors"
    assert plan_shards([("a", "F32", (2, 2))], 10)[0].file_name == "model.safetensors"
    with pytest.raises(ValueError, match="distinct"):
        plan_shards([("a", "U8", (1,)), ("a", "U8", (1,))], 10)


def test_files_are_split_and_indexed_as_the_hub_library_does(tmp_path):
    torch = pytest.importorskip("torch")
    from huggingface_hub import split_torch_state_dict_into_shards

    state = {f"layer.{i}": torch.zeros(size) for i, size in enumerate([5, 9, 3, 3, 7, 1, 1, 12])}
    theirs = split_torch_state_dict_into_shards(state, max_shard_size=48)
    tensors = {(k, "F32", tuple(v.shape)): bytes(v.nbytes) for k, v in state.items()}
    write_checkpoint(tmp_path, tensors, 48)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == theirs.tensor_to_filename
    assert index["metadata"]["total_size"] == theirs.metadata["total_size"] == 41 * 4
    assert index["metadata"]["total_parameters"] == 41


def test_a_shard_file_has_its_final_size_at_once_and_is_readable_by_others(tmp_path):
    before = os.umask(0o022)
    try:
        (shard,) = plan_shards([("a", "BF16", (3,)), ("b", "F32", (1,))], 100)
        file = ShardFile.create(tmp_path, shard)
    finally:
        os.umask(before)
    path = tmp_path / "model.safetensors"
    size = path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o644
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert header % 8 == 0 and size == 8 + header + 10
    file.write("a", 4, b"\x01\x02")
    file.write("a", 0, b"\x03\x04\x05\x06")
    file.write("b", 0, np.array([1.5], "f4").view(np.uint8))
    file.close()
    assert path.stat().st_size == size
    assert list(read_layout(tmp_path)) == ["b", "a"]  # the wider dtype comes first
    read = dict(safetensors.deserialize(path.read_bytes()))
    assert read["a"]["data"] == b"\x03\x04\x05\x06\x01\x02"
    assert read["b"]["data"] == struct.pack("<f", 1.5)


def test_a_shard_that_was_not_filled_is_not_closed_as_if_it_were(tmp_path):
    file = ShardFile.create(tmp_path, Shard("x.safetensors", (("a", "U8", (4,)),)))
    file.write("a", 0, b"abc")
    with pytest.raises(ValueError, match="has 4 bytes"):
        file.write("a", 3, b"de")
    with pytest.raises(ValueError, match="1 bytes were never written"):
        file.close()
    with pytest.raises(FileExistsError):
        ShardFile.create(tmp_path, Shard("x.safetensors", ()))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    file = ShardFile.create(tmp_path, Shard("x.safetensors", (("a", "U8", (4,)),)))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"x\.safetensors: cannot be written: No space"):
        file.write("a", 0, b"abcd")


def test_a_file_system_that_is_out_of_reach_is_one_line_also_when_files_are_closed(
    tmp_path, monkeypatch
):
    put(tmp_path / "model.safetensors", {"a": entry(0, 4)}, b"abcd")
    layout = read_layout(tmp_path)

    def gone(*_: object) -> int:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    buffer = np.empty(4, np.uint8)
    reader = CheckpointReader(layout)
    reader.read_into("a", 0, buffer[:2])
    monkeypatch.setattr(os, "preadv", gone)
    monkeypatch.setattr(os, "close", gone)
    with pytest.raises(UserError, match=r"out of reach: Transport .* run the same command"):
        reader.read_into("a", 2, buffer[2:])
    reader.close()


def put(path: Path, header: object, data: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(begin, end, dtype="U8", shape=None):
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE = {
    "length beyond the file": ({"a": entry(0, 4)}, bytes(4), 10**6, "truncated"),
    "length of 2^63": ({"a": entry(0, 4)}, bytes(4), 1 << 63, "truncated"),
    "length cuts the header": ({"a": entry(0, 4)}, bytes(4), 9, "JSON cannot be read"),
    "header of garbage": (b"\xff\xfe{", b"", None, "JSON cannot be read"),
    "header nested without end": (b"[" * 100_000, b"", None, "JSON cannot be read"),
    "header is a list": ([1], b"", None, "not an object"),
    "truncated data": ({"a": entry(0, 4)}, bytes(3), None, "'a' ends at byte .* truncated"),
    "trailing bytes": ({"a": entry(0, 4)}, bytes(5), None, "1 bytes that its header"),
    "overlap": ({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6), None, "'b' overlaps"),
    "hole": ({"a": entry(0, 4), "b": entry(5, 6)}, bytes(6), None, "'b' leaves a hole"),
    "descending offsets": ({"a": entry(4, 0, shape=[4])}, bytes(4), None, "'a': data_offsets"),
    "negative offsets": ({"a": entry(-4, 0)}, bytes(4), None, "'a': data_offsets"),
    "offsets of floats": ({"a": entry(0.0, 4.0, shape=[4])}, bytes(4), None, "'a': data_offsets"),
    "negative shape": ({"a": entry(0, 4, shape=[-2, -2])}, bytes(4), None, "'a': its shape"),
    "bytes against shape": ({"a": entry(0, 4, "BF16", [3])}, bytes(4), None, "'a': BF16 .* 6 byte"),
    "giant shape": ({"a": entry(0, 4, shape=[1 << 62, 1 << 62])}, bytes(4), None, "'a': its shape"),
    "unknown dtype": ({"a": entry(0, 4, "F7")}, bytes(4), None, "'a': unknown dtype 'F7'"),
    "dtype is a list": ({"a": entry(0, 4, ["F32"])}, bytes(4), None, "'a': unknown dtype"),
    "entry is a number": ({"a": 3}, bytes(4), None, "'a': its header entry"),
    "half a byte": ({"a": entry(0, 1, "F4", [1])}, bytes(1), None, "'a': F4 .* whole bytes"),
    "repeated name": (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', b"\0", None, "twice",
    ),
    "name that is no text": (b'{"\\ud800":{}}', b"", None, "JSON cannot be read"),
    "no tensors": ({"__metadata__": {"format": "pt"}}, b"", None, "hold no tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_one_clear_line(tmp_path, case):
    header, data, length, message = HOSTILE[case]
    put(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(UserError, match=message) as caught:
        read_layout(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("size", range(8))
def test_a_file_shorter_than_its_length_field_is_named(tmp_path, size):
    (tmp_path / "model.safetensors").write_bytes(bytes(size))
    with pytest.raises(UserError, match="truncated or not a safetensors"):
        read_layout(tmp_path)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_damaged_file_gives_a_layout_within_it_or_a_user_error(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("damaged")
    path = directory / "model.safetensors"
    put(path, {"a": entry(0, 4, "F32", [1]), "b": entry(4, 8, "BF16", [2])}, bytes(8))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        layout = read_layout(directory)
    except UserError:
        return
    assert sum(spec.nbytes for spec in layout.values()) <= path.stat().st_size
    assert all(sum(spec.extents[0][1:]) <= path.stat().st_size for spec in layout.values())


INDEXES = {
    "parent": ({"a": "../outside.safetensors"}, "not a file of its directory"),
    "absolute": ({"a": "/etc/passwd"}, "not a file of its directory"),
    "dots": ({"a": ".."}, "not a file of its directory"),
    "subfolder": ({"a": "sub/x.safetensors"}, "not a file of its directory"),
    "backslash": ({"a": "..\\x"}, "not a file of its directory"),
    "NUL": ({"a": "x\0"}, "not a file of its directory"),
    "number": ({"a": 3}, "not a file of its directory"),
    "missing file": ({"a": "gone.safetensors"}, "weights file is missing"),
    "missing tensor": ({"a": "x.safetensors", "b": "x.safetensors"}, "'b' is in x.safetensors"),
    "unlisted tensor": ({"a": "x.safetensors", "c": "y.safetensors"}, "holds 'd'"),
    "no map": (None, "no weight_map"),
    "empty map": ({}, "no weight_map"),
    "list": ([], "no weight_map"),
}


@pytest.mark.parametrize("case", INDEXES)
def test_a_hostile_index_is_one_clear_line(tmp_path, case):
    directory = tmp_path / "model"
    directory.mkdir()
    for place in (tmp_path / "outside.safetensors", directory / "x.safetensors"):
        put(place, {"a": entry(0, 1)}, b"\0")
    put(directory / "y.safetensors", {"c": entry(0, 1), "d": entry(1, 2)}, b"\0\0")
    weight_map, message = INDEXES[case]
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message) as caught:
        read_layout(directory)
    assert "\n" not in str(caught.value) and str(directory) in str(caught.value)


def test_directories_without_safetensors_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no such model directory"):
        read_layout(tmp_path / "gone")
    with pytest.raises(UserError, match="is empty"):
        read_layout(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model\*.bin\); conv"):
        read_layout(tmp_path)


def test_a_stale_single_file_beside_an_index_is_refused(tmp_path):
    write_checkpoint(tmp_path, {("a", "U8", (4,)): b"abcd", ("b", "U8", (4,)): b"efgh"}, 4)
    put(tmp_path / "model.safetensors", {"a": entry(0, 1)}, b"\0")
    with pytest.raises(UserError, match="out of date"):
        read_layout(tmp_path)


def test_a_file_cut_while_it_is_read_is_named(tmp_path):
    write_checkpoint(tmp_path, {("a", "U8", (4096,)): bytes(4096)})
    layout = read_layout(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 2000)
    with CheckpointReader(layout) as reader, pytest.raises(UserError, match="within tensor 'a'"):
        reader.read_into("a", 0, np.empty(4096, np.uint8))


def model_files(directory: Path, **files: object) -> Path:
    directory.mkdir()
    for name, content in {"config": {"hidden_size": 8, "dtype": "bfloat16"}, **files}.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def test_auxiliary_files_are_copied_and_weights_and_logs_are_not(tmp_path):
    source = model_files(tmp_path / "p", tokenizer={"model": {}}, generation_config={})
    for name in ("model.safetensors", "trainer_state.pt", "README.md", "chat_template.jinja"):
        (source / name).write_text("x")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("t")
    target = tmp_path / "soup"
    target.mkdir()
    expected = [
        "additional_chat_templates/tools.jinja", "chat_template.jinja", "config.json",
        "generation_config.json", "tokenizer.json",
    ]  # fmt: skip
    assert copy_auxiliary_files(source, target) == expected == list(auxiliary_files(target))
