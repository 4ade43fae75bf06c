"""Where a Ray head may listen, and waiting for a cluster's nodes; for slurm/ray.sh.

    python3 -P -m vcsoup_dist.launch.ray_nodes head PEER      prints HOST:PORT CLIENT_PORT
    python3 -P -m vcsoup_dist.launch.ray_nodes wait HOST:PORT COUNT

Exit code 2 and one line where that fails.
"""

from __future__ import annotations

import logging
import random
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from vcsoup_dist.errors import UserError

PATIENCE = 600.0  # seconds for all nodes to join: a container's image may have to be fetched
BETWEEN = 0.5  # seconds between two looks
EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def head_address(peer: str) -> tuple[str, int]:
    """HOST:PORT for a Ray head, this node's on the network of `peer`, and another free port."""
    with ExitStack() as stack:
        route = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        try:
            route.connect((peer, 9))  # sends nothing
        except OSError as error:
            raise UserError(f"no way to {peer}, another node of the job: {error}") from error
        port, other = (_listen_somewhere(stack) for _ in range(2))
        return f"{route.getsockname()[0]}:{port}", other


def _listen_somewhere(stack: ExitStack) -> int:
    """A free port, held until the stack ends.

    It lies below those that the kernel gives to connections: one of them could be taken by another
    process in the seconds until Ray listens there. Ray's workers have 10002 to 19999.
    """
    first = int(EPHEMERAL_PORTS.read_text().split()[0]) if EPHEMERAL_PORTS.exists() else 0
    below = range(20000, first)
    for port in [*random.SystemRandom().sample(below, min(100, len(below))), 0]:  # 0: any
        probe = stack.enter_context(socket.socket())
        try:
            probe.bind(("", port))
        except OSError:
            continue
        return int(probe.getsockname()[1])
    raise UserError("no free port for a Ray head on this node")


def wait_for_nodes(address: str, count: int, patience: float = PATIENCE) -> None:
    """Return when `count` nodes of the Ray cluster at `address` are alive.

    The cluster need not run yet. Raises UserError after `patience` seconds, with who is there.
    """
    deadline = time.monotonic() + patience
    _connect(address, deadline)
    import ray

    try:
        while len(names := _alive()) < count:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{len(names)} of {count} Ray nodes are there after {patience:.0f} s: "
                    f"{', '.join(names)}"
                )
            time.sleep(BETWEEN)
    finally:
        ray.shutdown()


def _connect(address: str, deadline: float) -> None:
    host, _, port = address.rpartition(":")
    import ray

    while True:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(
                address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False
            )
            return
        except (OSError, RuntimeError, ValueError) as error:  # not started, or not wholly
            if time.monotonic() > deadline:
                raise UserError(f"no Ray cluster at {address}: {error}") from error
        time.sleep(BETWEEN)


def _alive() -> list[str]:
    import ray

    return sorted(node["NodeName"] for node in ray.nodes() if node["Alive"])


def main() -> None:
    """Do as the arguments say."""
    logging.basicConfig(level=logging.ERROR)
    try:
        if sys.argv[1] == "head":
            print(*head_address(sys.argv[2]))
        else:
            wait_for_nodes(sys.argv[2], int(sys.argv[3]))
    except UserError as error:
        print(f"vcsoup: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
