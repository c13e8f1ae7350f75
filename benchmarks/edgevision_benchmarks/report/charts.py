"""Geometry of the scatter plot, in the units of its SVG view box; the template only draws what stands here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgevision_benchmarks.report.axes import axis, log_axis
from edgevision_benchmarks.report.layout import differing, labels, metric_of, number, percent, target_name
from edgevision_benchmarks.report.marks import mark
from edgevision_benchmarks.report.report import Report
from edgevision_benchmarks.result import Result

# times further apart than this are set on a logarithmic axis
LOG_RATIO = 6.0

# mean width of a character of the page's font, in font sizes
_CHARACTER = 0.56

SHAPES = {"fp32": "circle", "fp16": "triangle", "int8": "diamond"}


@dataclass(frozen=True)
class Cost:
    """What accuracy is set against: how it is called, its unit, and a row's value in it."""

    name: str
    heading: str
    unit: str
    of: Callable[[Result], float | None]


LATENCY = Cost("latency", "Latency, ms (engine alone, median", "ms", lambda row: row.p50)
SIZE = Cost("size", "Size, MB (engine files as stored", "MB", lambda row: (row.stored_bytes or 0) / 1e6 or None)


@dataclass(frozen=True)
class Tick:
    """A tick: position along its axis and text."""

    at: float
    text: str


@dataclass(frozen=True)
class Label:
    """Text beside a point; ``anchor`` as SVG has it."""

    x: float
    y: float
    anchor: str
    text: str


@dataclass(frozen=True)
class Point:
    """One row drawn."""

    index: int
    x: float
    y: float
    color: int
    path: str
    y_low: float | None
    y_high: float | None
    on_front: bool
    text: str
    label: Label | None


@dataclass(frozen=True)
class Scatter:
    """A scatter plot ready to be drawn; ``fronts`` are SVG polyline points, one per run."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    font: float
    logarithmic: bool
    measure: str
    cost: Cost
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    points: tuple[Point, ...]
    fronts: tuple[str, ...]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points ``(cost, value)`` that no other beats in both, cheapest first.

    A point is left out when another costs no more and is worth no less, and differs; of equal points all stay.
    """
    best = -math.inf
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[index][1] > best or (front and points[index] == points[front[-1]]):
            front.append(index)
            best = points[index][1]
    return front


def measure_of(report: Report, cost: Cost = LATENCY) -> str | None:
    """What to set against the cost: accuracy where it is known, else agreement, else cosine; None without any."""
    for name in ("accuracy", "agreement", "cosine"):
        if any(getattr(row, name) is not None and cost.of(row) for row in report.results):
            return name
    return None


def target_colors(report: Report) -> dict[str, int]:
    """Engine → number of its colour: fixed for the four engines, so that reports look alike."""
    known = ["onnxruntime", "openvino", "ncnn", "tensorrt"]
    others = sorted({row.target for row in report.results} - set(known))
    return {name: index % 6 for index, name in enumerate([*known, *others])}


def scatter(report: Report, *, width: float, height: float, font: float, cost: Cost = LATENCY) -> Scatter | None:
    """Lay out accuracy against ``cost``; None where there is nothing to set against it."""
    measure = measure_of(report, cost)
    if measure is None:
        return None
    costs = {index: cost.of(row) or 0.0 for index, row in enumerate(report.results)}
    rows = [(i, row) for i, row in enumerate(report.results) if costs[i] and getattr(row, measure) is not None]
    left, right, top, bottom = font * 5.6, width - font * 1.2, font * 1.2, height - font * 3.6
    xs = [costs[index] for index, _ in rows]
    logarithmic = max(xs) / min(xs) > LOG_RATIO
    x_low, x_high, x_values = log_axis(xs) if logarithmic else axis(xs, (right - left) / (font * 5))
    intervals = [_interval(row, measure) for _, row in rows]
    ys = [getattr(row, measure) for _, row in rows] + [edge for pair in intervals if pair for edge in pair]
    y_low, y_high, y_values = axis(ys, (bottom - top) / (font * 3), limit=1.0)

    def place_x(value: float) -> float:
        a, b, v = (math.log(x_low), math.log(x_high), math.log(value)) if logarithmic else (x_low, x_high, value)
        return left + (right - left) * (v - a) / (b - a)

    def place_y(value: float) -> float:
        return bottom - (bottom - top) * (value - y_low) / (y_high - y_low)

    fronts = _fronts(rows, measure, costs)
    on_front = {index for front in fronts for index in front}
    at = {index: (place_x(costs[index]), place_y(getattr(row, measure))) for index, row in rows}
    lines = [[at[index] for index in front] for front in fronts]
    placed = _place_labels(report, at, lines, (left, right, top, bottom), font)
    colors = target_colors(report)
    names = labels(report)
    points = []
    for (index, row), interval in zip(rows, intervals, strict=True):
        x, y = at[index]
        points.append(
            Point(
                index=index,
                x=round(x, 1),
                y=round(y, 1),
                color=colors[row.target],
                path=mark(SHAPES.get(row.precision, "square"), x, y, font * 0.5),
                y_low=None if interval is None else round(place_y(interval[0]), 1),
                y_high=None if interval is None else round(place_y(interval[1]), 1),
                on_front=index in on_front,
                text=f"{names[index]}: {number(costs[index])} {cost.unit}, {_value(row, measure)}",
                label=placed.get(index),
            )
        )
    return Scatter(
        width, height, left, right, top, bottom, font, logarithmic, measure, cost,
        tuple(Tick(round(place_x(value), 1), _plain(value)) for value in x_values),
        tuple(Tick(round(place_y(value), 1), _axis_value(value, measure, y_values)) for value in y_values),
        tuple(sorted(points, key=lambda point: point.on_front)),
        tuple(" ".join(f"{at[index][0]:.1f},{at[index][1]:.1f}" for index in front) for front in fronts),
    )  # fmt: skip


