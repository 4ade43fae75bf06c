"""A recipe whose policies are there, as if trained, for the tests of its soups."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import yaml
from command import vcsoup
from conftest import write_pairs
from merging import bf16, files_of, write_policy
from paused_merge import PAUSING, paused

from vcsoup_dist.identity import Hashes
from vcsoup_dist.pipeline.graph import make_plan
from vcsoup_dist.recipe.load import load_recipe
from vcsoup_dist.workspace import Workspace

RECIPE = {
    "name": "x",
    "model": "base",
    "values": {
        "long": {
            "data": {"path": "pairs.jsonl", "heldout_share": 0.2},
            "reward": {"columns": ["long_chosen", "long_rejected"]},
            "judge": {"callable": "judge.py:never_called"},
        },
        "short": {
            "data": {"pairs_of": ["long"]},
            "reward": {"columns": ["short_chosen", "short_rejected"]},
            "judge": {"callable": "judge.py:never_called"},
        },
    },
    "methods": ["vc_soup", "rewarded_soup"],
    "soup": {"weights": [[0.3, 0.7], [1, 0]], "shard_size": 9000},
}
FILES = 6  # of weights in each soup


def write_policies(drafts: list[Path], seed: int = 0) -> None:
    """Six tensors, of which each is a file of a soup."""
    for place, draft in enumerate(drafts):
        rng = np.random.default_rng([seed, place])
        tensors = {f"layer.{i}": ("BF16", bf16(rng, 600, 7)) for i in range(FILES)}
        draft.rmdir()
        write_policy(draft, tensors)


class SoupWorld:
    """A folder with recipe.yaml; its run directories have policies and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_policy(folder / "base", {"layer": ("BF16", bf16(np.random.default_rng(9), 8))})
        write_pairs(folder / "pairs.jsonl", 20)
        (folder / "judge.py").write_text("def never_called(prompt, response):\n    return 0.0\n")
        self.recipe()
        recipe = load_recipe(folder / "recipe.yaml")
        workspace = Workspace.open(folder / "trained", recipe)
        plan = make_plan(recipe, Hashes(folder / "hashes.json"))
        for seed, product in enumerate(each for each in plan if each.stage == "train"):
            with workspace.publishing(product) as draft:
                write_policies([draft.output], seed)

    def recipe(self, **soup: object) -> None:
        """Write recipe.yaml with a changed section `soup`."""
        changed = RECIPE | {"soup": RECIPE["soup"] | soup}
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(changed))

    def run_directory(self, name: str) -> Path:
        return Path(shutil.copytree(self.folder / "trained", self.folder / name))

    def merge(self, root: Path, *arguments: object, code: int = 0) -> str:
        """`vcsoup merge recipe.yaml` in a process; what it said."""
        command = ["merge", "recipe.yaml", "-d", root, *arguments]
        return vcsoup(*command, folder=self.folder, code=code)

    def paused(self, root: Path, *arguments: object) -> subprocess.Popen[str]:
        """The same, stopped by SIGSTOP after its first chunk."""
        command = ["merge", "recipe.yaml", "-d", root, *arguments]
        return paused(*command, folder=self.folder, driver=PAUSING.format(entries=1))


def soups(root: Path) -> dict[str, bytes]:
    """All files of the finished soups."""
    return files_of(root / "soups")
