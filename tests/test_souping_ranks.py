"""Soups of a recipe by ranks that share the work: the same bytes as by one process."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import vcsoup
from paused_merge import kill
from soup_world import FILES, SoupWorld, soups, write_policies

pytestmark = pytest.mark.processes

GROUP = "soups of vc_soup, seed 0"


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> SoupWorld:
    return SoupWorld(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def alone(world) -> dict[str, bytes]:
    """The soups by one process."""
    world.merge(world.run_directory("alone"))
    made = soups(world.folder / "alone")
    assert len([name for name in made if name.endswith(".safetensors")]) == 4 * FILES
    return made


@pytest.fixture
def root(world, request):
    """A run directory with policies; recipe.yaml is as it was afterwards."""
    yield world.run_directory(request.node.name)
    shutil.rmtree(world.folder / request.node.name)
    world.recipe()


@pytest.fixture
def paused(world, root):
    """A function that starts `vcsoup merge` and stops it amidst its work."""
    processes = []

    def pause(*arguments: object) -> subprocess.Popen[str]:
        processes.append(world.paused(root, *arguments))
        return processes[-1]

    yield pause
    for process in processes:
        process.kill()
        process.wait()
        process.stderr.close()


def share(rank: int, world_size: int) -> list[object]:
    return ["--rank", rank, "--world-size", world_size]


def publish(world_size: int) -> list[object]:
    return ["--finalise", "--world-size", world_size]


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_ranks_one_after_another_in_any_order_make_what_one_process_makes(
    world, alone, root, ranks
):
    """Of eight ranks two have no file to write."""
    for rank in random.Random(ranks).sample(range(ranks), ranks):
        world.merge(root, *share(rank, ranks))
        assert not (root / "soups").exists()
    world.merge(root, *publish(ranks))
    assert soups(root) == alone
    assert not list((root / "work").rglob("*.safetensors"))
    for arguments in (share(0, ranks), publish(ranks), []):
        assert "nothing to do" in world.merge(root, *arguments)


def test_ranks_at_once_make_what_one_process_makes(world, alone, root):
    command = [sys.executable, "-m", "vcsoup_dist.cli", "merge", "recipe.yaml", "-d", root]
    processes = [
        subprocess.Popen([*map(str, [*command, *share(rank, 4)])], cwd=world.folder)
        for rank in range(4)
    ]
    assert [process.wait() for process in processes] == [0] * 4
    world.merge(root, *publish(4))
    assert soups(root) == alone


def test_who_publishes_too_early_names_the_ranks_that_are_missing(world, alone, root):
    assert f"{GROUP}: not done yet: ranks 0, 1, 2 of 3" in world.merge(root, *publish(3), code=2)
    world.merge(root, *share(1, 3))
    for _ in range(2):
        said = world.merge(root, *publish(3), code=2)
        assert f"{GROUP}: not done yet: ranks 0, 2 of 3" in said
    world.merge(root, *share(2, 3))
    assert f"{GROUP}: not done yet: ranks 0 of 3" in world.merge(root, *publish(3), code=2)
    assert not (root / "soups").exists()
    world.merge(root, *share(0, 3))
    world.merge(root, *publish(3))
    assert soups(root) == alone


@pytest.mark.kills
def test_while_a_rank_works_others_may_and_who_wants_all_is_refused(world, alone, root, paused):
    process = paused(*share(0, 3))
    world.merge(root, *share(2, 3))
    assert f"still at work: rank 0 of 3, pid {process.pid} on" in world.merge(
        root, *publish(3), code=2
    )
    assert "is being made by another process" in world.merge(root, code=2)
    assert "another process writes there" in world.merge(root, *share(0, 3), code=2)
    assert "as one of another number of ranks" in world.merge(root, *share(1, 2), code=2)
    world.recipe(shard_size=8000)
    said = world.merge(root, *share(1, 3), code=2)
    assert "from something else than the recipe says now" in said
    world.recipe(weights=[[0.3, 0.7], [1, 0], [0, 1]])
    assert f"pid {process.pid} on" in world.merge(root, *share(1, 3), code=2)
    world.recipe()
    world.merge(root, *share(1, 3))
    kill(process)
    assert "ranks 0 of 3" in world.merge(root, *publish(3), code=2)
    assert ", rank 0 of 3: 2, 0.0" in world.merge(root, *share(0, 3))
    world.merge(root, *publish(3))
    assert soups(root) == alone


@pytest.mark.kills
def test_a_process_that_makes_all_keeps_ranks_out(world, root, paused):
    process = paused()
    for arguments in (share(0, 2), publish(2)):
        assert f"pid {process.pid} on" in world.merge(root, *arguments, code=2)


@pytest.mark.kills
def test_one_process_goes_on_from_killed_ranks_and_ranks_from_it(world, alone, root, paused):
    kill(paused(*share(1, 2)))
    kill(paused())
    kill(paused(*share(0, 3)))
    said = world.merge(root, *share(1, 2))
    assert "chunks were done before" in said
    assert "chunks were done before" in world.merge(root)
    assert soups(root) == alone


@pytest.mark.kills
def test_a_smaller_number_of_ranks_goes_on_from_a_larger_one(world, alone, root, paused):
    for rank in (0, 3):
        world.merge(root, *share(rank, 4))
    kill(paused(*share(1, 4)))
    for rank in (1, 0):
        assert "chunks were done before" in world.merge(root, *share(rank, 2))
    world.merge(root, *publish(2))
    assert soups(root) == alone


@pytest.mark.kills
@pytest.mark.parametrize("whom", ["a rank", "one process"])
def test_stopped_on_request_it_ends_with_75_and_goes_on(world, alone, root, paused, whom):
    arguments = share(0, 1) if whom == "a rank" else []
    process = paused(*arguments)
    process.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGCONT)
    said = process.communicate()[1]
    assert (process.returncode, "stopped on request" in said) == (75, True), said
    assert not (root / "soups").exists()
    assert "chunks were done before" in world.merge(root, *arguments)
    world.merge(root, *publish(1))
    assert soups(root) == alone


CHANGES = {
    "a soup more": {"weights": [[0.3, 0.7], [1, 0], [0.5, 0.5]]},
    "a soup less": {"weights": [[0.3, 0.7]]},
    "another first soup": {"weights": [[0.4, 0.6], [1, 0]]},
    "another order": {"weights": [[1, 0], [0.3, 0.7]]},
    "other files": {"shard_size": 17_000},
}


@pytest.mark.kills
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("by", ["ranks", "one process"])
def test_after_a_change_of_the_recipe_nothing_is_of_the_old_one(world, root, paused, change, by):
    world.merge(root, *share(1, 2))
    kill(paused(*share(0, 2)))
    world.recipe(**CHANGES[change])
    if by == "ranks":
        said = world.merge(root, *publish(2), code=2)
        assert "not done yet: ranks 0, 1 of 2" in said
        assert not (root / "soups").exists()
        for rank in (0, 1):
            world.merge(root, *share(rank, 2))
        world.merge(root, *publish(2))
    else:
        world.merge(root)
    fresh = world.run_directory("fresh")
    world.merge(fresh)
    made, expected = soups(root), soups(fresh)
    shutil.rmtree(fresh)
    assert made == expected


def test_after_a_change_of_the_policies_nothing_is_of_the_old_ones(world, alone, root):
    for rank in (0, 1):
        world.merge(root, *share(rank, 2))
    policies = sorted(root.glob("policies/*/*/seed-0"))
    for seed, policy in enumerate(policies):
        record = (policy / "product.json").read_bytes()
        shutil.rmtree(policy)
        policy.mkdir()
        write_policies([policy], seed + 10)
        (policy / "product.json").write_bytes(record)
    assert "ranks 0, 1 of 2" in world.merge(root, *publish(2), code=2)
    fresh = shutil.copytree(root, world.folder / "fresh", ignore=shutil.ignore_patterns("work"))
    world.merge(fresh)
    world.merge(root)
    expected = soups(fresh)
    shutil.rmtree(fresh)
    assert soups(root) == expected != alone


CRASHES = """
import os, shutil, signal, sys
from pathlib import Path
from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.souping import stage
from vcsoup_dist.workspace import Workspace

