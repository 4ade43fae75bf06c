"""`vcsoup status` and the history it reads: real run directories, killed and stopped commands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import VCSOUP, vcsoup
from conftest import save_tiny_model, write_model_files, write_pairs
from fork_server import Child, server
from hypothesis import given
from hypothesis import strategies as st
from scoring_world import alive
from training_world import wait_for

from vcsoup_dist.errors import Preempted, UserError
from vcsoup_dist.identity import Hashes
from vcsoup_dist.launch.slurm_queue import QueuedJob
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.pipeline.history import recorded
from vcsoup_dist.processes import children
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.records.history import FOLDER, Execution, read_history, time_taken
from vcsoup_dist.slurm_jobs.submissions import LiveJob, Submission
from vcsoup_dist.status.show import duration, look, show_status
from vcsoup_dist.workspace import Workspace

RECIPE = """
name: tiny
model: base
values:
  long:
    data: {path: pairs.jsonl, heldout_share: 0.2}
    reward: {columns: [long_chosen, long_rejected]}
    judge: {callable: "judge.py:never_called"}
  polite:
    data: {pairs_of: [long]}
    reward: {columns: [polite_chosen, polite_rejected]}
    judge: {callable: "judge.py:never_called"}
training:
  {objective: sft, dtype: fp32, learning_rate: 1.0e-3, pairs_per_step: 8, steps: 100000,
   max_length: 64, checkpoint_every: 100000, evaluate_every: 100000,
   gradient_checkpointing: false}
keep: {soups: false}
launch: {ranks: 1}
"""
LONG, POLITE = (f"policies/vc_soup/{value}/seed-0" for value in ("long", "polite"))


class Run:
    """A recipe, its run directory, and commands on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "run"
        write_model_files(folder / "base")
        write_pairs(folder / "pairs.jsonl", 60)
        rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
        for row in rows:
            for side in ("chosen", "rejected"):
                row[f"long_{side}"] = len(row[side].split())
                row[f"polite_{side}"] = row[side].count("e") - row[side].count("o")
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "judge.py").write_text("def never_called(prompt, response):\n    return 0.0\n")
        (folder / "recipe.yaml").write_text(RECIPE)

    def vcsoup(self, *arguments: str, code: int = 0, **variables: str) -> str:
        options = ("-d", str(self.root))
        return vcsoup(*arguments, *options, folder=self.folder, code=code, **variables)

    def train(self, **variables: str) -> Child:
        """The command at work; its one child is its rank."""
        command = [VCSOUP, "train", "long", "recipe.yaml", "-d", str(self.root)]
        with open(self.folder / "said", "ab") as said:
            return server().start(
                "run",
                command,
                folder=self.folder,
                environment={**os.environ, **variables},
                files=[0, said.fileno(), said.fileno()],
            )

    def status(self) -> dict[str, list[str]]:
        """State, products, jobs and time by stage; what is below the table under ''."""
        table, _, below = self.vcsoup("status", "recipe.yaml").partition("└")
        rows = [line.strip("│").split("│") for line in table.splitlines() if line.startswith("│")]
        cells = [[cell.strip() for cell in row] for row in rows]
        return {row[0]: row[1:] for row in cells if row[0]} | {"": [below.partition("\n")[2]]}

    def history(self) -> list[Execution]:
        return read_history(self.root)

    def of(self, stage: str) -> list[Execution]:
        return [each for each in self.history() if each.stage == stage]


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def planned(run):
    recipe = load_recipe(run.folder / "recipe.yaml")
    workspace = Workspace.open(run.root, recipe)
    return recipe, workspace, make_plan(recipe, Hashes(run.root / "hashes.json"))


