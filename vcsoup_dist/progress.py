"""What a person sees of long work: a bar on a terminal, plain lines elsewhere.

The bar and the log lines of a process share one console, so that a line stands above the bar.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

log = logging.getLogger("vcsoup")

LINE_EVERY = 15.0  # seconds between two plain lines
FEW = 3  # advances before the time left is estimated
SETTLED = 10.0  # seconds after the first advance, or as long as that took, before it is
TOGETHER = 1.1  # what takes at most so much longer than the first advance came along with it
BESIDE_BAR = "beside_bar"
"""Of a log record: it says what the bar shows, so a terminal with a bar leaves it out."""
CLEAR_BAR = b"\r\x1b[2K\x1b[?25h"
"""Erases the line of a bar, and shows the cursor that it hid."""

_bars: Progress | None = None
"""What this process shows just now."""


class TerminalHandler(logging.Handler):
    """Log lines on standard error; above the bar, where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as a line of its own."""
        try:
            line = self.format(record)
            if _bars is None:
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
            elif not hasattr(record, BESIDE_BAR):
                from rich.text import Text

                _console().print(Text(line), soft_wrap=True)
        except Exception:
            self.handleError(record)


def log_to_terminal(level: int) -> None:
    """Show this program's log lines from `level` on, and warnings of libraries."""
    handler = TerminalHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(level)


def clear_bar() -> None:
    """Remove what a killed process has left of its bar on this terminal."""
    with contextlib.suppress(OSError):
        if os.isatty(2):
            os.write(2, CLEAR_BAR)


@dataclass
class Pace:
    """The rate of work, and what is left of it."""

    total: float
    done: float = 0.0
    """Of the total, with what was done before this began."""
    began: float = field(default_factory=time.monotonic)
    here: float = 0.0
    """Done since this began."""
    advances: int = 0
    first: tuple[float, float] = (0.0, 0.0)
    """Amount and moment of the first advance, with what only a start does, and of those that
    came along with it from other workers."""
    start: float = 0.0
    """Seconds to the first advance."""

    def advance(self, amount: float, now: float) -> None:
        """Take note of work done."""
        self.done += amount
        self.here += amount
        self.advances += 1
        if self.advances == 1:
            self.start = now - self.began
        if now - self.began <= TOGETHER * self.start:
            self.first = self.here, now

    def rate(self, now: float) -> float:
        """Units per second: since the first advance, once that tells enough."""
        amount, moment = self.first if self._is_settled(now) else (0.0, self.began)
        return (self.here - amount) / max(now - moment, 1e-9)

    def left(self, now: float) -> float | None:
        """Seconds to the end; None while nobody can know."""
        if not self._is_settled(now) or not (rate := self.rate(now)):
            return None
        return max(self.total - self.done, 0.0) / rate

    def _is_settled(self, now: float) -> bool:
        return self.advances >= FEW and now - self.first[1] >= min(self.start, SETTLED)


def rate_text(rate: float, unit: str) -> str:
    """As `3.2 steps/s`, or `4.1 s/step` of what is counted and slower than one a second."""
    if unit.endswith("s"):
        return f"{rate:,.1f} {unit}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):,.1f} s/{unit[:-1]}"
    return f"{rate:,.2f} {unit}/s"


def left_text(seconds: float | None) -> str:
    """As `42 s left`, `14 min left` or `3 h 20 min left`; empty where it is not known."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s left"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min left"
    return f"{minutes // 60} h {minutes % 60} min left"


@contextmanager
def progress(
    title: str, total: float, unit: str, done: float = 0.0
) -> Iterator[Callable[[float], None]]:
    """Yield `advance(amount)`; shows share, rate and time left of `total` units.

    done: what was done before; rate and time left are those of this run alone.
    """
    global _bars
    pace = Pace(total, done)
    shown = ",.0f" if total >= 100 or total == int(total) else ",.2f"
    last = pace.began

    def report(amount: float) -> None:
        nonlocal last
        now = time.monotonic()
        pace.advance(amount, now)
        if now - last < LINE_EVERY:
            return
        last = now
        said = [f"{pace.done:{shown}} of {total:{shown}} {unit}", rate_text(pace.rate(now), unit)]
        said += filter(None, [left_text(pace.left(now))])
        log.info("%s: %s", title, ", ".join(said), extra={BESIDE_BAR: True})

    if not _shows_bars():
        yield report
        return
    with _make_bars(shown, unit) as bars:
        task = bars.add_task(title, total=total, rate="", left="")
        bars.update(task, completed=done)

        def advance(amount: float) -> None:
            report(amount)
            now = time.monotonic()
            rate, left = rate_text(pace.rate(now), unit), left_text(pace.left(now))
            bars.update(task, advance=amount, rate=rate, left=left)

        before, _bars = _bars, bars
        try:
            yield advance
        finally:
            _bars = before


def _shows_bars() -> bool:
    # Not rich's own question alone, which FORCE_COLOR answers with yes for a file.
    return sys.stderr.isatty() and not _console().is_dumb_terminal


@functools.cache
def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _make_bars(shown: str, unit: str) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn(f"{{task.completed:{shown}}}/{{task.total:{shown}}} {unit}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        console=_console(),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # else results in a pipe would go to the terminal
    )
