"""Where a Ray head may listen, and waiting for a cluster's nodes; for slurm/ray.sh.

    python3 -P -m vcsoup_dist.launch.ray_nodes head PEER      prints HOST:PORT CLIENT_PORT
    python3 -P -m vcsoup_dist.launch.ray_nodes wait HOST:PORT COUNT

Exit code 2 and one line where that fails.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
from contextlib import ExitStack

from vcsoup_dist.errors import UserError

PATIENCE = 600.0  # seconds for all nodes to join: a container's image may have to be fetched
BETWEEN = 0.5  # seconds between two looks


def head_address(peer: str) -> tuple[str, int]:
    """HOST:PORT for a Ray head, this node's on the network of `peer`, and another free port."""
    with ExitStack() as stack:
        route = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        try:
            route.connect((peer, 9))  # sends nothing
        except OSError as error:
            raise UserError(f"no way to {peer}, another node of the job: {error}") from error
        probes = [stack.enter_context(socket.socket()) for _ in range(2)]
        for probe in probes:
            probe.bind(("", 0))
        port, other = (int(probe.getsockname()[1]) for probe in probes)
        return f"{route.getsockname()[0]}:{port}", other


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
