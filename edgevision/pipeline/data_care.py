"""What `convert` looks at besides ranges while it calibrates: are these the right pictures, preprocessed rightly?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.data.base import Subset, evenly_spaced
from edgevision.images import to_image
from edgevision.preprocess import Preprocess

if TYPE_CHECKING:
    from edgevision.graph import Graph
    from edgevision_calibration.diagnostics import Finding


def preprocess_findings(graph: Graph, task: str, preprocess: Preprocess, samples: Subset) -> list[Finding]:
    """Whether a classifier would answer more surely under another preprocess; nothing for other tasks.

    Raises:
        DataError: a picture cannot be read.
    """
    from edgevision_calibration.diagnostics import LEAST_PICTURES, PREPROCESS_PICTURES, check_preprocess
    from edgevision_calibration.observe import open_session

    output = graph.output_names[0]
    # too few pictures say nothing, whatever the network answers: it need not even be opened
    if task != "classification" or len(graph.shapes.get(output, ())) != 2 or len(samples) < LEAST_PICTURES:
        return []
    # one picture at a time: threads that join in each layer of it would mostly wait for each other
    session = open_session(graph.to_bytes(), threads=1)

    def run(batch: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
        scores: npt.NDArray[Any] = session.run([output], {graph.input_name: batch})[0]
        return scores

    chosen = evenly_spaced(samples, min(PREPROCESS_PICTURES, len(samples)))
    pixels = (np.asarray(preprocess.geometry(to_image(sample.image))) for sample in chosen)
    return check_preprocess(run, pixels, preprocess)
