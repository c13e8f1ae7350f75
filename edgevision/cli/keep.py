"""Keeping what was measured: none of the places it goes to may cost it another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgevision.errors import EdgeVisionError, OutputError

if TYPE_CHECKING:
    from edgevision_benchmarks.history import History
    from edgevision_benchmarks.report import Report


def keep(report: Report, history: History | None, *saves: Callable[[], object]) -> None:
    """Add the report to a history, where there is one, and call every one of ``saves``, whatever the others do.

    Raises:
        EdgeVisionError: the one that went wrong; of several, an `OutputError` that tells them all.
    """

    def add() -> None:
        if history is not None:
            with history:
                history.add(report)

    failures: list[EdgeVisionError] = []
    for save in (add, *saves):
        try:
            save()
        except EdgeVisionError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise OutputError("; ".join(str(error) for error in failures))
