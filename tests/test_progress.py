"""What a person sees of long work: bars, lines above them, rate and time left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.terminal import on_terminal, seen
from vcsoup_dist.progress import Pace, left_text, rate_text

WORK = """
import logging, sys, threading, time, warnings
from vcsoup_dist.progress import log, log_to_terminal, progress

log_to_terminal(logging.INFO)
log.info("before")
with progress("[work] of :smile:", 30, "steps") as advance:
    def speak():
        for number in range(20):
            log.info("thread line %d %s", number, "x" * 150)
            time.sleep(0.011)
    thread = threading.Thread(target=speak)
    thread.start()
    for number in range(30):
        log.info("line %d [bold]:smile:[/bold]", number)
        if number == 10:
            print("printed", file=sys.stderr)
            print("a result")
        if number == 20:
            logging.getLogger("library").warning("a library warns")
            log.info("two\\nlines")
        time.sleep(0.01)
        advance(1)
    thread.join()
log.info("after")
"""
EXPECTED = {
    *(f"line {number} [bold]:smile:[/bold]" for number in range(30)),
    *(f"thread line {number} {'x' * 150}" for number in range(20)),
    *("before", "after", "printed", "a library warns", "two", "lines"),
}


@pytest.mark.processes
def test_log_lines_stand_whole_above_the_bar_of_a_terminal() -> None:
    code, said = on_terminal([sys.executable, "-c", WORK])
    assert code == 0
    assert "━".encode() in said and b"steps/s" in said, "there was a bar"
    lines = [line for line in seen(said) if line]
    assert sorted(lines) == sorted(EXPECTED | {"a result"}), "each once, and nothing of the bar"
    assert said.rfind(b"\x1b[?25h") > said.rfind(b"\x1b[?25l"), "the cursor is back"


@pytest.mark.processes
def test_results_in_a_pipe_stay_there_while_the_bar_is_on_a_terminal() -> None:
    read, write = os.pipe()
    code, said = on_terminal([sys.executable, "-c", WORK], stdout=write)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "a result\n"
    assert code == 0 and b"a result" not in said


@pytest.mark.processes
@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_bar_and_no_escape_where_standard_error_is_a_file(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORK],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stderr.splitlines()) == EXPECTED
    assert "\x1b" not in done.stderr + done.stdout
    assert done.stdout == "a result\n"


@pytest.mark.processes
def test_a_dumb_terminal_gets_plain_lines() -> None:
    code, said = on_terminal([sys.executable, "-c", WORK], environment={"TERM": "dumb"})
    assert code == 0 and b"\x1b" not in said
    assert {line for line in seen(said) if line} == EXPECTED | {"a result"}


def test_slow_work_is_told_by_the_seconds_that_each_takes() -> None:
    assert rate_text(0.04, "steps") == "25.0 s/step"
    assert rate_text(1.0, "steps") == "1.0 steps/s"
    assert rate_text(1234.5, "pairs") == "1,234.5 pairs/s"
    assert rate_text(0.5, "GB") == "0.50 GB/s"


def test_time_left_is_unknown_at_first_and_leaves_out_what_only_the_start_takes() -> None:
    pace = Pace(total=100, began=0.0)
    assert pace.left(0.0) is None
    pace.advance(1, 60.0)  # it compiles
    assert pace.left(60.0) is None
    pace.advance(1, 62.0)
    assert pace.left(62.0) is None, "two advances tell nothing"
    pace.advance(1, 64.0)
    assert pace.left(64.0) is None
    for step in range(4, 13):
        pace.advance(1, 58.0 + 2 * step)
    assert pace.left(82.0) == pytest.approx(2 * 88)
    assert pace.rate(82.0) == pytest.approx(0.5)


def test_workers_that_end_together_give_no_hasty_estimate() -> None:
    pace = Pace(total=800, began=0.0)
    for worker in range(8):
        pace.advance(10, 60.0 + 0.1 * worker)
    assert pace.left(60.7) is None
    for worker in range(8):
        pace.advance(10, 120.0 + 0.1 * worker)
    assert pace.left(120.7) == pytest.approx(640 * 60 / 80, rel=0.2)


def test_only_steps_of_this_run_count_for_its_rate() -> None:
    pace = Pace(total=100, done=90, began=0.0)
    for step in range(1, 5):
        pace.advance(1, 10.0 * step)
    assert pace.rate(40.0) == pytest.approx(0.1)
    assert pace.left(40.0) == pytest.approx(60)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (42.4, "42 s left"), (840, "14 min left"), (12000, "3 h 20 min left")],
)
def test_time_left_is_short_to_read(seconds: float | None, text: str) -> None:
    assert left_text(seconds) == text
