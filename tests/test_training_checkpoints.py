"""Checkpoints of real DeepSpeed ranks (gloo): two write, three resume, one resumes from those."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from checkpoint_rank import Scenario, start_engine
from conftest import save_tiny_model
from fork_server import call_forked
from safetensors.torch import load_file

from vcsoup_dist.checkpoints.deepspeed_files import COMPLETE
from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.ranks import run_ranks
from vcsoup_dist.training.checkpoint import (
    best_checkpoint,
    find_checkpoint,
    is_full_disk,
    load,
    newest_checkpoint,
)
from vcsoup_dist.training.export import export_policy
from vcsoup_dist.training.universal_checkpoint import convert

pytestmark = [pytest.mark.models, pytest.mark.ranks]

SMALL_GROUPS = {"sub_group_size": 3000, "stage3_param_persistence_threshold": 0}
OF_TWO = ("zero3-groups", "zero2")
HELDOUT = {"1": 2.0, "2": 1.0, "3": 3.0, "5": None, "6": 0.5, "8": 0.7, "9": 0.6}
FLAVOURS = {
    "zero3-groups": {"model": "untied", "zero": SMALL_GROUPS, "kept": 2, "best": True},
    "zero3-offload": {"model": "tied", "config": "zero3_offload", "bf16": True, "frozen": True},
    "zero2": {"model": "tied", "config": "zero2", "frozen": True, "best": True},
    "zero2-bf16": {"model": "untied", "config": "zero2", "bf16": True, "frozen": True},
    # The last, since a launch ends where it dies.
    "zero3-killed": {"model": "tied"},
}
KILLED = "zero3-killed"
IN_MID_SAVE = (0, "open", f"step-00000003.partial/.{COMPLETE}", 0)
IN_MID_CONVERSION = (1, "os.rename", ".universal.partial/zero", 5)


@dataclasses.dataclass
class World:
    """The folders of all flavours, and of the same undisturbed by one rank."""

    root: Path
    errors: list[str] = dataclasses.field(default_factory=list)
    """What each launch ended with."""
    lay: dict[tuple[str, int], list[str]] = dataclasses.field(default_factory=dict)
    """Flavour, ranks of a launch -> the checkpoints that it left."""

    def launch(self, ranks: int, until: int, die: object = None, undisturbed: bool = False) -> None:
        scenarios = [
            Scenario(str(self.root / name), until=until, heldout=HELDOUT, **FLAVOURS[name])
            for name in FLAVOURS
        ]
        scenarios[-1].die = die
        if undisturbed:
            scenarios += [
                dataclasses.replace(each, folder=f"{each.folder}-undisturbed", heldout={})
                for each in scenarios
            ]
        for each in scenarios:
            each.model = str(self.root / each.model)
        job = self.root / f"by-{ranks}.json"
        job.write_text(json.dumps([dataclasses.asdict(each) for each in scenarios]))
        try:
            call_forked(run_ranks, "checkpoint_rank", job, ranks, 1, self.root / "logs")
            self.errors.append("")
        except UserError as error:
            self.errors.append(str(error))
        for name in FLAVOURS:
            steps = (self.root / name).glob("step-*")
            self.lay[name, ranks] = sorted(each.name[5:].lstrip("0") for each in steps)

    def losses(self, name: str) -> dict[int, float]:
        lines = (self.root / name / "losses.jsonl").read_text().splitlines()
        return dict(map(json.loads, lines))

    def resumed(self, name: str) -> list[list[int]]:
        lines = (self.root / name / "resumed.jsonl").read_text().splitlines()
        return [[each["step"], each["from"], each["by"]] for each in map(json.loads, lines)]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    world = World(tmp_path_factory.mktemp("world"))
    save_tiny_model(world.root / "tied", tied=True)
    save_tiny_model(world.root / "untied")
    world.launch(2, 3, IN_MID_SAVE)
    # What a kill leaves between the marker and the rename.
    newest = world.root / "zero3-groups" / "step-00000003"
    newest.rename(newest.with_name(newest.name + ".partial"))
    for name in OF_TWO:
        shutil.copytree(world.root / name, world.root / "of-two" / name)
    world.launch(3, 6, IN_MID_CONVERSION)
    world.launch(1, 9, undisturbed=True)
    return world


@pytest.fixture(scope="module")
def alone():
    """This process as the one rank of a group."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        import deepspeed

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        patch.setenv("RANK", "0")
        patch.setenv("LOCAL_RANK", "0")
        patch.setenv("WORLD_SIZE", "1")
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
        yield
        dist.destroy_process_group()


