"""Clusters of several nodes: where actors fit, and what a lost node costs."""

from __future__ import annotations

import logging
import os

import pytest
import ray
from evaluation_world import answers, evaluate, evaluate_alone, save_models
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray_world import start_cluster
from scoring_world import shard_bytes, workload_of

from vcsoup_dist.launch import pools
from vcsoup_dist.launch.placement import FreeResources, WorkerResources
from vcsoup_dist.launch.pools import run_pools
from vcsoup_dist.launch.ray_cluster import ray_cluster
from vcsoup_dist.recipe import ActorPool, Launch

SHARDS = [[f"{'a' * i} {'b' * j}" for j in range(4)] for i in range(12)]
ONE_EACH = ActorPool(actors=3, cpus_per_actor=1, placement="spread")


pytestmark = [pytest.mark.ray, pytest.mark.kills]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Three nodes of one CPU each, where a lost node is noticed within seconds."""
    cluster = start_cluster(1, health_check_period_ms=500, health_check_failure_threshold=3)
    try:
        add_nodes(cluster)
        with ray_cluster(Launch(ray_address=cluster.address), tmp_path_factory.mktemp("run")):
            yield cluster
    finally:
        cluster.shutdown()


def add_nodes(cluster):
    """Until the head has two others, as before a test that lost one."""
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1, resources={"slot": 1})
    cluster.wait_for_nodes()


def test_actors_fit_by_node_and_not_by_the_sum_of_nodes(cluster):
    assert not FreeResources().reserve(WorkerResources(1.5))
    assert not FreeResources().reserve(WorkerResources(1, custom={"slot": 2}))
    assert FreeResources().reserve(WorkerResources(1, gpus=0))
    free = FreeResources()
    half_slot = WorkerResources(0.4, custom={"slot": 0.5})
    assert [free.reserve(half_slot) for _ in range(5)] == [True] * 4 + [False]
    assert [free.reserve(WorkerResources(0.2)) for _ in range(8)] == [True] * 7 + [False]


def test_pools_run_side_by_side_only_where_a_node_can_hold_each_actor(tmp_path, cluster):
    # 1.8 of 3 CPUs are free beside the first, but 0.6 on a node.
    first = workload_of(tmp_path / "a", "words", SHARDS, ActorPool(actors=3, cpus_per_actor=0.4))
    second = workload_of(tmp_path / "b", "words", SHARDS, ActorPool(actors=2, cpus_per_actor=0.9))
    begun = []

    def look(pairs: float) -> None:
        begun.append({path.parent.name for path in tmp_path.glob("*/shard-*.parquet")})

    assert list(run_pools([first, second], look)) == [first, second]
    assert all(len(shard_bytes(tmp_path / name)) == len(SHARDS) for name in "ab")
    assert begun[0] == {"a"}  # whichever of its shards was first


def test_a_run_that_waits_for_resources_says_so(tmp_path, cluster, monkeypatch, caplog):
    monkeypatch.setattr(pools, "QUIET", 0.2)
    others = [ray.remote(num_cpus=1)(Other).remote() for _ in range(3)]
    ray.get([other.pid.remote() for other in others])

    class Leave(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            while others and "wait for resources" in record.getMessage():
                ray.kill(others.pop())

    leave = Leave()
    logging.getLogger("vcsoup").addHandler(leave)
    try:
        workload = workload_of(tmp_path, "words", SHARDS, ONE_EACH)
        assert list(run_pools([workload], lambda pairs: None)) == [workload]
    finally:
        logging.getLogger("vcsoup").removeHandler(leave)
    assert not others and "3 actors wait for resources" in caplog.text


def test_a_pool_uses_a_node_that_joins_later(tmp_path, cluster):
    nodes = [cluster.add_node(num_cpus=1, resources={"late": 1})]
    cluster.wait_for_nodes()

    def join(pairs: float) -> None:
        if len(nodes) == 1:
            nodes.append(cluster.add_node(num_cpus=1, resources={"late": 1}))
            cluster.wait_for_nodes()
            (tmp_path / "grown").touch()

    try:
        actors = ActorPool(actors=2, cpus_per_actor=1, resources_per_actor={"late": 1})
        workload = workload_of(tmp_path, "joined", SHARDS, actors)
        assert list(run_pools([workload], join)) == [workload]
    finally:
        for node in nodes:
            cluster.remove_node(node)
    assert len(list(tmp_path.glob("at-work-*"))) == 2


class Other:
    """An actor of another program's."""

    def pid(self) -> int:
        return os.getpid()


def test_a_node_that_is_lost_in_mid_run_costs_no_score(tmp_path, cluster):
    add_nodes(cluster)
    expected = workload_of(tmp_path / "expected", "one_of_three", SHARDS, ONE_EACH)
    (tmp_path / "expected" / "open").touch()
    list(run_pools([expected], lambda pairs: None))
    workload = workload_of(tmp_path / "lost", "one_of_three", SHARDS, ONE_EACH)
    lost = []

    def lose_a_node(pairs: float) -> None:
        # One actor has finished a shard; those of the other two nodes are in the middle of one.
        if not lost:
            (winner,) = (tmp_path / "lost").glob("winner-*")
            lost.extend(node for node in cluster.worker_nodes if node.node_id != winner.read_text())
            cluster.remove_node(lost[0], allow_graceful=False)
            (tmp_path / "lost" / "open").touch()

    assert list(run_pools([workload], lose_a_node)) == [workload]
    assert len(FreeResources().by_node) == 2
    assert shard_bytes(tmp_path / "lost") == shard_bytes(tmp_path / "expected")
    assert len(shard_bytes(tmp_path / "lost")) == len(SHARDS)


@pytest.mark.models
def test_the_soup_of_a_lost_node_is_evaluated_on_another(tmp_path, cluster):
    add_nodes(cluster)
    models = save_models(tmp_path / "models", "abc")
    evaluate_alone(tmp_path / "undisturbed", models)
    on_head = NodeAffinitySchedulingStrategy(cluster.head_node.node_id, soft=False)
    other = ray.remote(num_cpus=1)(Other).options(scheduling_strategy=on_head).remote()
    ray.get(other.pid.remote())  # so that both actors are on nodes that may be lost
    lost = []

    def lose_a_node(count: float) -> None:
        # One actor has finished a soup; that of the other node is in the middle of one.
        if not lost:
            (winner,) = (tmp_path / "lost").glob("winner-*")
            lost.extend(node for node in cluster.worker_nodes if node.node_id != winner.read_text())
            cluster.remove_node(lost[0], allow_graceful=False)
            (tmp_path / "lost" / "open").touch()

    evaluate(tmp_path / "lost", models, "one_of_two", 2, lose_a_node)
    assert lost and answers(tmp_path / "lost") == answers(tmp_path / "undisturbed")
    ray.kill(other)
