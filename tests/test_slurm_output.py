"""Words of a site among what Slurm's commands print: banners, colours, warnings, blank lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command import run_vcsoup
from conftest import write_pairs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merging import bf16, write_policy

from vcsoup_dist.errors import UserError
from vcsoup_dist.launch import slurm_queue
from vcsoup_dist.launch.slurm_output import submitted_id, tasks_of
from vcsoup_dist.slurm_jobs.submissions import live_jobs, mark_of

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
processes = pytest.mark.processes
NOISE = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            *("", " ", "Welcome to cluster 42!", "Job 12 of 2026", "*" * 60, "sbatch: lua: 7 GPUs"),
            *("Submitted batch job", "0", "-5", "1.5", "007", "12345678901", "١٢٣", "12;", ";c"),
            *("\x1b[31mwarning\x1b[0m", "\x1b]0;title\x07", "12_3", "a;12", "12 13", "\x0c5\x0c"),
        ]
    ),
)
ID = re.compile(r"[1-9][0-9]{0,9}(;[A-Za-z0-9_.-]+)?", re.ASCII)
COLOUR = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


@pytest.mark.parametrize(
    ("said", "id"),
    [
        ("123\n", "123"),
        ("123;cluster-a\n", "123"),
        ("Welcome to Foo\n\n123\n", "123"),
        ("123\nYour project has 40 hours left\n", "123"),
        ("2024 users\n\x1b[1m123\x1b[0m\r\n\n", "123"),
        ("  123  \n", "123"),
        ("4294901761;far\n", "4294901761"),  # of a federation
        ("Welcome\n", None),
        ("", None),
        ("job 123\n", None),
        ("123 and more\n", None),
        ("0\n", None),
        ("1e3\n", None),
        ("١٢٣\n", None),
        ("12_3\n", None),
        ("123;\n", None),
    ],
)
def test_the_jobs_id_is_the_last_line_that_is_one(said, id):
    assert submitted_id(said) == id


@FUZZ
@given(st.lists(NOISE), st.lists(NOISE), st.integers(1, 2**32 - 1), st.sampled_from(["", ";far"]))
def test_whatever_a_site_prints_no_other_number_becomes_the_id(before, after, id, cluster):
    def is_id(line: str) -> bool:
        return bool(ID.fullmatch(COLOUR.sub("", line).rstrip("\r").strip(" \t")))

    after = [each for each in after if not any(map(is_id, each.split("\n")))]
    assert submitted_id("\n".join([*before, f"{id}{cluster}", *after])) == str(id)
    found = submitted_id("\n".join(before))
    lines = [line for each in before for line in each.split("\n") if is_id(line)]
    assert (found is None) == (not lines)
    assert found is None or found in lines[-1]


@pytest.mark.parametrize(
    ("id", "tasks"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("12_[1-3%2]", ["12_1", "12_2", "12_3"]),
        ("12_[0,4-5]", ["12_0", "12_4", "12_5"]),
        ("12_[0-6:3]", ["12_0", "12_3", "12_6"]),
        ("12_[1,3,...]", None),
        ("12_[0-9999999]", None),
        ("12_[3-1]", None),
        ("12+1", None),
        ("12_", None),
        ("JOBID", None),
    ],
)
def test_tasks_that_wait_together_are_told_one_by_one(id, tasks):
    assert tasks_of(id) == tasks


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A `squeue` that prints what it is told."""
    (tmp_path / "squeue").write_text(f"#!/bin/sh\nexec cat {tmp_path / 'said'}\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def says(*lines: str) -> None:
        said = "\n".join(lines).encode(errors="surrogateescape")
        (tmp_path / "said").write_bytes(said)

    return says


@processes
def test_jobs_of_ours_are_found_among_banners_with_arrays_and_states_of_any_kind(squeue):
    squeue(
        "Welcome | to | the | cluster",
        "",
        "\x1b[32m12|RUNNING|None|vcsoup /run\x1b[0m",
        "13_[1-2%1]|PENDING|JobArrayTaskLimit|vcsoup /run\r",
        "14|SOMETHING_NEW|None|vcsoup /run",
        "15|COMPLETED|None|vcsoup /run",
        "16|PENDING|Priority|vcsoup /run/other",
        "17|PENDING|a|b|vcsoup /run",
    )
    found = slurm_queue.queued_jobs("vcsoup /run")
    assert [(each.id, each.waits) for each in found] == [
        ("12", False),
        ("13_1", True),
        ("13_2", True),
        ("14", False),
    ]
    squeue("13_[1,2,...]|PENDING|None|vcsoup /run")
    with pytest.raises(UserError, match=r"squeue: `13_\[1,2,...\]` .* is not a job's id"):
        slurm_queue.queued_jobs("vcsoup /run")


FIELD = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["12", "12_[1-3%2]", "12_4294967294", "PENDING", "RUNN+", "", "N/A", "9" * 30]),
)


