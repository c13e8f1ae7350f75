"""Progress bars on anything over a second: rich where it is installed and a person is looking, else quiet."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

T = TypeVar("T")

_enabled = True


def set_enabled(enabled: bool) -> None:
    """Turn all progress bars on or off (the command line turns them off for ``--quiet``)."""
    global _enabled
    _enabled = enabled


def enabled() -> bool:
    """Whether progress is to be shown at all."""
    return _enabled


class Progress:
    """A bar over ``total`` steps that shows the latest ``status`` beside it; a context manager.

    It draws on standard error, so standard output stays clean for ``--json``. Without rich, or when standard
    error is not a terminal, it prints one line when the work begins and one when it is done.
    """

    def __init__(self, description: str, total: int | None = None) -> None:
        self.description = description
        self.total = total
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if not _enabled:
            return self
        if sys.stderr.isatty() and (bar := rich_bar()) is not None:
            self._bar = bar
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, status="")
        else:
            print(f"{self.description} …", file=sys.stderr, flush=True)  # noqa: T201
        return self

    def advance(self, steps: int = 1, status: str = "") -> None:
        """Move on by ``steps`` and show ``status`` (e.g. ``"loss 0.41"``)."""
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, status=status)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over ``items`` behind a progress bar."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(description, total) as progress:
        for item in items:
            yield item
            progress.advance()


def rich_bar() -> Any:
    """A bar of rich on standard error with a ``status`` field; None where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
    except ImportError:
        return None
    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=Console(stderr=True),
    )
