"""`methods`: the method instances that a recipe compares.

The kinds are the files of the package `methods`, which lies above this one and is read by name:
each holds a class `METHOD`, whose fields are the options of its kind.
"""

from __future__ import annotations

import functools
import importlib
import operator
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, SerializeAsAny, Tag

from vcsoup_dist.recipe.method import MethodOptions
from vcsoup_dist.recipe.section import RUN_NAME

PACKAGE = "vcsoup_dist.methods"


def method_kinds() -> dict[str, type[MethodOptions]]:
    """The class of every kind of method, by its name."""
    package = importlib.import_module(PACKAGE)
    modules = [
        importlib.import_module(f"{PACKAGE}.{each.name}")
        for each in pkgutil.iter_modules(package.__path__)
    ]
    return {
        module.__name__.rpartition(".")[2]: module.METHOD
        for module in modules
        if hasattr(module, "METHOD")
    }


def _named(methods: object) -> object:
    """A plain list of kinds, or instances without options or kind, in their full form."""
    if isinstance(methods, list):
        if len(methods) != len(set(map(str, methods))):
            raise ValueError(
                f"methods: {methods} lists something twice; give instances names of their own, "
                "such as `strict: {kind: vc_soup, threshold: 0.5}`"
            )
        methods = {str(each): None for each in methods}
    if not isinstance(methods, Mapping):
        return methods
    for name, options in methods.items():
        if not isinstance(options, Mapping | MethodOptions | None):
            raise ValueError(f"methods.{name}: needs options, such as {{kind: vc_soup}}, or {{}}")
        if name == "base":
            raise ValueError("methods.base: the run directory has theta_0 under that name")
    return {
        name: options if isinstance(options, MethodOptions) else {"kind": name} | (options or {})
        for name, options in methods.items()
    }


def _kind_of(options: Any) -> Any:
    return options.get("kind") if isinstance(options, Mapping) else getattr(options, "kind", None)


if TYPE_CHECKING:
    AnyMethod = MethodOptions
else:
    KINDS = method_kinds()
    AnyMethod = Annotated[
        functools.reduce(
            operator.or_, (Annotated[SerializeAsAny[each], Tag(k)] for k, each in KINDS.items())
        ),
        Discriminator(
            _kind_of,
            custom_error_type="method_kind",
            custom_error_message=f"give it a `kind`, one of {', '.join(KINDS)}",
        ),
    ]

Methods = Annotated[
    dict[Annotated[str, Field(pattern=RUN_NAME)], AnyMethod],
    Field(min_length=1),
    BeforeValidator(_named),
]
