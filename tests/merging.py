"""Policies on disk, and `vcsoup` as a process, for the tests of merging."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np

from vcsoup_dist.checkpoints.layout import read_layout
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.writer import ShardFile, plan_shards, write_index


def write_policy(directory: Path, tensors, shard_size=10**9, config=None, tokenizer=None) -> Path:
    """tensors: name -> (dtype, array)"""
    directory.mkdir(parents=True)
    metas = [(name, dtype, array.shape) for name, (dtype, array) in tensors.items()]
    shards = plan_shards(metas, shard_size)
    for shard in shards:
        with ShardFile.create(directory, shard) as file:
            for name, _, _ in shard.tensors:
                file.write(name, 0, tensors[name][1].tobytes())
    write_index(directory, shards)
    (directory / "config.json").write_text(json.dumps(config or {"hidden_size": 8}))
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer or {"model": {"a": 0}}))
    return directory


def bf16(rng, *shape):
    return (rng.standard_normal(shape).astype("<f4").view("<u4") >> 16).astype("<u2")


def read_all(directory: Path) -> dict[str, bytes]:
    """The tensors of a model directory."""
    layout = read_layout(directory)
    with CheckpointReader(layout) as reader:
        found = {}
        for name, spec in layout.items():
            buffer = np.empty(spec.nbytes, np.uint8)
            reader.read_into(name, 0, buffer)
            found[name] = buffer.tobytes()
    return found


def files_of(directory: Path) -> dict[str, bytes]:
    """All files below a directory."""
    return {
        str(file.relative_to(directory)): file.read_bytes()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def forget(file: Path) -> None:
    """Let the page cache lose a file, where the file system is not made of it."""
    with open(file, "rb+") as opened:
        os.fsync(opened)
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def vcsoup(*arguments: object, folder: Path, code: int = 0) -> str:
    """Run the command in `folder`; what it printed. A refusal must end with a line of ours."""
    said = folder.with_name(f"{folder.name}-said-{os.getpid()}")  # `folder` is left as it is
    server = _commands()
    server.stdin.write(json.dumps([str(folder), str(said), list(map(str, arguments))]) + "\n")
    server.stdin.flush()
    returned = int(server.stdout.readline())
    printed = said.read_text(errors="surrogateescape")
    said.unlink()
    assert returned == code, printed
    assert "Traceback" not in printed
    if code == 2:
        assert printed.splitlines()[-1].startswith("vcsoup: "), printed
    return printed


# Imports once, and then forks a process for every command.
COMMANDS = """
import json, os, sys, traceback
import vcsoup_dist.checkpoints.pickled, vcsoup_dist.souping.export, vcsoup_dist.souping.merge
import vcsoup_dist.pipeline.run, vcsoup_dist.recipe.load, vcsoup_dist.souping.stage
import rich.progress, typer._adapters, yaml
from vcsoup_dist.cli.main import main

for line in sys.stdin:
    folder, said, arguments = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        for stream in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.argv[1:] = arguments
        code = 0
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@cache
def _commands() -> subprocess.Popen:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", COMMANDS], **streams)
