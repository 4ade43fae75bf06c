"""What tools/kill_chain.py, which kills a whole run at random moments, would not miss."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_world import wait_for

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.append(str(TOOLS))

from kill_chain import different  # noqa: E402
from killable_runs import MARK, Process, processes_of, send, short, stop_all  # noqa: E402


def test_a_changed_a_missing_and_a_needless_file_are_told_apart(tmp_path):
    for run, names in (("calm", "abc"), ("disturbed", "abd")):
        for name in names:
            product = tmp_path / run / "scores" / name
            product.mkdir(parents=True)
            (product / "product.json").write_text("{}" if name + run != "bdisturbed" else "[]")
        (tmp_path / run / "work").mkdir()
        (tmp_path / run / "work" / "times").write_text(run)
    disturbed, calm = tmp_path / "disturbed", tmp_path / "calm"
    assert different(disturbed, calm) == [
        "scores/b/product.json: other bytes",
        "scores/c/product.json: not made",
        "scores/d/product.json: too much",
    ]
    assert different(disturbed, calm, ["scores/a"]) == []
    assert different(disturbed, calm, []) == []


def names(processes: dict[int, Process]) -> list[str]:
    return [short(each.command) for each in processes.values()]


@pytest.mark.processes
def test_processes_of_a_run_are_found_and_stopped_in_whatever_session():
    # Each starts another in a session of its own, as Ray's are.
    script = "import subprocess, time; subprocess.Popen(['sleep', '600'], start_new_session=True); "
    environment = os.environ | {MARK: "of-this-test"}
    process = subprocess.Popen([sys.executable, "-c", script + "time.sleep(600)"], env=environment)
    try:
        wait_for(lambda: "sleep" in names(processes_of("of-this-test")))
        stopped = stop_all("of-this-test")
        assert {each.state for each in stopped.values()} == {"T"}
        assert len(stopped) == 2
    finally:
        for pid in processes_of("of-this-test"):
            send(pid, signal.SIGKILL)
        process.wait()
    wait_for(lambda: not processes_of("of-this-test"))
