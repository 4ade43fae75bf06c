"""Products are published whole, by one writer, and belong to their fingerprint."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Hashes, locate
from vcsoup_dist.processes import pids_with_open
from vcsoup_dist.recipe import Recipe
from vcsoup_dist.workspace import Product, Workspace

RECIPE = Recipe.model_validate(
    {
        "name": "x",
        "model": "m",
        "values": {"a": {"data": {"path": "a.jsonl"}, "reward": {"callable": "a:b"}}},
    }
)
BASE = Product("base", "read", {"rows": 3})
FULL = "base: cannot be written: No space .* make room"


def test_a_product_is_invisible_until_its_block_ends_well(tmp_path):
    workspace = Workspace.open(tmp_path / "run", RECIPE)
    with pytest.raises(RuntimeError), workspace.publishing(BASE) as draft:
        (draft.output / "half").write_text("half")
        raise RuntimeError
    assert not workspace.is_made(BASE)
    assert not workspace.folder(BASE).exists()
    with workspace.publishing(BASE) as draft:
        assert (draft.output / "half").read_text() == "half"  # kept to go on from
        assert not workspace.folder(BASE).exists()
    assert workspace.is_made(BASE)
    assert (workspace.folder(BASE) / "half").exists()


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ESTALE, errno.EIO])
def test_a_product_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, number):
    workspace = Workspace.open(tmp_path / "run", RECIPE)

    def fail(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(UserError, match=r"product\.json: .*" + os.strerror(number)) as caught:
        workspace.is_made(BASE)
    assert "remove" not in str(caught.value)


def test_a_disk_that_is_full_at_the_start_is_one_line(tmp_path, monkeypatch):
    workspace = Workspace.open(tmp_path / "run", RECIPE)

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("vcsoup_dist.workspace.write_atomically", fail)
    with pytest.raises(UserError, match=FULL), workspace.publishing(BASE):
        pass
    with pytest.raises(UserError, match=FULL), workspace.sharing([BASE]):
        pass


def test_what_a_killed_writer_left_beside_its_file_is_not_published(tmp_path):
    workspace = Workspace.open(tmp_path / "run", RECIPE)
    with workspace.publishing(BASE) as draft:
        (draft.output / ".shard-00000.parquet.4967").write_text("half")
        (draft.output / "shard-00000.parquet").write_text("whole")
    names = {path.name for path in workspace.folder(BASE).iterdir()}
    assert names == {"shard-00000.parquet", "product.json"}


def test_a_fingerprint_changes_with_the_recipe_and_with_an_input(tmp_path):
    child = Product("child", "score", {}, inputs=(BASE,))
    other_base = Product("base", "read", {"rows": 4})
    assert child.fingerprint != Product("child", "score", {}, inputs=(other_base,)).fingerprint
    assert child.fingerprint != Product("child", "score", {"x": 1}, inputs=(BASE,)).fingerprint
    assert child.fingerprint == Product("child", "score", {}, inputs=(BASE,)).fingerprint


def test_the_draft_of_another_recipe_is_not_gone_on_with(tmp_path):
    workspace = Workspace.open(tmp_path / "run", RECIPE)
    with pytest.raises(RuntimeError), workspace.publishing(BASE) as draft:
        (draft.output / "old").write_text("")
        raise RuntimeError
    changed = Product("base", "read", {"rows": 4})
    with workspace.publishing(changed) as draft:
        assert not (draft.output / "old").exists()


def test_a_changed_product_takes_the_old_ones_place(tmp_path):
    workspace = Workspace.open(tmp_path / "run", RECIPE)
    changed = Product("base", "read", {"rows": 4})
    for product, name in ((BASE, "old"), (changed, "new")):
        with workspace.publishing(product) as draft:
            (draft.output / name).write_text("")
    assert sorted(path.name for path in workspace.folder(BASE).iterdir()) == ["new", "product.json"]
    assert workspace.is_made(changed) and not workspace.is_made(BASE)


HOLD = """
import sys
from pathlib import Path
from vcsoup_dist.locks import share_until_exit
from vcsoup_dist.workspace import Workspace, Product
workspace = Workspace(Path(sys.argv[1]))
if sys.argv[2] == "worker":
    share_until_exit(workspace.root / "locks" / "base.workers")
    print("held", flush=True); sys.stdin.read()
with workspace.publishing(Product("base", "read", {"rows": 3})):
    print("held", flush=True); sys.stdin.read()
