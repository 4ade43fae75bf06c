"""Which token an id means, from whatever files a tokenizer was saved in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError
from vcsoup_dist.json_file import read_json


@dataclass
class Vocabulary:
    """What a tokenizer's files say of its tokens."""

    tokens: dict[int, str] = field(default_factory=dict)
    """id -> token"""
    merges: list[tuple[str, ...]] | None = None
    rules: dict[str, Any] = field(default_factory=dict)
    """How text becomes tokens: normaliser and the like; comparable between equal `kind`s."""
    rest: dict[str, Any] = field(default_factory=dict)
    """What is put around the tokens, and how they become text again."""
    kind: str = ""
    """The file it was read from; "" without any."""


def read_vocabulary(directory: Path) -> Vocabulary:
    """The tokens of a model directory; UserError where a file cannot be understood."""
    found = Vocabulary()
    for name, read in _READERS.items():
        for file in sorted(directory.glob(name)):
            if file.is_file():
                found = read(file)
                found.kind = file.name
                break
        if found.kind:
            break
    try:
        for token, place in _added(directory):
            found.tokens.setdefault(place, token)
    except (TypeError, ValueError, AttributeError):
        raise UserError(f"{directory}: its added tokens are not a list of tokens and ids") from None
    return found


def _added(directory: Path) -> Iterator[tuple[str, int]]:
    """Tokens that were added to a finished vocabulary, beside tokenizer.json."""
    if (file := directory / "added_tokens.json").is_file():
        yield from ((str(token), int(place)) for token, place in read_json(file).items())
    if (file := directory / "tokenizer_config.json").is_file():
        for place, token in (read_json(file).get("added_tokens_decoder") or {}).items():
            yield str(token["content"] if isinstance(token, dict) else token), int(place)


def _of_tokenizer_json(file: Path) -> Vocabulary:
    content = read_json(file)
    model = content.pop("model", None)
    try:
        model = dict(model or {})
        vocab, merges = model.pop("vocab", {}), model.pop("merges", None)
        if isinstance(vocab, dict):
            tokens = {int(place): str(token) for token, place in vocab.items()}
        else:  # Unigram: pieces with their scores, which decide how text is cut
            tokens = {place: str(entry[0]) for place, entry in enumerate(vocab)}
            model["scores"] = [entry[1] for entry in vocab]
        added = content.pop("added_tokens", None) or []
        tokens |= {int(each["id"]): str(each["content"]) for each in added}
        pairs = None if merges is None else [_pair(each) for each in merges]
    except (TypeError, ValueError, KeyError, IndexError):
        raise UserError(f"{file}: is not a tokenizer that the tokenizers library writes") from None
    flags = {
        each["content"]: sorted(key for key in each if each[key] is True and key != "special")
        for each in added
    }
    rules = {"model": _plain({key: value for key, value in model.items() if value})}
    rules |= {key: _plain(content.get(key)) for key in ("normalizer", "pre_tokenizer")}
    rest = {key: _plain(content.get(key)) for key in ("post_processor", "decoder")}
    return Vocabulary(tokens, pairs, rules, rest | {"flags of added tokens": flags})


def _pair(merge: Any) -> tuple[str, ...]:
    return tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)


def _plain(part: Any) -> Any:
    """A part of tokenizer.json without nulls, without defaults that older files leave out."""
    if isinstance(part, list):
        return [_plain(each) for each in part]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Sequence":
        steps: list[Any] = []
        for key in ("normalizers", "pretokenizers", "processors", "decoders"):
            for each in map(_plain, part.get(key) or []):
                steps += each["steps"] if isinstance(each, dict) and "steps" in each else [each]
        return None if not steps else steps[0] if len(steps) == 1 else {"steps": steps}
    found = {key: _plain(value) for key, value in part.items() if value is not None}
    if found.get("type") == "ByteLevel":
        found.pop("trim_offsets", None)
        found.setdefault("use_regex", True)
        found.setdefault("add_prefix_space", True)
    return found


def _of_vocab_json(file: Path) -> Vocabulary:
    try:
        tokens = {int(place): str(token) for token, place in read_json(file).items()}
    except (TypeError, ValueError):
        raise UserError(f"{file}: is not a list of tokens and ids") from None
    merges, pairs = file.with_name("merges.txt"), None
    if merges.is_file():
        lines = _text(merges).splitlines()
        pairs = [_pair(line) for line in lines if line and not line.startswith("#version")]
    return Vocabulary(tokens, pairs)


def _of_vocab_txt(file: Path) -> Vocabulary:
    return Vocabulary(dict(enumerate(_text(file).split("\n"))))


def _of_sentencepiece(file: Path) -> Vocabulary:
    """The protobuf `ModelProto`: pieces are its field 1, the normaliser its field 3."""
    raw = file.read_bytes()
    tokens: dict[int, str] = {}
    rules: dict[str, Any] = {}
    try:
        for number, value in _fields(raw):
            if number == 1:
                piece = next(each for inner, each in _fields(value) if inner == 1)
                tokens[len(tokens)] = piece.decode()
            elif number == 3:
                rules["normalizer"] = value.hex()
    except (IndexError, ValueError, StopIteration):
        return _of_bytes(file)
    return Vocabulary(tokens, None, rules)


def _fields(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of the fields of a protobuf message that have a length."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == 2:
            size, at = _varint(raw, at)
            if at + size > len(raw):
                raise ValueError("ends within a field")
            yield key >> 3, raw[at : at + size]
            at += size
        elif kind == 0:
            _, at = _varint(raw, at)
        else:
            at += {1: 8, 5: 4}[kind] if kind in (1, 5) else len(raw)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _of_bytes(file: Path) -> Vocabulary:
    return Vocabulary(rules={"content": file.read_bytes()})


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="surrogateescape")


_READERS = {
    "tokenizer.json": _of_tokenizer_json,
    "tekken.json": _of_bytes,
    "vocab.json": _of_vocab_json,
    "vocab.txt": _of_vocab_txt,
    "tokenizer.model": _of_sentencepiece,
    "spiece.model": _of_sentencepiece,
    "sentencepiece.bpe.model": _of_sentencepiece,
    "sentencepiece.model": _of_sentencepiece,
    "spm.model": _of_sentencepiece,
    "source.spm": _of_sentencepiece,
    "*.tiktoken": _of_bytes,
    "bpe.codes": _of_bytes,
}
"""The file of a tokenizer -> what reads it; the first that is there says what the tokens are."""

VOCABULARY_FILES = (*_READERS, "merges.txt")
"""Patterns of all files that say which tokens there are."""
