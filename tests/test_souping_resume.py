"""Merges that are killed, share their work, run out of disk or meet another: the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xxhash
from command import vcsoup
from merging import bf16, files_of, read_all, write_policy
from paused_merge import HASTY, PAUSING, PUBLISHING, kill, paused, start

from vcsoup_dist.errors import UserError
from vcsoup_dist.souping import merge, merge_run
from vcsoup_dist.souping.export import export
from vcsoup_dist.souping.output import write
from vcsoup_dist.souping.verify import verify_directory

SOUPS = 4


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> list[Path]:
    """Two of 31 MB, in different files."""
    folder = tmp_path_factory.mktemp("policies")
    made = []
    for seed, (name, cut) in enumerate([("helpful", 7_000_000), ("harmless", 12_000_000)]):
        rng = np.random.default_rng(seed)
        tensors = {f"layer.{i}": ("BF16", bf16(rng, 350, 1001)) for i in range(20)}
        tensors["embed"] = ("BF16", bf16(rng, 8_500_000))  # three chunks
        tensors["norm"] = ("F32", rng.standard_normal(999).astype("<f4"))
        tensors["steps"] = ("I64", np.arange(11))
        made.append(write_policy(folder / name, tensors, shard_size=cut))
    return made


@pytest.fixture(scope="module")
def arguments(policies) -> list[str]:
    """Of `vcsoup`, but for --out: four soups of five files each."""
    rows = [f"{i / 10},{1 - i / 10}" for i in range(SOUPS)]
    weights = [part for row in rows for part in ("--weights", row)]
    return ["merge", *map(str, policies), *weights, "--memory", "40MiB", "--shard-size", "7MB"]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory) -> dict[str, str]:
    """All files of a merge that nothing has happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    vcsoup(*arguments, "--out", "out", folder=folder)
    files = digests_of(folder / "out")
    assert len([name for name in files if name.endswith(".safetensors")]) == SOUPS * 5
    assert len([name for name in files if name.endswith("manifest.json")]) == SOUPS
    shutil.rmtree(folder)
    return files


def digests_of(directory: Path) -> dict[str, str]:
    return {name: xxhash.xxh3_128_hexdigest(raw) for name, raw in files_of(directory).items()}


def kept(said: str) -> int:
    """How many chunks a run found done, as its last line says."""
    return int(said.rsplit("; ", 1)[1].split()[0]) if "chunks were done before" in said else 0


@pytest.fixture
def ended(undisturbed, tmp_path):
    """A function that waits for a merge, compares its soups, removes them: the chunks it kept."""

    def ended(process: subprocess.Popen[str]) -> int:
        said = process.communicate()[1]
        assert process.returncode == 0, said
        assert digests_of(tmp_path / "out") == undisturbed
        assert not (tmp_path / "out.partial").exists()
        shutil.rmtree(tmp_path / "out")
        return kept(said)

    return ended


@pytest.mark.processes
@pytest.mark.kills
def test_killed_again_and_again_it_ends_with_the_same_bytes(arguments, ended, tmp_path):
    command = [*arguments, "--out", "out"]
    for entries in (1, 5, 10):
        kill(paused(*command, folder=tmp_path, driver=PAUSING.format(entries=entries)))
    assert ended(start(*command, folder=tmp_path)) >= 16