@pytest.mark.processes
def test_states_go_from_to_do_to_done_and_to_changed_with_the_recipe(run):
    before = run.status()
    assert before["read"] == ["to do", "0 of 1", "", ""]
    assert before["merge"][:2] == ["not needed", "0 of 11, 11 not kept"]
    assert not run.root.exists()
    run.vcsoup("score", "recipe.yaml")
    run.vcsoup("filter", "recipe.yaml")
    after = run.status()
    assert after["read"][:2] == ["done", "1 of 1"]
    assert after["score"][:2] == ["done", "2 of 2"]
    assert after["filter"][:2] == ["done", "2 of 2"]
    assert after["filter"][3].endswith(" s")
    assert after["train"] == ["to do", "0 of 2", "", ""]
    (run.folder / "recipe.yaml").write_text(RECIPE + "consistency: {normalisation: none}\n")
    changed = run.status()
    assert changed["score"][:2] == ["done", "2 of 2"]
    assert changed["filter"] == ["changed", "0 of 2", "", ""]
    marks = run.vcsoup("status", "recipe.yaml", "-p")
    assert "made        scores/long/polite\n" in marks
    assert "changed     filtered/vc_soup/long\n" in marks
    assert f"missing     {LONG}\n" in marks
    assert "not kept    soups/" in marks


@pytest.mark.processes
def test_every_execution_leaves_a_record_of_what_it_made(run, planned):
    run.vcsoup("score", "recipe.yaml")
    read, score = run.history()
    fingerprints = {each.name: each.fingerprint for each in planned[2] if each.stage == "score"}
    assert (read.stage, score.stage) == ("read", "score")
    assert score.products == fingerprints
    assert (score.outcome, score.message, score.running) == ("done", None, False)
    assert read.began <= read.ended <= score.began <= score.ended
    names = sorted(path.name for path in (run.root / FOLDER).iterdir())
    assert [name.rpartition(f"-score-{score.host}-")[2] for name in names[1:]] == [
        f"{score.pid}.json"
    ]


@pytest.mark.ranks
@pytest.mark.kills
def test_training_is_told_while_it_runs_when_stopped_killed_and_failed(run):
    save_tiny_model(run.folder / "base")
    run.vcsoup("score", "recipe.yaml")
    run.vcsoup("filter", "recipe.yaml")
    metrics = run.root / "logs" / LONG / "metrics.jsonl"
    log = run.folder / "job.log"
    log.write_text("\x1b[31mold\x1b[0m\n" * 50 + "the last words\n")
    slurm = {"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    process = run.train(VCSOUP_JOB_LOG=str(log), **slurm)
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 1)
    running = run.status()
    assert running["train"][:3] == ["running", "0 of 2", "12_3"]
    assert running["train"][3].endswith(" so far")
    assert f"{LONG}: step " in running[""][0]
    assert " of 100000, loss " in running[""][0]
    assert f"being made  {LONG}\n" in run.vcsoup("status", "recipe.yaml", "-p")

    os.kill(process.pid, signal.SIGUSR2)
    assert process.wait() == 75
    stopped = run.status()
    assert stopped["train"][:3] == ["stopped", "0 of 2", "12_3"]
    assert stopped[""] == [""]

    metrics.unlink()
    process = run.train(VCSOUP_JOB_LOG=str(log), **slurm)
    wait_for(metrics.exists)
    (rank,) = children(process.pid)
    process.kill()
    wait_for(lambda: not alive(rank))
    killed = run.status()
    assert killed["train"][0] == "failed"
    assert killed["train"][3].endswith(" s +")
    assert "train was killed; it began" in killed[""][0]
    assert f"in job 12_3: {LONG}\n" in killed[""][0]
    assert killed[""][0].endswith(f"  the end of {log}:\n" + "  old\n" * 9 + "  the last words\n")

    metrics.unlink()
    process = run.train()
    wait_for(metrics.exists)
    (rank,) = children(process.pid)
    os.kill(rank, signal.SIGKILL)
    assert process.wait() == 2
    failed = run.status()
    assert failed["train"][0] == "failed"
    assert f", pid {process.pid}: {LONG}\n  rank 0 ended by signal 9" in failed[""][0]
    assert [each.outcome for each in run.of("train")] == ["stopped", None, "failed"]


@pytest.mark.processes
def test_a_stage_that_failed_says_why_until_it_is_done(run):
    run.vcsoup("filter", "recipe.yaml", code=2)
    failed = run.status()
    assert failed["filter"][0] == "failed"
    assert failed["score"][0] == "to do"
    assert "\nfilter failed " in failed[""][0]
    assert "is not made yet, or not by this recipe: run `vcsoup score` first" in failed[""][0]
    run.vcsoup("score", "recipe.yaml")
    run.vcsoup("filter", "recipe.yaml")
    mended = run.status()
    assert mended["filter"][0] == "done"
    assert mended[""] == [""]


