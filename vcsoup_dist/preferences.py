"""Preference pairs in their public formats -> one canonical `Pair`.

trl   prompt, chosen, rejected as strings or message lists; without a prompt, chosen and
      rejected are whole message lists that differ in their last message (TRL's implicit prompt)
hh    chosen and rejected are whole dialogues as text, `\\n\\nHuman:` and `\\n\\nAssistant:`
      (Anthropic's HH-RLHF)
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located

Message = dict[str, str]

HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
CUT = 500  # characters of a bad row that are kept for its reader


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, of which the first is preferred."""

    id: str
    """16 hex digits: hash of prompt, chosen and rejected."""
    prompt: list[Message]
    """Messages {role, content}; the last is the user's."""
    chosen: str
    rejected: str
    columns: dict[str, float] = field(default_factory=dict)
    """Scores that the data carries, by column name."""


class BadRow(Exception):
    """A row that is no preference pair; `reason` is one of few, so that they can be counted."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.text = text


Row = Mapping[str, Any]
Dialogues = tuple[list[Message], str, str]  # prompt, chosen, rejected


def pair_id(prompt: Sequence[Message], chosen: str, rejected: str) -> str:
    """First 16 hex digits of the xxh3_128 of the pair's canonical JSON."""
    return _hash({"prompt": list(prompt), "chosen": chosen, "rejected": rejected})


def prompt_id(prompt: Sequence[Message]) -> str:
    """16 hex digits that name a prompt, whatever dataset it comes from."""
    return _hash(list(prompt))


