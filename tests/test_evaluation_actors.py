"""What evaluation does about actors that are lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluation_world import answers, evaluate, evaluate_alone, save_models

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch import worker_pool
from vcsoup_dist.launch.ray_cluster import ray_cluster
from vcsoup_dist.recipe import Launch

pytestmark = [pytest.mark.ray, pytest.mark.kills, pytest.mark.models]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, ray_address):
    with ray_cluster(Launch(ray_address=ray_address), tmp_path_factory.mktemp("run")):
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"), "ab")


def test_a_soup_whose_actor_dies_is_given_to_others(tmp_path, cluster, models):
    evaluate_alone(tmp_path / "undisturbed", models)
    expected = answers(tmp_path / "undisturbed")
    assert sorted(expected) == ["a", "b"]
    (tmp_path / "deaths").write_bytes(b".")
    progress: list[float] = []
    evaluate(tmp_path, models, "deadly", 1, progress.append)
    assert answers(tmp_path) == expected and progress == [3, 3]
    assert (tmp_path / "deaths").read_bytes() == b""


def test_a_soup_that_kills_every_actor_is_named(tmp_path, cluster, models, monkeypatch):
    monkeypatch.setattr(worker_pool, "ATTEMPTS", 2)
    (tmp_path / "deaths").write_bytes(b"....")
    with pytest.raises(UserError, match="^soup b: its actor died 2 times; out of memory"):
        evaluate(tmp_path, {"b": models["b"]}, "deadly", 2, lambda n: None)
    assert (tmp_path / "deaths").read_bytes() == b".."
