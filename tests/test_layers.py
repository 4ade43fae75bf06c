"""Packages import only from those below them, and no files import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "vcsoup_dist"

LAYERS = [
    *("cli", "demo", "check", "status", "slurm_jobs", "pick", "pipeline", "methods"),
    *("report", "evaluation", "training", "souping", "in_context", "tokens", "union"),
    *("consistency", "scoring", "records"),
    *("forward", "checkpoints", "preferences", "theta_0 turns", "workspace", "launch", "recipe"),
    *(
        "identity",
        "locks",
        "leases",
        "lease_files",
        "progress files file_systems processes json_file",
        "moments plot_style",
        "errors",
        "__init__",
        "import_paths",
    ),
]
"""From the top to the ground; packages and modules of one line do not import each other."""

PLACES = {name: place for place, line in enumerate(LAYERS) for name in line.split()}


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    files = {
        ".".join(file.relative_to(ROOT.parent).with_suffix("").parts): file
        for file in ROOT.rglob("*.py")
    }
    return {name.removesuffix(".__init__"): file for name, file in files.items()}


def imported(file: Path, known: dict[str, Path], types: bool) -> set[str]:
    """The project's modules that a file imports, wherever in it; `types`: also for types alone."""
    found = set()
    for node in nodes(ast.parse(file.read_text()), types):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(ROOT.name):
            names = {f"{node.module}.{each.name}" for each in node.names}
            found |= {name if name in known else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names if each.name in known}
    return found


def nodes(tree: ast.AST, types: bool) -> Iterator[ast.AST]:
    """All of a tree, but `if TYPE_CHECKING:` where `types` do not count."""
    for node in ast.iter_child_nodes(tree):
        if types or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from nodes(node, types)


def package_of(module: str) -> str:
    """The part below `vcsoup_dist`."""
    return (*module.split("."), "__init__")[1]


KNOWN = modules()
IMPORTS = {name: imported(file, KNOWN, types=True) for name, file in KNOWN.items()}


def test_every_package_has_its_place() -> None:
    assert {package_of(name) for name in KNOWN} == set(PLACES)


@pytest.mark.parametrize("package", sorted(PLACES))
def test_a_package_imports_only_from_those_below_it(package: str) -> None:
    upward = [
        f"{name} imports {other}"
        for name, others in IMPORTS.items()
        if package_of(name) == package
        for other in others
        if package_of(other) != package and PLACES[package_of(other)] <= PLACES[package]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: imported(file, KNOWN, types=False) - {name} for name, file in KNOWN.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
