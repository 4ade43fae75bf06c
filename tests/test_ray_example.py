"""examples/ray_cluster.yaml is what `ray up` of the installed Ray takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

EXAMPLE = Path(__file__).parents[1] / "examples" / "ray_cluster.yaml"


def test_ray_takes_the_example_of_a_cluster():
    config = prepare_config(yaml.safe_load(EXAMPLE.read_text()))
    validate_config(config)
    assert config["available_node_types"]["gpus"]["min_workers"] == 2


def test_a_mistyped_key_would_be_found():
    config = prepare_config(yaml.safe_load(EXAMPLE.read_text()) | {"setup_command": []})
    with pytest.raises(Exception, match="setup_command"):
        validate_config(config)
