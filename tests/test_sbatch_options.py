"""Options of sbatch in a recipe and a site file: names, values, and GPUs for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import write_pairs
from typer.testing import CliRunner

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.recipe.sbatch_values import trouble_with_value
from vcsoup_dist.slurm_jobs.job_warnings import gpus_held, job_warnings, ranks_of
from vcsoup_dist.slurm_jobs.site import Site

RECIPE = """
name: tiny
values:
  a: {data: {path: pairs.jsonl}, reward: {callable: "judge.py:judge"}}
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes a recipe with a `launch` section; returns its path."""
    write_pairs(tmp_path / "pairs.jsonl", 20)
    (tmp_path / "judge.py").write_text("def judge(prompt, response):\n    return 0.0\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("VCSOUP_SITE", raising=False)
    monkeypatch.chdir(tmp_path)

    def write(more: str, model: Path = Path("base")) -> Path:
        (tmp_path / "recipe.yaml").write_text(f"model: {model}\n{RECIPE}{more}\n")
        return tmp_path / "recipe.yaml"

    return write


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("gpu: 8", "`gpu` is not an option of sbatch; did you mean `gpus`?"),
        ("ntask-per-node: 8", "did you mean `ntasks-per-node`?"),
        ("cpus-per-taks: 8", "did you mean `cpus-per-task`?"),
        ("acount: us", "did you mean `account`?"),
        ("partitions: gpu", "did you mean `partition`?"),
        ("memory: 8G", "did you mean `mem`?"),
        ("walltime: '1:00:00'", "did you mean `time`?"),
        ("time: 2 hours", '`time`: give minutes, "HH:MM:SS" or "D-HH:MM:SS", such as "2:00:00"'),
        ("time: 90min", 'such as "90:00"'),
        ("time: 1d", 'such as "1-00:00:00"'),
        ("time: '1:2:3:4'", "`time`: give minutes"),
        ("time: true", "put it in quotes"),
        ("mem: 8 GB", "`mem`: give a whole number of megabytes, or with K, M, G or T, such as 8G"),
        ("mem: 1.5G", "`mem`: give a whole number"),
        ("nodes: two", "`nodes`: give a number of nodes, or a range such as 2-4"),
        ("nodes: 4-2", "`nodes`: give"),
        ("nodes: 0", "`nodes`: give"),
        ("ntasks-per-node: 0", "`ntasks-per-node`: give a whole number, 1 or more"),
        ("cpus-per-task: 1.5", "`cpus-per-task`: give a whole number"),
        ("gpus-per-node: h100", "`gpus-per-node`: give a number, or a type and a number"),
        ("gres: 'gpu:h100:8:9:9'", "`gres`: give names with numbers"),
        ("gres: 8", "`gres`: give names with numbers"),
        ("signal: 'USR2 at 600'", "`signal`: give a signal"),
        ("requeue: 1", "`requeue`: has no value"),
        ("partition: true", "`partition`: needs a value"),
        ("partition: ''", "`partition`: needs a value"),
    ],
)
@pytest.mark.parametrize("command", [["check"], ["submit", "--dry-run"], ["submit"]])
def test_a_slip_is_refused_with_what_is_right(recipe, option, line, command):
    from vcsoup_dist.cli.main import app

    file = recipe(f"launch: {{slurm: {{train: {{{option}}}}}}}")
    if command != ["check"]:  # all load the recipe alike
        with pytest.raises(UserError) as refused:
            load_recipe(file)
        assert line in str(refused.value) and "\n" not in str(refused.value)
        return
    done = CliRunner().invoke(app, [*command, str(file)])
    assert isinstance(done.exception, UserError) and line in str(done.exception)
    assert "launch.slurm.train" in str(done.exception)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("time", ["30", "30:00", "2:00:00", "1-12", "1-12:30", "1-12:30:15", "UNLIMITED", False]),
        ("mem", [8000, "8G", "8g", "8GB", "512M", 0]),
        ("nodes", [2, "2-4", "1k", "2,4,8", "4-8:2"]),
        ("ntasks-per-node", [8, "8"]),
        ("gpus-per-node", [8, "h100:8", "a100:2,h100:6"]),
        ("gres", ["gpu:8", "gpu:h100:8", "gpu", "none", "gpu:2,shard:4", "gres/gpu:1", "lustre:1"]),
        ("signal", ["B:USR2@600", "USR1", "10@60", "R:SIGTERM@120"]),
        ("exclusive", [True, "user"]),
        ("requeue", [True, False]),
        ("constraint", ["h100", "[rack1|rack2]", False]),
        ("container-image", ["/images/a.sqsh"]),
        ("begin", ["now+1hour", "2030-01-01T00:00:00"]),
        ("some-plugin", ["x y"]),
    ],
)
def test_what_slurm_takes_is_taken(name, values):
    assert [trouble_with_value(name, each) for each in values] == [""] * len(values)


def test_check_and_submit_warn_of_gpus_without_a_rank_and_ranks_without_gpus(recipe, tmp_path):
    def warned(more: str) -> list[str]:
        return job_warnings(load_recipe(recipe(more)), Site())

    held = "train: {nodes: 2, gpus-per-node: 8}"
    (line,) = warned(f"launch: {{ranks: 8, slurm: {{{held}}}}}")
    assert "train would have 16 GPUs and 8 ranks, and hold GPUs that no rank uses" in line
    assert warned(f"launch: {{ranks: 16, slurm: {{{held}}}}}") == []
    (line,) = warned("launch: {ranks: 8, slurm: {train: {gres: 'gpu:4'}}}")
    assert "4 GPUs and 8 ranks, and leave ranks without one" in line
    assert warned("launch: {slurm: {train: {ntasks: 4, gpus-per-task: 1}}}") == []
    assert warned("launch: {slurm: {merge: {gpus-per-node: 1}}}") == []  # a partition may demand it
    (line,) = warned("launch: {slurm: {score: {gpus-per-node: 1}}}")
    assert "jobs of reference and train ask for no GPUs, those of score do" in line
    (line,) = warned("launch: {slurm: {merge: {lustre-stripe: 4}}}")
    assert "no option of sbatch is known by the name lustre-stripe" in line


@pytest.mark.models
def test_check_looks_at_the_site_file(recipe, tiny_model, tmp_path, monkeypatch):
    from vcsoup_dist.cli.main import app

    file, site = recipe("launch: {ranks: 2}", tiny_model), tmp_path / "site.yaml"
    monkeypatch.setenv("VCSOUP_SITE", str(site))
    site.write_text("sbatch: {gpus-per-node: 4}\n")
    done = CliRunner().invoke(app, ["check", str(file)])
    assert done.exit_code == 0 and "would have 4 GPUs and 2 ranks" in " ".join(done.output.split())
    site.write_text("stages: {train: {gpu: 8}}\n")
    done = CliRunner().invoke(app, ["check", str(file)])
    assert "stages.train: `gpu` is not an option of sbatch" in str(done.exception)


@pytest.mark.parametrize(
    ("options", "gpus", "ranks"),
    [
        ({}, 0, 3),
        ({"nodes": 2, "gpus-per-node": "a100:2,h100:6", "ntasks": 16}, 16, 16),
        ({"nodes": "2-4", "gres": "gpu:h100:8,lustre:1", "ntasks-per-node": 8}, 16, 16),
        ({"gpus": 8, "ntasks-per-gpu": 1}, 8, 8),
        ({"gpus-per-task": 1, "ntasks-per-gpu": 1}, 1, 3),
        ({"gres": "none"}, 0, 3),
        ({"gres": "gpu"}, 1, 3),
        ({"gpus-per-node": False}, 0, 3),
    ],
)
def test_gpus_and_ranks_are_reckoned_as_slurm_gives_them(options, gpus, ranks):
    assert (gpus_held(options), ranks_of(options, 3)) == (gpus, ranks)


@pytest.mark.models
def test_check_says_that_wandb_is_missing_also_beside_a_folder_of_its_runs(
    recipe, tiny_model, tmp_path
):
    from vcsoup_dist.cli.main import app
    from vcsoup_dist.training.metrics import lacks_wandb

    assert lacks_wandb(None) == ""
    (tmp_path / "wandb").mkdir()
    if missing := lacks_wandb("mine"):  # as it is where W&B is not installed
        done = CliRunner().invoke(app, ["check", str(recipe("launch: {wandb: mine}", tiny_model))])
        assert done.exit_code == 0 and missing in " ".join(done.output.split())