FILES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "fcntl.flock"}
PLACES = tuple(os.path.abspath(f"run/{name}") for name in ("work", "locks", "soups"))
COMMANDS = [(stage.make_share, 1, 2), (stage.make_share, 0, 2), (stage.publish_shares, 2)]
ALL = (stage.make,)
recipe = load_recipe(Path("recipe.yaml"))
products = [each for each in make_plan(recipe, Hashes(Path("hashes"))) if each.stage == "merge"]
workspace = Workspace(Path("run"))

def run(last, command):
    # A command that is killed just before step `last` of all that it does to files of `run`.
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    steps = 0
    def step():
        nonlocal steps
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)
    def hook(event, arguments):
        if event in FILES or event == "open" and str(arguments[0]).startswith(PLACES):
            step()
    def counted(function):
        return lambda *arguments: (step(), function(*arguments))[1]
    sys.addaudithook(hook)
    for name in ("pwrite", "write", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))
    os.fsync = counted(lambda descriptor: None)  # a killed process loses nothing of the cache
    missing = [each for each in products if not workspace.is_made(each)]
    if missing:
        command[0](recipe, workspace, missing, *command[1:])
    os._exit(0)

def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

def renewed(origin):
    shutil.rmtree("run", ignore_errors=True)
    shutil.copytree(origin, "run")

