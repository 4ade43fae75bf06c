"""What every part of a recipe is, and the names that people may choose."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

NAME = r"^[A-Za-z0-9][A-Za-z0-9_]*$"
RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
FIELD = r"^[A-Za-z_]\w*$"
FUNCTION = r"^[\w./-]+:[A-Za-z_]\w*$"
IN_WORDS = {
    NAME: "a value's name has letters, digits and _ only, and does not begin with _",
    RUN_NAME: "a name has letters, digits, `.`, `_`, `-` only, and begins with a letter or digit",
    FIELD: "a field's name has letters, digits and _ only, and does not begin with a digit",
    FUNCTION: "give `package.module:function`, or `file.py:function`",
}
"""What the patterns say, for messages."""


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
