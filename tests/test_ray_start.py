"""A Ray that a command starts itself or connects to: what is refused, and what outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from scoring_world import alive, descendants

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.ray_cluster import ray_cluster
from vcsoup_dist.recipe import Launch, Recipe

pytestmark = [pytest.mark.ray, pytest.mark.kills]


def test_a_machine_where_ray_cannot_start_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("vcsoup_dist.launch.ray_cluster.OBJECT_STORE", 1)
    message = "Ray cannot be started on this machine: ValueError"
    with pytest.raises(UserError, match=message), ray_cluster(Launch(), tmp_path):
        raise AssertionError("started")


@pytest.mark.parametrize("key", ["--address", "launch.ray_address", "RAY_ADDRESS"])
def test_an_address_where_no_cluster_listens_is_refused_at_once(tmp_path, monkeypatch, key):
    nowhere = "127.0.0.1:1"
    monkeypatch.setenv("RAY_ADDRESS", nowhere)
    launch = Launch(ray_address=nowhere if key.startswith("launch") else None)
    if key == "--address":
        values = {"a": {"data": {"path": "a.jsonl"}, "reward": {"callable": "a.py:a"}}}
        launch = Recipe(name="x", model="m", values=values).on_ray_at(nowhere).launch
    message = f"{key}: no Ray cluster lets us in at {nowhere}"
    with pytest.raises(UserError, match=message), ray_cluster(launch, tmp_path):
        raise AssertionError("connected to nothing")


DRIVER = """
import os, sys, time
import ray
from vcsoup_dist.processes import die_with_parent
from vcsoup_dist.launch.ray_cluster import ray_cluster
from vcsoup_dist.recipe import Launch
from pathlib import Path

class Busy:
    def __init__(self):
        die_with_parent(int(os.environ["RAY_RAYLET_PID"]))
        assert os.environ["OMP_NUM_THREADS"] == "3"
    def work(self, file):
        with open(file, "a", buffering=1) as ticks:
            while True:
                print(time.time(), file=ticks)
                time.sleep(0.02)

with ray_cluster(Launch(threads=3), Path()):
    ray.remote(max_restarts=-1, max_task_retries=-1)(Busy).remote().work.remote(sys.argv[1])
    time.sleep(600)
"""


def test_nothing_outlives_a_driver_that_is_killed(tmp_path):
    ticks = tmp_path / "ticks"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("RAY_ADDRESS", None)
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(ticks)], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not (ticks.exists() and ticks.read_text()):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        family = descendants(driver.pid)
    finally:
        driver.send_signal(signal.SIGKILL)
        killed = time.time()
        driver.wait()
    assert len(family) > 5  # server, raylet, its two agents, actor, ...
    deadline = time.monotonic() + 60
    while left := [pid for pid in family if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert float(ticks.read_text().split()[-1]) < killed + 5
