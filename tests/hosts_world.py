"""Hosts of tools/hosts.sh, and a small recipe in the folder that they share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "hosts.sh"
SHARED = "/mnt/shared"
SLURM = shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}

RECIPE_FILE = "world/recipe.yaml"
RECIPE = """
name: hosts
model: base
values:
  long:
    data: {path: pairs.jsonl, heldout_share: 0.2}
    reward: {callable: "judge.py:long"}
  polite:
    data: {pairs_of: [long]}
    reward: {callable: "judge.py:polite"}
scoring: {actors: 3, cpus_per_actor: 1, placement: spread, shard_pairs: 16}
training:
  {dtype: fp32, learning_rate: 1.0e-3, pairs_per_step: 6, steps: 40, max_length: 64,
   checkpoint_every: 4, evaluate_every: 40, gradient_checkpointing: false}
soup: {grid: 0.5}
evaluation:
  {actors: 3, cpus_per_actor: 2, prompts: 4, max_prompt_tokens: 64, max_new_tokens: 4,
   dtype: fp32, bootstrap: 100}
launch:
  ranks: 2
  slurm: {score: {nodes: 3}, reference: {nodes: 2}, train: {nodes: 2}, evaluate: {nodes: 3}}
"""
JUDGE = """
import os
import time
from pathlib import Path

HERE = Path(__file__).parent


def wait_here():
    if (HERE / "slow").exists():
        (HERE / "at-work" / f"{os.uname().nodename}-{os.getpid()}").touch()
        time.sleep(1)


def long(prompt, response):
    wait_here()
    return float(len(response.split()))


def polite(prompt, response):
    return float(response.count("e") - response.count("o"))
"""


@contextmanager
def hosts_up(
    folder: Path, count: int, kind: str, *, ping_timeout: int = 10, disk: str = "3G"
) -> Iterator[Hosts]:
    """Hosts with a shared folder of GlusterFS or sshfs; skips the test where there can be none.

    GlusterFS notices a lost link after `ping_timeout` seconds.
    """
    spaces = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "true"]
    if subprocess.run(spaces, capture_output=True).returncode or not Path("/dev/fuse").exists():
        pytest.skip("hosts need root with the right to make namespaces, and /dev/fuse")
    needed = ["ip", *(("glusterd", "glusterfs") if kind == "gluster" else ("sshfs", "sshd"))]
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [each for each in needed if not shutil.which(each, path=path)]
    if missing and not shutil.which("apt-get"):
        pytest.skip(f"hosts need {', '.join(missing)}")
    hosts = Hosts(folder, ping_timeout, disk)
    try:
        hosts.do("up", count, kind)
        yield hosts
    finally:
        hosts.do("down")


class Hosts:
    """Some hosts, and the folder in which tools/hosts.sh keeps them."""

    def __init__(self, folder: Path, ping_timeout: int, disk: str) -> None:
        self.environment = {
            **os.environ,
            **ENVIRONMENT,
            "HOSTS_DIR": str(folder),
            "HOSTS_PING_TIMEOUT": str(ping_timeout),
            "HOSTS_DISK": disk,
        }

    def do(self, *command: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of tools/hosts.sh; fails with what it said."""
        done = subprocess.run(
            [SCRIPT, *map(str, command)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0 or not check, done.stdout
        return done

    def run(self, host: str, *command: object, code: int = 0, **variables: str) -> str:
        """Run a command in a host, in the shared folder; what it printed."""
        assignments = [f"{name}={value}" for name, value in variables.items()]
        done = self.do("exec", host, "env", *assignments, *command, check=False)
        assert done.returncode == code, done.stdout
        assert "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def start(self, host: str, *command: object, **variables: str) -> subprocess.Popen[str]:
        """Start a command in a host, in the shared folder."""
        return subprocess.Popen(
            [SCRIPT, "exec", host, "env", *map(str, command)],
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def programs(self) -> Path:
        """Where `vcsoup` is, in every host."""
        return ROOT / ".venv" / "bin"

    def there(self, host: str, pattern: str) -> bool:
        """Whether a host sees a path that matches."""
        return self.do("exec", host, "sh", "-c", f"ls -d {pattern}", check=False).returncode == 0

    def sees_files(self, host: str) -> bool:
        """Whether the shared folder answers there."""
        return self.do("exec", host, "ls", SHARED, check=False).returncode == 0

    def sums(self, host: str, run: str, folders: Sequence[str]) -> str:
        """Hashes of all files of some folders of a run directory, as a host sees them."""
        command = f"cd {run} && find {' '.join(folders)} -type f | sort | xargs sha256sum"
        return self.run(host, "sh", "-c", command)


def write_world(folder: Path) -> None:
    """The recipe, its model, its pairs and its rewards.

    A file `slow` beside them makes a reward take a second, and say in `at-work` on which host.
    """
    from conftest import save_tiny_model, write_pairs

    folder.mkdir(parents=True, exist_ok=True)
    save_tiny_model(folder / "base")
    write_pairs(folder / "pairs.jsonl", 60)
    (folder / "judge.py").write_text(JUDGE)
    (folder / "recipe.yaml").write_text(RECIPE)


def write_policies(folder: Path) -> None:
    """Two policies, `one` and `other`, of 34 MB each, whose merge takes some seconds."""
    import numpy as np
    from conftest import write_model_files
    from safetensors.numpy import load_file, save_file

    for seed, name in enumerate(("one", "other")):
        write_model_files(folder / name)
        file = folder / name / "model.safetensors"
        draw = np.random.default_rng(seed)
        more = {
            f"model.more.{i}.weight": draw.standard_normal((1024, 1024), dtype=np.float32)
            for i in range(8)
        }
        save_file(load_file(file) | more, file, {"format": "pt"})


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
