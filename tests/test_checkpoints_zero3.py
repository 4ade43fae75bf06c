"""DeepSpeed checkpoints read in place, against DeepSpeed's own converter.

Run as a module, this file is a rank that writes the checkpoints of one world size.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from fork_server import call_forked
from hypothesis import given, settings
from hypothesis import strategies as st

from vcsoup_dist.checkpoints.deepspeed_files import is_checkpoint
from vcsoup_dist.checkpoints.layout import Source
from vcsoup_dist.checkpoints.reader import CheckpointReader
from vcsoup_dist.checkpoints.sources import open_source
from vcsoup_dist.checkpoints.zero3 import open_checkpoint
from vcsoup_dist.errors import UserError
from vcsoup_dist.launch.ranks import run_ranks

TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64}


class Odd(torch.nn.Module):
    """Sizes that no number of ranks divides, and every kind of entry."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 5)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(5, 5) for _ in range(3))
        self.frozen = torch.nn.Linear(5, 5).requires_grad_(False)
        self.head = torch.nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight
        self.one = torch.nn.Parameter(torch.ones(1))
        self.empty = torch.nn.Parameter(torch.empty(0, 4))
        self.register_buffer("scale", torch.linspace(1, 2, 5))
        self.register_buffer("seen", torch.tensor(7))
        self.register_buffer("forgotten", torch.ones(3), persistent=False)


class Wrapped(torch.nn.Module):
    """As training wraps a model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Odd()


def start_engine(build: type[torch.nn.Module], stage: int, bf16: bool):
    """A DeepSpeed engine whose fp32 masters, padding included, are not what bf16 can hold."""
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "sub_group_size": 25},
        "bf16": {"enabled": bf16},
    }
    torch.manual_seed(0)
    model = build()
    decayed = [each for name, each in model.named_parameters() if "bias" not in name]
    others = [each for name, each in model.named_parameters() if "bias" in name]
    groups = [
        {"params": [each for each in group if each.requires_grad], "weight_decay": decay}
        for group, decay in ((decayed, 0.1), (others, 0.0))
    ]
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(groups, lr=1e-2), config=config
    )
    if stage == 3:
        noise = torch.Generator().manual_seed(int(os.environ["RANK"]))
        for flat in engine.optimizer.fp32_partitioned_groups_flat:
            flat.data.add_(torch.rand(flat.shape, generator=noise))
    return engine


def write_checkpoints(job: Path) -> None:
    """As one of several ranks: write the job's checkpoints, and what DeepSpeed makes of them."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    from vcsoup_dist.training.checkpoint import save_checkpoint
    from vcsoup_dist.training.distributed import start_distributed

    start_distributed()
    root = job.parent
    for name, stage, bf16 in json.loads(job.read_text()):
        folder = root / name
        folder.mkdir(exist_ok=True)
        engine = start_engine(Wrapped if name == "own" else Odd, stage, bf16)
        if name == "own":
            save_checkpoint(engine, folder, 1, {})
            tag = "step-00000001"
        else:
            engine.save_checkpoint(str(folder), tag="global_step1")
            tag = "global_step1"
        if os.environ["RANK"] == "0":
            expected = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag)
            torch.save(expected, root / f"{name}.expected")
            if stage < 3:
                torch.save(engine.module.state_dict(), root / f"{name}.module")
        torch.distributed.barrier()
        engine.destroy()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":  # a rank
    write_checkpoints(Path(sys.argv[1]))


JOBS = {
    1: [("fp32", 3, False)],
    2: [("fp32", 3, False), ("bf16", 3, True), ("own", 3, True), ("zero2", 2, True)],
    3: [("fp32", 3, False), ("bf16", 3, True)],
}


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """world size -> folder of its checkpoints; each is written once."""
    done: dict[int, Path] = {}

    def write(world: int) -> Path:
        if world not in done:
            root = tmp_path_factory.mktemp(f"world-{world}")
            job = root / "job.json"
            job.write_text(json.dumps(JOBS[world]))
            call_forked(run_ranks, Path(__file__).stem, job, world, 1, root / "logs")
            done[world] = root
        return done[world]

    return write


def read(source: Source, name: str) -> torch.Tensor:
    spec = source.layout[name]
    tensor = torch.empty(spec.shape, dtype=TORCH_DTYPES[spec.dtype])
    with CheckpointReader(source.layout) as reader:
        reader.read_into(name, 0, tensor.view(-1).view(torch.uint8).numpy())
    return tensor