def test_a_rank_that_failed_is_quoted_once(run, planned, capsys):
    recipe, workspace, plan = planned
    policy = next(each for each in plan if each.name == LONG)
    logs = run.root / "logs" / LONG
    logs.mkdir(parents=True)
    (logs / "rank-1.log").write_text("of an earlier start\n")
    os.utime(logs / "rank-1.log", (0, 0))
    file = logs / "rank-0.traceback"
    for message in ("no word of it", f"the end of {file}:\nValueError: bad"):
        with pytest.raises(UserError), recorded(run.root, "train", [policy]):
            file.write_text("ValueError: bad\n")
            raise UserError(message)
        show_status(recipe, workspace, plan)
        said = capsys.readouterr().out
        assert said.count(f"the end of {file}:\n  ValueError: bad\n") == 1
        assert "earlier" not in said


def test_tasks_of_an_array_are_told_apart(run, planned):
    recipe, workspace, plan = planned
    policies = [each for each in plan if each.stage == "train"]
    with recorded(run.root, "train", policies[:1]), pytest.raises(Preempted):
        with pytest.raises(UserError), recorded(run.root, "train", policies[1:]):
            raise UserError("out of memory")
        with recorded(run.root, "train", policies[:1]):
            raise Preempted
    (train,) = [each for each in look(recipe, workspace, plan, []) if each.stage == "train"]
    assert train.states == {LONG: "stopped", POLITE: "failed"}
    ((execution, names),) = train.failures()
    assert (execution.message, names) == ("out of memory", [POLITE])


def test_a_failed_share_of_a_product_stands_until_it_is_begun_anew(run, planned, monkeypatch):
    recipe, workspace, plan = planned
    policy = [each for each in plan if each.name == LONG]
    monkeypatch.setenv("SLURM_JOB_ID", "0")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")

    def work(task: int, error: UserError | None = None) -> str:
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        with contextlib.suppress(UserError), recorded(run.root, "train", policy):
            if error:
                raise error
        stages = look(recipe, workspace, plan, [])
        return next(each.states[LONG] for each in stages if each.stage == "train")

    assert work(0, UserError("no room")) == "failed"
    assert work(1) == "failed"
    assert work(0) == "to do"


def test_a_job_in_the_queue_comes_before_what_was_said_last(run, planned):
    recipe, workspace, plan = planned
    policies = {each.name: each for each in plan if each.stage == "train"}
    with pytest.raises(UserError), recorded(run.root, "train", list(policies.values())):
        raise UserError("too little memory")
    jobs = [
        LiveJob(
            QueuedJob("7_0", "PENDING", "Priority"), "train", {LONG: policies[LONG].fingerprint}
        ),
        LiveJob(QueuedJob("7_1", "RUNNING", "None"), "train", {POLITE: "of another recipe"}),
    ]
    (train,) = [each for each in look(recipe, workspace, plan, jobs) if each.stage == "train"]
    assert train.states == {LONG: "pending", POLITE: "failed"}
    assert train.jobs == jobs[:1]
    helper = LiveJob(QueuedJob("8", "RUNNING", "None"), "merge")
    (merge,) = [each for each in look(recipe, workspace, plan, [helper]) if each.stage == "merge"]
    assert merge.state == "running"


