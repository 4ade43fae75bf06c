"""Ranks on a real Slurm of two nodes (tools/slurm_cluster.sh), and the scripts of slurm/."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import save_tiny_model, write_pairs
from training_world import processes_with, wait_for

from vcsoup_dist.errors import EXIT_PREEMPTED
from vcsoup_dist.launch.srun import srun_command
from vcsoup_dist.launch.srun_rank import tasks_per_node

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "tools" / "slurm_cluster.sh"
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1"]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Slurm, started here unless it runs already; the environment points to it meanwhile."""
    needed = ("slurmctld", "slurmd", "munged", "sbatch")
    if not all(shutil.which(each, path=f"{os.environ['PATH']}:/usr/sbin") for each in needed):
        pytest.skip(
            f"no Slurm here; as root on Debian or Ubuntu `{CLUSTER} up` installs and starts it"
        )
    was_up = subprocess.run([CLUSTER, "status"], capture_output=True).returncode == 0
    subprocess.run([CLUSTER, "up"], check=True)
    export = subprocess.run([CLUSTER, "env"], check=True, capture_output=True, text=True).stdout
    with pytest.MonkeyPatch.context() as patch:
        for assignment in shlex.split(export)[1:]:
            patch.setenv(*assignment.split("=", 1))
        patch.setenv("VCSOUP_SETUP", f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        yield
    if not was_up:
        subprocess.run([CLUSTER, "down"], check=True)


# --- the launcher, with ranks that load nothing ---

START = """
import os, signal, sys, time
from pathlib import Path
from vcsoup_dist.launch.death import die_with_parent
die_with_parent(int(os.environ["VCSOUP_LAUNCHER"]))
rank = int(os.environ["RANK"])
logs = Path(os.environ["VCSOUP_LOGS"])
def stop(*_):
    sys.exit(75)
def listen():
    signal.signal(signal.SIGUSR2, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR2})
"""
COMMAND = """
import sys
from pathlib import Path
from vcsoup_dist import cli
from vcsoup_dist.launch.srun import run_on_slurm
cli.app = lambda: run_on_slurm("small_rank", Path(sys.argv[1]), 1, Path(sys.argv[2]))
cli.main()
"""
IN_SHELL = """
"$@" || code=$?
while [ "$code" = 137 ] && [ ! -e "$OVER" ]; do sleep 0.1; done  # the job outlives the command
exit $code
"""


class Small:
    """A command that runs the given code as ranks in an allocation of two nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.job, self.logs = folder, folder / "job", folder / "logs"

    def start(self, code: str, *options: str) -> subprocess.Popen[str]:
        (self.folder / "small_rank.py").write_text(START + code)
        command = [sys.executable, "-c", COMMAND, str(self.job), str(self.logs)]
        path = f"{self.folder}{os.pathsep}{os.environ['PYTHONPATH']}"
        return subprocess.Popen(
            ["salloc", "--quiet", *(options or TWO_NODES), "sh", "-c", IN_SHELL, "sh", *command],
            env={**os.environ, "PYTHONPATH": path, "OVER": str(self.folder / "over")},
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self) -> int:
        """Process of the command itself."""
        for pid in processes_with(COMMAND):
            if Path(f"/proc/{pid}/comm").read_text().startswith("python"):
                return pid
        raise AssertionError("no command runs")

    def up(self) -> list[Path]:
        return sorted(self.logs.glob("here-*"))

    def end(self, process: subprocess.Popen[str], code: int) -> str:
        """What the command said; no rank is left."""
        said = process.communicate(timeout=60)[1]
        assert process.returncode == code, said
        wait_for(lambda: not processes_with(str(self.job)), 20)
        return said


@pytest.fixture
def small(tmp_path) -> Small:
    return Small(tmp_path)


def test_every_task_is_the_rank_that_slurm_made_it(small):
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS"
    said = small.end(
        small.start(
            f"mine = map(os.environ.get, {names.split()})\n"
            "(logs / f'here-{rank}').write_text(' '.join(mine))\n"
            "(logs / f'node-{rank}').write_text(os.environ['SLURMD_NODENAME'])\n"
            "print('aside'); print('heard' if rank == 0 else 'unheard', file=sys.stderr)",
            *("--nodes=2", "--ntasks=3"),
        ),
        0,
    )
    places = [each.read_text().split() for each in small.up()]
    assert [" ".join(each[:4]) for each in places] == ["0 0 3 2", "1 1 3 2", "2 0 3 1"]
    assert len({tuple(each[4:]) for each in places}) == 1 and places[0][6] == "1"
    assert [(small.logs / f"node-{rank}").read_text() for rank in range(3)] == ["n1", "n1", "n2"]
    assert "starting 3 ranks, the tasks of Slurm job" in said
    assert "heard" in said and "unheard" not in said and "aside" not in said
    assert (small.logs / "rank-2.log").read_text() == "aside\nunheard\n"


def test_tasks_per_node_in_slurms_short_form():
    assert tasks_per_node("4(x2),3") == [4, 4, 3]
    assert tasks_per_node("12") == [12]


def test_options_for_a_container_go_to_srun_and_its_own_python_is_taken(monkeypatch):
    monkeypatch.setenv("VCSOUP_CONTAINER", "--container-image='/a b.sqsh' --container-writable")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    command = srun_command(2, "module", Path("job"))
    step, task = command[: command.index("env")], command[command.index("env") :]
    assert step[-2:] == ["--container-image=/a b.sqsh", "--container-writable"]
    assert "--cpus-per-task=3" in step
    assert task[2:] == ["python3", "-m", "vcsoup_dist.launch.srun_rank", "module", "job"]


def test_a_rank_that_fails_while_the_others_stop_on_request_is_an_error(small):
    said = small.end(small.start("time.sleep(rank); sys.exit(75 if rank == 0 else 3)"), 2)
    assert "vcsoup: rank 1 on n2 ended: exited with exit code 3" in said


def test_the_first_rank_that_fails_is_named_with_its_last_words(small):
    said = small.end(
        small.start("""
if rank == 1:
    print("no luck", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1.5)
(logs / "rank-0.traceback").write_text("Connection closed by peer")
sys.exit(1)
"""),
        2,
    )
    assert "vcsoup: rank 1 on n2 ended: killed; the end of" in said
    assert said.endswith("vcsoup: no luck\n")


def test_a_mistake_that_a_person_can_mend_is_told_in_its_own_words(small):
    code = "(logs / f'rank-{rank}.error').write_text('mend this'); sys.exit(2)"
    assert small.end(small.start(code), 2).endswith("vcsoup: mend this\n")


def test_outside_a_job_one_line_says_so(small):
    command = [sys.executable, "-c", COMMAND, str(small.job), str(small.logs)]
    outside = {name: value for name, value in os.environ.items() if name != "SLURM_JOB_ID"}
    done = subprocess.run(command, env=outside, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no Slurm job here" in done.stderr


LISTENS = "listen()\n(logs / f'here-{rank}').touch()\ntime.sleep(600)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_request_to_the_command_reaches_the_ranks_of_all_nodes(small, number):
    process = small.start(LISTENS)
    wait_for(lambda: len(small.up()) == 2)
    os.kill(small.command(), number)
    assert small.end(process, EXIT_PREEMPTED).endswith("goes on from here\n")


def test_an_interrupted_command_ends_its_ranks(small):
    process = small.start(LISTENS)
    wait_for(lambda: len(small.up()) == 2)
    os.kill(small.command(), signal.SIGINT)
    assert "interrupted; the same command goes on" in small.end(process, 130)


def test_a_request_before_the_ranks_can_listen_is_kept_for_them(small):
    process = small.start(
        "(logs / f'here-{rank}').touch()\n"
        "while not (logs / 'asked').exists(): time.sleep(0.01)\n" + LISTENS
    )
    wait_for(lambda: len(small.up()) == 2)
    os.kill(small.command(), signal.SIGUSR2)
    time.sleep(0.3)
    (small.logs / "asked").touch()
    small.end(process, EXIT_PREEMPTED)


def test_a_request_while_the_step_starts_ends_it(small):
    process = small.start(LISTENS)
    wait_for(lambda: processes_with("vcsoup_dist.launch.srun_rank"))
    os.kill(small.command(), signal.SIGUSR2)
    small.end(process, EXIT_PREEMPTED)


def test_no_rank_outlives_a_command_that_is_killed(small, tmp_path):
    process = small.start(LISTENS)
    wait_for(lambda: len(small.up()) == 2)
    os.kill(small.command(), signal.SIGKILL)
    wait_for(lambda: not processes_with("vcsoup_dist.launch.srun_rank"), 20)
    assert process.poll() is None
    (tmp_path / "over").touch()
    process.communicate(timeout=20)


# --- the scripts ---

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
  {dtype: fp32, learning_rate: 1.0e-3, pairs_per_step: 8, steps: 70, max_length: 64,
   checkpoint_every: 10, evaluate_every: 20, gradient_checkpointing: false}
launch: {ranks: 2}
"""
LONG = "policies/vc_soup/long/seed-0"


class Jobs:
    """A recipe with filtered pairs, and jobs of the scripts on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_tiny_model(folder / "base")
        write_pairs(folder / "pairs.jsonl", 60)
        rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
        for row in rows:
            for side in ("chosen", "rejected"):
                row[f"long_{side}"] = len(row[side].split())
                row[f"polite_{side}"] = row[side].count("e") - row[side].count("o")
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "judge.py").write_text("def never_called(prompt, response):\n    return 0.0\n")
        (folder / "recipe.yaml").write_text(RECIPE)
        for stage in ("score", "filter"):
            self.vcsoup(stage, "recipe.yaml", "-d", "filtered")

    def vcsoup(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "vcsoup_dist.cli", *arguments]
        subprocess.run(command, cwd=self.folder, check=True)

    def run_directory(self, name: str, origin: str) -> Path:
        """A copy of another one without its policies."""
        shutil.copytree(
            self.folder / origin,
            self.folder / name,
            ignore=shutil.ignore_patterns("policies", "work", "logs"),
        )
        return self.folder / name

    def submit(self, root: Path, script: str, *arguments: str, options: list[str]) -> str:
        done = subprocess.run(
            ["sbatch", "--parsable", *TWO_NODES, *options, ROOT / "slurm" / script, *arguments],
            cwd=self.folder,
            env={**os.environ, "VCSOUP_RUN_DIR": str(root), "VCSOUP_LOG_DIR": "job-logs"},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def log(self, name: str) -> str:
        return (self.folder / "job-logs" / name).read_text()


def job(number: str) -> dict[str, str]:
    """Slurm's record of a job."""
    command = ["scontrol", "show", "job", number, "--oneliner"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(field.split("=", 1) for field in said.split() if "=" in field)


def wait_for_end(number: str) -> dict[str, str]:
    active = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")
    wait_for(lambda: time.sleep(0.2) or job(number)["JobState"] not in active, 300)
    return job(number)


def start_now(number: str) -> None:
    """Start a requeued job, before which Slurm lets two minutes pass."""

    def starts() -> bool:
        time.sleep(2)  # within a second of the requeue a launch is refused, and fails the job
        subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"])
        return job(number)["JobState"] == "RUNNING"

    wait_for(starts)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="module")
def local(jobs) -> Path:
    """Run directory of an undisturbed training by two ranks without Slurm."""
    root = jobs.run_directory("local", "filtered")
    jobs.vcsoup("train", "long", "recipe.yaml", "-d", "local")
    return root


def test_reference_then_an_array_over_the_values_on_two_nodes_equals_local_training(jobs, local):
    root = jobs.run_directory("array", "filtered")
    first = jobs.submit(root, "reference.sh", "recipe.yaml", options=[])
    then = ["--array=0-1", f"--dependency=afterok:{first}"]
    array = jobs.submit(root, "train_value.sh", "recipe.yaml", options=then)
    for task in ("0", "1"):
        ended = wait_for_end(f"{array}_{task}")
        log = jobs.log(f"vcsoup-train-{array}_{task}-n1-0.log")
        assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), log
        assert "starting 2 ranks, the tasks of Slurm job" in log and "== reference" not in log
    assert "starting 2 ranks" in jobs.log(f"vcsoup-reference-{first}-n1-0.log")
    assert files(root / "reference" / "long") == files(local / "reference" / "long")
    assert files(root / LONG) == files(local / LONG)
    assert (root / "policies/vc_soup/polite/seed-0/model.safetensors").exists()


