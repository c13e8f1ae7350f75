"""Somebody's ONNX file and a folder of pictures become bundles for three engines, each proved against FP32.

The ONNX file and the pictures are generated here, so that the program runs as it stands; put your own in their place.

    python examples/convert_own_onnx.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import edgevision as ev


def main(folder: str = "bundles") -> None:
    out = Path(folder)
    source = write_model(out / "own.onnx")
    photos = write_photos(out / "photos")
    bundles = ev.convert(
        source,
        targets=["onnxruntime", "openvino", "ncnn"],
        precision=["fp32", "int8"],
        data=photos,  # pictures to calibrate with; no labels needed
        preprocess="imagenet",  # a preset is fitted to the network's input size
        classes=[f"thing {index}" for index in range(10)],
        out=out,
    )
    for bundle in bundles:
        proof = ev.verify(bundle)
        assert proof.passed, f"{bundle.path} misses its own thresholds"
        print(f"{bundle.path}  {bundle.engine_bytes / 1e3:.0f} kB  {proof.fp32.sqnr_db:.1f} dB against FP32")


def write_model(path: Path) -> Path:
    """A small classifier `input [batch, 3, 64, 64]` → `scores [batch, 10]`, as an exporter might write it."""
    rng = np.random.default_rng(0)
    weights = {
        "stem.weight": rng.normal(0, 0.25, (16, 3, 3, 3)),
        "stem.bias": rng.normal(0, 0.1, 16),
        "depthwise.weight": rng.normal(0, 0.4, (16, 1, 3, 3)),
        "pointwise.weight": rng.normal(0, 0.3, (32, 16, 1, 1)),
        "head.weight": rng.normal(0, 0.3, (10, 32)),
        "head.bias": rng.normal(0, 0.1, 10),
    }
    nodes = [
        helper.make_node("Conv", ["input", "stem.weight", "stem.bias"], ["c0"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "depthwise.weight"], ["c1"], group=16, pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "pointwise.weight"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 64, 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def write_photos(folder: Path, count: int = 24) -> Path:
    """Soft blotches of colour: as smooth as photos are, and of no meaning."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    for index in range(count):
        cells = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(cells).resize((120, 90), Image.Resampling.BICUBIC).save(folder / f"{index:03}.jpg", quality=92)
    return folder


if __name__ == "__main__":
    main(*sys.argv[1:2])
