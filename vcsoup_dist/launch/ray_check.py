"""Whether the nodes of a connected Ray cluster have this package, and see this machine's files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vcsoup_dist import __version__
from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.shared_files import token
from vcsoup_dist.progress import log

QUIET = 20.0  # seconds, after which the log says who has not answered
ANSWER = 300.0  # seconds for a node to set up the job's environment and answer
NAMED = 4  # nodes that a message names


def check_nodes(folder: Path, cluster: str) -> None:
    """Raise UserError where a node has another version, or does not read a new file of `folder`.

    Warns where a node does not see this one's locks there.

    Asks every node that offers CPUs or GPUs, also where all are taken. One that dies meanwhile is
    passed over. `cluster`: what the message calls the cluster.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look: Any = ray.remote(num_cpus=0)(_look_from_a_node())
    names = _nodes()
    with token(folder, ".shared-files") as path:
        asked = {}
        for node in names:
            there = look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, False))
            asked[there.remote(str(path), __version__)] = node
        silent = _wait(asked, names)
        alive = _nodes()
        troubles, of_locks = defaultdict(list), defaultdict(list)
        for reference, node in asked.items():
            trouble, locks = (_no_answer(), "") if reference in silent else _answer(reference)
            if trouble and node in alive:
                troubles[trouble].append(names[node])
            if locks:
                of_locks[locks].append(names[node])
    if troubles:
        trouble, where = max(troubles.items(), key=lambda each: len(each[1]))
        raise UserError(f"{cluster}: on {_listed(where)}: {trouble}")
    for trouble, where in of_locks.items():
        log.warning("on %s: %s", _listed(where), trouble)


def _look_from_a_node() -> Callable[[str, str], tuple[str, str]]:
    # Not a function of the module: of that Ray would send the name alone, to be imported.
    def look(path: str, version: str) -> tuple[str, str]:
        """What is wrong on this node, and with locks there; empty where nothing is."""
        try:
            import vcsoup_dist

            if vcsoup_dist.__version__ != version:
                return (
                    f"vcsoup_dist is version {vcsoup_dist.__version__}, and {version} here; "
                    "install the same on all nodes"
                ), ""
            from vcsoup_dist.launch.shared_files import trouble_with, trouble_with_locks
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return f"vcsoup_dist cannot be imported ({reason}); install version {version} there", ""
        trouble = trouble_with(path)
        return trouble, "" if trouble else trouble_with_locks(path)

    return look


def _nodes() -> dict[str, str]:
    """Id -> name of the nodes on which an actor may run."""
    import ray

    names = {}
    for node in ray.nodes():
        if node["Alive"] and (node["Resources"].get("CPU") or node["Resources"].get("GPU")):
            address, name = node["NodeManagerAddress"], node["NodeName"]
            name = node["NodeManagerHostname"] if name == address else name  # not given by anyone
            names[node["NodeID"]] = f"{name} ({address})"
    return names


def _wait(asked: Mapping[Any, str], names: Mapping[str, str]) -> list[Any]:
    """Wait for all answers; returns the references of those that do not come."""
    import ray

    references = list(asked)
    if not references:  # a head alone, say, whose nodes are still to come
        return []
    _, silent = ray.wait(references, num_returns=len(references), timeout=QUIET)
    if silent:
        log.warning(
            "waiting for an answer from %s", _listed([names[asked[each]] for each in silent])
        )
        _, silent = ray.wait(references, num_returns=len(references), timeout=ANSWER - QUIET)
    return list(silent)


def _answer(reference: Any) -> tuple[str, str]:
    import ray

    try:
        trouble, locks = ray.get(reference)
        return str(trouble), str(locks)
    except ray.exceptions.RayError as error:
        return f"no task runs there ({' '.join(str(error).split())[:300]})", ""


def _no_answer() -> str:
    return (
        f"no answer for {ANSWER:.0f} s; `ray status` and that node's logs in "
        "/tmp/ray/session_latest/logs may say why"
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    shown = ", ".join(sorted(names)[:NAMED])
    return f"{shown} and {more} more" if more > 0 else shown
