"""`answers.parquet`: one model's answers to the held-out prompts, and their rewards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vcsoup_dist.files import write_atomically
from vcsoup_dist.records.parquet_version import check_version, version_in, with_version

ANSWERS = "answers.parquet"
VERSION = 2
REWARD = "reward_"  # and the value: a column of its rewards

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("dataset", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("answer", pa.string()),
        ("tokens", pa.int64()),
        ("finished", pa.bool_()),
        ("repeated", pa.float64()),
        ("logp", pa.float64()),
        ("logp_theta_0", pa.float64()),
        ("drawn_from_model", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Answers:
    """The answers of one model to P prompts, in the prompts' order."""

    prompt_ids: list[str]
    datasets: list[str]
    """Of each prompt, where it was held out."""
    prompts: list[list[dict[str, str]]]
    """Messages with `role` and `content`."""
    texts: list[str]
    """The answers."""
    tokens: list[int]
    """Generated tokens, the end token included."""
    finished: list[bool]
    """Whether an answer ended by itself, within the limit."""
    repeated: list[float]
    """Share of an answer that was said before in it: `evaluation.repetition`."""
    logp: list[float]
    """log pi(y|x) of each answer under the model that gave it, at temperature 1, in nats."""
    logp_theta_0: list[float]
    """The same under theta_0, which reads the prompt without scores that were added to it."""
    drawn_from_model: list[bool]
    """Whether every token was drawn from pi itself: temperature 1, top_p 1, no penalties. Then
    the mean of logp - logp_theta_0 estimates KL(pi || theta_0)."""
    rewards: Mapping[str, NDArray[np.float64]]
    """Value -> [P], larger being better."""

    def write(self, folder: Path) -> None:
        """Write answers.parquet atomically."""
        columns = [
            *(self.prompt_ids, self.datasets, self.prompts),
            *(self.texts, self.tokens, self.finished, self.repeated),
            *(self.logp, self.logp_theta_0, self.drawn_from_model),
        ]
        table = pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)
        for value, rewards in self.rewards.items():
            table = table.append_column(f"{REWARD}{value}", pa.array(rewards, pa.float64()))
        sink = pa.BufferOutputStream()
        pq.write_table(with_version(table, VERSION), sink)
        write_atomically(folder / ANSWERS, sink.getvalue().to_pybytes())

    @classmethod
    def read(cls, folder: Path) -> Answers:
        """Read answers.parquet; UserError where it is of another version."""
        table = pq.read_table(folder / ANSWERS)
        check_version(folder / ANSWERS, table.schema, VERSION)
        rewards = {
            name.removeprefix(REWARD): table[name].to_numpy()
            for name in table.column_names
            if name.startswith(REWARD)
        }
        columns: list[Any] = [table[name].to_pylist() for name in SCHEMA.names]
        return cls(*[*columns, rewards])


def has_answers(folder: Path) -> bool:
    """Whether answers.parquet is there, in this version; it is whole then."""
    file = folder / ANSWERS
    return file.exists() and version_in(pq.read_schema(file)) == str(VERSION)
