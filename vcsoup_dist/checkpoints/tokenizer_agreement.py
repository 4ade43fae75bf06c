"""Whether the token ids of two model directories mean the same, however they were saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vcsoup_dist.checkpoints.config_agreement import ABSENT, Differences, said
from vcsoup_dist.checkpoints.vocabulary import (
    VOCABULARY_FILES,
    Vocabulary,
    read_vocabulary,
)
from vcsoup_dist.errors import UserError
from vcsoup_dist.json_file import read_json

# Keys of tokenizer_config.json that say how text becomes tokens.
_RULES = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
_SILENT = {
    "name_or_path", "is_local", "local_files_only", "backend", "processor_class",
    "model_max_length", "padding_side", "truncation_side", "added_tokens_decoder",
    "chat_template", "tokenizer_file", "vocab_file", "merges_file",
    "special_tokens_map_file", "sp_model_kwargs", "from_slow",
}  # fmt: skip


def tokenizer_differences(one: Path, two: Path) -> Differences:
    """Of two policies: refused is what changes the meaning of ids or how text becomes tokens."""
    first, second = _vocabularies(one, two)
    found = Differences(_different_tokens(first, second))
    for token in () if found.refused else sorted(first.tokens.keys() ^ second.tokens.keys())[:1]:
        text = first.tokens.get(token, second.tokens.get(token))
        if first.tokens and second.tokens:
            found.refused.append(f"token {token} ({text!r}) is in one of them alone")
    if first.kind and second.kind:
        same_file = first.kind == second.kind
        if None not in (first.merges, second.merges) and first.merges != second.merges:
            found.refused.append("the merges of its tokens")
        for key in sorted(first.rules.keys() | second.rules.keys()) if same_file else ():
            if first.rules.get(key) != second.rules.get(key):
                found.refused.append(f"its {key}")
        for key in sorted(first.rest.keys() & second.rest.keys()):
            if first.rest[key] != second.rest[key]:
                found.noted.append(f"its {key}")
        if not same_file and not (first.tokens and second.tokens):
            found.noted.append(f"its kind ({first.kind} and {second.kind}, not compared)")
    elif first.kind or second.kind:
        found.noted.append("its files (one of them has none)")
    _compare_settings(one, two, found)
    return found


def vocabulary_differences(one: Path, two: Path) -> Differences:
    """Of policies and a base or whoever gives the tokenizer: an id may be in one of them alone."""
    return Differences(_different_tokens(*_vocabularies(one, two)))


def has_tokenizer(directory: Path) -> bool:
    """Whether anything in it says what its tokens are."""
    return bool(_files(directory))


def _vocabularies(one: Path, two: Path) -> tuple[Vocabulary, Vocabulary]:
    if _files(one) == _files(two):  # a large vocabulary takes long to understand
        return Vocabulary(), Vocabulary()
    return read_vocabulary(one), read_vocabulary(two)


def _files(directory: Path) -> dict[str, bytes]:
    """The content of the files that have tokens, by name."""
    found = {}
    for name in (*VOCABULARY_FILES, "added_tokens.json", "tokenizer_config.json"):
        for file in directory.glob(name):
            if file.is_file() and name != "tokenizer_config.json":
                found[file.name] = _bytes(file)
            elif file.is_file():
                added = read_json(file).get("added_tokens_decoder")
                if added:
                    found[file.name] = repr(added).encode()
    return found


def _different_tokens(first: Vocabulary, second: Vocabulary) -> list[str]:
    for place in sorted(first.tokens.keys() & second.tokens.keys()):
        left, right = first.tokens[place], second.tokens[place]
        if left != right:
            return [f"the token of id {place} ({left!r} and {right!r})"]
    ids = {token: place for place, token in second.tokens.items()}
    for place, token in first.tokens.items():
        if place not in second.tokens and token in ids:
            return [f"the id of token {token!r} ({place} and {ids[token]})"]
    return []


def _compare_settings(one: Path, two: Path, found: Differences) -> None:
    left, right = _settings(one), _settings(two)
    for key in sorted((left.keys() | right.keys()) - _SILENT):
        values = left.get(key, ABSENT), right.get(key, ABSENT)
        if values[0] == values[1]:
            continue
        if ABSENT in values and not key.endswith("_token"):
            continue  # each version of transformers writes others
        (found.refused if key in _RULES else found.noted).append(said(key, *values))
    templates = _templates(one), _templates(two)
    if templates[0] != templates[1]:
        found.noted.append("its chat template")


def _settings(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, and what special_tokens_map.json says beside it."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (file := directory / name).is_file():
            found |= {key: _content(value) for key, value in read_json(file).items()}
    extra = found.pop("additional_special_tokens", None) or found.pop("extra_special_tokens", None)
    if extra:
        found["extra_special_tokens"] = extra
    return {key: value for key, value in found.items() if value is not None}


def _content(value: Any) -> Any:
    """A special token may be written as its text or as an object that has it."""
    if isinstance(value, dict) and "content" in value:
        return value["content"]
    if isinstance(value, list):
        return [_content(each) for each in value]
    return value


def _templates(directory: Path) -> dict[str, str]:
    """Chat templates by name, wherever they are written; files come before what is inline."""
    found: dict[str, Any] = {}
    inline = [directory / "tokenizer_config.json", directory / "chat_template.json"]
    for file in inline:
        given = read_json(file).get("chat_template") if file.is_file() else None
        if isinstance(given, str):
            found["default"] = given
        elif isinstance(given, list):
            found |= {each["name"]: each["template"] for each in given if isinstance(each, dict)}
    if (file := directory / "chat_template.jinja").is_file():
        found["default"] = _bytes(file).decode(errors="replace")
    for file in directory.glob("additional_chat_templates/*.jinja"):
        found[file.stem] = _bytes(file).decode(errors="replace")
    return {name: str(text).replace("\r\n", "\n").rstrip("\n") for name, text in found.items()}


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
