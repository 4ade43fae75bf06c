"""The files of ds_configs/, and what becomes of them and of a user's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vcsoup_dist.errors import UserError
from vcsoup_dist.recipe import Training
from vcsoup_dist.training.deepspeed_config import FOLDERS, fill_deepspeed_config, forward_only

FILES = sorted(FOLDERS[0].glob("*.json"))
NAMES = [file.stem for file in FILES]
TRAINING = Training(
    learning_rate=3e-6,
    adam_betas=(0.8, 0.95),
    adam_eps=1e-6,
    weight_decay=0.1,
    max_grad_norm=0.7,
    dtype="bf16",
    nvme_path="/local/nvme",
)
# What DeepSpeed would decide otherwise, by a default that has changed or may.
STATED = [
    ("bf16", "check_grad_overflow"),
    ("data_types", "grad_accum_dtype"),
    ("communication_data_type",),
    ("zero_force_ds_cpu_optimizer",),
    ("gradient_clipping",),
    ("prescale_gradients",),
    ("zero_optimization", "overlap_comm"),
    ("zero_optimization", "reduce_bucket_size"),
    ("zero_optimization", "contiguous_gradients"),
    ("zero_optimization", "reduce_scatter"),
    ("optimizer", "params", "torch_adam"),
]


def config_file(name: str) -> Path:
    return FOLDERS[0] / f"{name}.json"


def get(config: dict, keys: tuple[str, ...]) -> object:
    for key in keys:
        config = config[key]
    return config


def changed(folder: Path, name: str, keys: tuple[str, ...], value: object) -> Path:
    """A copy of one of the project's files with one value changed."""
    config = json.loads(config_file(name).read_text())
    section = config
    for key in keys[:-1]:
        section = section.setdefault(key, {})
    section[keys[-1]] = value
    file = folder / "mine.json"
    file.write_text(json.dumps(config))
    return file


def test_the_configurations_are_those_that_the_readme_describes():
    readme = (FOLDERS[0] / "README.md").read_text()
    assert set(NAMES) == {
        "zero2",
        "zero3",
        "zero3_hpz",
        "zero3_nvme",
        "zero3_offload",
        "zero3_offload_param",
    }
    for file in FILES:
        assert f"`{file.name}`" in readme
        for key in _keys(json.loads(file.read_text())):
            assert f"`{key}`" in readme, f"{file.name}: {key}"


def _keys(section: dict) -> set[str]:
    found = set(section)
    for value in section.values():
        found |= _keys(value) if isinstance(value, dict) else set()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_auto_is_filled_from_the_recipe(name):
    config = fill_deepspeed_config(config_file(name), TRAINING, ranks_per_node=4)
    assert '"auto"' not in json.dumps(config)
    assert config["bf16"]["enabled"] is True
    assert config["communication_data_type"] == "bf16"
    assert config["gradient_clipping"] == 0.7
    assert config["optimizer"]["params"] == {
        "lr": 3e-6,
        "betas": [0.8, 0.95],
        "eps": 1e-6,
        "weight_decay": 0.1,
        "torch_adam": True,
    }
    fp32 = fill_deepspeed_config(config_file(name), Training(dtype="fp32", nvme_path="/local/nvme"))
    assert fp32["bf16"]["enabled"] is False
    assert fp32["communication_data_type"] == "fp32"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_matters_is_left_to_deepspeeds_defaults(name):
    stated = json.loads(config_file(name).read_text())
    for keys in STATED:
        assert get(stated, keys) is not None
    assert get(stated, ("data_types", "grad_accum_dtype")) == "fp32"


@pytest.mark.parametrize("name", NAMES)
def test_deepspeed_itself_accepts_a_filled_configuration(name):
    from deepspeed.runtime.precision_config import get_bfloat16_config
    from deepspeed.runtime.zero.config import get_zero_config

    config = fill_deepspeed_config(config_file(name), TRAINING, ranks_per_node=4)
    zero = get_zero_config(config)
    assert zero.stage == config["zero_optimization"]["stage"]
    assert get_bfloat16_config(config).check_grad_overflow is True
    known = set(type(zero).model_fields)
    aliases = {field.alias for field in type(zero).model_fields.values()}
    assert set(config["zero_optimization"]) <= known | aliases


