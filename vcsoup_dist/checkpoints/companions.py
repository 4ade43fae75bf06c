"""The files that make weights a model directory: configs, tokenizer, chat templates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vcsoup_dist.checkpoints.digests import digest
from vcsoup_dist.errors import UserError

CONFIG_NAME = "config.json"

TOKENIZER_PATTERNS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
COMPANION_PATTERNS = (
    CONFIG_NAME,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "*.py",  # code of models outside transformers: copied, never run here
    *TOKENIZER_PATTERNS,
)

# Top-level keys that say how a file was saved or used, not what the model is.
IGNORED_KEYS = {
    CONFIG_NAME: {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"},
    "tokenizer.json": {"truncation", "padding"},
    "tokenizer_config.json": {
        "name_or_path",
        "is_local",
        "local_files_only",
        "backend",
        "processor_class",
        "model_max_length",
        "padding_side",
        "truncation_side",
    },
}


def companion_files(
    directory: Path, patterns: Sequence[str] = COMPANION_PATTERNS
) -> dict[str, Path]:
    """The companions a model directory has: relative name -> file, in order of name."""
    found = (file for pattern in patterns for file in directory.glob(pattern) if file.is_file())
    return dict(sorted((file.relative_to(directory).as_posix(), file) for file in found))


def companion_digests(directory: Path) -> dict[str, str]:
    """Relative name -> digest of every companion; UserError for one that cannot be read."""
    found = {}
    for name, file in companion_files(directory).items():
        try:
            found[name] = digest(file.read_bytes()).hex()
        except OSError as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    return found


def copy_companions(source: Path, target: Path) -> list[str]:
    """Copy all companions of `source` into the directory `target`; their relative names."""
    files = companion_files(source)
    for name, file in files.items():
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target / name)  # follows links: hub caches are made of them
    return list(files)


def require_same_companions(directories: Sequence[Path], names: Sequence[str]) -> None:
    """UserError where a model's config or tokenizer files differ from those of the first.

    JSON is compared by content, without the keys that say how a file was saved; all else by byte.
    """
    patterns = (CONFIG_NAME, *TOKENIZER_PATTERNS)
    first, *others = (companion_files(directory, patterns) for directory in directories)
    for name, other in zip(names[1:], others, strict=True):
        for file in sorted(first.keys() | other.keys()):
            if file not in first or file not in other:
                has, lacks = (names[0], name) if file in first else (name, names[0])
                raise UserError(
                    f"policy {has} has {file}, policy {lacks} has not; if the two are meant to"
                    " speak the same tokens, copy it over"
                )
            difference = _difference(file, first[file], other[file])
            if difference is not None:
                raise UserError(
                    f"{file} of policies {names[0]} and {name} differs {difference}: only policies"
                    " of one model with one tokenizer can be merged"
                )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; UserError where the file holds anything else."""
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file}: its JSON cannot be read ({reason})") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: its JSON is no object")
    return value


def _difference(name: str, left: Path, right: Path) -> str | None:
    if left.read_bytes() == right.read_bytes():
        return None
    if left.suffix != ".json":
        return "in its bytes"
    one, two = read_json(left), read_json(right)
    for key in sorted((one.keys() | two.keys()) - IGNORED_KEYS.get(name, set())):
        if key not in one or key not in two or one[key] != two[key]:
            return f"in {key!r} ({_short(one.get(key))} and {_short(two.get(key))})"
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
