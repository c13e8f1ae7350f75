"""One calibration: channels equalized, every activation observed, doubtful pictures named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevision.data import batches
from edgevision.data.base import Subset, evenly_spaced
from edgevision.pipeline.data_care import preprocess_findings
from edgevision.pipeline.memory import give_back_memory
from edgevision.preprocess import Preprocess
from edgevision.progress import track

if TYPE_CHECKING:
    from edgevision.graph import Graph
    from edgevision_calibration.diagnostics import PictureWatch
    from edgevision_calibration.table import CalibrationTable
    from edgevision_converters.export import Source


def calibrate(
    source: Source, preprocess: Preprocess, samples: Subset, *, equalize: bool = True
) -> tuple[Graph, CalibrationTable]:
    """The graph to be quantized and what was observed on it, findings about the pictures included.

    Args:
        source: the model; its graph stays as it is.
        preprocess: how pictures become its input.
        samples: the calibration pictures.
        equalize: rescale channels first.

    Raises:
        CalibrationError: no pictures, or an activation is NaN or infinite.
        DataError: a picture cannot be read.
    """
    from edgevision_calibration import equalization
    from edgevision_calibration.diagnostics import PictureWatch, diagnose

    # opening and exporting the model freed more than a calibration takes
    give_back_memory()
    watch, graph, begun = PictureWatch(), source.graph, None
    others = samples
    if equalize:
        few, rest = _parted(samples, equalization.PICTURES)
        graph, begun = _equalized(graph, watch.watch(_pictures(few, preprocess, "equalize")))
        give_back_memory()
        others = rest if begun.images else samples
    table = observed(graph, preprocess, others, watch, begun)
    findings = diagnose(table, graph, watch)
    findings += preprocess_findings(source.graph, source.task, preprocess, samples)
    table.findings = [finding.to_dict() for finding in findings]
    give_back_memory()
    return graph, table


def _equalized(graph: Graph, pictures: Iterable[Any]) -> tuple[Graph, CalibrationTable]:
    """The rescaled graph and what its pictures put into it; their samples take memory, and stay here."""
    from edgevision_calibration.equalization import equalize

    equalized = equalize(graph, pictures)
    return equalized.graph, equalized.table()


def _parted(samples: Subset, count: int) -> tuple[Subset, Subset]:
    """``count`` samples spread evenly over all, and the others."""
    few = evenly_spaced(samples, min(count, len(samples)))
    others = np.setdiff1d(np.arange(len(samples)), few.indices)
    return few, Subset(samples, others.tolist())


def observed(
    graph: Graph,
    preprocess: Preprocess,
    samples: Subset,
    watch: PictureWatch | None = None,
    begun: CalibrationTable | None = None,
) -> CalibrationTable:
    """One pass of the pictures through a graph as it is.

    Args:
        graph: the graph.
        preprocess: how pictures become its input.
        samples: the pictures.
        watch: sees them go by.
        begun: what other pictures put into the graph.

    Raises:
        CalibrationError: no pictures, or an activation is NaN or infinite.
        DataError: a picture cannot be read.
    """
    from edgevision_calibration.observe import observe
    from edgevision_calibration.table import samples_per_picture

    pictures = _pictures(samples, preprocess, "calibrate")
    watched = pictures if watch is None else watch.watch(pictures)
    return observe(
        graph,
        watched,
        preprocess_digest=preprocess.digest,
        source=samples.name,
        begun=begun,
        samples=samples_per_picture(len(samples) + (0 if begun is None else begun.images)),
    )


def _pictures(chosen: Subset, preprocess: Preprocess, label: str) -> Any:
    feed = (batch for batch, _ in batches(chosen, preprocess, 1))
    return track(feed, label, len(chosen))
