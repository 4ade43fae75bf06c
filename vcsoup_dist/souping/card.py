"""The README.md of a soup: what it is made of and how."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from vcsoup_dist.checkpoints.layout import read_layout

CARD_NAME = "README.md"


def write_card(
    directory: Path,
    *,
    weights: Mapping[str, float],
    sources: Mapping[str, str],
    version: str,
) -> None:
    """Write the model card of the soup in `directory`.

    weights: policy name -> lambda; sources: policy name -> what identifies its weights, such as
    `weights_hash` gives; version: of this project. The same arguments give the same bytes: no
    date, no path.
    """
    (directory / CARD_NAME).write_text(
        card_text(directory.name, weights=weights, sources=sources, version=version)
    )


def card_text(
    name: str, *, weights: Mapping[str, float], sources: Mapping[str, str], version: str
) -> str:
    """The card: YAML front matter of the Hugging Face Hub, then Markdown."""
    rows = "\n".join(
        f"| {_cell(policy)} | {weight!r} | `{_cell(sources[policy])}` |"
        for policy, weight in weights.items()
    )
    return f"""---
library_name: transformers
tags:
- vc-soup
- merge
---

# {name}

A linear soup of {len(weights)} policies trained from the same initial weights
(VC-Soup, arXiv 2603.18113):

θ(λ) = Σ λᵢ θᵢ

| policy | λ | weights |
| --- | --- | --- |
{rows}

Every tensor is summed in float64 in the order of the table and rounded once, to nearest even, to
the dtype of the policies. Config, tokenizer and chat template are those of the first policy.

Made with vcsoup_dist {version}.
"""


def weights_hash(directory: Path) -> str:
    """sha256 of a model's weights files, reading all of them.

    What `sha256sum *.safetensors | sha256sum` prints in the directory (locale C), where no other
    safetensors file lies.
    """
    lines = []
    for file in sorted({spec.file for spec in read_layout(directory).values()}):
        with open(file, "rb") as opened:
            lines.append(f"{hashlib.file_digest(opened, 'sha256').hexdigest()}  {file.name}\n")
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
