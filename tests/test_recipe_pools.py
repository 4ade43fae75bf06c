"""Actors of a recipe that Ray cannot set aside resources for."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from vcsoup_dist.recipe import ActorPool


@pytest.mark.parametrize(
    ("actors", "message"),
    [
        (
            {"resources_per_actor": {"CPU": 1}},
            "`CPU` is not a custom resource; give `cpus_per_actor`",
        ),
        ({"resources_per_actor": {"memory": 1e9}}, "`memory` is not a custom resource"),
        ({"cpus_per_actor": 0.00001}, "Ray counts in steps of 0.0001"),
        ({"gpus_per_actor": 1.5}, "less than or equal to 1"),
    ],
)
def test_what_ray_cannot_set_aside_is_refused_with_the_recipe(actors, message):
    with pytest.raises(ValidationError, match=message):
        ActorPool(**actors)
