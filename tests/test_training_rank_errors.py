"""What a rank leaves when it fails: always a reason, and the right exit code."""

from __future__ import annotations

import errno
import sys

import pytest

from vcsoup_dist.errors import UserError
from vcsoup_dist.training import rank

FAILURES = {
    "a line": (UserError("the model is no model"), 2, "rank-0.error", "the model is no model"),
    "a full disk": (OSError(errno.ENOSPC, "No space left"), 2, "rank-0.error", "No space left"),
    "a broken disk": (OSError(errno.EIO, "Input/output error"), 1, "rank-0.traceback", "OSError"),
    "a message alone": (OSError("no file of that name"), 1, "rank-0.traceback", "no file of"),
    "a defect": (KeyError("x"), 1, "rank-0.traceback", "KeyError: 'x'"),
    "a library's exit": (SystemExit(3), 1, "rank-0.traceback", "SystemExit: 3"),
}


@pytest.mark.parametrize("error, code, file, text", FAILURES.values(), ids=FAILURES.keys())
def test_every_failure_of_a_rank_leaves_its_reason(tmp_path, monkeypatch, error, code, file, text):
    def fail(job):
        raise error

    monkeypatch.setattr(rank, "run", fail)
    monkeypatch.setattr(rank, "die_with_parent", lambda pid: None)
    monkeypatch.setattr(sys, "argv", ["rank", "job.json"])
    for name, value in (("RANK", "0"), ("VCSOUP_LAUNCHER", "1"), ("VCSOUP_LOGS", str(tmp_path))):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        rank.main()
    assert ended.value.code == code
    assert [each.name for each in tmp_path.iterdir()] == [file]
    assert text in (tmp_path / file).read_text()