@pytest.mark.ranks
@pytest.mark.parametrize("world, name", [(w, job[0]) for w in JOBS for job in JOBS[w]])
def test_every_weight_is_what_deepspeed_makes_of_it(written, world, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # cannot be imported
    folder = written(world) / name
    assert is_checkpoint(folder)
    source = open_source(folder)
    assert (source.path, source.kind) == (folder, "zero3")

    expected = torch.load(written(world) / f"{name}.expected")
    if name == "own":
        expected = {key.removeprefix("model."): value for key, value in expected.items()}
    whole = name == "zero2"
    module = torch.load(written(world) / f"{name}.module") if whole else None
    assert source.aliases == {"head.weight": "embed.weight"}
    assert sorted([*source.layout, *source.aliases]) == sorted(expected)
    for key, spec in source.layout.items():
        ours = read(source, key)
        if whole:
            assert torch.equal(ours, module[key]) and ours.dtype == module[key].dtype, key
        else:  # DeepSpeed makes buffers fp32
            assert torch.equal(ours.to(expected[key].dtype), expected[key]), key
            trained = key not in ("scale", "seen", "frozen.weight", "frozen.bias", "empty")
            assert not trained or spec.dtype == "F32", key
    assert len(source.layout["layers.0.weight"].extents) == (1 if whole else world)
    assert sum(extent.nbytes for extent in source.layout["one"].extents) == (2 if whole else 4)


@pytest.mark.ranks
def test_a_checkpoint_itself_opens_like_its_folder(written):
    folder = written(2) / "own"
    tag = folder / "step-00000001"
    assert is_checkpoint(tag)
    assert open_checkpoint(tag).layout == open_checkpoint(folder).layout


@pytest.mark.ranks
def test_an_export_is_what_deepspeed_makes_of_it_rounded_once(written, tmp_path):
    from safetensors.torch import load_file

    from vcsoup_dist.souping.export import export

    export(written(3) / "bf16", out=tmp_path / "as-stored")
    export(written(3) / "bf16", out=tmp_path / "bf16", dtype="bf16")
    expected = torch.load(written(3) / "bf16.expected")
    stored = load_file(tmp_path / "as-stored" / "model.safetensors")
    halves = load_file(tmp_path / "bf16" / "model.safetensors")
    assert stored.keys() == halves.keys() == expected.keys() - {"head.weight"}
    for name, tensor in stored.items():
        assert torch.equal(tensor.to(expected[name].dtype), expected[name]), name
        if expected[name].is_floating_point():
            assert torch.equal(halves[name], expected[name].bfloat16()), name


@pytest.mark.ranks
def test_checkpoints_of_several_worlds_are_merged_from_their_partitions(written, tmp_path):
    from safetensors.torch import load_file

    from vcsoup_dist.souping.merge import merge

    policies = [written(2) / "fp32", written(3) / "fp32"]
    merge(policies, out=tmp_path / "soup", weights=[[0.25, 0.75]], memory=1 << 27)
    soup = load_file(tmp_path / "soup" / "model.safetensors")
    expected = [torch.load(written(world) / "fp32.expected") for world in (2, 3)]
    for name, tensor in soup.items():
        if tensor.is_floating_point():
            one, other = (each[name].double() for each in expected)
            assert torch.equal(tensor, (0.25 * one + 0.75 * other).to(tensor.dtype)), name


def write_by_hand(
    tag: Path, groups: list, world: int, frozen: dict | None = None, master=torch.float32
) -> None:
    """Files as ZeRO-3 writes them."""
    frozen = frozen or {}
    tag.mkdir(parents=True, exist_ok=True)

    def part(tensor: torch.Tensor, rank: int) -> torch.Tensor:
        size = -(-tensor.numel() // world)
        padded = torch.full((size * world,), 99.0, dtype=tensor.dtype)
        padded[: tensor.numel()] = tensor.reshape(-1)
        return padded[rank * size : (rank + 1) * size]

    for rank in range(world):
        name = f"zero_pp_rank_{rank}_mp_rank_00_"
        flat = [
            torch.cat([part(tensor.to(master), rank) for tensor in group.values()])
            for group in groups
        ]
        states = {"zero_stage": 3, "partition_count": world, "fp32_flat_groups": flat}
        torch.save({"optimizer_state_dict": states}, tag / f"{name}optim_states.pt")
        model = {
            "module": {},
            "dp_world_size": world,
            "buffer_names": [],
            "param_shapes": [{key: each.shape for key, each in group.items()} for group in groups],
            "shared_params": {},
            "frozen_param_shapes": {key: each.shape for key, each in frozen.items()},
            "frozen_param_fragments": {
                key: part(each, rank).clone() for key, each in frozen.items()
            },
        }
        torch.save(model, tag / f"{name}model_states.pt")


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(shapes, min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(shapes, max_size=2),
    st.integers(1, 9),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shape_any_world(tmp_path_factory, trained, frozen, world, dtype):
    tag = tmp_path_factory.mktemp("by-hand")
    tensors = {}

    def tensor(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
        name = f"p{len(tensors)}"
        tensors[name] = torch.randn(shape).to(dtype)
        return {name: tensors[name]}

    groups = [{k: v for shape in group for k, v in tensor(shape).items()} for group in trained]
    kept = {k: v for shape in frozen for k, v in tensor(shape).items()}
    write_by_hand(tag, groups, world, kept, master=dtype)
    source = open_checkpoint(tag)
    assert list(source.layout) == list(tensors)
    for name, expected in tensors.items():
        assert torch.equal(read(source, name), expected)
        assert all(extent.nbytes for extent in source.layout[name].extents) or not expected.numel()


GROUPS = [{"a": torch.arange(5.0), "b": torch.ones(2, 2)}, {"c": torch.tensor(3.0)}]
MODEL, OPTIM = (
    "zero_pp_rank_1_mp_rank_00_model_states.pt",
    "zero_pp_rank_1_mp_rank_00_optim_states.pt",
)


def rename(old: str, new: str):
    return lambda tag: (tag / old).rename(tag / new)


def add(name: str):
    return lambda tag: shutil.copy(tag / MODEL, tag / name)


def change(name: str, **changes: object):
    def apply(tag: Path) -> None:
        found = torch.load(tag / name)
        states = found.get("optimizer_state_dict", found)
        states.update(changes)
        torch.save(found, tag / name)

    return apply


REFUSED = {
    "model parallel": (add("zero_pp_rank_0_mp_rank_01_model_states.pt"), "model-parallel"),
    "tensor parallel, ZeRO-1": (add("mp_rank_01_model_states.pt"), "model-parallel"),
    "expert": (add("layer_0_expert_1_mp_rank_00_model_states.pt"), "expert-parallel"),
    "expert optimizer": (add("expp_rank_0_mp_rank_00_optim_states.pt"), "expert-parallel"),
    "pipeline": (add("layer_00-model_00-model_states.pt"), "pipeline-parallel"),
    "AutoEP": (
        change(MODEL.replace("rank_1", "rank_0"), ds_autoep_layers=[{}]),
        "expert-parallel",
    ),
    "partition groups": (change(OPTIM, ds_zero_partition_groups=[]), "expert-parallel"),
    "two kinds": (add("mp_rank_00_model_states.pt"), "of two checkpoints"),
    "no model of a rank": (lambda tag: (tag / MODEL).unlink(), "lacks the model states of rank 1"),
    "no masters of a rank": (lambda tag: (tag / OPTIM).unlink(), "optimizer states of rank 1"),
    "no masters": (lambda tag: [x.unlink() for x in tag.glob("*optim*")], "no optimizer states"),
    "twice": (
        lambda tag: shutil.copy(tag / OPTIM, tag / f"bf16_{OPTIM}"),
        "two files of rank 1",
    ),
    "another world": (change(OPTIM, partition_count=3), "one of 3 ranks, there are files of 2"),
    "another stage": (change(OPTIM, zero_stage=2), "no optimizer states of ZeRO-3"),
    "another rank's groups": (
        change(OPTIM, fp32_flat_groups=[torch.ones(5), torch.ones(2)]),
        "not like those of zero_pp_rank_0",
    ),
    "swapped out": (
        lambda tag: [
            change(x.name, fp32_flat_groups=[torch.ones(1), torch.ones(0)])(tag)
            for x in tag.glob("*optim*")
        ],
        "need 6 elements a rank, the optimizer states hold 1",
    ),
    "no flat groups": (change(OPTIM, fp32_flat_groups=[{}]), "no flat groups"),
    "shapes are none": (
        change(MODEL.replace("rank_1", "rank_0"), param_shapes=[{"a": (-1,)}]),
        "param_shapes are not shapes",
    ),
    "no fragment": (
        change(MODEL, frozen_param_fragments={}),
        "holds no part of the frozen 'f' as of",
    ),
    "fragment's dtype": (
        change(MODEL, frozen_param_fragments={"f": torch.ones(2).bfloat16()}),
        "of another dtype than in rank 0",
    ),
    "quantised": (
        change(MODEL, frozen_param_fragments={"f": torch.ones(2, dtype=torch.int8)}),
        "quantised",
    ),
    "wrong prefix": (
        change(MODEL.replace("rank_1", "rank_0"), wrapped_as="model."),
        "'wrapped_as' is 'model.'",
    ),
    "no dict": (lambda tag: torch.save([1], tag / OPTIM), "not a file of a DeepSpeed checkpoint"),
    "universal": (lambda tag: (tag / "zero").mkdir(), "universal"),
}


@pytest.mark.parametrize("spoil, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_refused(tmp_path, spoil, message):
    write_by_hand(tmp_path / "tag", GROUPS, 2, {"f": torch.arange(3.0)})
    open_checkpoint(tmp_path / "tag")
    spoil(tmp_path / "tag")
    assert is_checkpoint(tmp_path / "tag")
    with pytest.raises(UserError, match=message) as refused:
        open_checkpoint(tmp_path / "tag")
    assert "\n" not in str(refused.value)


def test_a_frozen_part_of_another_world_is_refused(tmp_path):
    for world in (2, 3):  # parts of 4 elements are 2 for both
        write_by_hand(tmp_path / str(world), GROUPS, world, {"f": torch.arange(4.0)})
    shutil.copy(tmp_path / "3" / MODEL, tmp_path / "2" / MODEL)
    with pytest.raises(UserError, match=f"{MODEL}: is not of the same checkpoint as"):
        open_checkpoint(tmp_path / "2")


def test_which_checkpoint_of_a_folder(tmp_path):
    for number, value in ((1, 1.0), (2, 2.0)):
        tag = tmp_path / f"step-0000000{number}"
        write_by_hand(tag, [{"a": torch.tensor([value])}], 1)
        (tag / "COMPLETE").touch()
    write_by_hand(tmp_path / "step-00000003.partial", [{"a": torch.tensor([3.0])}], 1)
    (tmp_path / "step-00000003.partial" / "COMPLETE").touch()
    write_by_hand(tmp_path / "step-00000004", [{"a": torch.tensor([4.0])}], 1)
    assert is_checkpoint(tmp_path)
    assert read(open_checkpoint(tmp_path), "a") == 2
    (tmp_path / "latest").write_text("step-00000001\n")
    assert read(open_checkpoint(tmp_path), "a") == 1
    with pytest.raises(UserError, match="was not finished"):
        open_checkpoint(tmp_path / "step-00000003.partial")
    for name in ("step-00000009", "../elsewhere", "", "."):
        (tmp_path / "latest").write_text(name)
        with pytest.raises(UserError, match="is not a folder next to it"):
            open_checkpoint(tmp_path)


def test_a_folder_without_a_complete_checkpoint_is_refused(tmp_path):
    assert not is_checkpoint(tmp_path)
    write_by_hand(tmp_path / "step-00000003.partial", GROUPS, 1)
    assert is_checkpoint(tmp_path)
    with pytest.raises(UserError, match="none of its checkpoints is complete"):
        open_checkpoint(tmp_path)
    (tmp_path / "latest_universal").write_text("x_universal")
    with pytest.raises(UserError, match="universal"):
        open_checkpoint(tmp_path)


class Hostile:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


@pytest.mark.parametrize("name", [MODEL.replace("rank_1", "rank_0"), OPTIM])
def test_code_in_a_rank_file_does_not_run(tmp_path, name):
    write_by_hand(tmp_path / "tag", GROUPS, 2)
    change(name, loss_scaler=Hostile(tmp_path / "ran"))(tmp_path / "tag")
    with pytest.raises(UserError, match=f"{name}.* wants to call .*system"):
        open_checkpoint(tmp_path / "tag")
    assert not (tmp_path / "ran").exists()
