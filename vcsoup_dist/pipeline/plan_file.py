"""plan.json: the products of a run directory's last command.

`vcsoup status` knows from it what was done, also where models and data are gone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.files import write_atomically
from vcsoup_dist.workspace import Product

NAME = "plan.json"
FORMAT = 2
"""Of run directories; raised when products of the format before would be misread."""


@dataclass(frozen=True)
class PlannedProduct:
    """A product without what it is made from."""

    name: str
    stage: str
    fingerprint: str
    inputs: list[str]
    command: str
    dataset: str | None
    method: str | None
    value: str | None
    seed: int | None
    weights: tuple[float, ...] | None
    covers: dict[str, str] = field(default_factory=dict)
    """Of `Product.covers`, the names."""


PRODUCTS = TypeAdapter(list[PlannedProduct])


def write_plan(root: Path, plan: Sequence[Product]) -> None:
    """Write it, where it is not there already."""
    products = [
        PlannedProduct(
            each.name, each.stage, each.fingerprint, [product.name for product in each.inputs],
            each.command, each.dataset, each.method, each.value, each.seed, each.weights,
            {what: covered.name for what, covered in each.covers.items()},
        )
        for each in plan
    ]  # fmt: skip
    lines = ",\n".join(json.dumps(asdict(each)) for each in products)
    text = f'{{"format": {FORMAT}, "products": [\n{lines}\n]}}\n'
    file = root / NAME
    if not file.exists() or file.read_text() != text:
        write_atomically(file, text)


def check_format(root: Path) -> None:
    """Raises UserError where another version made the run directory: its products differ."""
    _products(root)


def read_plan(root: Path) -> list[Product] | None:
    """The products without what they are made from; None where there is no plan."""
    products = _products(root)
    if products is None:
        return None
    found: dict[str, Product] = {}
    try:
        for each in PRODUCTS.validate_python(products):
            found[each.name] = Product(
                each.name,
                each.stage,
                {},
                inputs=tuple(found[name] for name in each.inputs),
                covers={what: found[name] for what, name in each.covers.items()},
                dataset=each.dataset,
                method=each.method,
                value=each.value,
                seed=each.seed,
                weights=each.weights,
                command=each.command,
                recorded_fingerprint=each.fingerprint,
            )
    except (ValueError, KeyError) as error:
        raise UserError(f"{root / NAME}: unreadable ({reason_of(error)}); remove it") from error
    return list(found.values())


def _products(root: Path) -> object:
    file = root / NAME
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: unreadable ({reason_of(error)}); remove it") from error
    made = content.get("format") if isinstance(content, dict) else 1
    if made != FORMAT:
        which = "an earlier" if made == 1 else "another"
        raise UserError(
            f"{root}: a run directory of {which} version of vcsoup_dist (format {made}, this one "
            f"reads {FORMAT}): give --run-dir for a new one, or use the version that made it"
        )
    return content.get("products")