@processes
@FUZZ
@given(
    st.lists(st.tuples(FIELD, FIELD, FIELD, st.booleans()), max_size=6),
    st.lists(NOISE, max_size=6),
)
def test_whatever_squeue_prints_it_is_a_job_or_one_line(tmp_path, squeue, rows, noise):
    comment = mark_of(tmp_path / "run")
    lines = ["|".join([*row, comment if ours else "other"]) for *row, ours in rows]
    try:
        squeue(*noise, *lines)
    except UnicodeEncodeError:  # no bytes that a command could print
        return
    try:
        found = live_jobs(tmp_path / "run")
    except UserError as error:
        assert str(error).startswith("squeue: ")
        return
    printed = [row[0] for *row, ours in rows if ours]
    for each in found:
        assert any(
            each.job.id in (tasks_of(id) or []) for text in printed for id in text.split("\n")
        ), (each, printed)


@processes
def test_a_run_directory_of_any_bytes_is_known_again(tmp_path, squeue):
    root = tmp_path / os.fsdecode(b"caf\xe9")
    root.mkdir()
    squeue(f"7|RUNNING|None|{mark_of(root)}")
    assert [each.job.id for each in live_jobs(root)] == ["7"]


# --- `vcsoup submit` with a site's own sbatch ---

SBATCH = """#!/bin/sh
case "$*" in *--test-only*) exit 0 ;; esac
count=$(cat {here}/count 2>/dev/null || echo 100)
count=$((count + 1))
echo "$count" >{here}/count
for word in "$@"; do
    case $word in
    --comment=*) echo "$count|PENDING|None|${{word#--comment=}}" >>{here}/queue ;;
    esac
done
{say}
"""
SQUEUE = "#!/bin/sh\necho 'Welcome to Foo'\ncat {here}/queue 2>/dev/null\nexit 0\n"
SCANCEL = """#!/bin/sh
for id in "$@"; do sed -i "/^$id|/d" {here}/queue; echo "$id" >>{here}/cancelled; done
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A recipe, and commands of a Slurm whose sbatch says as it is told."""
    write_policy(tmp_path / "base", {"layer": ("BF16", bf16(np.random.default_rng(0), 8))})
    write_pairs(tmp_path / "pairs.jsonl", 20)
    (tmp_path / "judge.py").write_text("def judge(prompt, response):\n    return 0.0\n")
    (tmp_path / "recipe.yaml").write_text(
        "name: tiny\nmodel: base\nvalues:\n"
        '  a: {data: {path: pairs.jsonl}, reward: {callable: "judge.py:judge"}}\n'
    )
    here = tmp_path / "site"
    here.mkdir()
    monkeypatch.setenv("PATH", str(here), prepend=os.pathsep)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def submit(say: str, *options: str) -> subprocess.CompletedProcess[str]:
        for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL)):
            (here / name).write_text(text.format(here=here, say=say))
            (here / name).chmod(0o755)
        return run_vcsoup("submit", "recipe.yaml", "-d", "run", *options, folder=tmp_path)

    return submit


@processes
def test_a_chain_is_submitted_among_the_words_of_a_site(site, tmp_path):
    said = 'echo "Welcome to Foo"; echo; echo "$count;foo"; echo "0 GPU-hours used" '
    done = site(said)
    assert done.returncode == 0, done.stderr
    ids = [each["id"] for each in json.loads((tmp_path / "run/jobs.json").read_text())]
    assert ids == [str(101 + number) for number in range(7)]
    assert "filter 102 after 101" in " ".join(done.stdout.split())


@processes
@pytest.mark.parametrize(
    ("say", "line"),
    [
        (
            '[ "$count" -lt 103 ] && echo "$count" || echo Welcome',
            "printed no job id, but: Welcome",
        ),
        ('[ "$count" -lt 103 ] && echo "$count"', "sbatch: "),
        ('[ "$count" -lt 103 ] && echo "$count" || { echo full >&2; exit 1; }', "sbatch: full"),
    ],
)
def test_where_the_chain_breaks_all_that_was_submitted_is_cancelled(site, tmp_path, say, line):
    done = site(say)
    assert done.returncode == 2 and line in done.stderr and "Traceback" not in done.stderr
    assert "cancelled what was submitted before that: job 101, 102, 103" in done.stderr
    assert (tmp_path / "site/queue").read_text() == ""
    ids = [each["id"] for each in json.loads((tmp_path / "run/jobs.json").read_text())]
    assert ids == ["101", "102"]  # 103 printed none, and was never noted


@processes
def test_the_script_of_a_dry_run_finds_the_ids_too(site, tmp_path):
    script = site("", "--dry-run").stdout
    site('echo "Welcome to Foo"; echo "$count;foo"; echo bye', "--dry-run")
    # Nothing was submitted by it so far.
    assert not (tmp_path / "site/queue").exists()
    done = subprocess.run(
        ["bash"], input=script, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/count").read_text().strip() == "107"
    site("echo Welcome", "--dry-run")
    done = subprocess.run(["bash"], input=script, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and (tmp_path / "site/count").read_text().strip() == "108"


@processes
@pytest.mark.parametrize("kind", ["missing", "no program", "not allowed"])
def test_an_sbatch_that_cannot_be_run_is_one_line(site, tmp_path, monkeypatch, kind):
    site("", "--dry-run")
    sbatch: Path = tmp_path / "site/sbatch"
    if kind == "missing":
        monkeypatch.setenv("PATH", "/nowhere")
    sbatch.write_bytes(b"\x00\x01")
    sbatch.chmod(0o644 if kind == "not allowed" else 0o755)
    with pytest.raises(UserError, match=r"^(no `sbatch` here|sbatch: )"):
        slurm_queue.submit_job(["sbatch"], dict(os.environ))
