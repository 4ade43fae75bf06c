"""Scripts of slurm/ under another name in another folder, which Slurm then copies once more."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from slurm_world import ROOT, wait_for_end

SCRIPTS = ("evaluate", "merge", "on_one_node", "reference", "score", "train_value")
OURS = {"VCSOUP_SLURM": str(ROOT / "slurm")}
INSTALLED = f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
on_slurm = pytest.mark.slurm


class Copied:
    """Jobs of copied scripts, submitted from one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scripts = folder / "my jobs"
        self.scripts.mkdir()
        (self.scripts / "environment.sh").write_text("exit 9  # of another program\n")
        for script in SCRIPTS:
            shutil.copy(ROOT / "slurm" / f"{script}.sh", self.scripts / f"my-{script}.sh")

    def submit(self, script: str, *options: str, **environment: str) -> str:
        kept = {name: each for name, each in os.environ.items() if not name.startswith("VCSOUP_")}
        kept |= {"PATH": "/usr/bin:/bin", "VCSOUP_LOG_DIR": str(self.folder / "logs")}
        file = self.scripts / f"my-{script}.sh"
        done = subprocess.run(
            ["sbatch", "--parsable", *options, file, "filter", "/no/such/recipe.yaml"],
            env=kept | environment,
            cwd=self.folder,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def ended(self, numbers: Sequence[str]) -> list[tuple[str, str]]:
        """The exit code of each job, and what it said."""
        codes = [wait_for_end(each)["ExitCode"] for each in numbers]
        patterns = "*-{}.out", "logs/*-{}-*.log"
        files = [
            [file for pattern in patterns for file in self.folder.glob(pattern.format(each))]
            for each in numbers
        ]
        said = ["".join(file.read_text() for file in of_job) for of_job in files]
        return list(zip(codes, said, strict=True))


@pytest.fixture
def copied(tmp_path) -> Copied:
    return Copied(tmp_path)


@on_slurm
def test_every_script_finds_its_environment_by_the_variable(slurm, copied):
    numbers = [copied.submit(script, **OURS, VCSOUP_SETUP="exit 7") for script in SCRIPTS]
    for code, said in copied.ended(numbers):
        assert code == "7:0", said  # so far it came, into set_up


@on_slurm
def test_without_it_the_installed_package_is_asked_or_one_line_says_what_to_export(slurm, copied):
    numbers = [copied.submit("on_one_node", VCSOUP_SETUP=INSTALLED), copied.submit("on_one_node")]
    (code, said), (other_code, other_said) = copied.ended(numbers)
    assert code == "2:0" and "vcsoup: /no/such/recipe.yaml" in said
    assert other_code == "2:0" and "a copy: export VCSOUP_SLURM" in other_said


@on_slurm
def test_a_job_of_any_name_has_its_logs(slurm, copied, tmp_path):
    setup = {"VCSOUP_SETUP": "echo so far it came; exit 7", **OURS}
    names = ("a/b", "../up", "mit Leerzeichen & mehr", "x" * 250)
    numbers = [copied.submit("on_one_node", f"--job-name={name}", **setup) for name in names]
    for code, said in copied.ended(numbers):
        assert code == "7:0" and "so far it came" in said
    assert len(list((tmp_path / "logs").iterdir())) == 4


@pytest.mark.processes
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_says_how_it_is_used(script, tmp_path):
    outside = {name: each for name, each in os.environ.items() if name != "SLURM_JOB_ID"} | OURS
    file = ROOT / "slurm" / f"{script}.sh"
    asked = subprocess.run(
        [file, "--help"], env=outside, check=True, capture_output=True, text=True
    ).stdout
    assert f"slurm/{script}.sh" in asked and "RECIPE" in asked and "#SBATCH" not in asked
    (tmp_path / "my.sh").symlink_to(file)
    for each in (file, tmp_path / "my.sh"):
        done = subprocess.run([each, "filter", "x"], env=outside, capture_output=True, text=True)
        assert done.returncode == 2 and "this is not a Slurm job: sbatch" in done.stderr


def test_every_script_has_the_same_prologue():
    scripts = [each.read_text() for each in (ROOT / "slurm").glob("*.sh")]
    prologues = [
        text[text.index("# The prologue") : text.index('source "$here/environment.sh"')]
        for text in scripts
        if text.startswith("#!")
    ]
    assert len(prologues) == 6 and len(set(prologues)) == 1
