"""`vcsoup score` killed and disturbed in every way ends with the bytes of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from command import vcsoup
from scoring_world import alive, descendants, score_bytes, shard_bytes, start_score, write_recipe

from vcsoup_dist.files import write_atomically
from vcsoup_dist.processes import process_name
from vcsoup_dist.records.pairs import PairsManifest

pytestmark = [pytest.mark.ray, pytest.mark.kills]

SCORING = {"shard_pairs": 2, "actors": 2, "cpus_per_actor": 0.5}
PAIRS = "pairs/a/train-00000.parquet"
LIMIT = 200  # seconds for one command


@pytest.fixture(scope="module")
def on_cluster(ray_address) -> Mapping[str, str]:
    """Environment of commands that use a running cluster, where their own would take seconds."""
    return os.environ | {"RAY_ADDRESS": ray_address}


@pytest.fixture(scope="module")
def alone() -> Mapping[str, str]:
    """Environment of commands that start Ray themselves."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_model, ray_address) -> Path:
    """Run directory whose scores all others must give."""
    folder = tmp_path_factory.mktemp("undisturbed")
    score_by(folder, tiny_model, "gated")
    finish_undisturbed(folder, ray_address)
    return folder / "run"


def finish_undisturbed(folder: Path, address: str) -> None:
    """Run the command to its end on the running cluster."""
    vcsoup("score", "recipe.yaml", "--run-dir", "run", "--address", address, folder=folder)


def score_by(folder: Path, model: Path, function: str) -> None:
    """A recipe of one value; all functions but `deadly` give the same rewards."""
    write_recipe(folder, model, {"a": {"callable": f"rewards.py:{function}"}}, SCORING)
    (folder / "closed").touch()


