"""Raw rows -> training pairs, held-out pairs and rejected rows, in one streaming pass."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from vcsoup_dist.errors import UserError
from vcsoup_dist.preferences.id_set import IdSet
from vcsoup_dist.preferences.json_rows import remedy
from vcsoup_dist.preferences.other_columns import NOT_READ, not_read
from vcsoup_dist.preferences.pair import BadRow, LeftOut, Pair, split_hash
from vcsoup_dist.preferences.rows import Read
from vcsoup_dist.records.pairs import (
    FILE_PAIRS,
    HELD_OUT,
    REJECTED,
    REJECTED_ROWS,
    AppendedTable,
    PairsFile,
    PairsManifest,
    pair_row,
    pairs_schema,
    train_name,
)

log = logging.getLogger("vcsoup")
REASONS = 200
"""Different reasons that are counted for a source; odd data has one for every row."""


@dataclass
class Source:
    """Rows of one file or split, what to call it, and what was found in it so far."""

    name: str
    rows: Iterable[tuple[int, Read]]
    tally: Counter[str] = field(default_factory=Counter)
    """What `read_pairs` counted: `returned_prompts`, and rows by the columns that are not read."""
    read: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first_row: dict[str, int] = field(default_factory=dict)
    """Row number where each reason was first met."""
    left_out: Counter[str] = field(default_factory=Counter)
    joined: int = 0
    """Rows that are one half of a pair that another row stands for."""


def write_pairs(
    folder: Path,
    train: Source,
    heldout: Source | None,
    *,
    heldout_share: float,
    limit: int | None,
    columns: Sequence[str],
    max_bad_rows: float,
) -> PairsManifest:
    """Fill `folder` with train-*.parquet, heldout.parquet, rejected_rows.parquet and manifest.json.

    Without `heldout`, the prompts whose hash falls under `heldout_share` are held out; either way
    no prompt is on both sides. `limit` counts training pairs; no row after the last of them is
    taken. Raises UserError where more than `max_bad_rows` of a source's rows are unusable, or no
    training pair is left.
    """
    with ExitStack() as stack:
        files = _Files(folder, pairs_schema(columns), stack)
        heldout_prompts, leaked_prompts = IdSet(), IdSet()
        leaked = 0
        for pair in _unseen(heldout, files) if heldout else ():
            row = pair_row(pair)
            heldout_prompts.add(int(row["prompt_id"], 16))
            files.hold_out(row)
        for pair in _unseen(train, files):
            row = pair_row(pair)
            prompt = int(row["prompt_id"], 16)
            if prompt in heldout_prompts:
                leaked_prompts.add(prompt)
                leaked += 1
            elif heldout is None and split_hash(pair.prompt) < heldout_share * 2**64:
                files.hold_out(row)
            else:
                files.add(row)
                if files.train == limit:
                    break
    sources = [train] if heldout is None else [train, heldout]
    for source in sources:
        _check_rejected(source, max_bad_rows, folder)
        _log_left_out(source)
    _check_counts(train, files)
    manifest = _manifest(sources, files, leaked_prompts=len(leaked_prompts), leaked_pairs=leaked)
    manifest.write(folder)
    return manifest


class _Files:
    """The files of a product while they are filled, and how many pairs went where."""

    def __init__(self, folder: Path, schema: pa.Schema, stack: ExitStack) -> None:
        self.folder, self.schema, self.stack = folder, schema, stack
        self.rejected = stack.enter_context(AppendedTable(folder / REJECTED_ROWS, REJECTED))
        self.held_out = stack.enter_context(AppendedTable(folder / HELD_OUT, schema))
        self.last: AppendedTable | None = None
        self.train = self.heldout = self.duplicates = 0

    def hold_out(self, row: dict[str, Any]) -> None:
        self.held_out.add(row)
        self.heldout += 1

    def add(self, row: dict[str, Any]) -> None:
        number, place = divmod(self.train, FILE_PAIRS)
        if place == 0:
            self._open(self.folder / train_name(number))
        assert self.last is not None
        self.last.add(row)
        self.train += 1

    def _open(self, path: Path) -> None:
        if self.last is not None:
            self.last.close()
        self.last = self.stack.enter_context(AppendedTable(path, self.schema))

    def listed(self) -> list[PairsFile]:
        """The files of training pairs."""
        return [
            PairsFile(train_name(number), min(FILE_PAIRS, self.train - first))
            for number, first in enumerate(range(0, self.train, FILE_PAIRS))
        ]


def _manifest(
    sources: Sequence[Source], files: _Files, *, leaked_prompts: int, leaked_pairs: int
) -> PairsManifest:
    tally = sum((source.tally for source in sources), Counter[str]())
    return PairsManifest(
        rows=sum(source.read for source in sources),
        train=files.train,
        heldout=files.heldout,
        duplicates=files.duplicates,
        rejected=dict(sorted(sum((s.rejected for s in sources), Counter()).items())),
        left_out=dict(sorted(sum((s.left_out for s in sources), Counter()).items())),
        joined=sum(source.joined for source in sources),
        returned_prompts=tally["returned_prompts"],
        not_read={name: count for name, count in sorted(tally.items()) if name in NOT_READ},
        heldout_in_train=leaked_prompts,
        heldout_in_train_pairs=leaked_pairs,
        files=files.listed(),
    )


def _unseen(source: Source, files: _Files) -> Iterator[Pair]:
    """The sound pairs of a source, each once."""
    ids = IdSet()
    for pair in _good(source, files.rejected):
        if ids.add(int(pair.id, 16)):
            yield pair
        else:
            files.duplicates += 1


def _check_counts(train: Source, files: _Files) -> None:
    if not files.train:
        why = "".join(f"; {times}: {reason}" for reason, times in train.left_out.most_common(3))
        raise UserError(f"{train.name}: of {train.read} rows none is left to train on{why}")
    if not files.heldout:
        log.warning(
            "%s: none of %d pairs is held out; raise heldout_share or name a `heldout` file",
            train.name, files.train,
        )  # fmt: skip


def _good(source: Source, rejected: AppendedTable) -> Iterator[Pair]:
    for number, row in source.rows:
        source.read += 1
        if isinstance(row, BadRow):
            known = row.reason in source.rejected or len(source.rejected) < REASONS
            reason = row.reason if known else "other reasons"
            source.rejected[reason] += 1
            source.first_row.setdefault(reason, number)
            record = {"source": source.name, "row": number, "reason": row.reason}
            rejected.add({**record, "text": row.text})
        elif isinstance(row, LeftOut):
            source.left_out[row.reason] += 1
        elif row is None:
            source.joined += 1
        else:
            yield row


def _check_rejected(source: Source, max_bad_rows: float, folder: Path) -> None:
    """Say how many rows were unusable; raises UserError where they are too many."""
    bad = source.rejected.total()
    if not bad:
        return
    # A dataset of ratings is no better for having several rows a pair, or many ties.
    counted = source.read - source.joined - source.left_out.total()
    reason, times = source.rejected.most_common(1)[0]
    found = (
        f"{source.name}: {bad} of {counted} rows ({bad / counted:.1%}) cannot be used; "
        f"most often ({times}): {reason}, first in row {source.first_row[reason]}"
    )
    if counted < source.read:
        found += f" ({source.read - counted} other rows are ties and the like, or halves of pairs)"
    if bad > max_bad_rows * counted:
        allow = f" or raise scoring.max_bad_rows ({max_bad_rows:g})" if bad < counted else ""
        fix = remedy(reason) or "fix them"
        raise UserError(f"{found}; see {folder / REJECTED_ROWS}, and {fix}{allow}")
    log.info("%s", found)


def _log_left_out(source: Source) -> None:
    """Log what sound rows make no pair, prompts that are not together, and columns not read."""
    if unread := not_read(source.tally):
        log.warning("%s: %s", source.name, unread)
    if source.left_out:
        log.info(
            "%s: %d of %d rows make no pair: %s",
            source.name, source.left_out.total(), source.read,
            ", ".join(f"{times} {reason}" for reason, times in source.left_out.most_common()),
        )  # fmt: skip
    if source.tally["returned_prompts"]:
        log.warning(
            "%s: %d times a prompt comes back after others; only rows that follow one another are "
            "paired, so sort them by prompt to pair them all",
            source.name, source.tally["returned_prompts"],
        )  # fmt: skip
