"""Whether a model that only computes log-probs is whole on every rank: by sizes alone."""

from __future__ import annotations

import pytest
from conftest import save_tiny_model
from transformers import AutoModelForCausalLM

from vcsoup_dist.recipe import Training
from vcsoup_dist.training.deepspeed_config import FOLDERS, fill_deepspeed_config
from vcsoup_dist.training.memory import (
    Decoder,
    ModelSize,
    estimate_memory,
    forward_bytes,
    model_size,
    size_of,
)
from vcsoup_dist.training.whole_model import fits

ONE = ModelSize(1_200_000_000, 260_000_000, Decoder(16, 2048, 8192, 512, 128_256))
EIGHT = ModelSize(8_000_000_000, 500_000_000, Decoder(32, 4096, 14_336, 1024, 128_256))
SEVENTY = ModelSize(70_000_000_000, 1_000_000_000, Decoder(80, 8192, 28_672, 1024, 128_256))
UNKNOWN = ModelSize(1_200_000_000, 260_000_000, None)


def fitting(size: ModelSize, name: str, nodes: int, free: int | None = None) -> bool:
    training = Training(nvme_path="/nvme")
    config = fill_deepspeed_config(FOLDERS[0] / f"{name}.json", training, 8)
    return fits(size, config, training, 8 * nodes, free)


@pytest.mark.parametrize(
    "size, name, nodes, expected",
    [
        (ONE, "zero3", 1, True),
        (ONE, "zero3", 8, True),  # training gathers a thousand million weights anyway
        (EIGHT, "zero3", 1, True),
        (EIGHT, "zero3", 8, False),
        (SEVENTY, "zero3", 8, False),
        (EIGHT, "zero3_offload", 1, False),
        (ONE, "zero3_offload_param", 1, False),
        (UNKNOWN, "zero3", 1, False),
        (SEVENTY, "zero2", 8, True),
    ],
)
def test_a_model_is_whole_where_that_takes_no_more_than_training_does(size, name, nodes, expected):
    assert fitting(size, name, nodes) == expected


def test_a_model_is_not_whole_on_a_gpu_without_room_for_it():
    needed = forward_bytes(EIGHT, Training())
    assert needed is not None and needed > 16_000_000_000
    assert fitting(EIGHT, "zero3", 1, free=2 * needed)
    assert not fitting(EIGHT, "zero3", 1, free=needed)


def test_more_ranks_leave_less_room():
    training = Training()
    config = fill_deepspeed_config(FOLDERS[0] / "zero3.json", training, 8)
    room = [estimate_memory(EIGHT, config, training, 8, nodes).gpu for nodes in (1, 2, 4, 8)]
    assert room == sorted(room, reverse=True)
    held = [fitting(EIGHT, "zero3", nodes) for nodes in (1, 2, 4, 8)]
    assert held == sorted(held, reverse=True)


@pytest.mark.parametrize("tied", [False, True])
def test_the_size_of_a_model_is_that_of_its_files(tmp_path, tied):
    save_tiny_model(tmp_path, tied=tied)
    assert size_of(AutoModelForCausalLM.from_pretrained(tmp_path)) == model_size(tmp_path)
