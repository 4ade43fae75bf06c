"""`vcsoup submit`: what is due as Slurm jobs, what is in the queue already, what is in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import write_pairs
from merging import bf16, write_policy
from slurm_world import CHAIN, RECIPE

from vcsoup_dist.cli.plan import plan_run
from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.slurm_queue import QueuedJob
from vcsoup_dist.slurm_jobs.submissions import LiveJob, mark_of, read_submissions
from vcsoup_dist.slurm_jobs.submit import Step, as_script, next_steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A recipe, and its run directory `filtered` with empty products as if made."""
    folder = tmp_path_factory.mktemp("submit")
    write_policy(folder / "base", {"layer": ("BF16", bf16(np.random.default_rng(0), 8))})
    write_pairs(folder / "pairs.jsonl", 20)
    (folder / "judge.py").write_text("def longer(prompt, response):\n    return len(response)\n")
    (folder / "recipe.yaml").write_text(RECIPE)
    _, workspace, plan = plan_run(folder / "recipe.yaml", folder / "filtered", make=True)
    for product in plan:
        if product.stage in ("read", "score", "filter", "tokens"):
            with workspace.publishing(product):
                pass
    return folder


@pytest.fixture(autouse=True)
def no_site_file(monkeypatch, tmp_path):
    monkeypatch.delenv("VCSOUP_SITE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


class Queue:
    """What is due in a run directory of the recipe, and jobs in the queue for some of it."""

    def __init__(self, folder: Path, root: str) -> None:
        self.recipe, self.workspace, self.plan = plan_run(
            folder / "recipe.yaml", folder / root, make=False
        )
        self.live: list[LiveJob] = []

    def add(self, id: str, stage: str, state: str, makes=None, after=(), reason="") -> None:
        """A job for all products of a stage, or for those named."""
        stages = {
            "score": ("read", "score"),
            "filter": ("filter", "tokens"),
            "reference": ("sft", "reference"),
        }
        made = {
            product.name: product.fingerprint
            for product in self.plan
            if product.stage in stages.get(stage, (stage,))
            and (makes is None or product.name in makes)
        }
        self.live.append(LiveJob(QueuedJob(id, state, reason), stage, made, after))

    def steps(self) -> dict[str, Step]:
        steps = next_steps(self.recipe, self.workspace, self.plan, self.live)
        return {step.job.name: step for step in steps}


@pytest.fixture
def queue(folder) -> Queue:
    """Everything is due."""
    return Queue(folder, "nothing-made")


def submitted(steps: dict[str, Step]) -> dict[str, list[str]]:
    """Stage -> the products for which a job is submitted."""
    return {
        stage: [product.name for product in step.job.products]
        for stage, step in steps.items()
        if step.job.products
    }


def test_every_job_waits_for_those_that_make_what_it_reads(queue):
    after = {stage: step.job.after for stage, step in queue.steps().items()}
    assert list(after) == CHAIN
    assert after["score"] == ()
    assert after["filter"] == ("score",)
    assert after["reference"] == ("score", "filter")  # which writes pairs in tokens
    assert after["train"] == ("score", "filter", "reference")
    assert "merge" in after["evaluate"] and "evaluate" in after["report"]


def test_what_is_made_has_no_job_and_nobody_waits_for_it(folder):
    steps = Queue(folder, "filtered").steps()
    assert list(steps) == CHAIN[2:]
    assert steps["reference"].job.after == () and steps["train"].job.after == ("reference",)


def test_a_whole_chain_in_the_queue_is_left_alone(queue):
    ids: list[str] = []
    for number, stage in enumerate(CHAIN):
        queue.add(str(number), stage, "PENDING" if ids else "RUNNING", after=ids.copy())
        ids.append(str(number))
    steps = queue.steps()
    assert submitted(steps) == {}
    assert [step.kept for step in steps.values()] == [(id,) for id in ids]


def test_a_failed_task_of_an_array_is_submitted_again_beside_those_that_run(queue):
    queue.live.clear()
    queue.add("3", "reference", "RUNNING")
    queue.add("7_1", "train", "RUNNING", ["policies/vc_soup/polite/seed-0"], after=["3"])
    queue.add("8", "merge", "PENDING", after=["7"], reason="DependencyNeverSatisfied")
    steps = queue.steps()
    assert submitted(steps)["train"] == ["policies/vc_soup/long/seed-0"]
    assert steps["train"].kept == ("7_1",)
    assert submitted(steps)["merge"] and steps["merge"].kept == ()
    lines = as_script(Path("recipe"), queue.recipe, queue.workspace, queue.plan, queue.live)
    depends = {line.partition("=")[0]: line.partition("--dependency=")[2] for line in lines}
    assert depends["train"].startswith('afterok:$score:$filter:3"')  # not on 7_1, its sibling
    assert "$train" in depends["merge"] and ":7_1" in depends["merge"]
    assert "scancel 8" in lines


def test_jobs_that_wait_for_one_that_is_submitted_anew_are_replaced(queue):
    queue.add("1", "score", "PENDING")
    queue.add("2", "filter", "PENDING", after=["1"])
    queue.add("4", "train", "PENDING", after=["1", "2", "3"])
    steps = queue.steps()
    assert steps["score"].kept == ("1",) and steps["filter"].kept == ("2",)
    assert list(submitted(steps)) == ["reference", "train", "merge", "evaluate", "report"]
    assert steps["train"].kept == ()


def test_a_job_that_went_back_into_the_queue_is_kept(folder):
    queue = Queue(folder, "filtered")
    queue.add("3", "reference", "PENDING", after=["1"], reason="BeginTime")
    assert queue.steps()["reference"].kept == ("3",)


@pytest.mark.parametrize(
    ("state", "reason"),
    [("REQUEUE_HOLD", "JobHoldMaxRequeue"), ("PENDING", "launch failed requeued held")],
)
def test_a_job_that_slurm_holds_since_its_nodes_failed_is_submitted_anew(folder, state, reason):
    queue = Queue(folder, "filtered")
    queue.add("3", "reference", state, reason=reason)
    steps = queue.steps()
    assert steps["reference"].kept == () and submitted(steps)["reference"]


def test_a_job_that_runs_for_another_version_of_the_recipe_is_in_the_way(queue):
    queue.add("5", "score", "RUNNING")
    queue.live[0] = LiveJob(queue.live[0].job, "score", {"pairs/long": "of before"})
    with pytest.raises(UserError, match=r"job 5 \(score\) is running .* `vcsoup cancel`"):
        queue.steps()
    queue.live[0] = LiveJob(QueuedJob("5", "PENDING", ""), "score", {"pairs/long": "of before"})
    assert queue.steps()["score"].kept == ()


def test_a_running_job_that_makes_only_a_part_is_in_the_way(queue):
    queue.add("5", "filter", "RUNNING", ["filtered/vc_soup/long"])
    with pytest.raises(UserError, match=r"job 5 \(filter\) is running .* cannot finish"):
        queue.steps()


def test_a_job_that_runs_and_was_never_noted_is_in_the_way(queue):
    queue.live.append(LiveJob(QueuedJob("5", "RUNNING", ""), "unknown"))
    with pytest.raises(UserError, match="job 5 .* that was killed"):
        queue.steps()


def script(folder: Path, tmp_path: Path, slurm: str) -> dict[str, str]:
    """Stage -> its line in the script of a dry run, for a recipe with that `launch`."""
    recipe = folder / "other.yaml"
    text = (folder / "recipe.yaml").read_text()
    recipe.write_text(text.replace("launch: {ranks: 2}", f"launch: {slurm}"))
    loaded, workspace, plan = plan_run(recipe, tmp_path / "run", make=False)
    lines = as_script(recipe, loaded, workspace, plan, [])
    return {line.partition("=")[0]: line for line in lines if "sbatch" in line}


def test_options_are_the_recipes_before_the_stages_before_the_sites_before_ours(
    folder, tmp_path, monkeypatch
):
    site = tmp_path / "site.yaml"
    site.write_text(
        "sbatch: {account: us, partition: gpu, constraint: h100}\n"
        "stages: {merge: {partition: cpu, constraint: false, exclusive: true}}\n"
    )
    monkeypatch.setenv("VCSOUP_SITE", str(site))
    launch = '{ranks: 16, slurm: {train: {nodes: 2, gpus-per-node: 8, time: "12:00:00"}}}'
    lines = script(folder, tmp_path, launch)
    for wanted in ("account=us", "partition=gpu", "constraint=h100", "ntasks-per-node=8"):
        assert f"--{wanted} " in lines["train"]
    assert "--nodes=2 " in lines["train"] and "--time=12:00:00 " in lines["train"]
    assert "--partition=cpu " in lines["merge"] and " --exclusive " in lines["merge"]
    assert "constraint" not in lines["merge"] and "ntasks-per-node=16" in lines["reference"]


def test_options_of_another_name_stand_in_for_ours(folder, tmp_path):
    given = "{train: {ntasks: 6, nodes: 2-3}, evaluate: {nodes: false}, score: {cpus-per-gpu: 4}}"
    lines = script(folder, tmp_path, f"{{ranks: 3, slurm: {given}}}")
    assert "ntasks-per-node" not in lines["train"] and "--nodes=2-3 " in lines["train"]
    assert "--nodes" not in lines["evaluate"] and "--cpus-per-task" not in lines["score"]
    lines = script(folder, tmp_path, "{ranks: 3, slurm: {train: {nodes: 2}}}")
    assert "--ntasks=3 --ntasks-per-node=2 " in lines["train"]


def test_a_run_directory_is_known_by_whatever_path_it_is_named(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert mark_of(tmp_path / "link" / "a" / ".." / "run") == f"vcsoup {tmp_path}/run"


def test_a_damaged_record_of_submissions_is_named(tmp_path):
    (tmp_path / "jobs.json").write_text('[{"id": "1", "stage": "train", "tasks": null}]')
    with pytest.raises(UserError, match="jobs.json: unreadable"):
        read_submissions(tmp_path)


def test_a_merge_of_several_ranks_is_an_array_and_a_job_that_publishes(folder, tmp_path):
    lines = script(folder, tmp_path, "{merge_ranks: 3}")
    assert "--array=0-2 " in lines["merge"] and "--finalise" not in lines["merge"]
    assert "--finalise --world-size 3" in lines["merge_1"] and ":$merge" in lines["merge_1"]
    assert ":$merge:$merge_1" in lines["evaluate"]


def test_so_many_policies_are_trained_at_once_as_the_recipe_says(folder, tmp_path):
    assert "--array=0-1 " in script(folder, tmp_path, "{ranks: 2}")["train"]
    assert "--array=0-1%1 " in script(folder, tmp_path, "{policies_at_once: 1}")["train"]


def test_a_dry_run_makes_nothing(folder, tmp_path):
    script(folder, tmp_path, "{ranks: 2}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sbatch: {gpus_per_node: 8}", "sbatch: `gpus_per_node`: give .* `gpus-per-node`"),
        ("sbatch: {dependency: singleton}", "sbatch: `dependency` cannot be set"),
        ("stages: {merge: {time: 12:00:00}}", "stages.merge.time: .* is 43200 to YAML; .* quotes"),
        ("partition: gpu", "partition: unknown key"),
    ],
)
def test_a_mistake_in_the_site_file_is_one_line(folder, tmp_path, monkeypatch, text, line):
    site = tmp_path / "site.yaml"
    site.write_text(text)
    monkeypatch.setenv("VCSOUP_SITE", str(site))
    with pytest.raises(UserError, match=f"{site}: line 1: {line}"):
        script(folder, tmp_path, "{ranks: 2}")


def test_a_site_file_that_is_not_there_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VCSOUP_SITE", "/nowhere/site.yaml")
    with pytest.raises(UserError, match="VCSOUP_SITE: no such file: /nowhere/site.yaml"):
        script(folder, tmp_path, "{ranks: 2}")
