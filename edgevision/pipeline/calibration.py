"""One calibration: channels equalized, every activation observed, doubtful pictures named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevision.data import batches
from edgevision.data.base import Subset, evenly_spaced
from edgevision.pipeline.data_care import preprocess_findings
from edgevision.preprocess import Preprocess
from edgevision.progress import track

if TYPE_CHECKING:
    from edgevision.graph import Graph
    from edgevision_calibration.diagnostics import PictureWatch
    from edgevision_calibration.table import CalibrationTable, Digest
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

    watch = PictureWatch()
    if equalize:
        few, others = _parted(samples, equalization.PICTURES)
        equalized = equalization.equalize(source.graph, watch.watch(_pictures(few, preprocess, "equalize")))
    else:
        equalized = equalization.Equalized(source.graph, {}, {})
    graph, known = equalized.graph, equalized.samples
    begun = {name: seen.digest for name, seen in known.items()}
    table = observed(graph, preprocess, others if begun else samples, watch, begun)
    findings = diagnose(table, graph, watch)
    findings += preprocess_findings(source.graph, source.task, preprocess, samples)
    table.findings = [finding.to_dict() for finding in findings]
    table.noise_gains = dict(equalized.noise_gains)
    return graph, table


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
    begun: Mapping[str, Digest] | None = None,
) -> CalibrationTable:
    """One pass of the pictures through a graph as it is.

    Args:
        graph: the graph.
        preprocess: how pictures become its input.
        samples: the pictures.
        watch: sees them go by.
        begun: tensor name → what other pictures put into it.

    Raises:
        CalibrationError: no pictures, or an activation is NaN or infinite.
        DataError: a picture cannot be read.
    """
    from edgevision_calibration.observe import observe

    pictures = _pictures(samples, preprocess, "calibrate")
    watched = pictures if watch is None else watch.watch(pictures)
    return observe(graph, watched, preprocess_digest=preprocess.digest, source=samples.name, begun=begun)


def _pictures(chosen: Subset, preprocess: Preprocess, label: str) -> Any:
    feed = (batch for batch, _ in batches(chosen, preprocess, 1))
    return track(feed, label, len(chosen))
