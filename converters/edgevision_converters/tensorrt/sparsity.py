"""Which layers have the zeros that a GPU's sparse tensor cores skip."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph
from edgevision_calibration.weights import per_input


def two_of_four_layers(graph: Graph) -> list[str]:
    """Names of the dense layers of whose weights at least two of every four along the inputs are zero.

    Source: Mishra et al., Accelerating Sparse Deep Neural Networks, arXiv 2104.08378, section 3.
    """
    return [
        node.name
        for node in graph.nodes
        if node.op_type in {"Conv", "Gemm"}
        and node.input[1] in graph.initializers
        and _two_of_four(per_input(graph.initializers[node.input[1]], node))
    ]


def _two_of_four(weight: npt.NDArray[np.float32]) -> bool:
    """``weight``: groups, outputs, inputs, taps."""
    groups, _, inputs, _ = weight.shape
    if groups != 1 or inputs % 4:
        return False
    quads = np.moveaxis(weight, 2, -1).reshape(-1, 4)
    return bool((np.count_nonzero(quads, axis=1) <= 2).all())
