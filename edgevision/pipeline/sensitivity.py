"""`sensitivity` and the precision search: which layers suffer from integers, and which must stay in float."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgevision import __version__
from edgevision.bundle import Bundle
from edgevision.data import open_dataset
from edgevision.data.base import Dataset, evenly_spaced
from edgevision.errors import DataError, UsageError
from edgevision.files import write_json, write_text
from edgevision.pipeline.search import Budget, OutOfTimeError, search
from edgevision.pipeline.trial import EngineTrials
from edgevision.pipeline.workspace import Workspace, digest_of, digest_of_samples

if TYPE_CHECKING:
    from edgevision.graph import Graph
    from edgevision_calibration.plan import QuantPlan
    from edgevision_calibration.sensitivity import Sensitivity
    from edgevision_calibration.table import CalibrationTable


class PlanningJob(Protocol):
    """What a search needs of a conversion job."""

    workspace: Workspace

    def calibration(self) -> tuple[Graph, CalibrationTable]:
        """The treated graph and what was observed on it."""
        ...

    def plan(self, target: str, keep_float: Mapping[str, str] | None = None) -> QuantPlan:
        """The plan for a target, with some nodes kept in float."""
        ...

    def few_pictures(self, count: int) -> list[npt.NDArray[np.float32]]:
        """Some preprocessed calibration pictures, ``[1, C, H, W]`` each."""
        ...

    @property
    def variant(self) -> str:
        """What else decides the bundles that are tried."""
        ...

    def learned(self, target: str, keep_float: Mapping[str, str] | None = None) -> tuple[Graph, QuantPlan]:
        """The graph and plan for a target with its final weights, with some nodes kept in float."""
        ...

    def trial(self, engine: str, plan: QuantPlan | None, graph: Graph | None = None) -> Bundle:
        """An unsaved bundle of a plan and its graph, or of the model in FP32, for an engine."""
        ...


def sensitivity(
    source: Any, *, target: str, data: str | Path | Dataset, pictures: int | None = None, **arguments: Any
) -> Sensitivity:
    """How much the outputs suffer when each layer alone is quantized as ``target`` wants it.

    The calibration is kept in the folder ``out`` and shared with `edgevision.convert`.

    Args:
        source: what `edgevision.convert` takes.
        target: engine whose scheme is examined.
        data: pictures to calibrate with and to measure on.
        pictures: how many of them the layers are measured on; 16 by default.
        arguments: further arguments of `edgevision.convert`: ``out``, ``preprocess``, ``weights``, ``options``…

    Raises:
        EdgeVisionError: whatever `edgevision.convert` raises.
        UsageError: fewer than 1 picture.
    """
    from edgevision.pipeline.convert import open_job
    from edgevision_calibration.sensitivity import PICTURES, measure_sensitivity
    from edgevision_converters.qdq import quantize_dequantize

    if pictures is not None and pictures < 1:
        raise UsageError(f"pictures must be 1 or more; got {pictures}")
    job = open_job(source, targets=[target], precisions=["int8"], data=data, **arguments)
    graph, _ = job.calibration()
    return measure_sensitivity(graph, job.plan(target), job.few_pictures(pictures or PICTURES), quantize_dequantize)


def search_precision(
    job: PlanningJob, target: str, validation: Dataset, *, max_drop: float, budget: Budget | None = None
) -> tuple[Graph, QuantPlan]:
    """The graph and the fastest plan for ``target`` that loses at most ``max_drop`` points on the validation pictures.

    Measurements are kept in the job's workspace: a search that was interrupted goes on, and one that was finished
    is repeated from them. What was found is written into the plan's ``calibration["search"]``.

    Args:
        job: the conversion.
        target: engine.
        validation: pictures to measure the loss on, see `EngineTrials`.
        max_drop: limit, points.
        budget: time that is left; what has been found by then is taken. None for no limit. Calibration and learned
            rounding count where they are still to be done, and are not cut short.

    Raises:
        DataError: there are no validation pictures.
    """
    from edgevision_calibration.sensitivity import unranked

    if not len(validation):
        raise DataError(f"{validation.name} holds no pictures to measure the loss on: give --val-data that does")
    budget = budget or Budget(None)
    graph, plan = job.learned(target)
    folder = job.workspace.root / "search" / _search_key(job, plan, validation)
    layers = unranked(graph, plan)
    reason = "tried in float by the search"

    def build(engine: str, nodes: frozenset[str]) -> Bundle:
        graph, plan = job.learned(target, {layer.node: reason for layer in layers if layer.node in nodes})
        return job.trial(engine, plan, graph)

    names = [layer.node for layer in layers]
    trials = EngineTrials(target, names, build, lambda engine: job.trial(engine, None), validation, folder, budget)
    if trials.drop(()) > max_drop:
        # without time for a ranking the plan just measured is all there is: the search will end at once
        with suppress(OutOfTimeError):
            layers = _ranked(job, target, folder, budget).layers
    found = search(layers, trials, max_drop=max_drop)
    graph, plan = job.learned(target, found.reasons(layers))
    summary = {
        **found.to_dict(),
        "max_drop": max_drop,
        "measure": trials.measure,
        "validation": validation.name,
        "pictures": trials.pictures,
        "engine": trials.engine,
    }
    return graph, replace(plan, calibration={**plan.calibration, "search": summary})


def _search_key(job: PlanningJob, plan: QuantPlan, validation: Dataset) -> str:
    """Everything that decides what a search measures."""
    pictures = digest_of_samples(evenly_spaced(validation, None))
    labels = None if validation.labels is None else validation.labels.tolist()
    return digest_of(plan.to_json(), plan.scheme.target, pictures, labels, job.variant, __version__)


def _ranked(job: PlanningJob, target: str, folder: Path, budget: Budget) -> Sensitivity:
    """The layers' sensitivity, measured once; raises `OutOfTimeError` where the budget does not last."""
    from edgevision_calibration.sensitivity import PICTURES, Sensitivity, measure_sensitivity
    from edgevision_converters.qdq import quantize_dequantize

    path = folder / "sensitivity.json"
    try:
        return Sensitivity.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        graph, _ = job.calibration()
        pictures = job.few_pictures(PICTURES)
        ranked = measure_sensitivity(graph, job.plan(target), pictures, quantize_dequantize, before_each=budget.check)
        write_json(path, ranked.to_dict())
        return ranked


