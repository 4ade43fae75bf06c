"""Whether a base's tokenizer fits the embedding, and has a chat template."""

from __future__ import annotations

from typing import Any

from vcsoup_dist.errors import UserError

PLACEHOLDERS = ("image_token", "audio_token", "video_token")
"""Tokens that no text contains, and for which a model's text part has no rows."""


def check_vocabulary(config: Any, tokenizer: Any) -> None:
    """UserError where the tokenizer has ids without a row in the embedding.

    More rows than ids are usual: vocabularies are padded.
    """
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if rows is None:
        return
    unread = {getattr(tokenizer, name, None) for name in PLACEHOLDERS}
    beyond = sorted(
        (id_, token)
        for token, id_ in tokenizer.get_vocab().items()
        if id_ >= rows and token not in unread
    )
    if beyond:
        id_, token = beyond[0]
        more = f" and {len(beyond) - 1} more" if len(beyond) > 1 else ""
        raise UserError(
            f"{config.name_or_path}: its tokenizer has the id {id_} ({token!r}){more}, the "
            f"embedding {rows} rows (vocab_size); give it the tokenizer that the model was saved "
            "with, or save it again after model.resize_token_embeddings(len(tokenizer))"
        )


def require_template(source: str, tokenizer: Any) -> None:
    """UserError where no conversation can be encoded."""
    template, fix = tokenizer.chat_template, "give the model directory a chat_template.jinja"
    if template is None:
        raise UserError(f"{source}: its tokenizer has no chat template; {fix}")
    if isinstance(template, dict) and "default" not in template:
        known = ", ".join(sorted(map(str, template)))
        raise UserError(
            f"{source}: its tokenizer has several chat templates and none called `default`: "
            f"{known}; {fix} that is one of them"
        )
    if isinstance(template, str) and not template.strip():
        raise UserError(f"{source}: its tokenizer's chat template is empty; {fix}")