def test_jobs_that_ended_before_the_command_are_told_by_their_logs(run, planned):
    recipe, workspace, plan = planned
    logs = run.root / "logs" / "jobs"
    logs.mkdir(parents=True)
    for name in (
        "tiny-train-7_0-gpu-12-0.log",
        "tiny-train_2-12-ray-n1-0.log",
        "tiny-train_2-12.out",
        "tiny-merge-8_0-n-1-0.log",
        "tiny-merge-8_1-n-2-1.log",
        "other-train-9-n1-0.log",
    ):
        (logs / name).write_text("no vcsoup here\n")
    made = {each.name: each.fingerprint for each in plan}
    soups = {name: made[name] for name in made if name.startswith("soups/")}
    submissions = [
        Submission("7", "train", [{LONG: made[LONG]}], [], "", is_array=True),
        Submission("8", "merge", [], ["7"], "", is_array=True),
        Submission("10", "merge", [soups], ["7", "8"], ""),
        Submission("12", "train_2", [{POLITE: made[POLITE]}], [], ""),
        Submission("9", "train", [{POLITE: made[POLITE]}], [], ""),
    ]
    live = [LiveJob(QueuedJob("8_1", "RUNNING", "None"), "merge")]
    stages = {each.stage: each for each in look(recipe, workspace, plan, live, submissions)}
    train, merge = (stages[each].executions for each in ("train", "merge"))
    assert {(each.job, each.host, *each.products) for each in train} == {
        ("7_0", "gpu-12", LONG),
        ("12", "its node", POLITE),
    }
    assert [(each.job, each.host, each.products) for each in merge] == [("8_0", "n-1", soups)]


@pytest.mark.processes
def test_damaged_submissions_are_one_warning(run, planned):
    (run.root / "jobs.json").write_text('[{"id":')
    said = run.vcsoup("status", "recipe.yaml")
    assert said.count("jobs.json: unreadable") == 1
    assert re.search("report +│ to do", said)


HOLDS = """
import sys
from pathlib import Path
from vcsoup_dist.pipeline.history import recorded
with recorded(Path(sys.argv[1]), "filter", []):
    print("inside", flush=True)
    sys.stdin.read()
"""


