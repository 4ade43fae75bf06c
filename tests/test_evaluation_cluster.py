"""What evaluation does about actors and nodes that are lost."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import save_tiny_model
from ray.cluster_utils import Cluster

from vcsoup_dist.errors import UserError
from vcsoup_dist.evaluation.judges import Judge
from vcsoup_dist.evaluation.prompts import Prompt
from vcsoup_dist.evaluation.tasks import EvaluationTask
from vcsoup_dist.evaluation.workload import evaluation_workload
from vcsoup_dist.identity import Located
from vcsoup_dist.launch.pools import run_pools
from vcsoup_dist.launch.ray_cluster import ray_cluster
from vcsoup_dist.recipe import CallableReward, Evaluation, Launch

JUDGES = """
import os, pathlib, signal, time
HERE = pathlib.Path(__file__).parent

def plain(prompt, response):
    return len(response)

def deadly(prompt, response):
    # Kills its process as often as the file `deaths` is long.
    deaths = (HERE / "deaths").read_bytes()
    if deaths:
        (HERE / "deaths").write_bytes(deaths[1:])
        os.kill(os.getpid(), signal.SIGKILL)
    return len(response)

def takes_others_along(prompt, response):
    # At the soup whose answer is in the file `answer`: kills all actors, the others first. Actors
    # wait for each other; the third time not for long, since each may be alone.
    guilty = response == (HERE / "answer").read_text()
    own, other = ("guilty", "innocent") if guilty else ("innocent", "guilty")
    with (HERE / f"tries-{own}").open("a") as file:
        file.write(".")
    tries = (HERE / f"tries-{own}").stat().st_size
    here = HERE / f"{own}-{os.getpid()}"
    here.touch()
    deadline = time.monotonic() + [300, 300, 5, 0, 0][tries - 1]
    while not list(HERE.glob(f"{other}-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    if guilty:
        for file in HERE.glob("innocent-*"):
            file.unlink()
            os.kill(int(file.name.rpartition("-")[2]), signal.SIGKILL)
            time.sleep(2 if tries > 2 else 0)  # let that death be seen first
        here.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    while tries < 3 or list(HERE.glob("guilty-*")):
        time.sleep(0.01)
    here.unlink()
    return len(response)

def one_of_two(prompt, response):
    # Two processes come here; one of them continues, the other when `open` is there.
    (HERE / f"at-work-{os.getpid()}").touch()
    while len(list(HERE.glob("at-work-*"))) < 2 and not (HERE / "open").exists():
        time.sleep(0.01)
    try:
        (HERE / "winner").touch(exist_ok=False)
        import ray
        (HERE / f"winner-{os.getpid()}").write_text(ray.get_runtime_context().get_node_id())
    except FileExistsError:
        while not (HERE / f"winner-{os.getpid()}").exists() and not (HERE / "open").exists():
            time.sleep(0.01)
    return len(response)
"""
SETTINGS = Evaluation(max_new_tokens=8, max_prompt_tokens=60, dtype="fp32")
PROMPTS = [
    Prompt(f"{i}", "pairs", [{"role": "user", "content": words}])
    for i, words in enumerate(["a cat runs", "the red house", "yes and no"])
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without CPUs and two nodes of one, where a lost node is noticed within seconds."""
    settings = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": settings}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    with ray_cluster(Launch(ray_address=cluster.address), tmp_path_factory.mktemp("run")):
        yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        save_tiny_model(folder / name, seed)
    return {name: folder / name for name in "abc"}


def evaluate(folder: Path, models: dict[str, Path], judge: str, actors: int, advance) -> None:
    """Evaluate the models with one function of JUDGES; the answers go into folders of theirs."""
    folder.mkdir(exist_ok=True)
    (folder / "judges.py").write_text(JUDGES)
    (folder / "lock").touch()
    tasks = []
    for name, model in models.items():
        (folder / name).mkdir()
        located = Located(str(model), None, {"config.json": [1, "digest"]})
        tasks.append(EvaluationTask(f"soup {name}", located, folder / name, folder / "lock"))
    reward = CallableReward(callable=f"judges.py:{judge}")
    judges = [Judge({"long": reward}, Located(str(folder / "judges.py"), None, None))]
    settings = SETTINGS.model_copy(update={"actors": actors})
    workload = evaluation_workload(tasks, PROMPTS, judges, settings, None)
    assert list(run_pools([workload], advance)) == [workload]


def answers(folder: Path) -> dict[str, bytes]:
    return {file.parent.name: file.read_bytes() for file in folder.glob("*/answers.parquet")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory, cluster, models) -> dict[str, bytes]:
    """What an undisturbed evaluation writes."""
    folder = tmp_path_factory.mktemp("expected")
    evaluate(folder, models, "plain", 1, lambda n: None)
    assert sorted(answers(folder)) == ["a", "b", "c"]
    return answers(folder)


def test_a_soup_whose_actor_dies_is_given_to_others(tmp_path, cluster, models, expected):
    (tmp_path / "deaths").write_bytes(b"..")
    progress = []
    evaluate(tmp_path, models, "deadly", 1, progress.append)
    assert answers(tmp_path) == expected and progress == [3, 3, 3]
    assert (tmp_path / "deaths").read_bytes() == b""


def test_a_soup_that_kills_every_actor_is_named(tmp_path, cluster, models):
    (tmp_path / "deaths").write_bytes(b"......")
    with pytest.raises(UserError, match="^soup b: its actor died 3 times; out of memory"):
        evaluate(tmp_path, {"b": models["b"]}, "deadly", 2, lambda n: None)
    assert (tmp_path / "deaths").read_bytes() == b"..."


def test_a_soup_that_takes_others_along_is_the_one_that_is_named(
    tmp_path, cluster, models, expected
):
    (tmp_path / "expected").write_bytes(expected["b"])
    answer = pq.read_table(tmp_path / "expected")["answer"][0].as_py()
    assert answer.encode() not in expected["a"]
    (tmp_path / "answer").write_text(answer)
    pair = {name: models[name] for name in "ab"}
    with pytest.raises(UserError, match="^soup b: its actor died 3 times"):
        evaluate(tmp_path, pair, "takes_others_along", 2, lambda n: None)
    assert (tmp_path / "tries-guilty").read_text() == "..."


# Last, since the node does not come back.
def test_the_soup_of_a_lost_node_is_evaluated_on_another(tmp_path, cluster, models, expected):
    lost = []

    def lose_a_node(count: float) -> None:
        # One actor has finished a soup; that of the other node is in the middle of one.
        if not lost:
            (winner,) = tmp_path.glob("winner-*")
            lost.extend(node for node in cluster.worker_nodes if node.node_id != winner.read_text())
            cluster.remove_node(lost[0], allow_graceful=False)
            (tmp_path / "open").touch()

    evaluate(tmp_path, models, "one_of_two", 2, lose_a_node)
    assert lost and answers(tmp_path) == expected