def test_ranks_died_where_they_should_and_nowhere_else(world):
    assert [error.partition(";")[0] for error in world.errors] == [
        "rank 0 ended by signal 9",
        "rank 1 ended by signal 9",
        "",
    ]


@pytest.mark.parametrize("name", FLAVOURS)
def test_other_numbers_of_ranks_take_the_curve_of_an_undisturbed_one(world, name):
    # The ranks have compared Adam's moments and steps, to the bit.
    assert world.resumed(name) == ([[2, 2, 1]] if name == KILLED else [[3, 2, 3], [6, 3, 1]])
    losses, undisturbed = world.losses(name), world.losses(f"{name}-undisturbed")
    assert list(undisturbed) == list(range(9)) and undisturbed[8] < undisturbed[0] - 0.2
    exact = not FLAVOURS[name].get("bf16")
    assert losses == pytest.approx(undisturbed, abs=1e-4 if exact else 2e-2)


def test_a_killed_save_and_a_killed_conversion_are_done_again(world):
    assert world.lay[KILLED, 2] == ["2", "3.partial"]
    assert world.lay[KILLED, 3] == ["2", "2.universal.partial"]
    assert world.lay[KILLED, 1] == ["9"]


def test_the_newest_stay_and_the_best(world):
    assert [world.lay["zero3-offload", ranks] for ranks in (2, 3, 1)] == [["3"], ["6"], ["9"]]
    groups = [world.lay["zero3-groups", ranks] for ranks in (3, 1)]
    assert groups == [["5", "6"], ["6", "8", "9"]]
    zero2 = [world.lay["zero2", ranks] for ranks in (2, 3, 1)]
    assert zero2 == [["2", "3"], ["6"], ["6", "9"]]
    folder = world.root / "zero2"
    assert newest_checkpoint(folder).path == folder / "step-00000009"
    assert best_checkpoint(folder).path == folder / "step-00000006"
    assert best_checkpoint(world.root / "zero3-offload").path.name == "step-00000009"


@pytest.mark.parametrize("name", OF_TWO)
def test_a_conversion_is_deepspeeds_own(world, name, tmp_path, alone):
    from deepspeed.checkpoint import ds_to_universal

    folder = tmp_path / name
    shutil.copytree(world.root / "of-two" / name, folder)
    checkpoint = max(folder.glob("step-*"))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    convert(checkpoint, ours, 0, 1)
    ds_to_universal.main(
        Namespace(
            input_folder=str(checkpoint),
            output_folder=str(theirs),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
    # Of model states DeepSpeed reads the first rank's alone. Of what Adam does not know, frozen
    # and tied, it writes a lone fp32.pt that it never reads.
    found = {path.relative_to(ours) for path in ours.rglob("*.pt")}
    promised = {path.relative_to(theirs) for path in theirs.rglob("*.pt")}
    lone = {path for path in promised if path.with_name("exp_avg.pt") not in promised}
    assert found <= promised
    assert {path for path in promised - found if path.parts[0] == "zero"} <= lone
    assert len(found) > 30
    for path in sorted(found):
        one, other = (torch.load(root / path, weights_only=False) for root in (ours, theirs))
        if path.name == "optimizer_state.pt":
            assert one["param_groups"] == other["param_groups"]
        elif path.parts[0] == "zero":
            one, other = (each if isinstance(each, dict) else {"": each} for each in (one, other))
            assert one.keys() == other.keys()
            for key, value in one.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[key])), path


@pytest.mark.parametrize("ranks", [2, 3, 1])
@pytest.mark.parametrize("name", FLAVOURS)
def test_an_export_is_what_deepspeed_makes_of_the_checkpoint(world, name, ranks):
    folder, flavour = world.root / name, FLAVOURS[name]
    if name == KILLED and ranks > 1:
        assert not (folder / f"export-{ranks}").exists()
        return
    dtype = torch.bfloat16 if flavour.get("bf16") else torch.float32
    stored = load_file(folder / f"export-{ranks}" / "model.safetensors")
    expected = torch.load(folder / f"export-{ranks}.pt")
    assert torch.load(folder / "tensors.pt") == {k: tuple(v.shape) for k, v in stored.items()}
    tied = {"model.lm_head.weight"} if flavour["model"] == "tied" else set()
    assert {f"model.{key}" for key in stored} == expected.keys() - tied
    for key, tensor in stored.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, expected[f"model.{key}"].to(dtype)), key
    if flavour.get("frozen"):
        base = load_file(world.root / flavour["model"] / "model.safetensors")
        same = {key for key, tensor in stored.items() if torch.equal(tensor, base[key].to(dtype))}
        assert same == {"model.layers.0.mlp.up_proj.weight", "model.norm.weight"}


