"""`vcsoup score` killed and disturbed in every way ends with the bytes of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from scoring_world import score_bytes, start_score, write_recipe
from test_scoring_actors import alive, descendants

SCORING = {"shard_pairs": 2, "actors": 2, "cpus_per_actor": 0.5}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_model) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    score_by(folder, tiny_model, "slow")
    finish(start_score(folder))
    return score_bytes(folder / "run")


def score_by(folder: Path, model: Path, function: str) -> None:
    """A recipe of one value; all functions but `deadly` give the same rewards."""
    write_recipe(folder, model, {"a": {"callable": f"rewards.py:{function}"}}, SCORING)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it printed."""
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == code, printed
    return printed


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds, or the process has ended; whether it still runs."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.005)
    return False


def score_files(folder: Path) -> int:
    return len(list((folder / "run").rglob("shard-*.parquet")))


def has_started(pid: int, name: str) -> bool:
    """Whether a process started another one of that name."""
    for each in descendants(pid):
        try:
            if Path(f"/proc/{each}/comm").read_text().startswith(name):
                return True
        except OSError:  # it ended meanwhile
            continue
    return False


def test_a_run_killed_at_ten_points_loses_and_doubles_nothing(tmp_path, tiny_model, undisturbed):
    score_by(tmp_path, tiny_model, "slow")
    total = len([name for name in undisturbed if "shard-" in name])
    at_work = tmp_path / "at-work"
    points: list[Callable[[int], bool]] = [
        lambda pid: (tmp_path / "run" / "recipe.yaml").exists(),
        lambda pid: (tmp_path / "run" / "pairs" / "a").exists(),
        lambda pid: has_started(pid, "gcs_server"),
        lambda pid: has_started(pid, "raylet"),
        lambda pid: at_work.exists(),
        *[
            lambda pid, count=count: score_files(tmp_path) >= count
            for count in (1, total // 4, total // 2, 3 * total // 4, total - 1)
        ],
    ]
    family: set[int] = set()
    kept: dict[str, bytes] = {}
    for reached in points:
        process = start_score(tmp_path)
        assert wait_for(process, lambda: reached(process.pid))  # noqa: B023
        family |= set(descendants(process.pid))
        process.kill()
        process.communicate()
        found = {
            name.removeprefix("work/").replace("/output/", "/"): content
            for name, content in score_bytes(tmp_path / "run").items()
        }
        assert kept.items() <= found.items() <= undisturbed.items()
        kept = found
    finish(start_score(tmp_path))
    assert score_bytes(tmp_path / "run") == undisturbed
    ids = [
        row
        for file in sorted((tmp_path / "run" / "scores" / "a" / "a").glob("*.parquet"))
        for row in pq.read_table(file)["id"].to_pylist()
    ]
    assert len(ids) == len(set(ids)) == 40
    deadline = time.monotonic() + 60
    while left := [pid for pid in family if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_actors_that_exit_or_are_killed_in_mid_shard_cost_no_score(
    tmp_path, tiny_model, undisturbed
):
    score_by(tmp_path, tiny_model, "disturbed")
    pid = tmp_path / "kill-me"
    process = start_score(tmp_path)
    assert wait_for(process, lambda: pid.exists() and pid.read_text() != "")
    (tmp_path / "killed").touch()
    os.kill(int(pid.read_text()), signal.SIGKILL)
    printed = finish(process)
    assert "another takes its place" in printed
    assert score_bytes(tmp_path / "run") == undisturbed


def test_a_poisonous_shard_leaves_all_others_and_the_same_command_tries_it_again(
    tmp_path, tiny_model
):
    score_by(tmp_path, tiny_model, "deadly")
    rows = (tmp_path / "a.jsonl").read_text().splitlines()
    row = json.loads(rows[7])
    rows[7] = json.dumps(row | {"chosen": "poison"})
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    printed = finish(start_score(tmp_path), code=2)
    scores = tmp_path / "run" / "scores"
    assert "1 of " in printed and "the scoring actor died 3 times at it" in printed
    assert not scores.exists()
    quarantine = tmp_path / "run/work/scores/a/a/scratch/quarantine.json"
    assert str(quarantine) in printed and len(json.loads(quarantine.read_text())) == 1
    kept = score_bytes(tmp_path / "run")
    made = {name: (tmp_path / "run" / name).stat().st_mtime_ns for name in kept}
    # What killed it is mended, without a change of the reward: say, the machine's memory.
    (tmp_path / "cured").touch()
    finish(start_score(tmp_path))
    assert (scores / "a" / "a" / "product.json").exists() and not quarantine.exists()
    after = {path.name: path.stat().st_mtime_ns for path in (scores / "a" / "a").glob("*.parquet")}
    assert len(after) == len(made) + 1
    assert all(after[Path(name).name] == at for name, at in made.items())


SCRIPT = """
mount -t tmpfs -o size=8m none run || exit 77
{command}
[ $? = 2 ] || exit 1
rm run/ballast fill
{command} || exit 1
cp -r run copy && umount run && cp -r copy/scores run
"""


def test_a_disk_that_is_full_in_mid_run_ends_it_with_a_line_and_loses_nothing(
    tmp_path, tiny_model, undisturbed
):
    score_by(tmp_path, tiny_model, "fills_the_disk")
    (tmp_path / "run").mkdir()
    (tmp_path / "fill").touch()
    command = f"{sys.executable} -m vcsoup_dist.cli score recipe.yaml --run-dir run"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SCRIPT.format(command=command)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("this system lets us mount no file system")
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stderr and "nothing is lost" in done.stderr
    assert score_bytes(tmp_path / "run") == undisturbed
