"""Scripts of slurm/ under another name in another folder, which Slurm then copies once more."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_world import ROOT, wait_for_end

SCRIPTS = ("evaluate", "merge", "on_one_node", "reference", "score", "train_value")


def submit(
    folder: Path, script: str, *options: str, **environment: str
) -> tuple[dict[str, str], str]:
    """Slurm's record of a copied script's job, and what it said."""
    copied = folder / "my jobs" / f"my-{script}.sh"
    copied.parent.mkdir(exist_ok=True)
    shutil.copy(ROOT / "slurm" / f"{script}.sh", copied)
    (copied.parent / "environment.sh").write_text("exit 9  # of another program\n")
    kept = {name: each for name, each in os.environ.items() if not name.startswith("VCSOUP_")}
    number = subprocess.run(
        ["sbatch", "--parsable", *options, copied, "filter", "/no/such/recipe.yaml"],
        env={
            **kept,
            "PATH": "/usr/bin:/bin",
            "VCSOUP_LOG_DIR": str(folder / "logs"),
            **environment,
        },
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    ended = wait_for_end(number)
    files = [*folder.glob(f"*-{number}.out"), *folder.glob(f"logs/*-{number}-*.log")]
    return ended, "".join(file.read_text() for file in files)


def test_every_script_finds_its_environment_by_the_variable(slurm, tmp_path):
    for script in SCRIPTS:
        ended, said = submit(
            tmp_path, script, VCSOUP_SLURM=str(ROOT / "slurm"), VCSOUP_SETUP="exit 7"
        )
        assert ended["ExitCode"] == "7:0", said  # so far it came, into set_up


def test_without_it_the_installed_package_is_asked_or_one_line_says_what_to_export(slurm, tmp_path):
    folder = shlex.quote(str(Path(sys.executable).parent))
    ended, said = submit(tmp_path, "on_one_node", VCSOUP_SETUP=f"PATH={folder}:$PATH")
    assert ended["ExitCode"] == "2:0" and "vcsoup: /no/such/recipe.yaml" in said
    ended, said = submit(tmp_path, "on_one_node")
    assert ended["ExitCode"] == "2:0" and "a copy: export VCSOUP_SLURM" in said


def test_a_job_of_any_name_has_its_logs(slurm, tmp_path):
    folder = shlex.quote(str(Path(sys.executable).parent))
    setup = {"VCSOUP_SETUP": f"PATH={folder}:$PATH", "VCSOUP_SLURM": str(ROOT / "slurm")}
    for name in ("a/b", "../up", "mit Leerzeichen & mehr", "x" * 250):
        ended, said = submit(tmp_path, "on_one_node", f"--job-name={name}", **setup)
        assert ended["ExitCode"] == "2:0" and "vcsoup: /no/such/recipe.yaml" in said, (ended, said)
    assert len(list((tmp_path / "logs").iterdir())) == 4


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_linked_script_says_outside_of_a_job_how_it_is_used(script, tmp_path):
    (tmp_path / "my.sh").symlink_to(ROOT / "slurm" / f"{script}.sh")
    environment = {**os.environ, "VCSOUP_SLURM": str(ROOT / "slurm")}
    environment.pop("SLURM_JOB_ID", None)
    done = subprocess.run(
        [tmp_path / "my.sh", "filter", "x"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and "this is not a Slurm job" in done.stderr


def test_every_script_has_the_same_prologue():
    scripts = [each.read_text() for each in (ROOT / "slurm").glob("*.sh")]
    prologues = [
        text[text.index("# The prologue") : text.index('source "$here/environment.sh"')]
        for text in scripts
        if text.startswith("#!")
    ]
    assert len(prologues) == 6 and len(set(prologues)) == 1