def test_stopped_in_both_ways_and_killed_it_goes_on_to_the_same_bytes(jobs, local):
    root = jobs.run_directory("disturbed", "local")
    metrics = root / "logs" / LONG / "metrics.jsonl"

    def steps() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def submit() -> str:
        return jobs.submit(root, "train_value.sh", "recipe.yaml", "long", options=[])

    number = submit()
    # To the ranks, and to the script alone as for `--signal=B:USR2@600`.
    for restart, (to, after) in enumerate({"": 10, "--batch": 28}.items()):
        wait_for(lambda after=after: steps() > after)
        subprocess.run(["scancel", "--signal=USR2", *to.split(), number], check=True)
        wait_for(lambda: time.sleep(0.2) or job(number)["JobState"] == "PENDING")
        log = jobs.log(f"vcsoup-train-{number}-n1-{restart}.log")
        assert "stopped on request" in log and f"job {number} goes back into the queue" in log
        assert int(job(number)["Restarts"]) == restart + 1
        start_now(number)
    wait_for(lambda: steps() > 46)
    os.kill(rank_of_step(root, 1), signal.SIGKILL)
    ended = wait_for_end(number)
    log = jobs.log(f"vcsoup-train-{number}-n1-2.log")
    assert "resumed after step" in log
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "2:0")
    assert "vcsoup: rank 1 on n2 ended: killed" in log
    assert not (root / LONG).exists()

    number = submit()
    ended = wait_for_end(number)
    log = jobs.log(f"vcsoup-train-{number}-n1-0.log")
    assert ended["JobState"] == "COMPLETED", log
    assert "resumed after step" in log
    assert files(root / LONG) == files(local / LONG)


def rank_of_step(root: Path, rank: int) -> int:
    """Process of a rank of the run directory."""
    for pid in processes_with("vcsoup_dist.launch.srun_rank"):
        place = f"SLURM_PROCID={rank}".encode()
        entry = Path("/proc") / str(pid)
        if str(root).encode() in (entry / "cmdline").read_bytes() and place in (
            entry / "environ"
        ).read_bytes().split(b"\0"):
            return pid
    raise AssertionError(f"no rank {rank} of {root}")


@pytest.mark.parametrize("script", ["train_value.sh", "reference.sh"])
def test_a_script_says_how_it_is_used(script):
    file = ROOT / "slurm" / script
    asked = subprocess.run([file, "--help"], check=True, capture_output=True, text=True).stdout
    assert f"slurm/{script} RECIPE" in asked and "SBATCH" not in asked
    done = subprocess.run([file, "recipe.yaml"], capture_output=True, text=True)
    assert (done.returncode, "sbatch" in done.stderr) == (2, True)
