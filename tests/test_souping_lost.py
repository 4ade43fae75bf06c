"""Others beside a running merge: nothing of theirs is deleted, nothing lost is called done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command import vcsoup
from merging import bf16, files_of, write_policy

from vcsoup_dist.files import exchange
from vcsoup_dist.souping.verify import verify_directory

# The command, which stops itself once at a moment: after its first entry in the journal, before it
# publishes, or before the soup takes its place.
STOPPING = """
import os, signal, sys
from vcsoup_dist.cli.main import main
from vcsoup_dist.souping.output import publish, state, write
from vcsoup_dist.souping.output.journal import Journal
write.SYNC_EVERY = 0.0
owner, name, after = {
    "writing": (Journal, "append", True),
    "publishing": (state, "publish", False),
    "renaming": (publish, "put_in_place", False),
}[sys.argv.pop(1)]
wrapped, stopped = getattr(owner, name), []
def stop():
    if not stopped:
        stopped.append(1)
        os.kill(os.getpid(), signal.SIGSTOP)
def stopping(*arguments, **options):
    if not after:
        stop()
    wrapped(*arguments, **options)
    stop()
setattr(owner, name, stopping)
main()
"""


@pytest.fixture
def place(tmp_path) -> Path:
    """Two policies of six files, p and q; another model, old; a folder that is no model, thesis."""
    for seed, name in enumerate(("p", "q", "old")):
        rng = np.random.default_rng(seed)
        tensors = {f"layer.{i}": ("BF16", bf16(rng, 600, 7)) for i in range(6)}
        write_policy(tmp_path / name, tensors, shard_size=9000)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    return tmp_path


def disturbed(place: Path, moment: str, disturb, *arguments: object) -> tuple[int, str]:
    """Exit code and output of `vcsoup` in `place`, disturbed at a moment."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING, moment, *map(str, arguments)],
        cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert state is not None and state.si_status == signal.SIGSTOP, process.communicate()[0]
    disturb()
    process.send_signal(signal.SIGCONT)
    said = process.communicate()[0]
    assert "Traceback" not in said
    return process.returncode, said.splitlines()[-1]


MERGE = ("merge", "p", "q", "--shard-size", "9000", "--out", "out")
ONE = (*MERGE, "--weights", "0.3,0.7")
SEVERAL = (*MERGE, "--grid", "0.5")
SOUP = "out/soup_0.50_0.50"
EXPORT = ("export", "p", "--shard-size", "9000", "--out", "out")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("moment", "arguments", "target", "what"),
    [
        ("writing", ONE, "out", "thesis"), ("publishing", ONE, "out", "old"),
        ("renaming", ONE, "out", "old"), ("renaming", ONE, "out", "file"),
        ("renaming", ONE, "out", "link"), ("writing", SEVERAL, SOUP, "thesis"),
        ("renaming", SEVERAL, SOUP, "old"), ("renaming", SEVERAL, "out", "file"),
        ("writing", EXPORT, "out", "old"), ("renaming", EXPORT, "out", "old"),
        ("publishing", (*ONE, "--overwrite"), "out", "thesis"),
        ("renaming", (*ONE, "--overwrite"), "out", "thesis"),
        ("renaming", (*ONE, "--overwrite"), "out", "file"),
        ("renaming", (*EXPORT, "--overwrite"), "out", "thesis"),
    ],
)  # fmt: skip
def test_what_somebody_puts_in_the_place_of_a_soup_is_left_alone(
    place, moment, arguments, target, what
):
    target = place / target

    def disturb() -> None:
        if what == "file":
            target.write_text("mine")
        elif what == "link":
            target.symlink_to("thesis")
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copytree(place / what, target)

    code, said = disturbed(place, moment, disturb, *arguments)
    assert code == 2 and said.startswith(f"vcsoup: {target}: "), said
    if what == "file":
        assert target.read_text() == "mine"
    else:
        assert files_of(target) == files_of(place / ("thesis" if what == "link" else what))
    if what == "link":
        assert os.readlink(target) == "thesis"
    target.rename(place / "away")
    said = vcsoup(*arguments, folder=place)
    assert "0.000 GB written" in said and not (place / "out.partial").exists()
    verify_directory(place / SOUP if arguments == SEVERAL else target)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_an_old_soup_is_replaced_whole_where_that_was_asked(place, monkeypatch, can_exchange):
    from vcsoup_dist.souping import merge
    from vcsoup_dist.souping.output import targets

    if not can_exchange:
        monkeypatch.setattr(targets, "exchange", lambda one, other: False)
    shutil.copytree(place / "old", place / "out")
    options = {"weights": [(0.3, 0.7)], "out": place / "out"}
    merge.merge([place / "p", place / "q"], **options, overwrite=True)
    verify_directory(place / "out")
    assert not (place / "out.partial").exists()


