"""A Python function (prompt messages, response) -> float as a reward."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, cast

import numpy as np

from vcsoup_dist.errors import UserError, reason_of
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
                values[i] = _number(self.function([dict(message) for message in prompt], response))
            except (Exception, SystemExit) as error:  # the user's function may raise anything
                raised[i] = reason_of(error)
        rewards = np.outer(values, self.signs)
        failures = failures_of(rewards) | raised
        return Scored(rewards, dict(sorted(failures.items())))


def _number(returned: object) -> float:
    if not isinstance(returned, SupportsFloat):  # float() would read a text, too
        raise TypeError(f"it returned a {type(returned).__name__}, not a number")
    return float(returned)


def _find(reference: str, code: Path) -> Callable[[list[dict[str, str]], str], Any]:
    module, _, name = reference.partition(":")
    try:
        loaded = _from_file(code) if module.endswith(".py") else importlib.import_module(module)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        raise UserError(f"{reference}: cannot import it: {reason_of(error)}") from error
    function = getattr(loaded, name, None)
    if not callable(function):
        raise UserError(f"{reference}: {code} has no function `{name}`")
    return cast(Callable[[list[dict[str, str]], str], Any], function)


def _from_file(code: Path) -> Any:
    name, folder = f"vcsoup_reward_{code.stem}", str(code.parent)
    spec = importlib.util.spec_from_file_location(name, code)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up their annotations
    sys.path.insert(0, folder)  # for what the file imports from beside it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        if folder in sys.path:  # the file may have changed it
            sys.path.remove(folder)
    if folder not in sys.path:
        sys.path.append(folder)  # for what a function imports when it is called
    return module
