"""Records: written and read as the same dataclass; other versions and damage are one line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from vcsoup_dist.errors import UserError
from vcsoup_dist.records.json_record import read_record, write_record


@dataclass(frozen=True)
class Part:
    mean: float


@dataclass(frozen=True)
class Example:
    VERSION: ClassVar[int] = 2

    rows: int
    parts: dict[str, Part]
    heldout: Part | None = None


RECORD = Example(3, {"train": Part(0.1 + 0.2)})


def test_a_record_is_read_as_it_was_written(tmp_path):
    write_record(tmp_path / "a.json", RECORD)
    assert read_record(tmp_path / "a.json", Example) == RECORD
    assert json.loads((tmp_path / "a.json").read_text())["version"] == 2


def test_numbers_that_are_not_finite_are_kept(tmp_path):
    write_record(tmp_path / "a.json", Example(1, {}, Part(float("inf"))))
    assert read_record(tmp_path / "a.json", Example).heldout == Part(float("inf"))


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "other version": ('{"version": 1, "rows": 3}', "has version 1, and .* reads version 2"),
        "no version": ('{"rows": 3}', "has no version"),
        "a list": ("[]", "has no version"),
        "cut off": ('{"version": 2, "ro', "damaged"),
        "key missing": ('{"version": 2, "parts": {}}', "damaged .rows: Field required"),
        "other type": ('{"version": 2, "rows": "x", "parts": {}}', "damaged .rows: "),
    }.values(),
)
def test_another_version_and_damage_are_one_line(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        read_record(tmp_path / "a.json", Example)
    assert "\n" not in str(caught.value) and "a.json" in str(caught.value)