def close(folder: Path, run: Path, first: int) -> None:
    """Have `gated` wait in the shards from `first` on; `run` has the same pairs."""
    messages = pq.read_table(run / PAIRS)["prompt"].to_pylist()
    prompts = [each[-1]["content"] for each in messages[first * SCORING["shard_pairs"] :]]
    write_atomically(folder / "closed", "\n".join(prompts))


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it printed."""
    try:
        printed, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == code, printed
    return printed


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[0])
        time.sleep(0.005)


def wait_for_the_end(pids: set[int]) -> None:
    deadline = time.monotonic() + LIMIT
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def scored_shards(folder: Path) -> int:
    return len(list((folder / "run").rglob("shard-*.parquet")))


def has_started(pid: int, name: str) -> bool:
    """Whether a process started another one of that name."""
    return any(process_name(each).startswith(name) for each in descendants(pid))


STARTING: dict[str, Callable[[int, Path], bool]] = {
    "the run directory is there": lambda pid, folder: (folder / "run/recipe.yaml").exists(),
    "pairs are read": lambda pid, folder: (folder / "run/pairs/a").exists(),
    "Ray starts": lambda pid, folder: has_started(pid, "gcs_server"),
    "Ray starts its node": lambda pid, folder: has_started(pid, "raylet"),
    "an actor is at work": lambda pid, folder: (folder / "at-work").exists(),
}
"""Points -> whether the command of a process, in a folder, is there."""


@pytest.mark.parametrize(
    ("starting", "written"),
    [
        (["pairs are read", "an actor is at work"], [0.5]),
        pytest.param([*STARTING], [0, 0.25, 0.5, 0.75, 1], marks=pytest.mark.long),
    ],
    ids=["three points", "ten points"],
)
@pytest.mark.timeout(1200)
def test_a_run_killed_at_several_points_loses_and_doubles_nothing(
    tmp_path, tiny_model, undisturbed, alone, on_cluster, ray_address, starting, written
):
    """`written`: shares of the files after which it is killed, at least one and not all."""
    score_by(tmp_path, tiny_model, "gated")
    expected = score_bytes(undisturbed)
    total = -(-pq.read_metadata(undisturbed / PAIRS).num_rows // SCORING["shard_pairs"])
    run = tmp_path / "run"
    # The run waits at its first closed shard, so that no point can be missed.
    points = [
        (0, alone, lambda pid, reached=STARTING[each]: reached(pid, tmp_path)) for each in starting
    ]
    for share in written:
        count = min(max(int(share * total), 1), total - 1)
        points.append(
            (count, on_cluster, lambda pid, count=count: scored_shards(tmp_path) == count)
        )
    family: set[int] = set()
    kept: dict[str, bytes] = {}
    for first_closed, environment, reached in points:
        close(tmp_path, undisturbed, first_closed)
        process = start_score(tmp_path, env=environment)
        wait_for(process, lambda: reached(process.pid))  # noqa: B023
        family |= set(descendants(process.pid))
        process.kill()
        process.communicate()
        found = shard_bytes(run)
        assert kept.items() <= found.items()
        kept = found
    (tmp_path / "closed").write_text("")
    finish_undisturbed(tmp_path, ray_address)
    assert score_bytes(run) == expected
    ids = [
        row
        for file in sorted((run / "scores" / "a" / "a").glob("*.parquet"))
        for row in pq.read_table(file)["id"].to_pylist()
    ]
    assert len(ids) == len(set(ids)) == 40
    wait_for_the_end(family)


def test_a_run_that_is_asked_to_stop_says_so_and_the_same_command_goes_on(
    tmp_path, tiny_model, undisturbed, alone, ray_address
):
    score_by(tmp_path, tiny_model, "gated")
    close(tmp_path, undisturbed, 1)
    points: list[Callable[[int], bool]] = [
        lambda pid: has_started(pid, "raylet"),
        lambda pid: scored_shards(tmp_path) == 1,
    ]
    for reached in points:
        process = start_score(tmp_path, env=alone)
        wait_for(process, lambda: reached(process.pid))  # noqa: B023
        family = set(descendants(process.pid))
        process.terminate()
        printed = finish(process, code=75)
        line = "vcsoup: stopped on request; run the same command to resume"
        assert printed.splitlines()[-1] == line
        wait_for_the_end(family)
    # While Ray starts, a handler of its own may print a stack before ours is asked.
    assert "SIGTERM" not in printed and "Traceback" not in printed
    (tmp_path / "closed").write_text("")
    finish_undisturbed(tmp_path, ray_address)
    assert score_bytes(tmp_path / "run") == score_bytes(undisturbed)


def test_actors_that_exit_or_are_killed_in_mid_shard_cost_no_score(
    tmp_path, tiny_model, undisturbed, on_cluster
):
    score_by(tmp_path, tiny_model, "disturbed")
    pid = tmp_path / "kill-me"
    process = start_score(tmp_path, env=on_cluster)
    wait_for(process, lambda: pid.exists() and pid.read_text() != "")
    (tmp_path / "killed").touch()
    os.kill(int(pid.read_text()), signal.SIGKILL)
    printed = finish(process)
    assert "another takes its place" in printed
    assert score_bytes(tmp_path / "run") == score_bytes(undisturbed)


def test_a_poisonous_shard_leaves_all_others_and_the_same_command_tries_it_again(
    tmp_path, tiny_model, on_cluster, ray_address
):
    score_by(tmp_path, tiny_model, "deadly")
    rows = (tmp_path / "a.jsonl").read_text().splitlines()
    row = json.loads(rows[7])
    rows[7] = json.dumps(row | {"chosen": "poison"})
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    printed = finish(start_score(tmp_path, env=on_cluster), code=2)
    scores = tmp_path / "run" / "scores"
    assert "1 of " in printed and "its actor died 3 times" in printed
    assert not scores.exists()
    quarantine = tmp_path / "run/work/scores/a/a/scratch/quarantine.json"
    assert str(quarantine) in printed and len(json.loads(quarantine.read_text())) == 1
    counts = PairsManifest.read(tmp_path / "run" / "pairs" / "a")
    shards = -(-counts.train // 2)
    assert len(shard_bytes(tmp_path / "run")) == shards - 1
    (tmp_path / "scored").unlink()
    # What killed it is fixed, without a change of the reward: say, the machine's memory.
    (tmp_path / "cured").touch()
    finish_undisturbed(tmp_path, ray_address)
    assert (scores / "a" / "a" / "product.json").exists() and not quarantine.exists()
    again = (tmp_path / "scored").read_text().split("\n")[:-1]
    assert len(again) == 4 and "poison" in again


SCRIPT = """
mount -t tmpfs -o size=8m none run || exit 77
{command}
[ $? = 2 ] || exit 1
rm run/ballast fill
cp -r run copy && umount run && cp -r copy/. run
"""


def test_a_disk_that_is_full_in_mid_run_ends_it_with_a_line_and_loses_nothing(
    tmp_path, tiny_model, undisturbed, alone, ray_address
):
    score_by(tmp_path, tiny_model, "fills_the_disk")
    (tmp_path / "run").mkdir()
    (tmp_path / "fill").touch()
    command = f"{sys.executable} -m vcsoup_dist.cli score recipe.yaml --run-dir run"
    process = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", SCRIPT.format(command=command)],
        cwd=tmp_path, env=alone, text=True, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        _, printed = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode == 77 or "unshare:" in printed:
        pytest.skip("this system lets us mount no file system")
    assert process.returncode == 0, printed
    assert "No space left on device" in printed and "nothing is lost" in printed
    finish_undisturbed(tmp_path, ray_address)
    assert score_bytes(tmp_path / "run") == score_bytes(undisturbed)
