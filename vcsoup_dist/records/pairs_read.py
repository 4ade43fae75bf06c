"""What a policy reads of a product that holds pairs: all training pairs, and some held-out ones."""

from __future__ import annotations

import json
from dataclasses import dataclass

from vcsoup_dist.records.reweighting import Reweighting


@dataclass(frozen=True)
class PairsRead:
    """What of a filtered set, or of the union, a policy trains on and evaluates."""

    pairs: str
    """Name of the product."""
    heldout: int
    """The first so many held-out pairs; of the union, of each of its datasets."""
    reweighting: Reweighting | None = None
    """How it weighs those of the union."""

    def as_text(self) -> str:
        """JSON, the same for all that read the same: a key of `Product.covers`."""
        how = self.reweighting.as_json() if self.reweighting else None
        return json.dumps({"pairs": self.pairs, "heldout": self.heldout, "reweighting": how})

    @classmethod
    def from_text(cls, text: str) -> PairsRead:
        """What `as_text` made this of."""
        content = json.loads(text)
        how = content["reweighting"]
        reweighting = Reweighting.from_json(how) if how else None
        return cls(content["pairs"], content["heldout"], reweighting)
