"""Ray as tests need it: one that a session shares, and clusters whose nodes a test may lose."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.cluster_utils import Cluster

LEAN = {"include_dashboard": False, "no_monitor": True, "include_log_monitor": False}
"""Without what people and autoscalers look at: it takes as long to start as all else."""


def start_cluster(head_cpus: int, **settings: Any) -> Cluster:
    """A cluster of one node; `settings`: Ray's own."""
    idle = {"enable_worker_prestart": False, "prestart_worker_first_driver": False}
    head = {"num_cpus": head_cpus, "_system_config": idle | settings} | LEAN
    return Cluster(initialize_head=True, head_node_args=head)


@contextmanager
def running_ray() -> Iterator[str]:
    """The address of a Ray of two CPUs, which ends with the block or with this process."""
    ray = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is the tests' own
    )
    assert ray.stdout is not None
    address = ray.stdout.readline().strip()
    assert address, "Ray has not started"
    try:
        yield address
    finally:
        ray.communicate()


if __name__ == "__main__":
    cluster = start_cluster(head_cpus=2)
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()
