"""Heads that are tied to the embedding: saved once under either name, or twice as equal copies."""

from __future__ import annotations

from collections.abc import Iterable

from vcsoup_dist.checkpoints.auxiliary_files import CONFIG_NAME
from vcsoup_dist.checkpoints.layout import Layout, Source
from vcsoup_dist.json_file import read_json

HEADS = ("lm_head.weight", "embed_out.weight", "output_layer.weight")
EMBEDDINGS = (
    "embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight",
    "tok_embeddings.weight", "word_embedding.weight", "shared.weight", "embeddings.weight",
)  # fmt: skip


def is_head(name: str) -> bool:
    """Whether a tensor of this name maps the last hidden state to tokens."""
    return name.endswith(HEADS)


def partner_of(tensor: str, layout: Layout, names: Iterable[str]) -> str | None:
    """The one of `names` that may be tied to a head or embedding; None where unclear."""
    if not tensor.endswith(HEADS + EMBEDDINGS):
        return None
    found = [
        name
        for name in names
        if name.endswith(EMBEDDINGS if is_head(tensor) else HEADS)
        and layout[name].shape == layout[tensor].shape
        and layout[name].dtype == layout[tensor].dtype
    ]
    return found[0] if len(found) == 1 else None


def says_untied(source: Source) -> bool:
    """Whether a checkpoint's config says that the head is a tensor of its own."""
    return _tie_word_embeddings(source) is False


def says_tied(source: Source) -> bool:
    """Whether a checkpoint's config says that the head is the embedding."""
    return _tie_word_embeddings(source) is True


def _tie_word_embeddings(source: Source) -> object:
    file = source.path / CONFIG_NAME
    config = read_json(file) if file.is_file() else {}
    text = config.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, dict) else None
    return config.get("tie_word_embeddings", inner)
