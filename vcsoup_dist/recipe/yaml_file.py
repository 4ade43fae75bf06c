"""YAML files that people write: what is read is what is written, or a line says why not.

YAML 1.1, as PyYAML reads it, takes the last of two equal keys, and reads `010` as 8, `17:04` as
1024 and `no` as a boolean, all without a word. Here each of these is refused, with its line.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vcsoup_dist.errors import UserError

MOST_BYTES = 512 * 1024  # which PyYAML reads in a few seconds
MOST_NODES = 50_000  # keys and items, those of anchors counted wherever they are used
MOST_DEEP = 50
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

KeyPath = tuple[str | int, ...]
"""Keys, and numbers of list items, from the top of the file."""


@dataclass(frozen=True)
class Written:
    """How something stands in the file."""

    where: str
    """Such as `line 12`."""
    text: str | None = None
    """Of a number, a text and the like, what is written; None for sections and lists."""


@dataclass(frozen=True)
class YamlFile:
    """What a file holds, and where."""

    content: dict[str, Any]
    written: dict[KeyPath, Written]

    def line_of(self, path: KeyPath) -> str:
        """Where the key is, or the nearest section around it; empty for the file itself."""
        while path and path not in self.written:
            path = path[:-1]
        return self.written[path].where if path else ""


def read_yaml(path: Path, called: str, environment: bool = False) -> YamlFile:
    """Read a mapping of keys; with `environment`, `${NAME}` in it is taken from there.

    Raises UserError with one line per mistake, each with its place in the file.
    """
    text = _text(path, called)
    mark, text = _marked(text) if environment else ("", text)
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {_syntax_error(error)}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply for a {called}") from None
    if root is None:
        raise UserError(f"{path}: empty; a {called} is a YAML mapping of keys")
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise UserError(f"{path}: line {_line(root)}: {kind}; a {called} is a YAML mapping of keys")
    reading = _Reading(mark)
    content = reading.value(root, ())
    if reading.mistakes:
        raise UserError("\n".join(f"{path}: {mistake}" for mistake in reading.mistakes))
    return YamlFile(content, reading.written)


def read_value(text: str, where: str, path: KeyPath) -> YamlFile:
    """A single value, such as that of an option, as if it stood at `path` of a file.

    `content` has it as its only value, under the key "". Raises UserError as `read_yaml` does.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: {_syntax_error(error)}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    reading = _Reading("", where)
    value = None if root is None else reading.value(root, path)
    if reading.mistakes:
        raise UserError("\n".join(reading.mistakes))
    return YamlFile({"": value}, reading.written | {path: Written(where, text)})


def shown(text: object) -> str:
    """Something from a file as part of a one-line message: printable and short."""
    line = str(text)
    line = line if line.isprintable() else repr(line)[1:-1]
    return line if len(line) <= 80 else line[:77] + "..."


def _text(path: Path, called: str) -> str:
    try:
        if path.is_dir():
            raise UserError(f"{path}: a folder; a {called} is a YAML file")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: no regular file; a {called} is a YAML file")
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # a ValueError: a name with a zero byte
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot read the {called}: {why}") from None
    if content.startswith(LFS_POINTER):
        raise UserError(f"{path}: a Git LFS pointer, not the {called} itself; run `git lfs pull`")
    if len(content) > MOST_BYTES:
        raise UserError(f"{path}: more than {MOST_BYTES // 1024} KiB; that is not a {called}")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: UTF-16; save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line}: not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8"
        ) from None
    foreign = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if foreign:
        line = text.count("\n", 0, foreign.start()) + 1
        raise UserError(
            f"{path}: line {line}: not YAML: the character U+{ord(foreign[0]):04X} is not allowed"
        )
    return text


def _marked(text: str) -> tuple[str, str]:
    """`${NAME}` with a character in place of its brackets, which YAML takes for a mapping's."""
    mark = next(each for each in map(chr, range(0xE000, 0xF900)) if each not in text)
    return mark, re.sub(r"\$\{(\w+)\}", rf"{mark}\1{mark}", text)