"""


def _holder(root: Path, kind: str) -> subprocess.Popen[bytes]:
    """Holds until its standard input is closed."""
    command = [sys.executable, "-c", HOLD, str(root), kind]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


@pytest.mark.processes
def test_a_second_writer_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    workspace = Workspace.open(tmp_path / "run", RECIPE)
    holder = _holder(workspace.root, "writer")
    with (
        pytest.raises(
            UserError, match=f"base is being made by another process .pid {holder.pid} on"
        ),
        workspace.publishing(BASE),
    ):
        raise AssertionError("two writers")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with workspace.publishing(BASE):
        pass
    assert workspace.is_made(BASE)


@pytest.mark.processes
def test_a_writer_waits_for_the_workers_of_a_killed_one(tmp_path, monkeypatch):
    workspace = Workspace.open(tmp_path / "run", RECIPE)
    with workspace.publishing(BASE):
        pass
    worker = _holder(workspace.root, "worker")
    monkeypatch.setattr("vcsoup_dist.workspace.WORKERS_TIMEOUT", 0.3)
    message = f"ranks or actors of a former run .*pid {worker.pid}.; end them first"
    with pytest.raises(UserError, match=message), workspace.publishing(BASE):
        raise AssertionError("wrote beside a living worker")
    worker.kill()
    worker.wait()
    with workspace.publishing(BASE):
        pass


@pytest.mark.processes
def test_who_waits_for_a_writer_finds_its_product_and_leaves_it(tmp_path):
    workspace = Workspace.open(tmp_path / "run", RECIPE)
    with _holder(workspace.root, "writer") as other:
        assert workspace.is_being_made("base")
        assert other.stdin is not None
        threading.Timer(0.2, other.stdin.close).start()
        with workspace.publishing(BASE, wait=True) as draft:
            assert workspace.is_made(BASE)
            (draft.output / "twice").write_text("")
    assert not workspace.is_being_made("base")
    assert [path.name for path in workspace.folder(BASE).iterdir()] == ["product.json"]


def test_the_run_directory_of_another_recipe_is_refused(tmp_path):
    Workspace.open(tmp_path / "run", RECIPE)
    with pytest.raises(UserError, match="belongs to the recipe `x`, not to `y`"):
        Workspace.open(tmp_path / "run", RECIPE.model_copy(update={"name": "y"}))


def test_a_folder_with_other_things_is_no_run_directory(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not empty and not a run directory"):
        Workspace.open(tmp_path, RECIPE)


def test_a_run_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot (read|write) the run directory"):
        Workspace.open(tmp_path / "file" / "run", RECIPE)


def test_hashes_follow_content_and_are_remembered(tmp_path):
    file, cache = tmp_path / "model.bin", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    hashes = Hashes(cache)
    first = hashes.of(file)
    hashes.save()
    assert Hashes(cache).known == hashes.known
    time.sleep(0.01)
    file.write_bytes(b"two")
    assert Hashes(cache).of(file) != first
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "model.bin").write_bytes(b"one")
    assert Hashes(Path("no-cache")).of(copy) == {"model.bin": first}


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[1]", b"null", b'{"a": 1}', b"[" * 100_000]
)
def test_damaged_hashes_are_made_anew_with_a_line(tmp_path, content, caplog):
    file, cache = tmp_path / "model.bin", tmp_path / "hashes.json"
    file.write_bytes(b"one")
    right = Hashes(tmp_path / "none").of(file)
    cache.write_bytes(content)
    hashes = Hashes(cache)
    assert hashes.of(file) == right
    assert "hashes.json: damaged" in caplog.text
    hashes.save()
    caplog.clear()
    assert Hashes(cache).known == hashes.known and not caplog.records


def test_a_model_in_the_hub_cache_is_found_by_its_commit_without_a_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0123abcd")
    located = locate("some/model", None, None, "model", "model", Hashes(Path("no-cache")))
    assert (located.source, located.revision) == ("some/model", "0123abcd")
    with pytest.raises(UserError, match="values.a.reward: `some/other` is not a local path"):
        locate("some/other", None, None, "model", "values.a.reward", Hashes(Path("no-cache")))


def test_a_file_that_is_not_there_is_named_by_its_key():
    with pytest.raises(UserError, match="values.a.data.path: no such file or folder: data/a.jsonl"):
        locate(
            "data/a.jsonl", None, None, "dataset", "values.a.data.path", Hashes(Path("no-cache"))
        )


FORK = """
import os, sys, time
from pathlib import Path
from vcsoup_dist.locks import share_until_exit
share_until_exit(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.mark.processes
def test_a_child_that_a_worker_forks_neither_holds_the_product_nor_outlives_it(tmp_path):
    workspace = Workspace.open(tmp_path / "run", RECIPE)
    with workspace.publishing(BASE) as draft:
        lock = draft.workers_lock
    worker = subprocess.Popen([sys.executable, "-c", FORK, str(lock)], stdout=subprocess.PIPE)
    assert worker.stdout is not None
    child = int(worker.stdout.readline())
    held = pids_with_open(lock)
    worker.kill()
    worker.wait()
    assert held == [worker.pid]
    assert worker.stdout.read() == b""  # the end of the pipe, which the child has too
    assert not Path(f"/proc/{child}/fd/0").exists()


def covering(*names: str) -> Product:
    """A product that must have something of each of them."""
    of = {f"all of {name}": Product(name, "filter", {"set": name}) for name in names}
    return Product("base", "read", {"rows": 3}, covers=of)


def test_what_a_product_covers_is_not_in_its_fingerprint_and_extends_it(tmp_path):
    workspace = Workspace.open(tmp_path / "run", RECIPE)
    small, large = covering("a"), covering("a", "b")
    assert small.fingerprint == large.fingerprint == BASE.fingerprint
    with workspace.publishing(small) as draft:
        (draft.output / "part-0").mkdir()
        (draft.output / "part-0" / "rows").write_text("a")
    assert workspace.is_made(small) and workspace.is_made(BASE)
    assert workspace.is_begun(large) and not workspace.is_made(large)
    assert workspace.uncovered(large) == ["all of b"]
    inode = (workspace.folder(BASE) / "part-0" / "rows").stat().st_ino
    with workspace.publishing(large) as draft:
        assert list(draft.output.iterdir()) == []
        (draft.output / "part-1").mkdir()
    assert workspace.is_made(large) and workspace.is_made(small)
    assert sorted(path.name for path in workspace.folder(BASE).iterdir()) == [
        "part-0", "part-1", "product.json",
    ]  # fmt: skip
    assert (workspace.folder(BASE) / "part-0" / "rows").stat().st_ino == inode
    assert not (workspace.root / "work" / "base").exists()
    with workspace.publishing(covering("c")):  # what it has of others stays
        pass
    assert workspace.is_made(covering("a", "b", "c"))


def test_a_product_that_was_killed_while_it_was_extended_is_extended_again(tmp_path, monkeypatch):
    workspace = Workspace.open(tmp_path / "run", RECIPE)
    with workspace.publishing(covering("a")) as draft:
        (draft.output / "part-0").write_text("0")
    large = covering("a", "b")
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name in ("part-2", "product.json"):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        with workspace.publishing(large) as draft:
            (draft.output / "part-1").write_text("1")
            (draft.output / "part-2").write_text("2")
    assert workspace.is_made(covering("a")) and not workspace.is_made(large)
    assert (workspace.folder(BASE) / "part-1").read_text() == "1"
    with workspace.publishing(large) as draft:
        assert [each.name for each in draft.output.glob("part-*")] == ["part-2"]
    assert workspace.is_made(large)
    assert sorted(path.name for path in workspace.folder(BASE).iterdir()) == [
        "part-0", "part-1", "part-2", "product.json",
    ]  # fmt: skip


def test_an_input_that_another_host_has_just_published_is_waited_for(tmp_path, monkeypatch):
    workspace = Workspace.open(tmp_path / "run", RECIPE)
    with workspace.publishing(BASE):
        pass
    away = tmp_path / "away"
    workspace.folder(BASE).rename(away)
    looked = []
    monkeypatch.setattr("vcsoup_dist.workspace.LATE", 0.3)
    with pytest.raises(UserError, match="base is not made yet"):
        workspace.need(BASE)  # on a file system of this host alone, at once

    def appear(root: Path, names: list[str]) -> None:
        looked.append(names)
        if len(looked) == 2:
            away.rename(workspace.folder(BASE))

    monkeypatch.setattr("vcsoup_dist.workspace.may_be_shared", lambda path: True)
    monkeypatch.setattr("vcsoup_dist.workspace.look_afresh", appear)
    assert workspace.need(BASE) == workspace.folder(BASE)
    assert looked == [["base"]] * 2
