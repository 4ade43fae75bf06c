"""Whether a chat template, a program that comes with a model, terminates.

Jinja's sandbox bounds one `range`, but neither nested loops nor the length of a text. A template
that is not plainly harmless is tried in a process with little time and memory.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, BYTES = 2, 1 << 29
"""Processor time and memory for a few conversations, which need milliseconds."""
WALL_SECONDS = 60  # where the machine is busy
ENDLESS = 3
"""Exit code of a template that needs more memory."""

HARMLESS: tuple[type[nodes.Node], ...] = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.Operand),
    *(nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Keyword, nodes.Compare, nodes.And, nodes.Or),
    *(nodes.Not, nodes.If, nodes.For, nodes.CondExpr, nodes.Test, nodes.Add, nodes.Sub, nodes.Neg),
    *(nodes.Concat, nodes.Filter, nodes.Call, nodes.Assign, nodes.List, nodes.Tuple, nodes.Dict),
    *(nodes.Pair,),
)
FILTERS = {"trim", "length", "count", "upper", "lower", "first", "last", "tojson", "string", "e"}
CALLS = {"raise_exception", "strftime_now", "strip", "lstrip", "rstrip", "split", "startswith"}
CALLS |= {"endswith", "upper", "lower", "items", "keys", "get"}
MOST_LOOPS = 2  # nested
MOST_ASSIGNMENTS = 20  # `x = x ~ x` so many times makes a million characters of one


class _Generation(Extension):
    """transformers' tag around an assistant's turn."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return body


@lru_cache
def comes_to_an_end(template: str) -> bool:
    """Whether a chat template renders conversations in little time and memory.

    True also of one that fails in another way, which shows when it is rendered.
    """
    try:
        if _is_harmless(_environment().parse(template)):
            return True
    except Exception:  # its syntax
        return True
    package = str(Path(__file__).parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "vcsoup_dist.forward.template_limits"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(template).encode(),
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=WALL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode >= 0 and done.returncode != ENDLESS


def _environment() -> ImmutableSandboxedEnvironment:
    """As in transformers."""
    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )


def _is_harmless(template: nodes.Template) -> bool:
    """Whether the nodes of a template alone show that it takes little time."""

    def check(node: nodes.Node, loops: int) -> bool:
        loops += isinstance(node, nodes.For)
        name = None
        if isinstance(node, nodes.Filter):
            name, known = node.name, FILTERS
        elif isinstance(node, nodes.Call):
            name = getattr(node.node, "name", getattr(node.node, "attr", ""))
            known = CALLS
        return (
            isinstance(node, HARMLESS)
            and loops <= MOST_LOOPS
            and not (isinstance(node, nodes.For) and node.recursive)
            and (name is None or name in known)
            and all(check(child, loops) for child in node.iter_child_nodes())
        )

    return check(template, 0) and len(list(template.find_all(nodes.Assign))) <= MOST_ASSIGNMENTS


def _conversations() -> list[list[dict[str, str]]]:
    long = "some words of a longer text, " * 70
    user, assistant = ({"role": role, "content": long} for role in ("user", "assistant"))
    system = {"role": "system", "content": "Be brief."}
    return [[user], [user, assistant], [system, user, assistant, user, assistant]]


def _try(template: str) -> int:
    """Render some conversations within the limits; returns the exit code of this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = _environment()
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda format: format}
    try:
        compiled = environment.from_string(template)
    except MemoryError:
        return ENDLESS
    except Exception:
        return 0
    for messages in _conversations():
        for generate in (True, False):
            try:
                compiled.render(messages=messages, add_generation_prompt=generate, tools=None)
            except MemoryError:
                return ENDLESS
            except Exception:
                continue
    return 0


if __name__ == "__main__":
    sys.exit(_try(json.loads(sys.stdin.buffer.read())))
