"""Files are replaced whole, and a disk that takes no more is one line."""

from __future__ import annotations

import errno

import pytest

from vcsoup_dist.files import replacing, write_error


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "scores"
    file.write_text("old")
    with pytest.raises(OSError), replacing(file) as aside:
        aside.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]
    with replacing(file) as aside:
        aside.write_text("new")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["new"]


def test_a_full_disk_is_one_line_and_a_defect_is_not():
    full = OSError(errno.ENOSPC, "No space left on device", "/scratch/x.parquet")
    assert str(write_error(full, "scores/a/b")) == (
        "scores/a/b: cannot be written: No space left on device (/scratch/x.parquet); nothing is"
        " lost: make room, then run the same command to resume"
    )
    forbidden = write_error(PermissionError(errno.EACCES, "Permission denied", "/x"))
    assert str(forbidden).startswith("/x: cannot be written: Permission denied; nothing is")
    assert write_error(FileNotFoundError(errno.ENOENT, "No such file", "/x")) is None
    assert write_error(ValueError()) is None