@pytest.mark.processes
@pytest.mark.kills
@pytest.mark.long
def test_killed_at_twenty_moments_it_ends_with_the_same_bytes(arguments, ended, tmp_path):
    draw = random.Random(7)
    command = [*arguments, "--out", "out"]
    began = time.monotonic()
    chunks_kept = [ended(start(*command, folder=tmp_path))]
    whole = time.monotonic() - began
    kills = 0
    while kills < 20:
        process = start(*command, folder=tmp_path)
        try:
            process.wait(draw.uniform(0.1, 1) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        else:
            chunks_kept.append(ended(process))
        if kills % 3 == 0:
            chunks_kept.append(ended(start(*command, folder=tmp_path)))
    chunks_kept.append(ended(start(*command, folder=tmp_path)))
    assert len(chunks_kept) >= 8 and chunks_kept[0] == 0
    assert any(chunks_kept)  # how often depends on how fast the machine is just now


CRASHES = """
import os, shutil, signal, sys
from pathlib import Path
from vcsoup_dist.souping.merge import merge

here, old = Path("."), Path("old")
FILES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove"}

def run(last, policies, out, overwrite=False):
    # A merge that is killed just before step `last` of all that it does to files of `out`.
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
        if event in FILES or event == "open" and "out" in str(arguments[0]):
            step()
    def counted(function):
        return lambda *arguments: (step(), function(*arguments))[1]
    sys.addaudithook(hook)
    for name in ("pwrite", "write", "ftruncate"):
        setattr(os, name, counted(getattr(os, name)))
    os.fsync = counted(lambda descriptor: None)  # a killed process loses nothing of the cache
    rows = [(0.3, 0.7), (1.0, 0.0)]
    merge(policies, out=out, weights=rows, shard_size=9000, overwrite=overwrite)
    os._exit(0)

def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

def part(files, soup):
    return {k.split("/", 1)[1]: v for k, v in files.items() if k.startswith(soup + "/")}

names = ["soup_0.30_0.70", "soup_1.00_0.00"]
policies = [Path("p0"), Path("p1")]
assert run(0, policies, Path("out")) == 0
new = files(Path("out"))
assert run(0, policies[::-1], old) == 0
former = files(old)
assert former.keys() == new.keys() and former != new
last, bad = 0, []
while True:
    shutil.rmtree("out")
    shutil.copytree(old / names[0], Path("out", names[0]))
    last += int(sys.argv[1])
    if run(last, policies, Path("out"), True) == 0:
        break
    for soup in Path("out").glob("*"):
        if files(soup) not in (part(new, soup.name), part(former, soup.name)):
            bad.append(f"{last}: half of {soup}")
    again = run(0, policies, Path("out"), True)
    if again or files(Path("out")) != new or Path("out.partial").exists():
        bad.append(f"{last}: {again}")
print(last, bad)
"""


@pytest.mark.processes
@pytest.mark.kills
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
def test_killed_before_any_step_it_goes_on_and_nobody_ever_sees_half_a_soup(tmp_path, every):
    """One soup replaces another, one is new; every third step is tried, or every one."""
    for seed in range(2):
        rng = np.random.default_rng(seed)
        tensors = {name: ("BF16", bf16(rng, 600, 7)) for name in ("a", "b")}
        write_policy(tmp_path / f"p{seed}", tensors)
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(every)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    steps, bad = done.stdout.split(maxsplit=1)
    assert int(steps) > 60 and bad == "[]\n", done.stdout + done.stderr


@pytest.mark.processes
@pytest.mark.kills
def test_killed_while_it_publishes_it_publishes_the_rest(arguments, undisturbed, tmp_path):
    command = [*arguments, "--out", "out"]
    for soups in (1, 2):  # the second kill leaves three of four
        kill(paused(*command, folder=tmp_path, driver=PUBLISHING.format(soups=soups)))
        assert (tmp_path / "out.partial").exists()
    assert len(list((tmp_path / "out").iterdir())) == 3
    vcsoup(*command, folder=tmp_path)
    assert digests_of(tmp_path / "out") == undisturbed
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.processes
def test_interrupted_by_ctrl_c_it_says_so_and_goes_on(arguments, undisturbed, tmp_path):
    command = [*arguments, "--out", "out"]
    process = paused(*command, folder=tmp_path, driver=PAUSING.format(entries=1))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert said.endswith("vcsoup: interrupted; run the same command to resume\n")
    assert kept(vcsoup(*command, folder=tmp_path)) > 0
    assert digests_of(tmp_path / "out") == undisturbed


@pytest.mark.processes
@pytest.mark.kills
def test_a_journal_whose_last_line_was_cut_loses_that_chunk_only(arguments, undisturbed, tmp_path):
    command = [*arguments, "--out", "out"]
    kill(paused(*command, folder=tmp_path, driver=PAUSING.format(entries=4)))
    journal = tmp_path / "out.partial" / "rank-00000-of-00001.journal"
    whole = journal.read_bytes()
    assert whole.count(b"\n") >= 4
    journal.write_bytes(whole[: whole.rindex(b"\n") - 5])
    said = vcsoup(*command, folder=tmp_path)
    assert kept(said) == whole.count(b"\n") - 1
    assert digests_of(tmp_path / "out") == undisturbed


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of so many bytes, or makes it larger or smaller."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()

    def resize(nbytes: int) -> Path:
        options = f"size={nbytes}" + (",remount" if disk.is_mount() else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
        return disk

    yield resize
    if disk.is_mount():
        subprocess.run(["umount", str(disk)], check=True)


# As if the room had gone after the preflight.
UNFORESEEN = f"""{HASTY}
from vcsoup_dist.souping.output import state
state.check_disk = lambda plan, work: None
"""


@pytest.mark.processes
def test_a_full_disk_is_one_line_and_with_more_room_the_same_command_goes_on(
    policies, arguments, undisturbed, small_disk, tmp_path
):
    total = sum(file.stat().st_size for file in policies[0].iterdir())
    disk = small_disk(SOUPS * total // 2)
    command = [*arguments, "--out", "disk/out"]
    before = files_of(disk)
    said = vcsoup(*command, folder=tmp_path, code=2)
    assert "GB more" in said and files_of(disk) == before

    process = start(*command, folder=tmp_path, driver=UNFORESEEN)
    said = process.communicate()[1].splitlines()
    assert process.returncode == 2
    assert said[-1].startswith(f"vcsoup: {disk.resolve()}/out.partial/soups/")
    assert "cannot be written: No space left on device; nothing is lost: make room" in said[-1]
    assert not any(line.startswith(("vcsoup:", "Traceback")) for line in said[:-1])
    small_disk(SOUPS * total * 2)
    assert kept(vcsoup(*command, folder=tmp_path)) > 0
    assert digests_of(disk / "out") == undisturbed


@pytest.mark.processes
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
def test_a_disk_that_is_full_at_any_moment_is_one_line(small_disk, tmp_path, monkeypatch, every):
    """Work folder, weights, journal, auxiliary files, card and manifest meet the disk's end.

    Disks of every third number of pages are tried, or of every one.
    """
    policies = [
        write_policy(
            tmp_path / name,
            {"a": ("F32", np.full(25_000, seed, "<f4")), "b": ("BF16", np.zeros(9, "<u2"))},
            tokenizer={"model": ["word"] * 10_000},
        )
        for seed, name in enumerate(["p", "q"])
    ]
    rows = [(0.3, 0.7), (0.6, 0.4)]
    merge.merge(policies, out=tmp_path / "clean", weights=rows)
    clean = files_of(tmp_path / "clean")
    monkeypatch.setattr(write.state, "check_disk", lambda plan, work: None)
    said = set()
    for pages in range(1, 200, every):
        out = small_disk(pages * 4096) / "out"
        try:
            merge.merge(policies, out=out, weights=rows)
            break
        except UserError as error:
            assert "No space left on device" in str(error) and "\n" not in str(error)
            said.add(str(error).replace(str(out), "OUT"))
        small_disk(10**7)
        merge.merge(policies, out=out, weights=rows)
        assert files_of(out) == clean
        shutil.rmtree(out)
    assert files_of(out) == clean
    places = {line.partition(": cannot be written: No space")[0] for line in said}
    assert places >= {
        "OUT.partial",
        "OUT.partial/soups/soup_0.30_0.70/model.safetensors",
        "OUT.partial/soups/soup_0.60_0.40/model.safetensors",
    }, said


def small_policies(folder: Path) -> list[Path]:
    """Two of ten files."""
    policies = []
    for seed, name in enumerate(["helpful", "harmless"]):
        rng = np.random.default_rng(seed)
        tensors = {f"w{i}": ("BF16", bf16(rng, 5 + i, 11)) for i in range(10)}
        policies.append(write_policy(folder / name, tensors, shard_size=1))
    return policies


@pytest.fixture
def small(tmp_path):
    """A function that merges two small policies into `out`: three soups of ten files each."""
    policies = small_policies(tmp_path)

    def merged(out="out", **options):
        return merge.merge(
            policies, out=tmp_path / out, **{"grid": 0.5, "shard_size": 1, **options}
        )

    return merged


@pytest.fixture
def alone(small, tmp_path) -> dict[str, bytes]:
    """All files of what one process makes of the small policies."""
    small("alone")
    return files_of(tmp_path / "alone")


@pytest.mark.parametrize("ranks", [4, 13])
def test_ranks_one_after_another_make_what_one_process_makes(small, alone, tmp_path, ranks):
    """Thirteen ranks: three of them have no file to write."""
    order = random.Random(ranks).sample(range(ranks), ranks)
    finished = [small(rank=rank, world_size=ranks).finished for rank in order]
    assert finished == sorted(finished) and finished[-1] and not finished[2]
    assert files_of(tmp_path / "out") == alone and not (tmp_path / "out.partial").exists()


@pytest.mark.processes
def test_four_ranks_at_once_make_what_one_process_makes(arguments, undisturbed, tmp_path):
    command = [*arguments, "--out", "out", "--world-size", 4]
    processes = [start(*command, "--rank", rank, folder=tmp_path) for rank in range(4)]
    for process in processes:
        assert not process.communicate()[1].count("Traceback") and process.returncode == 0
    assert digests_of(tmp_path / "out") == undisturbed
    assert not (tmp_path / "out.partial").exists()


AT_ONCE = """
import json, os, shutil, sys
from pathlib import Path
from vcsoup_dist.souping.merge import merge

policies, clean, bad = [Path("helpful"), Path("harmless")], None, []
for attempt in range(int(sys.argv[1])):
    shutil.rmtree("out", ignore_errors=True)
    ranks = [1, 2, 4, 12][attempt % 4]
    wait, go = os.pipe()
    children = []
    for rank in range(ranks):
        children.append(os.fork())
        if not children[-1]:
            os.close(go)
            os.read(wait, 1)
            merge(policies, out=Path("out"), grid=0.5, shard_size=1, rank=rank, world_size=ranks)
            os._exit(0)
    os.close(wait), os.close(go)
    codes = [os.waitpid(child, 0)[1] for child in children]
    found = {str(p): p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    clean = clean or found
    if any(codes) or found != clean or Path("out.partial").exists():
        bad.append([ranks, codes, found == clean])
print(len(clean), json.dumps(bad))
"""


@pytest.mark.processes
@pytest.mark.parametrize("attempts", [8, pytest.param(48, marks=pytest.mark.long)])
def test_ranks_that_end_at_the_same_instant_publish_once(tmp_path, attempts):
    small_policies(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, str(attempts)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == f"{3 * (10 + 5)} []\n", done.stdout + done.stderr


def test_a_rank_run_again_while_the_last_one_publishes_finds_all_done(
    small, alone, tmp_path, monkeypatch
):
    small(rank=0, world_size=2)
    deal, finished = merge_run.deal_shards, []

    def deal_meanwhile(*arguments):
        monkeypatch.setattr(merge_run, "deal_shards", deal)
        finished.append(small(rank=1, world_size=2).finished)
        return deal(*arguments)

    monkeypatch.setattr(merge_run, "deal_shards", deal_meanwhile)
    finished.append(small(rank=0, world_size=2).finished)
    assert finished == [True, True]
    assert files_of(tmp_path / "out") == alone and not (tmp_path / "out.partial").exists()


def test_finalise_names_the_ranks_that_are_missing_and_publishes_when_none_is(
    small, alone, tmp_path, monkeypatch
):
    with pytest.raises(UserError, match="out.partial: there is nothing to finalise"):
        small(world_size=4, finalise=True)
    for rank in (0, 2):
        assert not small(rank=rank, world_size=4).finished
    with pytest.raises(UserError, match="out.partial: not done yet: ranks 1, 3 of 4"):
        small(world_size=4, finalise=True)
    assert not (tmp_path / "out").exists()
    small(rank=1, world_size=4)
    with pytest.raises(UserError, match="ranks 3 of 4"):
        small(world_size=4, finalise=True)
    with monkeypatch.context() as patch:
        # As on a network file system, where the journals of others are seen too late.
        patch.setattr(write.state, "publish_soups", lambda *_, **__: False)
        small(rank=3, world_size=4)
    assert not (tmp_path / "out").exists()
    for _ in range(2):  # once more does no harm
        assert small(world_size=4, finalise=True).finished
        assert files_of(tmp_path / "out") == alone and not (tmp_path / "out.partial").exists()
        # As a kill leaves it between the last two things that are removed.
        (tmp_path / "out.partial").mkdir()
        (tmp_path / "out.partial" / "folder.lock").touch()
    assert small(world_size=4, finalise=True).finished
    assert not (tmp_path / "out.partial").exists()


@pytest.fixture
def stopped(arguments, tmp_path):
    """A function that starts `vcsoup` and stops it amidst its writing; at last all are killed."""
    processes = []

    def stop(*more: object) -> subprocess.Popen[str]:
        driver = PAUSING.format(entries=1)
        processes.append(paused(*arguments, "--out", "out", *more, folder=tmp_path, driver=driver))
        return processes[-1]

    yield stop
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.processes
def test_a_second_process_on_the_same_output_is_refused(arguments, undisturbed, stopped, tmp_path):
    process = stopped()
    command = [*arguments, "--out", "out"]
    said = vcsoup(*command, folder=tmp_path, code=2)
    assert f"another process writes there (pid {process.pid} on" in said
    assert "another process" in vcsoup(*command, "--overwrite", folder=tmp_path, code=2)
    other = [*command, "--dtype", "fp32"]
    assert "holds a started merge of other" in vcsoup(*other, folder=tmp_path, code=2)
    said = vcsoup(*other, "--overwrite", folder=tmp_path, code=2)
    assert "another process" in said and f"pid {process.pid}" in said
    process.send_signal(signal.SIGCONT)
    assert "Traceback" not in process.communicate()[1] and process.returncode == 0
    assert digests_of(tmp_path / "out") == undisturbed


@pytest.mark.processes
@pytest.mark.kills
def test_another_number_of_ranks_at_the_same_time_is_refused(
    arguments, undisturbed, stopped, tmp_path
):
    command = [*arguments, "--out", "out"]
    process = stopped("--rank", 0, "--world-size", 2)
    for ranks in (["--rank", 1, "--world-size", 3], []):
        said = vcsoup(*command, *ranks, folder=tmp_path, code=2)
        assert "as one of another number of ranks" in said and f"pid {process.pid}" in said
    vcsoup(*command, "--rank", 1, "--world-size", 2, folder=tmp_path)
    process.kill()
    process.wait()
    vcsoup(*command, folder=tmp_path)  # nobody is there any more
    assert digests_of(tmp_path / "out") == undisturbed


def states(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_finished_merge_run_again_does_nothing(small, tmp_path, caplog):
    small()
    before = states(tmp_path)
    for more in ({}, {"overwrite": True}, {"rank": 1, "world_size": 3}):
        with caplog.at_level("INFO", "vcsoup"):
            written = small(**more)
        assert (written.soups, written.bytes_written, written.finished) == ((), 0, True)
        assert caplog.messages[-1].startswith("nothing to do")
        caplog.clear()
    assert states(tmp_path) == before


def test_soups_that_are_missing_are_added_to_those_that_are_made(small, alone, tmp_path):
    small()
    shutil.rmtree(tmp_path / "out" / "soup_0.50_0.50")
    before = states(tmp_path / "out")
    assert small().soups == ("soup_0.50_0.50",)
    assert files_of(tmp_path / "out") == alone
    assert before.items() <= states(tmp_path / "out").items()


def other_weights(policy: Path) -> None:
    shutil.rmtree(policy)
    tensors = {f"w{i}": ("BF16", np.full((5 + i, 11), 7, "<u2")) for i in range(10)}
    write_policy(policy, tensors, shard_size=1)


CHANGES = {
    "touched": lambda policy: os.utime(policy / "model-00003-of-00010.safetensors"),
    "trained again": other_weights,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("started", [False, True], ids=["finished", "started"])
def test_policies_that_have_changed_are_refused_unless_overwritten(
    small, alone, tmp_path, change, started
):
    ranks = {"rank": 0, "world_size": 2} if started else {}
    small(**ranks)
    CHANGES[change](tmp_path / "harmless")
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="of other pol" if started else "--overwrite replaces it"):
        small(**ranks)
    after = files_of(tmp_path)
    assert {path: raw for path, raw in after.items() if "lock" not in path} == {
        path: raw for path, raw in before.items() if "lock" not in path
    }
    assert small(overwrite=True).chunks_kept == 0
    assert (files_of(tmp_path / "out") == alone) == (change == "touched")
    small("once more")
    assert files_of(tmp_path / "once more") == files_of(tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


def test_older_policies_of_the_same_names_and_sizes_are_no_reason_to_do_nothing(small, tmp_path):
    small()
    older = [tmp_path / "older" / name for name in ("helpful", "harmless")]
    for policy in older:
        shutil.copytree(tmp_path / policy.name, policy)
    rng = np.random.default_rng(9)
    for path in older[1].glob("*.safetensors"):
        raw, state = bytearray(path.read_bytes()), path.stat()
        size = len(raw) - 8 - int.from_bytes(raw[:8], "little")
        raw[-size:] = bf16(rng, size // 2).tobytes()
        path.write_bytes(raw)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns - 10**12))
    with pytest.raises(UserError, match="--overwrite replaces it"):
        merge.merge(older, out=tmp_path / "out", grid=0.5, shard_size=1)


@pytest.mark.parametrize("out", ["helpful", "models", "models/../models/p", "link", "."])
@pytest.mark.parametrize("role", ["policy", "base"])
def test_an_output_that_is_or_holds_a_policy_is_refused_even_to_overwrite(
    tmp_path, monkeypatch, out, role
):
    monkeypatch.chdir(tmp_path)
    helpful, harmless = small_policies(tmp_path)
    held = tmp_path / "models" / "p"
    shutil.copytree(harmless, held)
    (tmp_path / "link").symlink_to(held)
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="is, or holds, the policy"):
        if role == "policy":
            merge.merge([helpful, held], weights=[(0.3, 0.7)], out=Path(out), overwrite=True)
        else:
            merge.merge(
                [helpful, harmless], weights=[(0.3, 0.6)], base=held, out=Path(out), overwrite=True
            )
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("out", ["helpful", "harmless", "."])
def test_an_export_over_what_it_is_made_of_is_refused_even_to_overwrite(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    checkpoint, model = small_policies(tmp_path)
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="is, or holds"):
        export(checkpoint, model=model, out=Path(out), overwrite=True)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("kind", ["thesis", "policy"])
def test_what_is_in_the_way_of_the_work_folder_is_left_alone(small, tmp_path, kind):
    work = tmp_path / "out.partial"
    if kind == "policy":
        shutil.copytree(tmp_path / "harmless", work)
    else:
        work.mkdir()
        (work / "thesis.txt").write_text("years of work")
    before = files_of(work)
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is in the way and not of a merge"):
            small(overwrite=overwrite)
        assert {path: raw for path, raw in files_of(work).items() if "lock" not in path} == before


@pytest.mark.parametrize("name", [".fuse_hidden0000035b00000008", ".nfs000000000000001"])
def test_what_a_network_file_system_keeps_of_a_removed_file_is_not_in_the_way(
    small, tmp_path, name
):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / name).touch()
    assert small().finished


@pytest.mark.parametrize("loss", ["removed", "cut", "folder"])
def test_work_that_was_lost_is_said_and_not_published_as_zeros(small, alone, tmp_path, loss):
    small(rank=0, world_size=2)
    soup = tmp_path / "out.partial" / "soups" / "soup_0.50_0.50"
    victim = sorted(soup.glob("*.safetensors"))[0]
    if loss == "removed":
        victim.unlink()
    elif loss == "cut":
        os.truncate(victim, 100)
    else:
        shutil.rmtree(soup)
    for ranks in ({"rank": 1, "world_size": 2}, {}):
        with pytest.raises(UserError, match="is missing or truncated.*; remove"):
            small(**ranks)
    assert not (tmp_path / "out" / "soup_0.50_0.50").exists()
    shutil.rmtree(tmp_path / "out.partial")
    small()
    assert files_of(tmp_path / "out") == alone


def test_a_started_merge_goes_on_only_as_the_same_merge(small, alone, tmp_path):
    small(rank=0, world_size=2)
    others = [
        {"dtype": "fp32"},
        {"shard_size": 1000},
        {"grid": 0.25},
        {"grid": None, "weights": [(0.5, 0.5), (1, 0)]},
    ]
    for other in others:
        with pytest.raises(UserError, match="a started merge of other policies, weights or opt"):
            small(**other)
    assert small(memory=300 << 20).chunks_kept == 5  # of rank 0 of 2
    assert files_of(tmp_path / "out") == alone


def test_a_damaged_work_folder_is_a_line(small, tmp_path):
    for name in ("merge.json", "rank-00000-of-00002.journal"):
        small(rank=0, world_size=2)
        (tmp_path / "out.partial" / name).write_text("[1,\n")
        with pytest.raises(UserError, match=f"{name}: is damaged .*; remove"):
            small(rank=0, world_size=2)
        shutil.rmtree(tmp_path / "out.partial")


def test_nan_is_found_before_anything_is_published_and_allowed_the_run_goes_on(tmp_path, caplog):
    tensors = {f"w{i}": ("F32", np.full(5, i, "<f4")) for i in range(4)}
    bad = tensors | {"w3": ("F32", np.array([1, 2, np.nan, 4, np.inf], "<f4"))}
    policies = [
        write_policy(tmp_path / name, content, shard_size=1)
        for name, content in (("p", tensors), ("q", bad))
    ]
    options = {"weights": [(0.5, 0.5)], "shard_size": 1, "out": tmp_path / "out"}
    with pytest.raises(UserError, match="policy q: 'w3' holds NaN or infinity; its training has"):
        merge.merge(policies, **options)
    assert not (tmp_path / "out").exists()
    assert merge.merge(policies, **options, allow_nonfinite=True).chunks_kept == 3
    assert "policy q: 'w3' holds NaN or infinity" in caplog.text
    found = np.frombuffer(read_all(tmp_path / "out")["w3"], "<f4")
    assert np.array_equal(found, [2, 2.5, np.nan, 3.5, np.inf], equal_nan=True)
    verify_directory(tmp_path / "out")
