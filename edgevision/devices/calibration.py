"""What share of a roofline an engine reaches, found from bench results of boards one has, with an error bar."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevision.bundle import Bundle
from edgevision.devices.layers import LayerCost, layer_costs
from edgevision.devices.registry import match_environment
from edgevision.devices.roofline import roofline
from edgevision.errors import DataError, EdgeVisionError

# two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom; beyond, the normal one
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_Z95 = 1.960

# flags of a row (`edgevision.devices.conditions.flags`) that make its times another machine's
_DOUBTS = ("throttled", "busy neighbour")

# terms of a time besides the roofline (see `Roofline.terms`)
_OPTIONAL = ("depthwise", "moved", "layers")


@dataclass(frozen=True)
class Measured:
    """One measured row beside what it may be made of.

    Attributes:
        engine: target of the bundle.
        precision: of the bundle.
        model: name of the model.
        board: title of the registry's entry.
        threads: of one inference.
        measured_ms: median latency.
        terms: `Roofline.terms` of the network on that board.
    """

    engine: str
    precision: str
    model: str
    board: str
    threads: int
    measured_ms: float
    terms: Mapping[str, float]

    @property
    def efficiency(self) -> float:
        """Share of the roofline that was reached; above 1 where data stayed in caches."""
        return self.terms["roofline"] / self.measured_ms


@dataclass(frozen=True)
class Correction:
    """How an engine's times follow from rooflines.

    Attributes:
        weights: term → what it is multiplied by; the roofline's is at least 1 where there are others beside it.
        factor: the 95% interval of a prediction is ``× factor`` and ``÷ factor``; None with too few to leave one out.
        measured: rows it was fitted on.
        boards: titles of the boards among them.
        held_out: what was left out in turn to find the factor: ``board`` or ``row``.
    """

    weights: Mapping[str, float]
    factor: float | None
    measured: int
    boards: tuple[str, ...]
    held_out: str

    def ms(self, terms: Mapping[str, float]) -> float:
        """Expected time of a network with these terms."""
        return sum(weight * terms[name] for name, weight in self.weights.items())


def fit(measured: Sequence[Measured]) -> dict[tuple[str, str], Correction]:
    """How times follow from rooflines, per engine and precision.

    With little to go by it is one number, the share of the roofline that is reached; with more, what depthwise
    layers, moved bytes and the number of layers cost besides is found, too, as far as that foretells rows left out.

    The error bar comes from leaving one out: with two boards or more a whole board at a time, so that it says how far
    an estimate for a board one does not have may be off; with one board a row at a time, which says only how it
    carries over to another network.
    """
    groups: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    for row in measured:
        groups[row.engine, row.precision].append(row)
    return {key: _fit(rows) for key, rows in groups.items()}


def _fit(rows: Sequence[Measured]) -> Correction:
    boards = tuple(dict.fromkeys(row.board for row in rows))
    held_out = "board" if len(boards) > 1 else "row"
    parts = (
        [[row for row in rows if row.board == name] for name in boards] if held_out == "board" else [[r] for r in rows]
    )
    best: tuple[float, Mapping[str, float], float | None] | None = None
    # not more terms than every second row can tell apart
    for count in range(min(len(_OPTIONAL), max(0, len(rows) // 2 - 1)) + 1):
        for optional in itertools.combinations(_OPTIONAL, count):
            weights = _weights(rows, optional)
            if weights is None:
                continue
            spread = _spread(rows, parts, optional)
            # without anything to leave out the simplest is taken, which comes first
            score = math.inf if spread is None else spread
            if best is None or score < best[0]:
                best = score, weights, _factor(spread, len(parts) - 1)
    assert best is not None  # the roofline alone always fits
    return Correction(best[1], best[2], len(rows), boards, held_out)


def _weights(rows: Sequence[Measured], optional: Sequence[str]) -> dict[str, float] | None:
    """Least squares of relative errors; None where a weight would be negative."""
    if not optional:
        # the mean of logarithms, boards counting once each: the share of the roofline
        means = [
            statistics.fmean(math.log(row.efficiency) for row in rows if row.board == name)
            for name in {row.board for row in rows}
        ]
        return {"roofline": math.exp(-statistics.fmean(means))}
    names = ("roofline", *optional)
    matrix = np.array([[row.terms[name] / row.measured_ms for name in names] for row in rows])
    found = np.linalg.lstsq(matrix, np.ones(len(rows)), rcond=None)[0]
    if found[0] < 1:
        # no engine beats the roofline where other terms stand for its losses
        rest = np.linalg.lstsq(matrix[:, 1:], 1 - matrix[:, 0], rcond=None)[0]
        found = np.concatenate([[1.0], rest])
    return None if (found < 0).any() else {name: float(value) for name, value in zip(names, found, strict=True)}


def _spread(rows: Sequence[Measured], parts: Sequence[Sequence[Measured]], optional: Sequence[str]) -> float | None:
    """Root mean square, over parts left out in turn, of the mean logarithm of measured over predicted."""
    if len(parts) < 2:
        return None
    squares = []
    for part in parts:
        weights = _weights([row for row in rows if row not in part], optional)
        if weights is None:
            return math.inf
        logs = [
            math.log(row.measured_ms / sum(weight * row.terms[name] for name, weight in weights.items()))
            for row in part
        ]
        squares.append(statistics.fmean(log * log for log in logs))
    return math.sqrt(statistics.fmean(squares))


def _factor(spread: float | None, freedom: int) -> float | None:
    if spread is None:
        return None
    # beyond e^50 nothing is predicted at all
    return math.exp(min((_T95[freedom - 1] if freedom <= len(_T95) else _Z95) * spread, 50.0))


def load_measured(paths: Iterable[str | Path]) -> tuple[list[Measured], list[str]]:
    """Rows of ``results.json`` files beside their rooflines, and why others could not be used.

    A row needs its bundle, for the layers: at its path, or beside the results file. Rows of a machine that throttled
    or had a busy neighbour are not used.

    Raises:
        DataError: a file cannot be read or is no results file.
    """
    rows: list[Measured] = []
    skipped: list[str] = []
    cache: dict[Path, tuple[str, list[LayerCost]]] = {}
    for path in map(Path, paths):
        path = path / "results.json" if path.is_dir() else path
        for row, environment in _read(path):
            label = f"{path.name}: {row.get('model')} {row.get('target')} {row.get('precision')}"
            try:
                rows.append(_measured(row, environment, path.parent, cache))
            except (EdgeVisionError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
                skipped.append(f"{label}: {error}")
    return rows, skipped


def _read(path: Path) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Rows of a results file, each with the record of its machine."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        environments = [values["environment"], *(run["environment"] for run in values["further_runs"])]
        return [(row, environments[row.get("run", 0)]) for row in values["results"]]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the results: {error}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(f"{path}: not a results file of edgevision bench: {type(error).__name__}: {error}") from error


def _measured(
    row: Mapping[str, Any],
    environment: Mapping[str, Any],
    folder: Path,
    cache: dict[Path, tuple[str, list[LayerCost]]],
) -> Measured:
    if row.get("error") or not row.get("latency_ms"):
        raise ValueError("it was not measured")
    if row.get("batch", 1) != 1:
        raise ValueError("it was measured in batches")
    if doubts := [str(flag) for flag in row.get("flags") or () if str(flag).startswith(_DOUBTS)]:
        raise ValueError(f"its machine was not itself ({doubts[0]})")
    given = Path(row["bundle"])
    path = next((place for place in (given, folder / given, folder / given.name) if place.exists()), None)
    if path is None:
        raise ValueError(f"its bundle is neither at {given} nor beside the results")
    if path not in cache:
        bundle = Bundle.open(path)
        cache[path] = bundle.digest, layer_costs(bundle)
    digest, layers = cache[path]
    if row.get("engine_sha256") not in (None, digest):
        raise ValueError(f"{path} is another bundle than the one measured")
    match = match_environment(environment)
    if match.device is None:
        raise ValueError(match.how)
    threads = int(row["threads"]) or int(environment["cpu"]["usable_cores"])
    found = roofline(layers, match.device, str(row["target"]), threads)
    measured = float(row["latency_ms"]["p50"])
    if not measured > 0:
        raise ValueError(f"its latency is {measured}")
    # two machines with the same generic entry are two boards
    board = match.device.title
    return Measured(str(row["target"]), str(row["precision"]), str(row["model"]), board, threads, measured, found.terms)
