"""plan.json: the products of a run directory's last command.

`vcsoup status` tells by it what was done, also where models and data are no longer there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vcsoup_dist.errors import UserError, reason_of
from vcsoup_dist.files import write_atomically
from vcsoup_dist.workspace import Product

NAME = "plan.json"
KINDS = ("dataset", "method", "value", "seed", "command")


def write_plan(root: Path, plan: Sequence[Product]) -> None:
    """Write it, where it is not there already."""
    records = [
        {
            "name": each.name,
            "stage": each.stage,
            "fingerprint": each.fingerprint,
            "inputs": [product.name for product in each.inputs],
            **{kind: getattr(each, kind) for kind in KINDS},
            "weights": each.weights,
        }
        for each in plan
    ]
    text = "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n"
    file = root / NAME
    if not file.exists() or file.read_text() != text:
        write_atomically(file, text)


def read_plan(root: Path) -> list[Product] | None:
    """The products without what they are made from; None where there is no plan."""
    file = root / NAME
    try:
        records = json.loads(file.read_bytes())
        found: dict[str, Product] = {}
        for each in records:
            found[each["name"]] = Product(
                each["name"],
                each["stage"],
                {},
                inputs=tuple(found[name] for name in each["inputs"]),
                weights=tuple(each["weights"]) if each["weights"] else None,
                recorded_fingerprint=each["fingerprint"],
                **{kind: each[kind] for kind in KINDS},
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file}: unreadable ({reason_of(error)}); remove it") from error
    return list(found.values())
