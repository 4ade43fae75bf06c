"""Reading a JSON file of somebody else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vcsoup_dist.errors import UserError


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; UserError where the file holds anything else."""
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file}: its JSON cannot be read ({reason})") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: its JSON is not an object")
    return value