def _syntax_error(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    line = f"line {mark.line + 1}: " if mark else ""
    if "'\\t'" in problem:
        return f"{line}not YAML: a tab; indent with spaces"
    if "another document" in problem:
        return f"{line}a second document begins at `---`; give each a file of its own"
    begun = getattr(error, "context_mark", None)
    since = (
        f" (begun in line {begun.line + 1})" if begun and mark and begun.line < mark.line else ""
    )
    return f"{line}not YAML: {shown(' '.join(problem.split()))}{since}"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def dotted(path: KeyPath) -> str:
    """As messages name it: `soup.weights.0`."""
    return ".".join(shown(key) for key in path)


class _Reading:
    """The walk through a file's nodes, with what it finds on the way."""

    def __init__(self, mark: str, where: str | None = None) -> None:
        self.mark = mark
        self.where = where
        """Instead of lines."""
        self.written: dict[KeyPath, Written] = {}
        self.mistakes: list[str] = []
        self.nodes = 0
        self.above: list[yaml.Node] = []

    def place(self, node: yaml.Node) -> str:
        return self.where or f"line {_line(node)}"

    def wrong(self, node: yaml.Node, path: KeyPath, what: str) -> None:
        name = f"{dotted(path)}: " if path else ""
        self.mistakes.append(f"{self.place(node)}: {name}{what}")

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > MOST_NODES or node in self.above or len(path) > MOST_DEEP:
            if not self.mistakes:
                most = f"more than {MOST_NODES} keys and items, or more than {MOST_DEEP} levels"
                self.wrong(node, path[:3], f"{most}; anchors count wherever they are used")
            return None
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, path)
        self.above.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
                return self.mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
                items = []
                for i, item in enumerate(node.value):
                    self.note(item, (*path, i))
                    items.append(self.value(item, (*path, i)))
                return items
        finally:
            self.above.pop()
        self.wrong(node, path, f"the tag `{shown(node.tag)}` is not supported")
        return None

    def note(self, value: yaml.Node, path: KeyPath, key: yaml.Node | None = None) -> None:
        text = self.filled(value, path) if isinstance(value, yaml.ScalarNode) else None
        self.written[path] = Written(self.place(value if key is None else key), text)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first: dict[str, yaml.Node] = {}
        # What is merged comes first, so that own keys and their places go before it.
        for key, value in sorted(node.value, key=lambda pair: not pair[0].tag.endswith(":merge")):
            name = self.key(key, path)
            if name is None:
                continue
            if name in first:
                before = f"first in {self.place(first[name])}"
                again = (*path, name)
                self.wrong(key, again, f"the key is given twice, {before}; remove one of them")
                continue
            first[name] = key
            if key.tag.endswith(":merge"):
                merged = self.merged(value, path)
            else:
                self.note(value, (*path, name), key)
                own[name] = self.value(value, (*path, name))
        return {**merged, **own}

    def merged(self, node: yaml.Node, path: KeyPath) -> dict[str, Any]:
        """What `<<` brings; of several mappings the first that has a key. Own keys come after."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for source in reversed(sources):
            if not isinstance(source, yaml.MappingNode):
                self.wrong(node, path, "`<<` takes a mapping, such as `<<: *name`")
                continue
            found |= self.value(source, path) or {}
        return found

    def key(self, node: yaml.Node, path: KeyPath) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self.wrong(node, path, "a key must be text, not a list or a mapping")
            return None
        text = self.filled(node, path)
        if node.tag.endswith((":str", ":merge")):
            return text
        if node.tag.endswith(":value"):  # `=`, of YAML 1.1
            return text
        kind = _kind(node.tag)
        self.wrong(
            node, path, f'the key `{shown(text)}` is {kind}; put it in quotes: "{shown(text)}"'
        )
        return None

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text = self.filled(node, path)
        kind = node.tag.rpartition(":")[2]
        quote = f'put it in quotes: "{shown(text)}"'
        if kind in ("str", "value", "merge"):
            return text
        if kind == "null":
            return None
        if kind == "bool":
            truth = yaml.SafeLoader.bool_values.get(text.lower())
            if truth is not None:
                return truth
        elif kind == "timestamp":
            self.wrong(node, path, f"`{shown(text)}` is a date to YAML; {quote}")
            return None
        elif kind in ("int", "float"):
            if ":" in text or re.fullmatch(r"[-+]?0[0-9_]+", text):
                self.wrong(node, path, self.misread(text, quote))
                return None
            try:
                return _number(text, kind)
            except (ValueError, OverflowError):
                pass
        else:
            self.wrong(node, path, f"the tag `{shown(node.tag)}` is not supported")
            return None
        self.wrong(node, path, f"`{shown(text)}` cannot be read as {_kind(node.tag)}")
        return None

    def misread(self, text: str, quote: str) -> str:
        try:
            number = str(_number(text, "int"))
        except (ValueError, OverflowError):
            number = "another number"
        return f"`{shown(text)}` is {number} to YAML; if it is text, {quote}; else write the number"

    def filled(self, node: yaml.ScalarNode, path: KeyPath) -> str:
        """The node's text with variables of the environment; the node is changed with it."""
        text = str(node.value)
        if not self.mark or self.mark not in text:
            return text
        parts = text.split(self.mark)
        for i in range(1, len(parts), 2):
            if parts[i] not in os.environ:
                name = parts[i]
                self.wrong(
                    node, path, f"${{{name}}} is not set in the environment; export {name}=..."
                )
            parts[i] = os.environ.get(parts[i], "")
        node.value = "".join(parts)
        if node.style is None:  # a number, where the variable holds one
            resolver: Any = yaml.SafeLoader("")
            node.tag = resolver.resolve(yaml.ScalarNode, node.value, (True, False))
        return str(node.value)


def _number(text: str, kind: str) -> int | float:
    node = yaml.ScalarNode(kind, text)
    loader = yaml.SafeLoader("")
    number = loader.construct_yaml_int(node) if kind == "int" else loader.construct_yaml_float(node)
    return int(number) if kind == "int" else float(number)


def _kind(tag: str) -> str:
    kinds = {
        "bool": "yes or no to YAML",
        "int": "a number to YAML",
        "float": "a number to YAML",
        "null": "nothing to YAML",
        "timestamp": "a date to YAML",
    }
    return kinds.get(tag.rpartition(":")[2], f"`{shown(tag)}`")