@pytest.mark.processes
def test_a_record_without_an_end_runs_as_long_as_its_process_lives(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"inside\n"
        (execution,) = read_history(tmp_path)
        assert execution.running and not execution.was_killed
        assert (execution.pid, execution.ended) == (process.pid, None)
        process.kill()
        process.wait()
        (execution,) = read_history(tmp_path)
        assert execution.was_killed


@pytest.mark.processes
def test_a_stage_that_reads_the_history_is_still_seen_to_run(tmp_path):
    with recorded(tmp_path, "filter", [], gpus=0.5):
        pass
    with recorded(tmp_path, "report", []):
        (execution,) = read_history(tmp_path, during="report")
        assert (execution.stage, execution.gpus, execution.outcome) == ("filter", 0.5, "done")
        other = (
            "import sys; from pathlib import Path; from vcsoup_dist.records.history import *\n"
            "print(*(each.running for each in read_history(Path(sys.argv[1]))))"
        )
        command = [sys.executable, "-c", other, tmp_path]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert said.split() == ["False", "True"]


@pytest.mark.parametrize(
    "error, outcome, message",
    [
        (UserError("mend this"), "failed", "mend this"),
        (Preempted(), "stopped", None),
        (KeyboardInterrupt(), "stopped", None),
        (ZeroDivisionError("by what?"), "failed", "ZeroDivisionError: by what?"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_ended_a_stage_is_recorded_and_goes_on(tmp_path, error, outcome, message):
    with pytest.raises(type(error)) as raised, recorded(tmp_path, "filter", []):
        raise error
    assert raised.value is error
    (execution,) = read_history(tmp_path)
    assert execution.outcome == outcome
    assert (execution.message or "").splitlines()[-1:] == ([message] if message else [])


def test_a_history_that_cannot_be_written_hides_no_error(tmp_path, caplog):
    (tmp_path / "logs").write_text("no folder")
    with pytest.raises(UserError, match="the real one"), recorded(tmp_path, "filter", []):
        raise UserError("the real one")
    assert "cannot be written" in caplog.text
    caplog.clear()
    (tmp_path / "logs").unlink()
    with recorded(tmp_path, "filter", []):
        (tmp_path / FOLDER).rename(tmp_path / "away")
    assert "cannot be written" in caplog.text


def test_files_that_are_no_records_are_skipped_with_a_warning(tmp_path, caplog):
    with recorded(tmp_path, "filter", []):
        pass
    (good,) = (tmp_path / FOLDER).iterdir()
    record = json.loads(good.read_text())
    foreign = {
        "cut": good.read_text()[:40],
        "list": "[]",
        "wrong": json.dumps(record | {"began": "yesterday"}),
        "less": json.dumps({"ended": None}),
        "binary": "\0\1",
    }
    for name, text in foreign.items():
        (tmp_path / FOLDER / f"{name}.json").write_text(text)
    (tmp_path / FOLDER / "folder.json").mkdir()
    (tmp_path / FOLDER / ".aside.json.17").write_text("{")
    assert [each.stage for each in read_history(tmp_path)] == ["filter"]
    warned = [line.getMessage().partition(": skipped")[0] for line in caplog.records]
    assert sorted(Path(name).stem for name in warned) == sorted([*foreign, "folder"])


def _execution(began: float, ended: float | None, running: bool = False) -> Execution:
    return Execution("train", {}, began, ended, None, None, "n1", 1, None, None, running)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(-3, 20) | st.none(), st.booleans())))
def test_time_is_that_of_the_union_of_the_intervals(drawn):
    now = 40
    executions, seconds = [], set()
    for began, length, running in drawn:
        ended = None if length is None else began + length
        executions.append(_execution(began, ended, running=ended is None and running))
        if ended is not None or running:
            seconds |= set(range(began, now if ended is None else ended))
    assert time_taken(executions, now) == len(seconds)


def test_durations_are_short_words():
    assert [duration(each) for each in (0.4, 59.6, 3599, 3600, 90061)] == [
        *("0 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "25 h 1 min")
    ]


@pytest.mark.processes
def test_status_imports_no_framework(run):
    code = (
        "import sys\n"
        "sys.argv = ['vcsoup', 'status', 'recipe.yaml', '-d', 'run']\n"
        "from vcsoup_dist.cli.main import app\n"
        "app(standalone_mode=False)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})\n"
    )
    run.vcsoup("score", "recipe.yaml")
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=run.folder, check=True, capture_output=True, text=True)
    imported = set(said.stdout.splitlines()[-1].split())
    assert "vcsoup_dist" in imported
    assert not imported & {"torch", "ray", "deepspeed", "transformers", "numpy", "pyarrow"}


@pytest.mark.processes
def test_who_looks_whether_a_product_is_being_made_is_not_in_its_writers_way(planned):
    _, workspace, plan = planned
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from vcsoup_dist.workspace import Workspace\n"
        "workspace = Workspace(Path(sys.argv[1]))\n"
        "print('up', flush=True)\n"
        "while True:\n"
        "    workspace.is_being_made(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, str(workspace.root), plan[0].name]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as looker:
        assert looker.stdout.readline() == b"up\n"
        try:
            for _ in range(1000):
                with pytest.raises(KeyError), workspace.publishing(plan[0]):
                    raise KeyError
        finally:
            looker.kill()


@pytest.mark.processes
def test_where_slurm_cannot_be_asked_the_rest_is_told(run, planned):
    (run.root / "jobs.json").write_text("[]")
    said = run.vcsoup("status", "recipe.yaml", PATH="/nowhere")
    assert "jobs in the queue are not known: no `squeue` here" in said
    assert re.search("report +│ to do", said)


def test_the_newest_failure_is_shown_whatever_the_clocks_of_the_hosts_say(planned, monkeypatch):
    recipe, workspace, plan = planned
    reads = [each for each in plan if each.stage == "read"]
    for message, clock in (("the older", 4000.0), ("the newer", 1000.0), ("the newest", 2500.0)):
        monkeypatch.setattr("vcsoup_dist.pipeline.history.time.time", lambda clock=clock: clock)
        with pytest.raises(UserError), recorded(workspace.root, "read", reads):
            raise UserError(message)
    assert [each.message for each in read_history(workspace.root)] == [
        *("the older", "the newer", "the newest")
    ]
    (stage,) = [each for each in look(recipe, workspace, plan, []) if each.stage == "read"]
    assert [each.message for each, _ in stage.failures()] == ["the newest"]
    # One that was recorded before beginnings were numbered is older than those that are.
    old = max((workspace.root / FOLDER).glob("*.json"))
    content = json.loads(old.read_text())
    del content["began_as"], content["ended_as"]
    old.write_text(json.dumps(content))
    assert read_history(workspace.root)[0].message == content["message"]