def legend(report: Report) -> list[tuple[str, int]]:
    """Engines that have rows to draw, and their colours."""
    colors = target_colors(report)
    present = {row.target for row in report.results if row.p50}
    return [(target_name(target), colors[target]) for target in sorted(present, key=lambda name: colors[name])]


def shapes(report: Report) -> list[tuple[str, str]]:
    """Precisions that have rows to draw, and the SVG path of their mark in a box of 16 × 16."""
    order = {name: index for index, name in enumerate(SHAPES)}
    present = sorted({row.precision for row in report.results if row.p50}, key=lambda name: order.get(name, len(order)))
    return [(name.upper(), mark(SHAPES.get(name, "square"), 8, 8, 6)) for name in present]


def _fronts(rows: list[tuple[int, Result]], measure: str, costs: dict[int, float]) -> list[list[int]]:
    fronts = []
    # times of different machines do not compete
    for run in sorted({row.run for _, row in rows}):
        mine = [(index, row) for index, row in rows if row.run == run]
        chosen = pareto_front([(costs[index], getattr(row, measure)) for index, row in mine])
        fronts.append([mine[index][0] for index in chosen])
    return fronts


def _interval(row: Result, measure: str) -> tuple[float, float] | None:
    if measure == "accuracy":
        return row.accuracy_ci95
    return row.agreement_ci95 if measure == "agreement" else None


def _plain(value: float) -> str:
    return f"{value:.6g}"


def _axis_value(value: float, measure: str, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 0.1
    if measure == "cosine":
        return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    return f"{100 * value:.{max(0, -math.floor(math.log10(100 * step) + 1e-9))}f}%"


def _value(row: Result, measure: str) -> str:
    if measure == "cosine":
        return f"cosine {row.cosine:.4f}"
    value, name = (row.accuracy, metric_of(row)) if measure == "accuracy" else (row.agreement, "agreement")
    return f"{percent(value)} {name}"


Box = tuple[float, float, float, float]


def _short_labels(report: Report) -> list[str]:
    """What colour and shape do not say already; with one model that is nothing, and the whole name is given."""
    several = differing(report)
    if not several["model"]:
        return labels(report)
    return [
        row.model
        + (f" {row.compression}" if row.compression else "")
        + (f" ×{row.threads}" if several["threads"] else "")
        + (f" ({row.run + 1})" if several["run"] else "")
        for row in report.results
    ]


# offset from the mark, in font sizes, and anchor: beside it, below and above it, then the slanted places
_PLACES = (
    (0.9, 0.35, "start"),
    (-0.9, 0.35, "end"),
    (0.0, 1.75, "middle"),
    (0.0, -1.0, "middle"),
    (0.6, 1.45, "start"),
    (-0.6, -0.75, "end"),
    (0.6, -0.75, "start"),
    (-0.6, 1.45, "end"),
)


def _place_labels(
    report: Report,
    at: dict[int, tuple[float, float]],
    lines: list[list[tuple[float, float]]],
    frame: Box,
    font: float,
) -> dict[int, Label]:
    """Label the points where there is room, those on a line first; neither marks nor lines are covered."""
    names = _short_labels(report)
    on_line = {point for line in lines for point in line}
    taken: list[Box] = [(x - font * 0.6, y - font * 0.6, x + font * 0.6, y + font * 0.6) for x, y in at.values()]
    taken += [(x, y, x, y) for line in lines for x, y in _along(line, font * 0.4)]
    placed: dict[int, Label] = {}
    for index in sorted(at, key=lambda i: (at[i] not in on_line, at[i])):
        x, y = at[index]
        wide = len(names[index]) * font * _CHARACTER
        for dx, dy, anchor in _PLACES:
            label = Label(round(x + dx * font, 1), round(y + dy * font, 1), anchor, names[index])
            start = {"start": label.x, "end": label.x - wide, "middle": label.x - wide / 2}[anchor]
            box = (start, label.y - font * 0.85, start + wide, label.y + font * 0.25)
            inside = box[0] >= frame[0] and box[2] <= frame[1] and box[1] >= frame[2] and box[3] <= frame[3]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                placed[index] = label
                break
    return placed


def _along(line: list[tuple[float, float]], step: float) -> list[tuple[float, float]]:
    """Points on a polyline, at most ``step`` apart."""
    points = []
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        count = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0) / step))
        points += [(x0 + (x1 - x0) * n / count, y0 + (y1 - y0) * n / count) for n in range(count + 1)]
    return points


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
