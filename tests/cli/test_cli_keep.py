"""What was measured is kept wherever it can be."""

from __future__ import annotations

from typing import Any

import pytest

from edgevision.cli.keep import keep
from edgevision.errors import DataError, EdgeVisionError, MissingDependencyError, OutputError


class Place:
    """Somewhere results go: a history, or a folder; the one that is broken says so."""

    def __init__(self, broken: EdgeVisionError | None = None) -> None:
        self.broken = broken
        self.kept: list[str] = []
        self.closed = False

    def add(self, report: Any) -> None:
        if self.broken is not None:
            raise self.broken
        self.kept.append(report)

    def save(self) -> None:
        self.add("results")

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True


FULL = OutputError("disk full")


def kept_in(history: Place | None, *places: Place) -> None:
    keep("results", history, *(place.save for place in places))  # type: ignore[arg-type]


def test_everything_is_kept() -> None:
    history, folder, costs = Place(), Place(), Place()
    kept_in(history, folder, costs)
    assert [place.kept for place in (history, folder, costs)] == [["results"]] * 3
    assert history.closed
    kept_in(None, folder)
    kept_in(None)
    assert folder.kept == ["results"] * 2


@pytest.mark.parametrize("broken", range(3))
def test_what_fails_costs_nothing_else(broken: int) -> None:
    places = [Place(FULL if index == broken else None) for index in range(3)]
    with pytest.raises(OutputError, match="disk full"):
        kept_in(*places)
    assert [place.kept for place in places] == [[] if index == broken else ["results"] for index in range(3)]
    assert places[0].closed


def test_of_several_failures_all_are_told() -> None:
    last = Place()
    places = Place(DataError("the database is gone")), Place(MissingDependencyError("no jinja2")), last
    with pytest.raises(OutputError, match="the database is gone; no jinja2"):
        kept_in(*places)
    assert last.kept == ["results"]


def test_one_failure_stays_the_kind_it_is() -> None:
    with pytest.raises(MissingDependencyError):
        kept_in(Place(), Place(MissingDependencyError("no jinja2")))
