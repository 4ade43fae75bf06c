"""Reference and policies on real ranks, DeepSpeed ZeRO-3 (gloo, CPU), and their interruption."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_tiny_model
from fork_server import call_forked
from training_world import World, training_of, wait_for
from transformers import AutoModelForCausalLM, AutoTokenizer

from vcsoup_dist.errors import EXIT_PREEMPTED, UserError
from vcsoup_dist.forward.template import encode_pair
from vcsoup_dist.launch import ranks
from vcsoup_dist.processes import children
from vcsoup_dist.recipe import Launch
from vcsoup_dist.records.reference import Reference
from vcsoup_dist.records.tokens import TokenFile
from vcsoup_dist.records.training_summary import TrainingSummary

pytestmark = [pytest.mark.models, pytest.mark.processes, pytest.mark.ranks]

STEADY = {"schedule": "constant", "warmup_ratio": 0.0}
OVERSHOOTING = {"learning_rate": 0.3, "warmup_ratio": 0.0, "steps": 8, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_model) -> World:
    """What two ranks make in one launch."""
    world = World(tmp_path_factory.mktemp("world"), tiny_model)
    world.run(
        world.reference_job(),
        world.policy_job("policy"),
        world.policy_job("hurried", launch=Launch(max_minutes=1e-3)),
        world.reference_job("in-parts", rows=slice(0, None, 3)),
        world.reference_job("in-parts", rows=slice(1, None, 3), number=1),
        world.reference_job("in-parts", rows=slice(2, None, 3), number=2),
        world.policy_job("moved", "in-parts", **STEADY | {"steps": 2}),
        world.policy_job("best", export="best", **OVERSHOOTING),
    )
    return world


def plain_logps(model, ids: list[int], start: int) -> torch.Tensor:
    with torch.no_grad():
        logps = model(torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)
    return torch.stack([logps[i - 1, ids[i]] for i in range(start, len(ids))])


def test_reference_equals_a_plain_forward_of_every_pair(world):
    model = AutoModelForCausalLM.from_pretrained(world.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(world.model)
    tokens = TokenFile(world.tokens(world.model, training_of({})))
    cached = Reference(world.root / "reference", tokens)
    for i, row in enumerate(world.rows):
        pair = encode_pair(tokenizer, row["prompt"], row["chosen"], row["rejected"], 64, True)
        expected = torch.cat([plain_logps(model, each.ids, each.start) for each in pair])
        assert np.allclose(cached.logps(i), expected, atol=5e-6)
    assert cached.rows().tolist() == list(range(len(world.rows)))


def test_pairs_that_are_asked_for_later_get_the_same_log_probs_but_for_rounding(world):
    tokens = TokenFile(world.tokens(world.model, training_of({})))
    whole, parts = (Reference(world.root / name, tokens) for name in ("reference", "in-parts"))
    assert parts.rows().tolist() == [*range(0, 30, 3), *range(1, 30, 3), *range(2, 30, 3)]
    for row in range(30):
        assert np.allclose(parts.logps(row), whole.logps(row), atol=5e-6)


def test_training_starts_at_ln_2_and_learns(world):
    metrics = world.metrics("policy")
    assert [each["step"] for each in metrics] == list(range(6))
    assert metrics[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.02
    assert metrics[-1]["heldout_loss"] > 0


def test_a_policy_loads_in_transformers_and_differs_from_the_base(world):
    model, info = AutoModelForCausalLM.from_pretrained(
        world.root / "policy" / "output", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    base = AutoModelForCausalLM.from_pretrained(world.model).state_dict()
    moved = [not torch.equal(base[name], tensor) for name, tensor in model.state_dict().items()]
    assert all(moved)
    tokenizer = AutoTokenizer.from_pretrained(world.root / "policy" / "output")
    assert tokenizer.chat_template


def test_when_the_time_is_over_a_step_is_taken_and_saved(world):
    assert [each.name for each in world.checkpoints("hurried")] == ["step-00000001"]
    assert not (world.root / "hurried" / "output" / "training.json").exists()


def test_a_reference_of_another_model_is_refused_before_the_first_step(world, tmp_path):
    save_tiny_model(tmp_path / "other", seed=1)
    jobs = [
        world.reference_job("of-another", tmp_path / "other"),
        world.policy_job("misled", "of-another"),
    ]
    with pytest.raises(UserError, match="the policy is not its reference at the start"):
        world.run(*jobs, ranks=1)
    assert not (world.root / "misled" / "logs" / "metrics.jsonl").exists()


ENDLESS = STEADY | {"steps": 1_000_000}
EVERY = 4  # steps between two checkpoints


def interrupt(
    world: World, job: Path, whom: str, number: int, forked: bool = True, early: bool = False
) -> int:
    """Send a signal to the "launcher", to "rank 1" or to "all" amidst a job; its exit code.

    That is when some more steps are taken, or `early` when the ranks' processes are there.
    """
    metrics = world.root / job.stem / "logs" / "metrics.jsonl"
    found: list[int] = []

    def is_time() -> bool:
        now = sorted(children(launcher.pid))
        assert len(now) >= len(found), f"a rank has ended, see {world.root / job.stem}.log"
        found[:] = now
        if early or len(found) < 2 or not metrics.exists():
            return early and len(found) == 2
        # Lines of steps that are taken again are dropped at the start.
        return metrics.read_bytes().count(b"\n") > first + EVERY + 1

    before = world.checkpoints(job.stem)
    first = int(before[-1].name.removeprefix("step-")) if before else 0
    launcher = world.start(job, forked)
    try:
        wait_for(is_time)
        whose = {"launcher": [launcher.pid], "rank 1": found[1:], "all": [launcher.pid, *found]}
        for pid in whose[whom]:
            os.kill(pid, number)
        code = launcher.wait()
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))
        return code
    finally:
        launcher.kill()


@pytest.mark.kills
@pytest.mark.parametrize("every_way", [False, pytest.param(True, marks=pytest.mark.long)])
def test_killed_and_stopped_it_ends_with_the_same_bytes_and_leaves_no_process(world, every_way):
    """In mid-epoch and beyond the first epoch: 24 pairs, 8 a step. It never ends by itself.

    In every way: with real processes, where others are forked.
    """
    name, forked = f"disturbed-{every_way}", not every_way
    job = world.policy_job(name, **ENDLESS | {"checkpoint_every": EVERY})
    assert interrupt(world, job, "launcher", signal.SIGKILL, forked) == -signal.SIGKILL
    killed_at = world.checkpoints(name)
    assert interrupt(world, job, "rank 1", signal.SIGKILL, forked) == 1
    assert "rank 1 ended by signal 9" in (world.root / f"{name}.log").read_text()
    if every_way:
        assert interrupt(world, job, "all", signal.SIGKILL, forked) == -signal.SIGKILL
    assert world.checkpoints(name) > killed_at

    job = world.policy_job(name, **ENDLESS | {"checkpoint_every": 1_000_000})
    # Long before a rank has a handler.
    code = interrupt(world, job, "rank 1", signal.SIGUSR2, forked=False, early=True)
    assert code == EXIT_PREEMPTED
    stops = [("launcher", signal.SIGTERM), ("rank 1", signal.SIGUSR2)]
    for whom, number in stops if every_way else stops[:1]:
        before = world.checkpoints(name)
        assert interrupt(world, job, whom, number, forked) == EXIT_PREEMPTED
        # Saved where it stopped: no checkpoint was due.
        (saved,) = world.checkpoints(name)
        assert [saved] > before
    assert not (world.root / name / "output" / "training.json").exists()

    steps = int(saved.name.removeprefix("step-")) + 2
    undisturbed = f"un{name}"
    jobs = [world.policy_job(each, **STEADY | {"steps": steps}) for each in (name, undisturbed)]
    world.run(*jobs)

    for key, tensor in world.weights(undisturbed).items():
        assert torch.equal(world.weights(name)[key], tensor), key
    losses = [[each["loss"] for each in world.metrics(each)] for each in (undisturbed, name)]
    assert len(losses[0]) == steps and losses[0] == losses[1]
    assert "resumed after step" in (world.root / f"{name}.log").read_text()


def test_2_then_3_then_1_ranks_take_the_curve_of_one(world):
    world.run(world.policy_job("moved", **STEADY | {"steps": 4}), ranks=3)
    six = [world.policy_job(name, **STEADY | {"steps": 6}) for name in ("moved", "steady")]
    world.run(*six, ranks=1)
    for name in ("loss", "margin", "heldout_loss"):
        expected = [each[name] for each in world.metrics("steady") if name in each]
        found = {each["step"]: each[name] for each in world.metrics("moved") if name in each}
        if name == "heldout_loss":
            assert found[5] == pytest.approx(expected[-1], abs=1e-4)
        else:
            assert list(found.values()) == pytest.approx(expected, abs=1e-4), name


def test_a_loss_that_is_not_finite_ends_the_run_with_the_pairs_of_the_batch(world):
    job = world.policy_job("nan", None, objective="sft", learning_rate=1e30, warmup_ratio=0.0)
    with pytest.raises(UserError, match=r"the (loss is|gradient).*pairs.*: \d{4}, \d{4}"):
        world.run(job)
    assert not (world.root / "nan" / "output" / "training.json").exists()


def run_impatiently(module: str, job: Path, logs: Path) -> None:
    """As `run_ranks`, which waits ten seconds for a rank that hangs to say where."""
    ranks.GRACE = 0.0
    ranks.run_ranks(module, job, 2, 1, logs)


def test_a_step_that_hangs_ends_with_the_stack_of_the_ranks(world):
    job = world.policy_job("hung", launch=Launch(hang_minutes=0.1))
    with pytest.raises(UserError, match=r"longer than launch.hang_minutes"):
        call_forked(run_impatiently, "hanging_rank", job, world.logs(job))
    assert "take_step" in (world.logs(job) / "rank-0.stack").read_text()
    assert len(world.metrics("hung")) == 2


def test_the_best_checkpoint_becomes_the_policy(world):
    """With a learning rate that soon overshoots: the last step is not the best."""
    heldout = [each["heldout_loss"] for each in world.metrics("best")]
    assert len(heldout) == 8
    best = int(np.argmin(heldout)) + 1
    assert best < 8
    assert [each.name for each in world.checkpoints("best")] == [
        f"step-{best:08d}",
        "step-00000008",
    ]
    summary = TrainingSummary.read(world.root / "best" / "output")
    assert summary.steps == best
    assert summary.heldout.loss == pytest.approx(min(heldout))
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    kept = world.root / "best" / "scratch"
    expected = get_fp32_state_dict_from_zero_checkpoint(str(kept), tag=f"step-{best:08d}")
    for name, tensor in world.weights("best").items():
        assert torch.equal(tensor, expected[f"model.{name}"]), name


@pytest.mark.skipif(
    not list(Path.home().glob(".cache/torch_extensions/*/async_io/async_io.so")),
    reason="DeepSpeed's async_io is not built here; ds_configs/README.md says how",
)
def test_optimizer_states_on_a_disk_take_the_same_curve_and_are_exported_but_not_resumed(tmp_path):
    """A model large enough for DeepSpeed to swap."""
    save_tiny_model(tmp_path / "model", hidden_size=256)
    world = World(tmp_path, tmp_path / "model")
    changes = {"deepspeed": "zero3_nvme", "nvme_path": str(tmp_path / "disk")}
    steady = {
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "learning_rate": 1e-4,
        "objective": "simpo",
    }
    swapped = world.policy_job("swapped", None, steps=3, **steady, **changes)
    world.run(swapped, world.policy_job("in-memory", None, steps=3, **steady))
    losses = [[each["loss"] for each in world.metrics(name)] for name in ("swapped", "in-memory")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    for name, tensor in world.weights("in-memory").items():
        assert torch.allclose(world.weights("swapped")[name], tensor, atol=1e-5), name
    assert list((tmp_path / "disk").iterdir()) == []
    with pytest.raises(UserError, match="DeepSpeed does not restore optimizer states on NVMe"):
        world.run(world.policy_job("swapped", None, steps=6, **steady, **changes))
