"""The course of models over time, out of a history of results: one page that stands alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from edgevision.files import write_text
from edgevision_benchmarks.report.axes import axis
from edgevision_benchmarks.report.layout import number, percent, precision_name, target_name, thread_count
from edgevision_benchmarks.report.marks import mark
from edgevision_benchmarks.report.page import resource, template
from edgevision_benchmarks.report.report import Report
from edgevision_benchmarks.result import Interval, Result

# colours of the style sheet, and marks: together they tell the lines apart
_COLORS = 6
_MARKS = ("circle", "diamond", "triangle", "square")


@dataclass(frozen=True)
class Quantity:
    """What is drawn over time: heading, a row's value and its interval, and how a value is written."""

    heading: str
    value: Callable[[Result], float | None]
    interval: Callable[[Result], Interval | None]
    text: Callable[[float], str]
    tick: Callable[[float], str]
    limit: float | None = None


LATENCY = Quantity(
    "Latency, ms",
    lambda row: row.p50,
    lambda row: row.median_ci95,
    lambda value: f"{number(value)} ms",
    lambda value: f"{value:.6g}",
)
ACCURACY = Quantity(
    "Accuracy",
    lambda row: row.accuracy,
    lambda row: row.accuracy_ci95,
    percent,
    lambda value: f"{100 * value:.6g}%",
    limit=1.0,
)


@dataclass(frozen=True)
class Dot:
    """One measurement drawn."""

    x: float
    y: float
    low: float
    high: float
    path: str
    text: str


@dataclass(frozen=True)
class Line:
    """One configuration over time."""

    label: str
    color: int
    mark: str
    dots: tuple[Dot, ...]
    points: str


@dataclass(frozen=True)
class Course:
    """One quantity of one model over time, in the units of an SVG view box."""

    heading: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    font: float
    x_ticks: tuple[tuple[float, str, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Entry:
    """One measured row and when it was measured."""

    when: datetime
    label: str
    row: Result


def entries(report: Report) -> dict[str, list[Entry]]:
    """Model → what was measured of it, the oldest first; runs without a readable date are left out."""
    found: dict[str, list[Entry]] = {}
    for row in report.results:
        run = report.runs[row.run]
        when = _date(run.provenance.get("date"))
        if when is None or row.p50 is None:
            continue
        batch = f", batch {row.batch}" if row.batch > 1 else ""
        label = f"{run.device}: {target_name(row.target)} {precision_name(row)}, {thread_count(row.threads)}{batch}"
        found.setdefault(row.model, []).append(Entry(when, label, row))
    return {model: sorted(each, key=lambda entry: entry.when) for model, each in sorted(found.items())}


def course(
    made: Sequence[Entry], quantity: Quantity, *, width: float = 960, height: float = 360, font: float = 14
) -> Course | None:
    """Lay out one quantity over time, a line for each configuration; None where nothing has a value."""
    known = [entry for entry in made if quantity.value(entry.row) is not None]
    if not known:
        return None
    left, right, top, bottom = font * 5.2, width - font * 1.2, font * 1.2, height - font * 2.6
    first, last = known[0].when.timestamp(), max(entry.when.timestamp() for entry in known)
    values: list[float] = []
    for entry in known:
        value = quantity.value(entry.row)
        assert value is not None
        values += [value, *(quantity.interval(entry.row) or ())]
    y_low, y_high, y_values = axis(values, (bottom - top) / (font * 3), limit=quantity.limit)

    def place_x(entry: Entry) -> float:
        share = 0.5 if last == first else (entry.when.timestamp() - first) / (last - first)
        return round(left + font + (right - left - 2 * font) * share, 1)

    def place_y(value: float) -> float:
        return round(bottom - (bottom - top) * (value - y_low) / (y_high - y_low), 1)

    labels = list(dict.fromkeys(entry.label for entry in made))
    lines = []
    for index, label in enumerate(labels):
        mine = [entry for entry in known if entry.label == label]
        shape = _MARKS[index // _COLORS % len(_MARKS)]
        dots = tuple(_dot(entry, quantity, place_x(entry), place_y, shape, font) for entry in mine)
        points = " ".join(f"{dot.x},{dot.y}" for dot in dots)
        lines.append(Line(label, index % _COLORS, mark(shape, 8, 8, 6), dots, points))
    return Course(
        quantity.heading, width, height, left, right, top, bottom, font,
        _dates(known, place_x, font * 5.6, right),
        tuple((place_y(value), quantity.tick(value)) for value in y_values),
        tuple(line for line in lines if line.dots),
    )  # fmt: skip


def _dot(entry: Entry, quantity: Quantity, x: float, place_y: Callable[[float], float], shape: str, font: float) -> Dot:
    value = quantity.value(entry.row)
    assert value is not None
    low, high = quantity.interval(entry.row) or (value, value)
    y = place_y(value)
    text = f"{entry.label}, {entry.when:%Y-%m-%d %H:%M}: {quantity.text(value)}"
    return Dot(x, y, place_y(low), place_y(high), mark(shape, x, y, font * 0.4), text)


def _dates(
    known: Sequence[Entry], place_x: Callable[[Entry], float], wide: float, right: float
) -> tuple[tuple[float, str, str], ...]:
    """Dates below the axis, where something was measured and ``wide`` leaves room: place, SVG's anchor, text."""
    by_day: dict[str, float] = {}
    for entry in known:
        by_day.setdefault(f"{entry.when:%Y-%m-%d}", place_x(entry))
    ticks: list[tuple[float, str, str]] = []
    free = -math.inf
    for day, x in by_day.items():
        # at either edge a date is written inwards
        anchor = "start" if not ticks else "end" if x + wide / 2 > right else "middle"
        begin = x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        if begin >= free:
            ticks.append((x, anchor, day))
            free = begin + 1.2 * wide
    return tuple(ticks)


def page(report: Report, title: str | None = None) -> str:
    """The page as HTML; every name in it is escaped.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    made_page = template("history.html.j2", purpose="write the page of a history", number=number, percent=percent)
    models = []
    for model, made in entries(report).items():
        drawn = {
            name: [plot for quantity in (LATENCY, ACCURACY) if (plot := course(made, quantity, **size)) is not None]
            for name, size in {
                "wide": {"width": 960.0, "height": 360.0, "font": 14.0},
                "narrow": {"width": 380.0, "height": 320.0, "font": 13.0},
            }.items()
        }
        models.append((model, drawn, list(reversed(made))))
    rendered: str = made_page.render(
        title=title or report.title, style=resource("report.css"), models=models, runs=len(report.runs)
    )
    return rendered


def save_course(report: Report, folder: str | Path, *, title: str | None = None) -> Path:
    """Write ``index.html``.

    Returns:
        Its path.

    Raises:
        OutputError: the folder cannot be written.
        MissingDependencyError: Jinja2 is not installed.
    """
    path = Path(folder) / "index.html"
    write_text(path, page(report, title))
    return path


def _date(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