def _hash(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return xxhash.xxh3_128(canonical.encode()).hexdigest()[:16]


def from_trl(row: Row) -> Dialogues:
    """A row in one of TRL's preference formats; raises BadRow."""
    chosen, rejected = _column(row, "chosen"), _column(row, "rejected")
    prompt = row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            raise BadRow("missing column `prompt`")
        return _as_messages(prompt), chosen, rejected
    chosen, rejected = _messages(chosen), _messages(rejected)
    if isinstance(prompt, list):
        given = _messages(prompt)
        chosen, rejected = _without(given, chosen), _without(given, rejected)
    elif isinstance(prompt, str) and len(chosen) == len(rejected) == 1:
        given = _as_messages(prompt)
    else:
        # TRL's implicit prompt; a `prompt` string beside whole dialogues repeats their start.
        given = chosen[:-1]
        if rejected[:-1] != given:
            raise BadRow("chosen and rejected differ before the last answer")
        chosen, rejected = chosen[-1:], rejected[-1:]
    if [each["role"] for each in (*chosen, *rejected)] != ["assistant", "assistant"]:
        raise BadRow("wrong roles")
    return given, chosen[0]["content"], rejected[0]["content"]


def from_hh(row: Row) -> Dialogues:
    """A row of whole dialogues; the prompt is all up to the last answer; raises BadRow."""
    turns = []
    for name in ("chosen", "rejected"):
        text = _column(row, name)
        if not isinstance(text, str):
            raise BadRow(f"`{name}` is no text")
        opening, *parts = HH_TURN.split(text)
        if opening.strip() or not parts:
            raise BadRow(f"`{name}` is no dialogue that begins with \\n\\nHuman:")
        speakers, contents = parts[::2], parts[1::2]
        turns.append(
            [
                {"role": HH_ROLES[speaker], "content": content.strip()}
                for speaker, content in zip(speakers, contents, strict=True)
            ]
        )
    chosen, rejected = turns
    if chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise BadRow("wrong roles")
    if chosen[:-1] != rejected[:-1]:
        raise BadRow("chosen and rejected differ before the last answer")
    return chosen[:-1], chosen[-1]["content"], rejected[-1]["content"]


FORMATS: dict[str, Callable[[Row], Dialogues]] = {"trl": from_trl, "hh": from_hh}


def detect_format(row: Row) -> str:
    """Name of the format of a dataset's first readable row; raises BadRow where it has none."""
    chosen = _column(row, "chosen")
    if isinstance(chosen, str) and row.get("prompt") is None and HH_TURN.search(chosen):
        return "hh"
    if isinstance(chosen, list) or row.get("prompt") is not None:
        return "trl"
    raise BadRow("missing column `prompt`")


def to_pair(row: Row, format: str, columns: Sequence[str] = ()) -> Pair:
    """A canonical pair with the scores named by `columns`; raises BadRow."""
    prompt, chosen, rejected = FORMATS[format](row)
    _check_prompt(prompt)
    if not chosen.strip() or not rejected.strip():
        raise BadRow("empty response")
    if chosen == rejected:
        raise BadRow("chosen equals rejected")
    scores = {name: _number(row, name) for name in columns}
    try:
        identity = pair_id(prompt, chosen, rejected)
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can spell
        raise BadRow("not UTF-8") from error
    return Pair(identity, prompt, chosen, rejected, scores)


def read_pairs(
    source: Located,
    *,
    format: str = "auto",
    subset: str | None = None,
    split: str = "train",
    columns: Sequence[str] = (),
) -> Iterator[tuple[int, Pair | BadRow]]:
    """(row number from 1, pair or what is wrong with it) for every row of a dataset.

    `source` is a .jsonl file, a .parquet file, a folder or hub id that `datasets` can load. Raises
    UserError where it cannot be read at all.
    """
    path = Path(source.source)
    if path.suffix == ".jsonl":
        rows = _jsonl(path)
    elif path.suffix == ".parquet":
        rows = _parquet(path)
    elif path.is_file():
        raise UserError(f"{path}: not a .jsonl or .parquet file; convert it to one of them")
    else:
        rows = _hub(source, subset, split)
    known = None if format == "auto" else format
    for number, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            known = known or detect_format(row)
            yield number, to_pair(row, known, columns)
        except BadRow as bad:
            text = bad.text or (str(row) if not isinstance(row, BadRow) else "")
            yield number, BadRow(bad.reason, text.encode(errors="replace").decode()[:CUT])


def _jsonl(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            shown = line[: 4 * CUT].decode(errors="replace")
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError:
                yield number, BadRow("not UTF-8", shown)
            except (ValueError, RecursionError):
                yield number, BadRow("malformed JSON", shown)
            else:
                yield number, row if isinstance(row, dict) else BadRow("no JSON object", shown)


def _parquet(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            for i in range(batch.num_rows):
                number += 1
                try:
                    yield number, batch.slice(i, 1).to_pylist()[0]
                except UnicodeDecodeError:
                    yield number, BadRow("not UTF-8")
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: unreadable parquet after row {number}: {reason}") from error


def _hub(source: Located, subset: str | None, split: str) -> Iterator[tuple[int, Row]]:
    import datasets

    name, revision = source.source, source.revision
    where: dict[str, str] = {}
    try:
        if subset is not None:
            known = datasets.get_dataset_config_names(name, revision=revision)
            where = {"name": subset} if subset in known else {"data_dir": subset}
        rows = datasets.load_dataset(name, split=split, revision=revision, **where)
    except Exception as error:  # datasets, the hub and httpx each raise their own kinds
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        what = f"{name} (subset {subset}, split {split})"
        raise UserError(f"{what}: cannot load it: {reason}") from error
    yield from enumerate(rows, start=1)


def _column(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise BadRow(f"missing column `{name}`")
    return row[name]


def _number(row: Row, name: str) -> float:
    value = _column(row, name)
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise BadRow(f"score column `{name}` is no number")
    return number


def _as_messages(prompt: Any) -> list[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt)


def _messages(given: Any) -> list[Message]:
    """A non-empty list of {role, content}; other keys of a message are left out."""
    if not isinstance(given, list) or not given:
        raise BadRow("no text and no message list")
    messages = []
    for each in given:
        if not isinstance(each, Mapping) or not isinstance(each.get("role"), str):
            raise BadRow("message without a role")
        if not isinstance(each.get("content"), str):
            raise BadRow("message whose content is no text")
        messages.append({"role": each["role"], "content": each["content"]})
    return messages


def _without(prompt: list[Message], dialogue: list[Message]) -> list[Message]:
    """The messages after `prompt`, where a dialogue repeats it."""
    return dialogue[len(prompt) :] if dialogue[: len(prompt)] == prompt else dialogue


def _check_prompt(prompt: Sequence[Message]) -> None:
    """An optional system message, then user and assistant in turn, the user last."""
    roles = [each["role"] for each in prompt]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    wanted = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
    if len(turns) % 2 == 0 or turns != wanted:
        raise BadRow("wrong roles")
    if not prompt[-1]["content"].strip():
        raise BadRow("empty prompt")
