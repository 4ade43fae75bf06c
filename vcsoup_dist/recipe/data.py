"""`values.*.data`: where the preference pairs of a value lie."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vcsoup_dist.recipe.section import Section


class Data(Section):
    """The preference pairs of one value: a file, a hub dataset, or other values' pairs."""

    path: str | None = None
    """A `.jsonl` (JSON Lines), `.json` (these, or one array) or `.parquet` file, the first two also
    as `.gz` or `.zst`, or a folder that `datasets` can load (relative to the recipe), or a Hugging
    Face dataset id."""
    format: Literal["auto", "trl", "hh", "pku", "helpsteer", "ultrafeedback"] = "auto"
    """`trl`: prompt/chosen/rejected as strings or message lists; `hh`: whole dialogues; `pku`:
    PKU-SafeRLHF's two responses; `helpsteer` and `ultrafeedback`: rated responses, of which each
    prompt's best and worst make a pair. `auto` tells them apart by their columns."""
    preferred_by: str | None = None
    """What decides which response is chosen. `pku`: `better` or `safer`, so that one file serves
    two values; `helpsteer`, `ultrafeedback`: the name of a rating, such as `helpfulness`. What is
    rated is there for a reward from columns too, as `chosen_<name>` and `rejected_<name>`."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    subset: str | None = None
    """Configuration name (or `data_dir`) of a hub dataset."""
    split: str = "train"
    """Split of a hub dataset."""
    heldout: str | None = None
    """Held-out pairs: a file, or another split of the hub dataset or folder, which a bare name
    without a file's ending is. Absent: `heldout_share`."""
    heldout_share: float = Field(0.05, gt=0, lt=1)
    """Share of the prompts (chosen by their hash) that is held out when `heldout` is absent."""
    limit: int | None = Field(None, ge=1)
    """Use the first so many training pairs only."""
    pairs_of: list[str] | None = Field(None, min_length=1)
    """Instead of `path`: the pairs of these values, each pair swapped where this value's own
    reward prefers the rejected answer (ties are dropped)."""

    @model_validator(mode="after")
    def _one_origin(self) -> Data:
        if (self.path is None) == (self.pairs_of is None):
            raise ValueError("give either `path` or `pairs_of`")
        return self

    @model_validator(mode="after")
    def _pairs_as_they_are(self) -> Data:
        for key in ("preferred_by", "revision"):
            if self.path is None and getattr(self, key) is not None:
                raise ValueError(f"{key}: `pairs_of` takes other values' pairs as they are")
        return self

    @model_validator(mode="after")
    def _preferred_by_of_the_format(self) -> Data:
        if self.preferred_by is None:
            return self
        if self.format in ("trl", "hh"):
            raise ValueError(
                f"preferred_by: format `{self.format}` says itself what is chosen; remove the key"
            )
        if self.format == "pku" and self.preferred_by not in ("better", "safer"):
            raise ValueError(
                f"preferred_by: format `pku` offers better, safer; not `{self.preferred_by}`"
            )
        return self