@pytest.fixture
def finished(world, tmp_path, alone) -> Path:
    """A copy of a folder whose checkpoints one rank wrote."""
    shutil.copytree(world.root / "zero2", tmp_path / "zero2")
    return tmp_path / "zero2"


WRONG = {
    "lacks 'lm_head.bias'": {"lm_head.bias": (25,)},
    "holds 'model.norm.weight', which the model lacks": {"model.norm.weight": None},
    r"'model.norm.weight' is \[32\] and not \[33\]": {"model.norm.weight": (33,)},
    r"'model.norm.weight' is \[32\] and not \[0\]": {"model.norm.weight": (0,)},
}


@pytest.mark.parametrize("message", WRONG)
def test_an_export_of_another_model_is_refused_before_anything_is_written(world, finished, message):
    tensors = torch.load(finished / "tensors.pt") | WRONG[message]
    expected = {name: shape for name, shape in tensors.items() if shape is not None}
    out = finished / "out"
    out.mkdir()
    with pytest.raises(UserError, match=message):
        export_policy(newest_checkpoint(finished).path, world.root / "tied", out, "fp32", expected)
    assert not any(out.iterdir())


def test_a_damaged_export_is_refused_and_rewritten(world, finished):
    checkpoint, auxiliary = newest_checkpoint(finished).path, world.root / "tied"
    expected = torch.load(finished / "tensors.pt")
    out = finished / "out"
    out.mkdir()

    def export() -> bytes:
        export_policy(checkpoint, auxiliary, out, "fp32", expected)
        return (out / "model.safetensors").read_bytes()

    whole = export()
    # What a kill leaves before the last file is moved, and a disk that has lost some of another.
    (finished / "export").mkdir()
    (out / "manifest.json").rename(finished / "export" / "manifest.json")
    os.truncate(out / "model.safetensors", 610)
    with pytest.raises(UserError, match="truncated"):
        export()
    assert export() == whole


def test_a_damaged_checkpoint_is_refused(finished):
    newest = newest_checkpoint(finished).path
    (states,) = newest.glob("*optim_states.pt")
    whole = states.read_bytes()
    os.truncate(states, len(whole) - 1)
    with pytest.raises(UserError, match="optim_states.pt: is missing, or not of its"):
        find_checkpoint(finished)
    (newest / COMPLETE).write_text("{}")
    with pytest.raises(UserError, match="COMPLETE: is damaged.* remove that folder"):
        find_checkpoint(finished)
    shutil.rmtree(newest)
    found = find_checkpoint(finished)
    assert found is not None and found.step == 6 and found.metrics["heldout_loss"] == 0.5


def test_what_deepspeed_cannot_load_is_refused_in_one_line(world, finished):
    scenario = Scenario(str(finished), str(world.root / "tied"), 9, {}, config="zero2", frozen=True)
    engine = start_engine(scenario, universal=False)
    of_another_stage = find_checkpoint(world.root / KILLED)
    with pytest.raises(UserError, match="under ZeRO-3 and cannot be resumed under ZeRO-2"):
        load(engine, of_another_stage)
    found = find_checkpoint(finished)
    (states,) = found.path.glob("*optim_states.pt")
    states.write_bytes(bytes(states.stat().st_size))
    with pytest.raises(UserError, match=r"step-00000009: cannot be loaded \(.*\); remove"):
        load(engine, found)


@pytest.mark.parametrize("name", OF_TWO)
def test_a_checkpoint_that_cannot_be_converted_is_refused(world, name, tmp_path, alone):
    shutil.copytree(max((world.root / "of-two" / name).glob("step-*")), tmp_path / "checkpoint")
    checkpoint = tmp_path / "checkpoint"
    (checkpoint / "offloaded_tensors").mkdir()
    with pytest.raises(UserError, match="is on NVMe.* set launch.ranks back"):
        convert(checkpoint, tmp_path / "out", 0, 1)
    (checkpoint / "offloaded_tensors").rmdir()
    max(checkpoint.glob("*optim_states.pt")).unlink()
    with pytest.raises(UserError, match="lacks the optimizer states of some ranks"):
        convert(checkpoint, tmp_path / "out", 0, 1)


def test_a_full_disk_is_seen_behind_what_torch_says_of_it():
    with pytest.raises(RuntimeError) as of_torch:
        torch.save(torch.zeros(1 << 20), "/dev/full")
    assert is_full_disk(of_torch.value)
    with pytest.raises(OSError) as of_the_system, open("/dev/full", "w") as full:
        full.write("x")
    assert is_full_disk(of_the_system.value)
    assert not is_full_disk(RuntimeError("shape mismatch"))
