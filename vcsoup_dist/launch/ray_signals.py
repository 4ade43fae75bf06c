"""Requests to stop that come while this process is a Ray driver.

Ray sets handlers of its own, whose exit code is 15 and whose words are a C++ stack, and its waits
(ray 2.60) can be interrupted by KeyboardInterrupt and SystemExit alone: what else a handler raises
within `ray.wait` comes out as a SystemError when the wait is over.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vcsoup_dist.launch.stop_signals import STOP_SIGNALS


@contextmanager
def our_signals() -> Iterator[None]:
    """Have the handlers of before again after a block in which Ray sets its own, or resets them.

    A SIGTERM within the block comes after it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = {each: signal.getsignal(each) for each in (*STOP_SIGNALS, signal.SIGINT)}
    stopped = False
    try:
        yield
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        stopped = True
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if stopped:
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def stops_as_interrupts() -> Iterator[None]:
    """Leave the block by KeyboardInterrupt on a request to stop, and let its handler run then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    handlers = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    before = {each: handler for each, handler in handlers.items() if callable(handler)}
    for each in before:
        signal.signal(each, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        if not asked:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        signal.raise_signal(asked[0])
