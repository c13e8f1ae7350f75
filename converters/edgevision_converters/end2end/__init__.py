"""A detector's decoding and non-maximum suppression as nodes of its graph, after the raw outputs of the network.

`families` says for each decoder of `edgevision.detection.decoders` how its raw outputs become scores and boxes,
`suppression` keeps the best of them, and `graph` puts both behind a network, whose outputs are then the detections.
"""

from edgevision_converters.end2end.graph import (
    append_detections,
    check_decoder,
    detections_model,
    detections_of,
)

__all__ = ["append_detections", "check_decoder", "detections_model", "detections_of"]
