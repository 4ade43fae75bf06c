"""Headers, indexes and pickles of any numbers and shapes: one line, at once, or a right soup."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merging import read_all, write_policy

from vcsoup_dist.checkpoints.layout import DTYPE_BITS, read_layout
from vcsoup_dist.errors import UserError
from vcsoup_dist.souping.merge import merge


def put_header(policy: Path, header: str, data: int = 24) -> None:
    raw = header.encode()
    file = policy / "model.safetensors"
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(data))


def refused(run) -> str:
    """The one line of a refusal, which takes no time."""
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        run()
    assert time.monotonic() - began < 10
    line = str(error.value)
    assert "\n" not in line and len(line) < 2000
    return line


HUGE = "9" * 4000
SHAPES = {
    "two of 4000 digits": f"[{HUGE}, {HUGE}]",
    "one beyond the digits that Python converts": f"[{'9' * 5000}]",
    "3000 of 4200 digits": "[" + ", ".join(["9" * 4200] * 3000) + "]",
    "3000 of 63 bits": "[" + ", ".join(["9223372036854775807"] * 3000) + "]",
    "60 of 63 bits": "[" + ", ".join(["9223372036854775807"] * 60) + "]",
    "a million": "[" + "1, " * 1_000_000 + "6]",
    "a million zeros": "[" + "0, " * 1_000_000 + "6]",
    "2 ** 63": "[9223372036854775808]",
    "negative": f"[-{HUGE}]",
    "an exponent": "[1e400]",
    "a float": f"[{HUGE}.0]",
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_that_no_file_holds_are_refused_at_once(tmp_path, case):
    policy = write_policy(tmp_path / "p", {"a": ("F32", np.ones((2, 3), "<f4"))})
    entry = f'{{"dtype": "F32", "shape": {SHAPES[case]}, "data_offsets": [0, 24]}}'
    put_header(policy, f'{{"a": {entry}}}')
    refused(lambda: merge([policy, policy], out=tmp_path / "out", weights=[(0.5, 0.5)]))


@pytest.mark.parametrize("offsets", [f"[0, {HUGE}]", f"[{HUGE}, {HUGE}]", "[0, 1e999]", "[]"])
def test_offsets_that_no_file_has_are_refused_at_once(tmp_path, offsets):
    policy = write_policy(tmp_path / "p", {"a": ("F32", np.ones((2, 3), "<f4"))})
    put_header(policy, f'{{"a": {{"dtype": "F32", "shape": [2, 3], "data_offsets": {offsets}}}}}')
    refused(lambda: read_layout(policy))


@pytest.mark.parametrize(
    "content", [f'{{"weight_map": {HUGE}}}', f'{{"a": {"9" * 5000}}}', "1e999"]
)
def test_indexes_of_numbers_are_refused(tmp_path, content):
    policy = write_policy(tmp_path / "p", {"a": ("F32", np.ones((2, 3), "<f4"))})
    (policy / "model.safetensors.index.json").write_text(content)
    refused(lambda: read_layout(policy))


def test_shapes_in_pickles_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    from vcsoup_dist.checkpoints.pickled import open_checkpoint

    for shape in ((1 << 40,), (1 << 20, 1 << 20), (1 << 62,)):
        torch.save({"a": torch.ones(1).expand(shape)}, tmp_path / "pytorch_model.bin")
        refused(lambda: open_checkpoint(tmp_path))


numbers = st.one_of(
    st.integers(-2, 8), st.integers(0, 1 << 80), st.sampled_from([1 << 62, (1 << 63) - 1, 1 << 63]),
    st.floats(), st.text(max_size=3), st.none(), st.booleans(),
)  # fmt: skip
entries = st.one_of(
    numbers,
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.one_of(st.sampled_from([*DTYPE_BITS, "F7"]), numbers),
            "shape": st.one_of(st.lists(numbers, max_size=6), numbers),
            "data_offsets": st.one_of(st.lists(numbers, max_size=3), numbers),
        },
    ),
    st.builds(
        lambda begin, count: {
            "dtype": "F32", "shape": [count], "data_offsets": [begin, begin + 4 * count],
        },
        st.sampled_from([0, 4, 8]),
        st.integers(0, 6),
    ),
)  # fmt: skip
headers = st.dictionaries(
    st.sampled_from(["a", "b", "model.x.weight", "__metadata__", ""]), entries, max_size=3
)


@settings(
    max_examples=300, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(headers, st.integers(0, 40))
def test_any_header_is_a_right_layout_or_one_line(tmp_path, header, data):
    tmp_path.mkdir(exist_ok=True)
    put_header(tmp_path, json.dumps(header), data)
    try:
        layout = read_layout(tmp_path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    described = sum(DTYPE_BITS[spec.dtype] * math.prod(spec.shape) // 8 for spec in layout.values())
    assert described == data and layout.keys() == header.keys() - {"__metadata__"}


files = st.one_of(
    st.sampled_from(
        ["one.safetensors", "two.safetensors", "gone.safetensors", "../p", ".", "", "/"]
    ),
    numbers,
)
indexes = st.one_of(
    st.fixed_dictionaries(
        {"weight_map": st.dictionaries(st.sampled_from(["a", "b", "c"]), files, max_size=3)}
    ),
    st.fixed_dictionaries({"weight_map": numbers}),
    st.lists(numbers, max_size=2),
    numbers,
)


@settings(
    max_examples=300, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(indexes)
def test_any_index_is_a_right_layout_or_one_line(tmp_path, index):
    if not (tmp_path / "one.safetensors").exists():
        for name, tensor in (("one", "a"), ("two", "b")):
            policy = write_policy(tmp_path / name, {tensor: ("F32", np.ones(3, "<f4"))})
            (policy / "model.safetensors").rename(tmp_path / f"{name}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    try:
        layout = read_layout(tmp_path)
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert index["weight_map"] == {name: spec.file.name for name, spec in layout.items()}
    assert len(read_all(tmp_path)) == len(layout)


@settings(max_examples=200, deadline=10_000)
@given(st.binary(max_size=60), st.integers(0, 1 << 64 - 1))
def test_any_bytes_are_one_line(tmp_path_factory, raw, length):
    policy = tmp_path_factory.mktemp("p")
    (policy / "model.safetensors").write_bytes(length.to_bytes(8, "little") + raw)
    try:
        read_layout(policy)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        raise AssertionError("these bytes are no model")
