"""`tokens/<dataset>`: a dataset's pairs in tokens, one file that its readers map into memory.

    tokens.arrow     Arrow's IPC format, uncompressed, a record batch per part of `SCHEMA`:
                     the training pairs in the order of `pairs/<dataset>`, then those held out
    manifest.json    `TokensManifest`

Readers share the pages that they look at, and hold none of the tokens themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import xxhash
from numpy.typing import NDArray

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import replacing
from vcsoup_dist.forward.answers import pair_tokens
from vcsoup_dist.forward.template import Encoded, Unusable
from vcsoup_dist.records.json_record import read_record, write_record
from vcsoup_dist.records.pairs import MANIFEST

TOKENS = "tokens.arrow"
IDS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("chosen", IDS),  # prompt and answer
        ("chosen_start", pa.int32()),  # of the answer
        ("rejected", IDS),
        ("rejected_start", pa.int32()),
        ("cost", pa.int32()),  # tokens that a forward computes, the common start once
        ("answers", pa.int64()),  # tokens of all answers before this pair's
        ("unusable", pa.string()),  # an `Unusable`; then all but the id and the reason are empty
        ("reason", pa.string()),  # in a sentence, where the chat template refuses the pair
    ]
)
DIGEST = b"digest"
FIX = "remove the run's tokens/ folder and run again"


@dataclass(frozen=True)
class PairTokens:
    """Both answers of a pair in tokens, or why the pair cannot be trained on."""

    pair: tuple[Encoded, Encoded] | Unusable
    reason: str | None = None
    """In a sentence, where the chat template refuses the pair."""


@dataclass(frozen=True)
class TokensManifest:
    """What lies in a token file."""

    VERSION: ClassVar[int] = 1

    train: int
    """Training pairs, usable or not; they are the first rows."""
    heldout: int
    """Held-out pairs, the rows after them."""
    parts: list[int]
    """Rows of each record batch."""
    answer_tokens: int
    """Of both answers of all pairs."""
    digest: str
    """Of all token ids and of where the answers begin."""

    def write(self, folder: Path) -> None:
        """Write manifest.json into the folder of a product."""
        write_record(folder / MANIFEST, self)

    @classmethod
    def read(cls, folder: Path) -> TokensManifest:
        """Read that of a product; UserError where it is damaged or of another version."""
        return read_record(folder / MANIFEST, cls)


def write_part(file: Path, ids: Sequence[str], pairs: Sequence[PairTokens]) -> None:
    """Write consecutive pairs, to be joined with others; a reader sees all of them or nothing."""
    rows: list[tuple[Any, ...]] = []
    answers = 0
    digest = xxhash.xxh3_128()
    for id_, each in zip(ids, pairs, strict=True):
        if isinstance(each.pair, Unusable):
            rows.append((id_, [], 0, [], 0, 0, answers, str(each.pair), each.reason))
            continue
        chosen, rejected = each.pair
        for side in each.pair:
            digest.update(np.array([len(side.ids), side.start], np.int64).tobytes())
            digest.update(np.asarray(side.ids, np.int32).tobytes())
        sides = (chosen.ids, chosen.start, rejected.ids, rejected.start)
        rows.append((id_, *sides, pair_tokens(chosen, rejected), answers, None, None))
        answers += chosen.answer_length + rejected.answer_length
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(SCHEMA)
    arrays = [pa.array(column, each.type) for column, each in zip(columns, SCHEMA, strict=True)]
    schema = SCHEMA.with_metadata({DIGEST: digest.hexdigest()})
    with replacing(file) as aside, pa.ipc.new_file(aside, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))


def join_parts(folder: Path, train: Sequence[Path], heldout: Sequence[Path]) -> TokensManifest:
    """Join parts into the token file of a product; they stay."""
    digest = xxhash.xxh3_128()
    rows: list[int] = []
    answers = 0
    place = SCHEMA.get_field_index("answers")
    with replacing(folder / TOKENS) as aside, pa.ipc.new_file(aside, SCHEMA) as writer:
        for file in (*train, *heldout):
            with pa.memory_map(str(file)) as source:
                part = pa.ipc.open_file(source)
                digest.update(part.schema.metadata[DIGEST])
                batch = part.get_batch(0)
                moved = pa.array(batch["answers"].to_numpy() + answers, pa.int64())
                columns = [*batch.columns[:place], moved, *batch.columns[place + 1 :]]
                writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
                rows.append(batch.num_rows)
                answers += sum(
                    len(batch[side].flatten()) - int(np.sum(batch[f"{side}_start"].to_numpy()))
                    for side in ("chosen", "rejected")
                )
    manifest = TokensManifest(
        train=sum(rows[: len(train)]),
        heldout=sum(rows[len(train) :]),
        parts=rows,
        answer_tokens=answers,
        digest=digest.hexdigest(),
    )
    manifest.write(folder)
    return manifest


class TokenFile:
    """A finished `tokens/<dataset>`, mapped into memory. UserError where it is damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = TokensManifest.read(folder)
        try:
            self._file: Any = pa.ipc.open_file(pa.memory_map(str(folder / TOKENS)))
            parts = [_Part(self._file.get_batch(i)) for i in range(self._file.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(
                f"{folder / TOKENS}: cannot be read ({error}); remove {folder} and run again"
            ) from error
        rows = [len(each.answers) for each in parts]
        if self._file.schema != SCHEMA or rows != self.manifest.parts:
            raise UserError(
                f"{folder / TOKENS}: is not what its {MANIFEST} says; remove {folder} and run again"
            )
        self._parts, self._ends = parts, np.cumsum(rows)

    @property
    def rows(self) -> int:
        """Pairs, usable or not."""
        return self.manifest.train + self.manifest.heldout

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Columns of all rows, as views of the file."""
        return self._file.read_all().select(columns)

    def usable(self) -> NDArray[np.bool_]:
        """[rows] which pairs can be trained on."""
        mask: NDArray[np.bool_] = pc.is_null(self.table(["unusable"])["unusable"]).to_numpy()
        return mask

    def id(self, row: int) -> str:
        """Of a pair."""
        part, within = self._place(row)
        return str(part.ids[within].as_py())

    def pair(self, row: int) -> tuple[Encoded, Encoded]:
        """Chosen and rejected answer of a usable pair, as views of the file."""
        part, within = self._place(row)
        return part.chosen.encoded(within), part.rejected.encoded(within)

    def answers_before(self, row: int) -> int:
        """Tokens of all answers of the pairs before this one."""
        part, within = self._place(row)
        return int(part.answers[within])

    def costs(self, first: int) -> Iterator[int]:
        """From row `first` on, the tokens that a forward computes of each; 0 of an unusable one."""
        for part, end in zip(self._parts, self._ends.tolist(), strict=True):
            begin = end - len(part.costs)
            yield from part.costs[max(first - begin, 0) :].tolist()

    def _place(self, row: int) -> tuple[_Part, int]:
        number = int(np.searchsorted(self._ends, row, side="right"))
        part = self._parts[number]
        return part, row - int(self._ends[number]) + len(part.answers)


class _Part:
    """Views of a record batch."""

    def __init__(self, batch: Any) -> None:
        self.ids = batch["id"]
        self.chosen, self.rejected = _Side(batch, "chosen"), _Side(batch, "rejected")
        self.answers: NDArray[np.int64] = batch["answers"].to_numpy()
        self.costs: NDArray[np.int32] = batch["cost"].to_numpy()


class _Side:
    """One answer of each pair of a record batch."""

    def __init__(self, batch: Any, name: str) -> None:
        lists = batch[name]
        self.ids: NDArray[np.int32] = lists.values.to_numpy()
        self.ends: NDArray[np.int32] = lists.offsets.to_numpy()
        self.starts: NDArray[np.int32] = batch[f"{name}_start"].to_numpy()

    def encoded(self, row: int) -> Encoded:
        return Encoded(self.ids[self.ends[row] : self.ends[row + 1]], int(self.starts[row]))
