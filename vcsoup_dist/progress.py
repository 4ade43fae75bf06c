"""What a person sees of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("vcsoup")

LINE_EVERY = 15.0  # seconds between two plain lines


@contextmanager
def progress(title: str, total: float, unit: str) -> Iterator[Callable[[float], None]]:
    """Yield `advance(amount)`; shows share, rate and time left of `total` units."""
    shown = ",.0f" if total >= 100 or total == int(total) else ",.2f"
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(f"{{task.completed:{shown}}}/{{task.total:{shown}}} {unit}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(title, total=total, rate="")
            start = time.monotonic()

            def advance(amount: float) -> None:
                done = bars.tasks[0].completed + amount
                rate = done / max(time.monotonic() - start, 1e-9)
                bars.update(task, advance=amount, rate=f"{rate:,.1f} {unit}/s")

            yield advance
    else:
        start = last = time.monotonic()
        done = 0.0

        def report(amount: float) -> None:
            nonlocal done, last
            done += amount
            now = time.monotonic()
            if now - last >= LINE_EVERY:
                last = now
                rate = done / (now - start)
                left = (total - done) / rate if rate else float("inf")
                log.info(
                    "%s: %s of %s %s, %.1f %s/s, %.0f s left",
                    title,
                    f"{done:{shown}}",
                    f"{total:{shown}}",
                    unit,
                    rate,
                    unit,
                    left,
                )

        yield report
