"""Keys of a recipe that have a better name now; the old ones are still read."""

from __future__ import annotations

import functools

from vcsoup_dist.errors import UserError
from vcsoup_dist.progress import log
from vcsoup_dist.recipe.yaml_file import KeyPath, YamlFile, dotted

RENAMED: dict[KeyPath, str] = {
    ("consistency", "policy"): "rule",
    ("training", "warmup"): "warmup_ratio",
    ("warmup",): "sft",
}


def with_new_names(file: YamlFile, path: object) -> YamlFile:
    """The file with every old key under its new name, and a line in the log for each.

    Raises UserError where both are given.
    """
    for old, name in RENAMED.items():
        section = _section(file, old[:-1])
        if section is None or old[-1] not in section:
            continue
        new = (*old[:-1], name)
        where = f"{path}: {file.line_of(old)}: `{dotted(old)}` is now `{dotted(new)}`"
        if name in section:
            raise UserError(f"{where}; give one of them")
        _say(where)
        file = _renamed(file, old, new)
    return file


def _section(file: YamlFile, path: KeyPath) -> dict[str, object] | None:
    section: object = file.content
    for key in path:
        section = section.get(str(key)) if isinstance(section, dict) else None
    return section if isinstance(section, dict) else None


def _renamed(file: YamlFile, old: KeyPath, new: KeyPath) -> YamlFile:
    def content(section: dict[str, object], depth: int) -> dict[str, object]:
        if depth == len(old) - 1:
            names = {str(old[-1]): str(new[-1])}
            return {names.get(key, key): value for key, value in section.items()}
        below = section[str(old[depth])]
        assert isinstance(below, dict)  # `old` is there
        return section | {str(old[depth]): content(below, depth + 1)}

    written = {
        (*new, *path[len(old) :]) if path[: len(old)] == old else path: each
        for path, each in file.written.items()
    }
    return YamlFile(content(file.content, 0), written)


@functools.cache
def _say(line: str) -> None:
    """Once, however often a command reads the recipe."""
    log.warning("%s", line)