def test_hierarchical_partitions_are_as_large_as_a_node():
    for ranks in (1, 8):
        config = fill_deepspeed_config(config_file("zero3_hpz"), TRAINING, ranks_per_node=ranks)
        assert config["zero_optimization"]["zero_hpz_partition_size"] == ranks


def test_nvme_needs_a_folder_of_the_recipe_and_gets_it(tmp_path):
    config = fill_deepspeed_config(config_file("zero3_nvme"), TRAINING)
    assert config["zero_optimization"]["offload_optimizer"]["nvme_path"] == "/local/nvme"
    with pytest.raises(UserError, match=r"zero3_nvme.json: .*the recipe's training.nvme_path"):
        fill_deepspeed_config(config_file("zero3_nvme"), Training())
    keys = ("zero_optimization", "offload_optimizer", "nvme_path")
    mine = changed(tmp_path, "zero3_nvme", keys, "/mine")
    with pytest.raises(UserError, match='offload_optimizer.nvme_path must be "auto"'):
        fill_deepspeed_config(mine, TRAINING)


REFUSED = {
    "another learning rate": (
        ("optimizer", "params", "lr"),
        1e-4,
        'optimizer.params.lr is 0.0001, the recipe says 3e-06; write "auto"',
    ),
    "another clipping": (("gradient_clipping",), 3.0, "gradient_clipping is 3.0, the recipe says"),
    "no clipping": (("gradient_clipping",), 0, "gradient_clipping is 0, the recipe says"),
    "another dtype": (("bf16", "enabled"), False, "bf16.enabled is False, the recipe says True"),
    "fp16": (("fp16", "enabled"), True, "fp16 is not supported"),
    "a batch size": (("train_batch_size",), 64, "remove `train_batch_size`"),
    "an automatic batch size": (("train_batch_size",), "auto", "remove `train_batch_size`"),
    "a micro-batch": (("train_micro_batch_size_per_gpu",), 4, "must be 1; training.tokens_per_"),
    "accumulation": (("gradient_accumulation_steps",), 8, "must be 1; training.tokens_per_batch"),
    "a schedule": (("scheduler",), {"type": "WarmupLR"}, "remove `scheduler`"),
    "stage 0": (("zero_optimization", "stage"), 0, "stage is 0, it must be 2 or 3"),
    "stage 1": (("zero_optimization", "stage"), 1, "stage is 1, it must be 2 or 3"),
    "stage 4": (("zero_optimization", "stage"), 4, "stage is 4, it must be 2 or 3"),
    "no number of a stage": (("zero_optimization", "stage"), "3", "stage is '3', it must be"),
    "no section": (("optimizer",), "AdamW", "optimizer must be a section, a JSON object"),
    "no optimizer": (("optimizer",), {}, "needs a `type`"),
    "an auto that nothing fills": (
        ("zero_optimization", "reduce_bucket_size"),
        "auto",
        'zero_optimization.reduce_bucket_size is "auto", which nothing',
    ),
}


@pytest.mark.parametrize("keys, value, line", REFUSED.values(), ids=REFUSED.keys())
def test_what_contradicts_the_recipe_is_refused(tmp_path, keys, value, line):
    file = changed(tmp_path, "zero3", keys, value)
    with pytest.raises(UserError) as caught:
        fill_deepspeed_config(file, TRAINING)
    assert str(caught.value).startswith(f"{file}: ")
    assert line in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_a_file_that_is_not_a_json_object_is_refused(tmp_path, text):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(UserError, match=r"mine.json: (not JSON|holds no JSON object)"):
        fill_deepspeed_config(tmp_path / "mine.json", TRAINING)


def test_gradients_of_another_width_are_the_users_to_choose(tmp_path):
    file = changed(tmp_path, "zero3", ("communication_data_type",), "fp32")
    assert fill_deepspeed_config(file, TRAINING)["communication_data_type"] == "fp32"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "zero2"])
def test_ranks_without_training_have_no_optimizer_and_keep_the_weights_where_they_were(name):
    config = fill_deepspeed_config(config_file(name), TRAINING, ranks_per_node=4)
    forward = forward_only(config)
    assert "optimizer" not in forward
    assert "offload_optimizer" not in forward["zero_optimization"]
    assert "optimizer" in config
    kept = config["zero_optimization"].get("offload_param")
    assert forward["zero_optimization"].get("offload_param") == kept
    assert forward["zero_optimization"]["stage"] == 3
