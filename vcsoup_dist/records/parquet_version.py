"""The version of a record that is a parquet file, in the file's metadata."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from vcsoup_dist.errors import UserError

KEY = b"vcsoup_version"


def with_version(table: pa.Table, version: int) -> pa.Table:
    """The table with its version."""
    metadata = (table.schema.metadata or {}) | {KEY: str(version).encode()}
    return table.replace_schema_metadata(metadata)


def version_in(schema: pa.Schema) -> str | None:
    """The version that a file's schema names, or None."""
    found = (schema.metadata or {}).get(KEY)
    return None if found is None else found.decode(errors="replace")


def check_version(path: Path, schema: pa.Schema, version: int) -> None:
    """Raise UserError where a file is of another version."""
    found = version_in(schema)
    if found != str(version):
        named = "has no version" if found is None else f"has version {found}"
        raise UserError(
            f"{path}: {named}, and this vcsoup_dist reads version {version}; remove its "
            "folder and run again, or use the vcsoup_dist that wrote it"
        )
