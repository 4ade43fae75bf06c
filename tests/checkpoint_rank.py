"""A rank that trains tiny models for a few steps: `python -m checkpoint_rank JOB`.

The job is JSON: scenarios, one after the other, each resumed from its folder's newest
checkpoint, whatever number of ranks wrote it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from vcsoup_dist.processes import die_with_parent

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Scenario:
    """What the ranks do in one folder."""

    folder: str
    model: str
    until: int
    """Optimizer steps."""
    heldout: dict[str, float | None]
    """Step after which a checkpoint is saved -> its held-out loss."""
    config: str = "zero3"
    zero: dict[str, Any] = field(default_factory=dict)
    """Changes of the configuration's section `zero_optimization`."""
    bf16: bool = False
    frozen: bool = False
    kept: int = 1
    best: bool = False
    die: tuple[int, str, str, int] | None = None
    """Rank, audit event, part of its first argument, how many of those it lives to see."""


def start_engine(scenario: Scenario, universal: bool):
    """DeepSpeed engine around the model, with whatever weights its checkpoint may change."""
    import deepspeed
    from transformers import AutoModelForCausalLM

    from vcsoup_dist.forward.answers import AnswerLogps
    from vcsoup_dist.recipe import Training
    from vcsoup_dist.training.deepspeed_config import FOLDERS, fill_deepspeed_config

    training = Training(dtype="bf16" if scenario.bf16 else "fp32", weight_decay=0.1)
    config = fill_deepspeed_config(FOLDERS[0] / f"{scenario.config}.json", training)
    config["zero_optimization"] |= scenario.zero
    if universal:
        config["checkpoint"] = {"load_universal": True}
    model = AutoModelForCausalLM.from_pretrained(
        scenario.model, dtype=torch.bfloat16 if scenario.bf16 else torch.float32
    )
    model.config.use_cache = False
    wrapped = AnswerLogps(model)
    if scenario.frozen:
        for name, parameter in wrapped.named_parameters():
            if "layers.0.mlp.up_proj" in name or name.endswith("model.norm.weight"):
                parameter.requires_grad_(False)
    trained = [each for each in wrapped.parameters() if each.requires_grad]
    return deepspeed.initialize(model=wrapped, config=config, model_parameters=trained)[0]


def take_step(engine: Any, step: int) -> float:
    """The loss of step `step` on six sequences, the same for any number of ranks."""
    from vcsoup_dist.forward.answers import pack_answers
    from vcsoup_dist.forward.template import Encoded

    draw = np.random.default_rng(step)
    ids = [draw.integers(5, 20, size=12).tolist() for _ in range(6)]
    mine = [Encoded(each, 4) for each in ids[dist.get_rank() :: dist.get_world_size()]]
    engine.train()
    loss = -engine(pack_answers(mine)).sum() / (6 * 8)
    engine.backward(loss * dist.get_world_size())
    for group in engine.optimizer.param_groups:
        group["lr"] = 3e-3 * (1 + step % 3)
    engine.step()
    dist.all_reduce(total := loss.detach().double())
    return float(total)


def adam(engine: Any) -> dict[str, torch.Tensor]:
    """Masters and moments of all parameters, whole, and the steps that Adam has counted."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    state = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            state[f"{name} fp32"] = safe_get_full_fp32_param(parameter).clone()
            for key in MOMENTS:
                state[f"{name} {key}"] = safe_get_full_optimizer_state(parameter, key).clone()
    steps = {float(each["step"]) for each in engine.optimizer.optimizer.state.values()}
    return state | {"steps": torch.tensor(sorted(steps))}


def tensors_of(engine: Any) -> dict[str, tuple[int, ...]]:
    """Full shapes of the model's own parameters and persistent buffers."""
    model = engine.module.model
    kept = model.state_dict().keys()
    parameters = {
        name: tuple(getattr(each, "ds_shape", each.shape))
        for name, each in model.named_parameters()
    }
    buffers = {name: tuple(each.shape) for name, each in model.named_buffers() if name in kept}
    return parameters | buffers


def run(scenario: Scenario, group: Any) -> None:
    """Go on with a scenario and export where it ends."""
    from vcsoup_dist.training.checkpoint import find_checkpoint, load, save_checkpoint

    folder = Path(scenario.folder)
    folder.mkdir(exist_ok=True)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # nothing may depend on it
    found = find_checkpoint(folder, group)
    engine = start_engine(scenario, found is not None and found.universal is not None)
    begin = 0
    if found is not None:
        load(engine, found)
        begin = found.step
        if rank == 0:
            resumed = {"step": begin, "from": found.ranks, "by": ranks}
            (folder / "resumed.jsonl").open("a").write(json.dumps(resumed) + "\n")
        before, now = torch.load(folder / f"adam-{begin}.pt"), adam(engine)
        assert before.keys() == now.keys()
        for name, tensor in now.items():
            assert torch.equal(tensor, before[name]), f"{name} differs after the resume"
    for step in range(begin, scenario.until):
        loss = take_step(engine, step)
        if rank == 0:
            (folder / "losses.jsonl").open("a").write(json.dumps([step, loss]) + "\n")
        if str(step + 1) in scenario.heldout:
            state = adam(engine)
            if rank == 0:
                torch.save(state, folder / f"adam-{step + 1}.pt")
            heldout = scenario.heldout[str(step + 1)]
            metrics = {"loss": loss} | ({} if heldout is None else {"heldout_loss": heldout})
            if scenario.die is not None and step + 1 == scenario.until:
                die_at(*scenario.die)
            save_checkpoint(engine, folder, step + 1, metrics, scenario.kept, scenario.best, group)
    if scenario.heldout:
        export(engine, scenario, group)
    engine.destroy()


def export(engine: Any, scenario: Scenario, group: Any) -> None:
    """The newest checkpoint as a model, and what DeepSpeed's own converter makes of it."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    from vcsoup_dist.training.checkpoint import newest_checkpoint
    from vcsoup_dist.training.export import export_policy

    folder = Path(scenario.folder)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    newest = newest_checkpoint(folder).path
    out = folder / f"export-{ranks}"
    out.mkdir(exist_ok=True)
    if rank == 0:
        torch.save(get_fp32_state_dict_from_zero_checkpoint(str(folder), newest.name), f"{out}.pt")
        torch.save(tensors_of(engine), folder / "tensors.pt")
    dtype = "bf16" if scenario.bf16 else "fp32"
    export_policy(newest, Path(scenario.model), out, dtype, tensors_of(engine), group)


def die_at(rank: int, event: str, part: str, lived: int) -> None:
    """Have this process killed just before the system call of an audit event."""
    if rank != int(os.environ["RANK"]):
        return
    left = [lived]

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if name == event and part in str(arguments[0]):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    die_with_parent(int(os.environ["VCSOUP_LAUNCHER"]))
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # is compiled, for inference
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    control = dist.new_group(backend="gloo")
    for each in json.loads(Path(sys.argv[1]).read_text()):
        asked = Scenario(**each)
        if asked.die is not None and ".universal" in asked.die[2]:
            die_at(*asked.die)
            asked = dataclasses.replace(asked, die=None)
        run(asked, control)
    dist.destroy_process_group()
