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


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOTCONN, "Transport endpoint is not connected", "/x"),
        RuntimeError("I/O error: Transport endpoint is not connected (os error 107)"),
        OSError("libx.so: cannot open shared object file: Transport endpoint is not connected"),
    ],
)
def test_a_file_system_that_is_gone_is_one_line_whoever_says_so(error):
    line = str(write_error(error, "evaluation/a"))
    assert line.startswith("evaluation/a: its file system is out of reach: ")
    assert "Transport endpoint is not connected" in line and "to resume" in line
    assert write_error(Unprintable()) is None
