"""Progress of long work: a bar on a terminal, a log line now and then elsewhere."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOG_EVERY_S = 10.0


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how far we are, on stderr.

    A terminal gets a bar; a log file or a pod gets a line at most every 10 seconds.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        yield from _with_bar(iterable, description, total, console)
    else:
        yield from _with_log_lines(iterable, description, total)


def _with_bar(
    iterable: Iterable[T], description: str, total: int | None, console: Console
) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield from progress.track(iterable, total=total, description=description)


def _with_log_lines(iterable: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    began = last = time.monotonic()
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _LOG_EVERY_S:
            last = now
            of = "" if total is None else f" of {total}"
            log.info("%s: %d%s, %.0f per second", description, done, of, done / (now - began))
