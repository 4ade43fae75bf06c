"""A Python function (prompt messages, response) -> float as a reward."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vcsoup_dist.errors import UserError
from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import CallableReward
from vcsoup_dist.scoring.rewards import Scored, Text, check_finite, name_of


class FunctionReward:
    """See `rewards.Reward`."""

    def __init__(self, reward: CallableReward, source: Located) -> None:
        self.name = reward.callable
        self.sign = reward.sign
        self.function = _find(reward.callable, Path(source.source))
        self.description = f"{self.name}: a Python function"

    def score(self, texts: Sequence[Text], names: Sequence[str] | None = None) -> Scored:
        """Rewards of texts, one call of the function each."""
        rewards = []
        for i, (prompt, response) in enumerate(texts):
            try:
                # A copy, so that the function cannot change what the next one sees.
                value = float(self.function([dict(message) for message in prompt], response))
            except Exception as error:  # the function is the user's and may raise anything
                raise UserError(
                    f"{self.name} fails on {name_of(i, names)}: {type(error).__name__}: "
                    f"{' '.join(str(error).split())}"
                ) from error
            rewards.append(value)
        check_finite(rewards, self.name, names)
        return Scored(self.sign * np.array(rewards, dtype=np.float64))


def _find(reference: str, code: Path) -> Callable[[list[dict[str, str]], str], Any]:
    module, _, name = reference.partition(":")
    try:
        loaded = _from_file(code) if module.endswith(".py") else importlib.import_module(module)
    except Exception as error:  # importing runs the user's code
        raise UserError(
            f"{reference}: cannot import it: {type(error).__name__}: {error}"
        ) from error
    function = getattr(loaded, name, None)
    if not callable(function):
        raise UserError(f"{reference}: {code} has no function `{name}`")
    assert callable(function)
    return function  # type: ignore[no-any-return]


def _from_file(code: Path) -> Any:
    if str(code.parent) not in sys.path:
        sys.path.append(str(code.parent))  # for what the file imports from beside it
    spec = importlib.util.spec_from_file_location(f"vcsoup_reward_{code.stem}", code)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