renewed("trained")
before = []
for i, command in enumerate(COMMANDS):
    before.append(f"before-{i}")
    shutil.copytree("run", before[-1])
    assert run(0, command) == 0
new = files(Path("run/soups"))
parts = {name.rpartition("/")[0] for name in new}
count, bad = [], []
for i, command in enumerate(COMMANDS):
    last = i
    while True:
        renewed(before[i])
        last += int(sys.argv[1])
        if run(last, command) == 0:
            break
        for soup in Path("run/soups").glob("*/*/*"):
            place = str(soup.relative_to("run/soups"))
            if i < 2 or files(soup) != {
                k[len(place) + 1:]: v for k, v in new.items() if k.startswith(place + "/")
            }:
                bad.append(f"{i}, {last}: {soup}")
        # By the same ranks, and sometimes by one process instead.
        again = [run(0, each) for each in ([ALL] if last % 5 == 0 else COMMANDS[i:])]
        left = list(Path("run/work").rglob("*.safetensors"))
        if any(again) or left or files(Path("run/soups")) != new:
            bad.append(f"{i}, {last}: {again}")
    count.append(last)
print(count, bad)
"""


def test_killed_before_any_step_a_rank_or_who_publishes_goes_on(tmp_path):
    """Every seventh step is tried: all would be a minute."""
    world = SoupWorld(tmp_path)
    world.recipe(shard_size=30_000)
    text = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("- rewarded_soup\n", ""))
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, "7"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, bad = done.stdout.split("] ")
    assert bad == "[]\n", done.stdout + done.stderr
    assert all(int(steps) > 20 for steps in count.strip("[").split(","))


MISTAKES = {
    "another option": (["--grid", 0.5, "--seed", 0], "recipe.yaml: the recipe itself defines its"),
    "a place": (["--out", "soups"], "leave out --out"),
    "a rank without their number": (["--rank", 0], "give --world-size and either --rank or"),
    "a number without a rank": (["--world-size", 2], "give --world-size and either --rank or"),
    "both": (["--finalise", *share(0, 2)], "give --world-size and either --rank or"),
    "a rank that is none": (share(2, 2), "--rank 2 of --world-size 2: ranks count from 0"),
    "no ranks": (publish(0), "--world-size 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_options_that_a_recipe_cannot_have_are_one_line(world, root, mistake):
    arguments, line = MISTAKES[mistake]
    said = world.merge(root, *arguments, code=2)
    assert line in said and len(said.splitlines()) == 1
    assert not (root / "work" / "soups").exists()


def test_a_recipe_that_is_not_there_is_one_line(world, root):
    assert "other.yaml" in vcsoup("merge", "other.yaml", "-d", root, folder=world.folder, code=2)


def test_policies_have_no_run_directory(world, root):
    policy = Path("trained/policies/vc_soup/long/seed-0")
    command = ["merge", policy, "--weights", "1", "--out", "soup", "-d", root]
    assert "--run-dir is for a recipe" in vcsoup(*command, folder=world.folder, code=2)
