"""When the log names work that does not come back."""

from __future__ import annotations

from vcsoup_dist.launch import overdue


def test_the_log_names_overdue_work_ever_more_rarely_and_never_what_is_merely_slow(
    monkeypatch,
):
    now = [0.0]
    monkeypatch.setattr(overdue.time, "monotonic", lambda: now[0])
    work = overdue.Overdue(patience=300)
    work.start("first", "shard 0", "process 1 on a")
    lines = []
    for now[0] in range(0, 3001, 60):
        lines += [(now[0], line) for line in work.lines()]
    assert [seconds for seconds, _ in lines] == [300, 600, 1200, 2400]
    assert lines[1][1] == "shard 0: no result for 10 minutes from process 1 on a"
    work.finish("first")  # after 3000 s: others may take so long
    work.start("second", "shard 1", "process 2 on b")
    now[0] += 11_000
    assert work.lines() == []
    now[0] += 1_000
    assert work.lines() == ["shard 1: no result for 200 minutes from process 2 on b"]
    work.drop("second")
    now[0] += 100_000
    assert work.lines() == []
