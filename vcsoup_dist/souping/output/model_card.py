"""The README.md of a soup: what it is made of and how."""

from __future__ import annotations

from collections.abc import Mapping

CARD_NAME = "README.md"


def card_text(
    name: str,
    *,
    weights: Mapping[str, float],
    sources: Mapping[str, str],
    base: str | None,
    version: str,
) -> str:
    """The card of a soup: YAML front matter of the Hugging Face Hub, then Markdown.

    weights: policy name -> lambda; sources: policy name, and base -> digest of its weights;
    base: theta_0 of task vectors; version: of this project. The same arguments give the same
    text: no date, no path.
    """
    rows = "\n".join(
        f"| {_cell(policy)} | {weight!r} | `{sources[policy]}` |"
        for policy, weight in weights.items()
    )
    formula = "θ(λ) = Σ λᵢ θᵢ" if base is None else "θ(λ) = θ₀ + Σ λᵢ (θᵢ − θ₀)"
    if base is not None:
        rows += f"\n| {_cell(base)} (θ₀) | | `{sources.get(base, 'cancels')}` |"
    return f"""---
library_name: transformers
tags:
- vc-soup
- merge
---

# {name}

A linear soup of {len(weights)} policies trained from the same initial weights
(VC-Soup, arXiv 2603.18113):

{formula}

| policy | λ | weights |
| --- | --- | --- |
{rows}

Every number is the exact sum, rounded once, to nearest even. `manifest.json` has the digests of all
files; `vcsoup verify` checks them.

Made with vcsoup_dist {version}.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
