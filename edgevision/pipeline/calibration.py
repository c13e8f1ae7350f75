"""One calibration: channels equalized, every activation observed, doubtful pictures named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgevision.data import batches
from edgevision.data.base import Subset, evenly_spaced
from edgevision.pipeline.data_care import preprocess_findings
from edgevision.preprocess import Preprocess
from edgevision.progress import track

if TYPE_CHECKING:
    from edgevision.graph import Graph
    from edgevision_calibration.diagnostics import PictureWatch
    from edgevision_calibration.table import CalibrationTable
    from edgevision_converters.export import Source

# pictures that equalization looks at
_EQUALIZE_PICTURES = 64


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

    graph, gains = source.graph, dict[str, float]()
    if equalize:
        few = evenly_spaced(samples, min(_EQUALIZE_PICTURES, len(samples)))
        equalized = equalization.equalize(graph, _pictures(few, preprocess, "equalize"))
        graph, gains = equalized.graph, dict(equalized.noise_gains)
    watch = PictureWatch()
    table = observed(graph, preprocess, samples, watch)
    findings = diagnose(table, graph, watch)
    findings += preprocess_findings(source.graph, source.task, preprocess, samples)
    table.findings = [finding.to_dict() for finding in findings]
    table.noise_gains = gains
    return graph, table


def observed(
    graph: Graph, preprocess: Preprocess, samples: Subset, watch: PictureWatch | None = None
) -> CalibrationTable:
    """One pass of the pictures through a graph as it is; ``watch`` sees them go by."""
    from edgevision_calibration.observe import observe

    pictures = _pictures(samples, preprocess, "calibrate")
    watched = pictures if watch is None else watch.watch(pictures)
    return observe(graph, watched, preprocess_digest=preprocess.digest, source=samples.name)


def _pictures(chosen: Subset, preprocess: Preprocess, label: str) -> Any:
    feed = (batch for batch, _ in batches(chosen, preprocess, 1))
    return track(feed, label, len(chosen))
