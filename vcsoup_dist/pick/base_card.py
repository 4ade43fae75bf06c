"""What the base model's own card says that holds for what is made from it: its licence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import reason_of
from vcsoup_dist.progress import log
from vcsoup_dist.recipe import Recipe

CARD_NAME = "README.md"


@dataclass(frozen=True)
class BaseModel:
    """The model that policies were trained from, as a card names it."""

    hub_id: str | None
    """None for a local folder, which no reader of a card could find."""
    name: str
    license: str | None = None
    """As its card has it, in the hub's words; so the next two."""
    license_name: str | None = None
    license_link: str | None = None


def base_model_of(recipe: Recipe) -> BaseModel:
    """The recipe's model; its card is read from its folder, or from the hub or the hub's cache."""
    local = recipe.local_path(recipe.model)
    if local is not None:
        return BaseModel(None, local.resolve().name, **_license(local / CARD_NAME))
    from huggingface_hub import hf_hub_download

    try:
        card = Path(hf_hub_download(recipe.model, CARD_NAME, revision=recipe.revision))
    except Exception as error:  # the hub raises its own, httpx's and requests' errors
        log.warning(
            "the card has no licence: that of %s cannot be read (%s)",
            recipe.model,
            reason_of(error),
        )
        return BaseModel(recipe.model, recipe.model)
    return BaseModel(recipe.model, recipe.model, **_license(card))


def _license(card: Path) -> dict[str, str]:
    """Of a model's card; nothing where it has none, or one that is not to be read."""
    if not card.is_file():
        return {}
    from huggingface_hub import ModelCard

    try:
        data: dict[str, Any] = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except Exception as error:  # YAML's and the hub's own errors
        log.warning("%s: cannot be read as a card, so no licence (%s)", card, reason_of(error))
        return {}
    keys = ("license", "license_name", "license_link")
    return {key: data[key] for key in keys if isinstance(data.get(key), str)}