def open_validation(data: str | Path | Dataset | None, max_drop: float | None) -> Dataset | None:
    """The validation data of a search.

    Raises:
        UsageError: a limit without data, or data without a limit.
    """
    if max_drop is None:
        if data is not None:
            raise UsageError("validation data are for the precision search: say how much may be lost with --max-drop")
        return None
    if data is None:
        raise UsageError(
            "a limit on the loss needs pictures to measure it on: give --val-data KIND:PATH, not those of --data"
        )
    return open_dataset(data, split="test")


def save_sensitivity(result: Sensitivity, out: str | Path) -> list[Path]:
    """Write ``sensitivity.json``, ``sensitivity.csv`` and ``sensitivity.svg`` into ``out``.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(out)
    write_json(folder / "sensitivity.json", result.to_dict())
    rows = ["node,op,sqnr_db,share,macs"]
    rows += [
        f"{_quoted(layer.node)},{layer.op},{layer.sqnr_db:.3f},{layer.share:.6f},{layer.macs}"
        for layer in result.layers
    ]
    write_text(folder / "sensitivity.csv", "\n".join(rows) + "\n")
    write_text(folder / "sensitivity.svg", sensitivity_svg(result))
    return [folder / f"sensitivity.{kind}" for kind in ("json", "csv", "svg")]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n') else text


def sensitivity_svg(result: Sensitivity) -> str:
    """A bar for each layer, the most harmful first; its length is the layer's share of the noise."""
    from html import escape

    row, left, width, top = 18, 260, 420, 44
    longest = max((layer.share for layer in result.layers), default=0.0) or 1.0
    bars = []
    for index, layer in enumerate(result.layers):
        y = top + index * row
        length = width * layer.share / longest
        name = layer.node if len(layer.node) <= 36 else "…" + layer.node[-35:]
        bars.append(
            f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="{row - 5}" fill="#3b6ea8"/>'
            f'<text x="{left + length + 5:.1f}" y="{y + 12}">{layer.share:.1%}, {layer.sqnr_db:.1f} dB</text>'
        )
    height = top + row * len(result.layers) + 10
    title = f"Noise of each layer quantized alone, {result.target}: all together {result.sqnr_db:.1f} dB"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 130} {height}" role="img" '
        f'font-family="sans-serif" font-size="11"><title>{escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="22" font-size="14">{escape(title)}</text>'
        + "".join(bars)
        + "</svg>\n"
    )
