"""What the launcher says of ranks that failed, by what they left."""

from __future__ import annotations

from pathlib import Path

import pytest

from vcsoup_dist.launch.rank_logs import what_failed

GLOO = "RuntimeError: [pair.cc:553] Connection closed by peer [10.77.0.2]:36578. This is typically"
STORE = "DistNetworkError: failed to recv. Connection was likely closed. Did the server crash?"
NCCL = "DistBackendError: ncclRemoteError: A call failed possibly due to a network error"


def leave(logs: Path, **files: str) -> None:
    for name, text in files.items():
        rank, kind = name.split("_")
        (logs / f"rank-{rank[1:]}.{kind}").write_text(text)


def test_a_rank_is_explained_by_the_end_of_its_traceback(tmp_path):
    leave(tmp_path, r1_traceback="Traceback\n" * 30 + "KeyError: 'x'\n", r1_log="words\n")
    first, *rest = what_failed(1, "ended with exit code 1", tmp_path).splitlines()
    assert first == f"rank 1 ended with exit code 1; the end of {tmp_path / 'rank-1.traceback'}:"
    assert len(rest) == 15 and rest[-1] == "KeyError: 'x'"


def test_a_rank_without_a_traceback_is_explained_by_its_log(tmp_path):
    leave(tmp_path, r1_log="Segmentation fault\n")
    assert what_failed(1, "ended by signal 11", tmp_path).endswith(
        "rank-1.log:\nSegmentation fault"
    )
    assert what_failed(0, "ended by signal 11", tmp_path) == "rank 0 ended by signal 11"


@pytest.mark.parametrize("said", [GLOO, STORE, NCCL])
def test_of_a_rank_that_lost_another_the_other_is_named(tmp_path, said):
    leave(tmp_path, r0_traceback=f"Traceback\n{said}\n", r1_traceback="KeyError: 'x'\n")
    text = what_failed(0, "ended with exit code 1", tmp_path)
    file = tmp_path / "rank-1.traceback"
    assert text == f"rank 1 failed; the end of {file}:\nKeyError: 'x'"


@pytest.mark.parametrize("said", [GLOO, STORE, NCCL])
def test_of_a_rank_that_was_lost_without_a_word_its_peers_loss_is_one_line(tmp_path, said):
    lost = f"Traceback\n{said}\n"
    leave(tmp_path, r0_traceback=lost, r2_traceback=lost, r1_log="begins\n")
    text = what_failed(0, "on h1 ended: exited with exit code 1", tmp_path)
    assert text.startswith("rank 0 on h1 ended: exited with exit code 1: it lost another rank (")
    assert "\n" not in text and "the same command resumes" in text
