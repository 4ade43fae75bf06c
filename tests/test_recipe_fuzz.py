"""Recipes of all sorts: one line per mistake, in time, and never another number than is written."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.recipe.load import load_recipe, sections_of

GOOD = """name: x
model: some/model
values:
  helpful:
    data: {path: a.jsonl, limit: 10}
    reward: {classifier: some/reward, sign: -1, output: 0}
  harmless:
    data: {path: b.jsonl}
    reward:
      callable: "a.b:c"
seeds: [0, 1]
training: &t
  learning_rate: 1e-6
  steps: 20
  adam_betas: [0.9, 0.99]
soup: {weights: [[0.5, 0.5], [1, 0]]}
launch: {slurm: {train: {time: "10:00:00", nodes: 2}}}
"""
MOST_SECONDS = 10.0

ODD = st.sampled_from(
    [
        *("yes", "no", "on", "off", "true", "null", "~", "", "=", "<<", "*t", "&t", "!!str", "- 1"),
        *("010", "-010", "08", "0x1F", "0b11", "0o7", "1_000", "17:04", "24:00:00", "1:2:3.5"),
        *("1e3", "1E-6", "1.e+3", ".5", "5.", "-.inf", ".nan", "1e400", "1e-400", "0", "-0", "-1"),
        *("2026-11-28", "2026-11-28 12:00:00", "9" * 30, "1.0", "20.0", "'20'", '"1e-6"', "٣"),
        *("[1]", "{a: 1}", "[yes]", "!!int '5'", "!!float x", "!!set {a}", "!!python/name:os.x"),
        *(
            "${TEST_FUZZ}",
            "${TEST_UNSET}",
            "#",
            "%",
            "@",
            "`",
            "|",
            ">",
            "?",
            ": ",
            "\t",
            "\0",
            "é",
        ),
    ]
)
"""What YAML, Python and people read differently."""

SCALARS = ODD | st.text(max_size=8) | st.integers().map(str) | st.floats().map(str)


def scalar_keys() -> Iterator[str]:
    """Every key of a recipe that takes no section, by its path."""
    for path, section in sections_of():
        for name, field in section.model_fields.items():
            if not any(issubclass(each, BaseModel) for each in classes(field.annotation)):
                yield f"{path}.{name}".lstrip(".").replace("NAME", "helpful")


def classes(annotation: Any) -> list[type]:
    if isinstance(annotation, type):
        return [annotation]
    return [each for part in get_args(annotation) for each in classes(part)]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    file = tmp_path_factory.mktemp("fuzz") / "recipe.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_FUZZ", "010")

        def read(content: bytes, overrides: tuple[str, ...] = ()) -> Recipe | None:
            """The recipe, or None where it is refused as it should be."""
            file.write_bytes(content)
            began = time.process_time()
            try:
                return load_recipe(file, overrides)
            except UserError as error:
                for line in str(error).splitlines():
                    assert line.startswith((f"{file}: ", "--set ")), line
                    assert line.isprintable() and len(line) < 600, line
                return None
            finally:
                assert time.process_time() - began < MOST_SECONDS

        yield read


def number_written(text: str) -> float | None:
    """The number that a person sees, or None where what is written is none to everybody."""
    text = text.strip().removeprefix("!!int ").removeprefix("&t ").strip("\"'")
    if re.fullmatch(r"[-+]?0x[0-9a-fA-F_]+|[-+]?0b[01_]+", text):
        return float(int(text, 0))
    if re.fullmatch(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?", text, re.ASCII):
        return float(text.replace("_", ""))
    return None


def numbers_in(read: Any) -> Iterator[float]:
    if isinstance(read, dict):
        for each in read.values():
            yield from numbers_in(each)
    elif isinstance(read, list | tuple):
        for each in read:
            yield from numbers_in(each)
    elif isinstance(read, int | float) and not isinstance(read, bool):
        yield float(read)


FUZZED = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZED
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
def test_any_text_is_refused_or_read(load, content):
    load(content)


@FUZZED
@given(data=st.data())
def test_a_good_recipe_with_some_of_it_changed_is_refused_or_read(load, data):
    text = GOOD
    for _ in range(data.draw(st.integers(1, 3))):
        begin = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(begin, min(begin + 12, len(text))))
        text = text[:begin] + data.draw(SCALARS) + text[end:]
    load(text.encode(errors="replace"))


@FUZZED
@given(key=st.sampled_from(sorted(set(scalar_keys()))), scalar=SCALARS)
def test_every_key_takes_what_is_written_or_refuses_it(load, key, scalar):
    content = yaml.safe_load(GOOD)
    section = content
    *above, last = key.split(".")
    for each in above:
        section = section.setdefault(each, {})
    section[last] = "HERE"
    text = yaml.safe_dump(content).replace("HERE", scalar.replace("\n", " "))
    recipe = load(text.encode(errors="replace"))
    if recipe is None:
        return
    read: Any = recipe.model_dump()
    for each in (*above, last):
        read = read[each]
    for number in numbers_in(read):
        if not isinstance(read, list | tuple | dict):
            assert number == number_written(scalar), (key, scalar, read)


@FUZZED
@given(key=st.sampled_from(sorted(set(scalar_keys()))), scalar=SCALARS)
def test_a_key_of_the_command_line_is_taken_or_refused(load, key, scalar):
    load(GOOD.encode(), (f"{key}={scalar}",))
    load(GOOD.encode(), (f"{scalar}={key}",))
