"""One calibration pass, every range method and every target's scheme from it: how much noise each plan would add.

python examples/compare_ranges.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from convert_own_onnx import write_model, write_photos

import edgevision as ev
from edgevision.data import batches
from edgevision.parity import sqnr_db
from edgevision.pipeline.golden import run_graph
from edgevision_calibration.observe import observe
from edgevision_calibration.planning import make_plan
from edgevision_calibration.ranges import RANGE_METHODS
from edgevision_calibration.scheme import SCHEMES
from edgevision_converters.canonical import canonicalize
from edgevision_converters.qdq import quantize_dequantize


def main(folder: str = "bundles") -> None:
    graph = canonicalize(write_model(Path(folder) / "own.onnx"))
    photos = ev.open_dataset(write_photos(Path(folder) / "photos"))
    preprocess = ev.PRESETS["imagenet"].with_size(*graph.input_shape[2:])
    pictures = [batch for batch, _ in batches(photos, preprocess, 8)]

    table = observe(graph, pictures)  # the only pass over the pictures
    feed = np.concatenate(pictures)
    expected = run_graph(graph.to_bytes(), feed, exact=False)
    print(f"{table.images} pictures, {len(table.tensors)} tensors observed; SQNR of the outputs in dB")
    print(f"{'':<12}", *(f"{method:>10}" for method in RANGE_METHODS))
    for target, scheme in SCHEMES.items():
        cells = []
        for method in RANGE_METHODS:
            model = quantize_dequantize(graph, make_plan(graph, table, scheme, ranges=method))
            got = run_graph(model.SerializeToString(), feed, exact=True)
            cells.append(min(sqnr_db(expected[name], got[name]) for name in expected))
        print(f"{target:<12}", *(f"{cell:>10.1f}" for cell in cells))


if __name__ == "__main__":
    main(*sys.argv[1:2])
