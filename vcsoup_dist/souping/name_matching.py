"""Policies under the names of the first: tied heads, and buffers that only some of them saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vcsoup_dist.checkpoints.layout import Source, TensorSpec
from vcsoup_dist.checkpoints.reader import are_equal
from vcsoup_dist.checkpoints.tensor_names import is_recomputed
from vcsoup_dist.souping.tied_heads import partner_of, says_untied


def with_names_of_first(sources: Sequence[Source]) -> list[Source]:
    """The sources with the same tensors wherever they hold the same; notes say what was done.

    Buffers that models compute from their config are left out where not all hold them. A head that
    is tied in one and an equal copy, or under the other name, in another one is matched. What
    differs otherwise stays, and is refused by who compares them.
    """
    found = _with_shared_buffers(sources)
    first = found[0]
    return [first, *(_like(first, other) for other in found[1:])]


def _with_shared_buffers(sources: Sequence[Source]) -> list[Source]:
    shared = set(sources[0].layout).intersection(*(each.layout for each in sources[1:]))
    found = []
    for source in sources:
        left_out = [
            name
            for name, spec in source.layout.items()
            if name not in shared and is_recomputed(spec)
        ]
        if left_out:
            note = (
                f"{left_out[0]!r} is left out: it is computed from the config, and not in all"
                " policies"
            )
            source = _changed(source, [], left_out, note)
        found.append(source)
    return found


def _like(first: Source, other: Source) -> Source:
    """`other` with its tied tensors under those names that the first has."""
    other = _under_first_names(first, other)
    lacks = [name for name in first.layout if name not in other.layout]
    beyond = [name for name in other.layout if name not in first.layout]
    if says_untied(first) or says_untied(other):
        return other
    common = other.layout.keys() & first.layout.keys()
    if len(lacks) == 1 and not beyond:
        tied = partner_of(lacks[0], first.layout, common)
        if tied is not None and are_equal(first.layout, lacks[0], tied):
            spec = other.layout[tied]._replace(name=lacks[0])
            return _changed(other, [spec], [], f"its {lacks[0]!r} is its {tied!r}, as in the first")
    if len(beyond) == 1 and not lacks:
        tied = partner_of(beyond[0], other.layout, common)
        if tied is not None and are_equal(other.layout, beyond[0], tied):
            return _changed(other, [], beyond, f"its {beyond[0]!r} is a copy of its {tied!r}")
    if len(lacks) == len(beyond) == 1:
        layout = {lacks[0]: first.layout[lacks[0]], beyond[0]: other.layout[beyond[0]]}
        if partner_of(lacks[0], _of_one_dtype(layout), beyond):
            spec = other.layout[beyond[0]]._replace(name=lacks[0])
            note = f"its tied {beyond[0]!r} is the first's {lacks[0]!r}"
            return _changed(other, [spec], beyond, note)
    return other


def _under_first_names(first: Source, other: Source) -> Source:
    """Tensors of several names under the one that the first uses, or several where it has them."""
    names: dict[str, list[str]] = {name: [name] for name in other.layout}
    for alias, owner in other.aliases.items():
        names[owner].append(alias)
    layout: dict[str, TensorSpec] = {}
    for owner, spec in other.layout.items():
        wanted = [name for name in names[owner] if name in first.layout]
        if not wanted:
            wanted = [first.aliases[each] for each in names[owner] if each in first.aliases][:1]
        if any(not are_equal(first.layout, wanted[0], name) for name in wanted[1:]):
            wanted = wanted[:1]  # the first has them apart
        for name in wanted or [owner]:
            layout[name] = spec._replace(name=name)
    if len(layout) < len(other.layout) or layout.keys() == other.layout.keys():
        return other
    return replace(other, layout=layout, aliases={})


def _of_one_dtype(layout: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    return {name: spec._replace(dtype="") for name, spec in layout.items()}


def _changed(
    source: Source, added: Sequence[TensorSpec], removed: Sequence[str], note: str
) -> Source:
    layout = {name: spec for name, spec in source.layout.items() if name not in removed}
    layout |= {spec.name: spec for spec in added}
    return replace(source, layout=layout, notes=(*source.notes, note))
