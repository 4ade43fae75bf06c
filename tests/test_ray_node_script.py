"""`ray_node` of slurm/ray.sh, which a stop may reach at any moment of its start."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_world import ROOT

RAY = """#!/bin/sh
trap 'exit 0' TERM
sleep 60 &
wait
"""
"""In place of Ray, whose start takes seconds: the script around it is what is tried here."""
NODE = 'source slurm/ray.sh; exec bash -c "$(declare -f "${on_a_node[@]}"); ray_node head 0"'


SPREAD = [0.002 + 0.00005 * i for i in range(200)]
"""Seconds, from before its first line until Ray runs."""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For Ray's sockets: another would not be taken."""
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.processes
def test_a_ray_node_that_is_asked_to_end_while_it_starts_ends_and_leaves_no_folder(short_folder):
    ray = short_folder / "bin" / "ray"
    ray.parent.mkdir()
    ray.write_text(RAY)
    ray.chmod(0o755)
    variables = {
        "PATH": f"{ray.parent}:{os.environ['PATH']}",
        "TMPDIR": str(short_folder),
        "SLURMD_NODENAME": "n1",
        "SLURM_CPUS_ON_NODE": "1",
        "RAY_ADDRESS": "127.0.0.1:1",
    }
    nodes = []
    for delay in SPREAD:
        node = subprocess.Popen(
            ["bash", "-c", NODE],
            cwd=ROOT,
            env=os.environ | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(delay)
        os.killpg(node.pid, signal.SIGUSR1)
        nodes.append(node)
    time.sleep(2)
    for node in nodes:
        if node.poll() is None:  # bash may lose one, and `stop_ray` asks again
            node.send_signal(signal.SIGUSR1)
    for node in nodes:
        node.wait(timeout=20)
    assert not list(short_folder.glob("vcsoup-ray-*"))
