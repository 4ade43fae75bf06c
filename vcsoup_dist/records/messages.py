"""The arrow type of a dialogue: a list of messages with `role` and `content`."""

from __future__ import annotations

import pyarrow as pa

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