def test_two_folders_change_places_at_once(place):
    before = {name: files_of(place / name) for name in ("p", "thesis")}
    assert exchange(place / "p", place / "thesis")
    assert files_of(place / "thesis") == before["p"] and files_of(place / "p") == before["thesis"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        exchange(place / "p", place / "nowhere")


def emptied(work: Path) -> None:
    shutil.rmtree(work)
    work.mkdir()


def replaced(work: Path) -> None:
    """By a copy of what was there a moment ago, less the last entry of the journal."""
    shutil.copytree(work, work.with_name("copy"))
    shutil.rmtree(work)
    work.with_name("copy").rename(work)
    (journal,) = work.glob("*.journal")
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(True)[:-1]))


def without_weights(work: Path) -> None:
    shutil.rmtree(work / "soups")


def by_a_link(work: Path) -> None:
    shutil.rmtree(work)
    work.symlink_to("thesis")


LOSSES = {
    "removed": shutil.rmtree, "emptied": emptied, "replaced": replaced, "weights": without_weights,
    "moved": lambda work: work.rename(work.with_name("moved")), "link": by_a_link,
    "file": lambda work: (shutil.rmtree(work), work.write_text("mine")),
}  # fmt: skip
RANK = (*ONE, "--rank", "1", "--world-size", "2")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("moment", "loss", "arguments"),
    [
        *(("writing", loss, ONE) for loss in LOSSES),
        *(("writing", loss, RANK) for loss in ("removed", "replaced", "weights")),
        *(("publishing", loss, EXPORT) for loss in ("removed", "emptied")),
    ],
)
def test_a_work_folder_that_is_lost_is_an_error(place, moment, loss, arguments):
    work = place / "out.partial"
    code, said = disturbed(place, moment, lambda: LOSSES[loss](work), *arguments)
    assert code == 2 and said.startswith(f"vcsoup: {work}"), said
    assert not (place / "out").exists()
    assert (place / "thesis" / "thesis.txt").exists()


@pytest.mark.processes
def test_a_policy_that_is_written_while_it_is_merged_is_named(place):
    victim = place / "q" / "model-00004-of-00006.safetensors"

    def rewrite() -> None:
        raw = bytearray(victim.read_bytes())
        raw[-1] ^= 1
        victim.write_bytes(raw)

    def replace() -> None:
        state = victim.stat()
        rewrite()
        copy = victim.with_name("copy")
        shutil.copy(victim, copy)
        os.utime(copy, ns=(state.st_atime_ns, state.st_mtime_ns))
        copy.rename(victim)

    def rewrite_with_nan() -> None:
        raw = bytearray(victim.read_bytes())
        raw[-800:] = b"\xff" * 800
        victim.write_bytes(raw)

    for disturb in (rewrite, replace, rewrite_with_nan, victim.unlink):
        before = files_of(place / "q")
        code, said = disturbed(place, "writing", disturb, *ONE)
        assert code == 2 and said.startswith(f"vcsoup: {victim.relative_to(place)}: "), said
        assert "changed while" in said or "cannot be read: No such file" in said
        assert not (place / "out").exists()
        shutil.rmtree(place / "out.partial")
        for name, raw in before.items():
            (place / "q" / name).write_bytes(raw)


@pytest.mark.processes
def test_a_policy_whose_mode_alone_changes_while_it_is_merged_is_merged(place):
    victim = place / "q" / "model-00004-of-00006.safetensors"
    assert disturbed(place, "writing", lambda: victim.chmod(0o600), *ONE)[0] == 0
    verify_directory(place / "out")
