"""A Python function (prompt messages, response) -> float as a reward."""

from __future__ import annotations

import importlib
import importlib.util
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, SupportsFloat, cast

import numpy as np

from vcsoup_dist.errors import Preempted, UserError, reason_of
from vcsoup_dist.identity import Located
from vcsoup_dist.recipe import CallableReward
from vcsoup_dist.scoring.rewards import Scored, Text, failures_of


class FunctionReward:
    """See `rewards.Reward`."""

    def __init__(self, rewards: Sequence[CallableReward], source: Located) -> None:
        reference = rewards[0].callable
        self.reference = reference
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
                with _failing_alone():
                    # A copy, so that the function cannot change what the next one sees.
                    messages = [dict(message) for message in prompt]
                    values[i] = _number(self.function(messages, response))
            except _Failure as failure:
                raised[i] = f"{self.reference}: {failure}"
        rewards = np.outer(values, self.signs)
        failures = failures_of(rewards) | raised
        return Scored(rewards, dict(sorted(failures.items())))


class _Failure(Exception):
    """What code of the user's raised, in one line."""


@contextmanager
def _failing_alone() -> Iterator[None]:
    """Raise `_Failure` for whatever the user's code raises in the block, which may be anything.

    A real request to stop, by Ctrl-C or SIGTERM, stops still.
    """
    asked: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    watched = callable(before) and threading.current_thread() is threading.main_thread()

    def interrupt(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        assert callable(before)
        before(number, frame)

    if watched:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except BaseException as error:
        if asked or isinstance(error, Preempted):
            raise
        raise _Failure(reason_of(error)) from error
    finally:
        if watched:
            signal.signal(signal.SIGINT, before)


def _number(returned: object) -> float:
    if not isinstance(returned, SupportsFloat):  # float() would read a text, too
        raise TypeError(f"it returned a {type(returned).__name__}, not a number")
    return float(returned)


def _find(reference: str, code: Path) -> Callable[[list[dict[str, str]], str], Any]:
    module, _, name = reference.partition(":")
    try:
        with _failing_alone():
            loaded = _from_file(code) if module.endswith(".py") else importlib.import_module(module)
            function = getattr(loaded, name, None)
    except _Failure as failure:
        raise UserError(f"{reference}: cannot import it: {failure}") from failure
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
