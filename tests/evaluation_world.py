"""Judges, models and prompts that the tests of the evaluation workers use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from conftest import save_tiny_model
from fork_server import call_forked

from vcsoup_dist.evaluation.judges import Judge
from vcsoup_dist.evaluation.prompts import Prompt
from vcsoup_dist.evaluation.tasks import EvaluationTask
from vcsoup_dist.evaluation.workload import EvaluationWorkload, evaluation_workload
from vcsoup_dist.identity import Located
from vcsoup_dist.launch.pools import run_pools
from vcsoup_dist.recipe import CallableReward, Evaluation

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


def save_models(folder: Path, names: str) -> dict[str, Path]:
    """Random models, a letter each, by name."""
    for seed, name in enumerate(names):
        save_tiny_model(folder / name, seed)
    return {name: folder / name for name in names}


def evaluate(
    folder: Path, models: dict[str, Path], judge: str, actors: int, advance: Callable[[float], None]
) -> None:
    """Evaluate the models with one function of JUDGES; the answers go into folders of theirs."""
    workload = _workload(folder, models, judge, actors)
    assert list(run_pools([workload], advance)) == [workload]


def evaluate_alone(folder: Path, models: dict[str, Path]) -> None:
    """Without Ray, by one worker that is not disturbed."""
    call_forked(_evaluate_alone, folder, models)


def _evaluate_alone(folder: Path, models: dict[str, Path]) -> None:
    os.environ["RAY_RAYLET_PID"] = str(os.getppid())
    workload = _workload(folder, models, "plain", 1)
    kind, arguments = workload.worker()
    worker = kind(*arguments)
    worker.load()
    for task in workload.tasks:
        worker.run(task, None)


def _workload(folder: Path, models: dict[str, Path], judge: str, actors: int) -> EvaluationWorkload:
    folder.mkdir(exist_ok=True)
    (folder / "judges.py").write_text(JUDGES)
    (folder / "lock").touch()
    tasks = []
    for name, model in models.items():
        (folder / name).mkdir()
        located = Located(str(model), None, {"config.json": [1, "digest"]})
        output = folder / name
        tasks.append(EvaluationTask(f"soup {name}", located, located, output, folder / "lock"))
    reward = CallableReward(callable=f"judges.py:{judge}")
    judges = [Judge({"long": reward}, Located(str(folder / "judges.py"), None, None))]
    settings = SETTINGS.model_copy(update={"actors": actors})
    return evaluation_workload(tasks, PROMPTS, judges, settings, None)


def answers(folder: Path) -> dict[str, bytes]:
    """Name of a model -> its answers, as `evaluate` has them written."""
    return {file.parent.name: file.read_bytes() for file in folder.glob("*/answers.parquet")}
