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
from vcsoup_dist.scoring.rewards import Scored, Text, failures_of


class FunctionReward:
    """See `rewards.Reward`."""

    def __init__(self, rewards: Sequence[CallableReward], source: Located) -> None:
        reference = rewards[0].callable
        self.signs = [each.sign for each in rewards]
        self.function = _find(reference, Path(source.source))
        self.description = f"{reference}: a Python function"

    def encode(self, texts: Sequence[Text]) -> Sequence[Text]:
        """The texts themselves."""
        return texts

    def score(self, encoded: Sequence[Text]) -> Scored:
        """Rewards of texts, one call of the function each; a text that it fails on has none."""
        values = np.full(len(encoded), np.nan)
        raised = {}
        for i, (prompt, response) in enumerate(encoded):
            try:
                # A copy, so that the function cannot change what the next one sees.
                values[i] = float(self.function([dict(message) for message in prompt], response))
            except Exception as error:  # the function is the user's and may raise anything
                raised[i] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        rewards = np.outer(values, self.signs)
        failures = failures_of(rewards) | raised
        return Scored(rewards, dict(sorted(failures.items())))


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
