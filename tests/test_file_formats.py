"""Files between stages have the columns and keys of their version: whoever changes them raises it.

A run directory outlives the program that made it, so a changed file of the same version is misread.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vcsoup_dist.records import answers, heldout_logps, pairs, scores, tokens
from vcsoup_dist.records.answer_figures import AnswerFigures
from vcsoup_dist.records.filter_report import FilterReport
from vcsoup_dist.records.filtered_pairs import filtered_schema
from vcsoup_dist.records.reference import DTYPE, ROW, PartManifest
from vcsoup_dist.records.summary import Summary
from vcsoup_dist.records.training_summary import TrainingSummary

MESSAGES = "list<item: struct<role: string, content: string>>"
IDS = "list<item: int32>"

COLUMNS = {
    "pairs": (
        pairs.pairs_schema(["helpful"]),
        {
            "id": "string", "prompt_id": "string", "answers_id": "string", "prompt": MESSAGES,
            "chosen": "string", "rejected": "string", "helpful": "double",
        },
    ),
    "rejected rows": (
        pairs.REJECTED,
        {"source": "string", "row": "int64", "reason": "string", "text": "string"},
    ),
    "scores": (
        scores.SCHEMA,
        {"id": "string", "chosen": "double", "rejected": "double", "failure": "string"},
    ),
    "filtered pairs": (
        filtered_schema(["helpful", "short"]),
        {
            "id": "string", "prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES,
            "dataset": "string", "swapped": "bool", "consistency": "double", "norm": "double",
            "gap_helpful": "double", "gap_short": "double",
        },
    ),
    "tokens": (
        tokens.SCHEMA,
        {
            "id": "string", "chosen": IDS, "chosen_start": "int32", "rejected": IDS,
            "rejected_start": "int32", "cost": "int32", "answers": "int64", "unusable": "string",
            "reason": "string",
        },
    ),
    "log-probs of held-out pairs": (
        heldout_logps.SCHEMA,
        {"id": "string", "dataset": "string", "chosen": "double", "rejected": "double"},
    ),
    "answers, version 2": (
        answers.SCHEMA,
        {
            "prompt_id": "string", "dataset": "string", "prompt": MESSAGES, "answer": "string",
            "tokens": "int64", "finished": "bool", "repeated": "double", "logp": "double",
            "logp_theta_0": "double", "drawn_from_model": "bool",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("schema, columns", COLUMNS.values(), ids=COLUMNS)
def test_parquet_files_have_these_columns_in_this_order(schema: pa.Schema, columns):
    assert [(field.name, str(field.type)) for field in schema] == list(columns.items())


KEYS = {
    pairs.PairsManifest: (2, "rows train heldout files"),
    scores.ScoresManifest: (
        3,
        "rows scored unscored reasons first_unscored truncated truncated_responses equal_pairs "
        "rounding mean std min max constant files",
    ),
    FilterReport: (
        2,
        "method rule size_of value values datasets normalisation scope counts heldout scale "
        "equal_pairs correlation conflicts comparison files",
    ),
    tokens.TokensManifest: (1, "train heldout parts answer_tokens digest"),
    PartManifest: (3, "tokens answer_tokens pairs"),
    TrainingSummary: (1, "steps pairs pairs_left_out passes last_step heldout"),
    AnswerFigures: (1, "rows effects is_kl"),
    Summary: (
        3,
        "values axes prompts resamples confidence scale rows methods front balanced "
        "balanced_against_start comparisons edges",
    ),
}


@pytest.mark.parametrize(
    "kind, expected", KEYS.items(), ids=lambda each: getattr(each, "__name__", "")
)
def test_records_of_a_version_have_these_keys(kind, expected):
    needed = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is field.default_factory is dataclasses.MISSING
    ]
    assert (kind.VERSION, " ".join(needed)) == expected


def test_versions_and_numbers_that_no_schema_holds():
    assert (answers.VERSION, heldout_logps.VERSION) == (2, 1)
    assert DTYPE.str == "<f4"
    assert ROW.descr == [("row", "<u4"), ("cost", "<u4"), ("answers", "<i8")]


def test_scores_are_in_the_columns_of_their_names(tmp_path):
    file = tmp_path / scores.shard_name(3)
    shard = scores.ScoreShard(
        ["a", "b"], np.array([1.0, math.nan]), np.array([-2.0, math.nan]), 5, 4, 1, {1: "too long"}
    )
    scores.write_scores(file, shard)
    table = pq.read_table(tmp_path / "shard-00003.parquet")
    assert table.column("chosen").to_pylist()[0] == 1.0
    assert table.column("rejected").to_pylist()[0] == -2.0
    assert table.column("failure").to_pylist() == [None, "too long"]
    counts = {b"truncated": b"5", b"truncated_responses": b"4", b"equal_pairs": b"1"}
    assert table.schema.metadata == counts
