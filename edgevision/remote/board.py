"""Several devices at work, each with its own line."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from edgevision import progress

# where no person is looking, a device's line comes again only so often
_REPEAT_S = 15.0


class Board:
    """One line per device on standard error: a bar where rich is there and a terminal, else a line per phase."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self._lock = threading.Lock()
        self._last: dict[str, tuple[str, float]] = {}
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Board:
        if sys.stderr.isatty() and progress.enabled() and (bars := progress.rich_bar()) is not None:
            self._bars = bars
            self._bars.start()
            self._tasks = {name: bars.add_task(name, total=1.0, status="") for name in self._names}
        return self

    def tell(self, name: str, phase: str, share: float | None, remark: str) -> None:
        """Show what a device is doing."""
        text = f"{phase}, {remark}" if remark else phase
        with self._lock:
            if self._bars is not None:
                self._bars.update(self._tasks[name], completed=share or 0.0, status=text)
                return
            if not progress.enabled():
                return
            before, at = self._last.get(name, ("", 0.0))
            if before == phase and time.monotonic() - at < _REPEAT_S:
                return
            self._last[name] = (phase, time.monotonic())
            print(f"{name}: {text} …", file=sys.stderr, flush=True)  # noqa: T201

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()
