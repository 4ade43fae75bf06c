"""The answers file: what is written is read, and another version is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vcsoup_dist.errors import UserError
from vcsoup_dist.records.answers import (
    ANSWERS,
    Answers,
    has_answers,
)


def test_answers_that_are_written_are_read(tmp_path):
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "ü"}]
    rewards = {"long": np.array([0.1, -2.0]), "short": np.array([1.0, 1e-300])}
    answers = Answers(
        *(["0a", "0b"], ["x", "y"], [prompt, prompt[1:]], ["", "yes"], [1, 7], [False, True]),
        *([0.0, 0.25], [-0.5, -9.0], [-0.75, -1e300], [True, True], rewards),
    )
    assert not has_answers(tmp_path)
    answers.write(tmp_path)
    assert has_answers(tmp_path)
    found = Answers.read(tmp_path)
    assert vars(found) | {"rewards": 0} == vars(answers) | {"rewards": 0}
    assert {value: each.tolist() for value, each in found.rewards.items()} == {
        value: each.tolist() for value, each in rewards.items()
    }


def test_answers_of_another_version_are_refused_and_count_as_missing(tmp_path):
    table = pa.table({"prompt_id": ["0a"], "answer": ["yes"]})
    pq.write_table(table, tmp_path / ANSWERS)
    assert not has_answers(tmp_path)
    with pytest.raises(UserError, match=r"answers\.parquet: has no version, and .* version 2"):
        Answers.read(tmp_path)
    newer = table.replace_schema_metadata({b"vcsoup_version": b"3"})
    pq.write_table(newer, tmp_path / ANSWERS)
    assert not has_answers(tmp_path)
    with pytest.raises(UserError, match=r"has version 3, and this vcsoup_dist reads version 2"):
        Answers.read(tmp_path)
