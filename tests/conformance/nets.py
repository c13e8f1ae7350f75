"""Small networks, pictures and bundles that the cross-cutting tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIZE = 32
CLASSES = 6
# what the head answers on average over `picture`: taken off by its bias, so that every class is somebody's answer
HEAD_MEAN = (21.76, -10.91, 16.69, -16.24, 8.24, 10.45)
NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")


def tiny_net(batch: int | str = "N", height: int | str = SIZE, width: int | str = SIZE) -> onnx.ModelProto:
    """``images [N, 3, 32, 32]`` → ``logits [N, 6]``, with one of everything that engines fuse or quantize apart.

    Stem with ReLU6, depthwise, pointwise with hard-swish, residual addition, max pool, concat, global pool, Gemm.
    """
    rng = np.random.default_rng(7)

    def conv(out: int, into: int, kernel: int) -> np.ndarray:
        return rng.normal(0.0, np.sqrt(2.0 / (into * kernel * kernel)), (out, into, kernel, kernel))

    weights = {
        "stem_w": conv(16, 3, 3),
        "stem_b": rng.normal(0.0, 0.1, 16),
        "depthwise_w": conv(16, 1, 3),
        "depthwise_b": rng.normal(0.0, 0.1, 16),
        "pointwise_w": conv(16, 16, 1),
        "pointwise_b": rng.normal(0.0, 0.1, 16),
        "branch_w": conv(16, 16, 3),
        "branch_b": rng.normal(0.0, 0.1, 16),
        "head_w": rng.normal(0.0, 8.0, (CLASSES, 32)),
        "head_b": -np.float32(HEAD_MEAN),
        "zero": np.float32(0.0),
        "six": np.float32(6.0),
    }
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["images", "stem_w", "stem_b"], ["stem"], "stem", strides=[2, 2], **same),
        helper.make_node("Clip", ["stem", "zero", "six"], ["stem6"], "stem_relu6"),
        helper.make_node("Conv", ["stem6", "depthwise_w", "depthwise_b"], ["depthwise"], "depthwise", group=16, **same),
        helper.make_node("Relu", ["depthwise"], ["depthwise_positive"], "depthwise_relu"),
        helper.make_node("Conv", ["depthwise_positive", "pointwise_w", "pointwise_b"], ["pointwise"], "pointwise"),
        helper.make_node("HardSwish", ["pointwise"], ["swished"], "pointwise_hardswish"),
        helper.make_node("Add", ["swished", "stem6"], ["sum"], "residual"),
        helper.make_node("MaxPool", ["sum"], ["pooled"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["pooled", "branch_w", "branch_b"], ["branch"], "branch", **same),
        helper.make_node("Relu", ["branch"], ["branch_positive"], "branch_relu"),
        helper.make_node("Concat", ["pooled", "branch_positive"], ["joined"], "join", axis=1),
        helper.make_node("GlobalAveragePool", ["joined"], ["averaged"], "average"),
        helper.make_node("Flatten", ["averaged"], ["features"], "flatten"),
        helper.make_node("Gemm", ["features", "head_w", "head_b"], ["logits"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, height, width])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def picture(index: int, size: int = SIZE) -> np.ndarray:
    """A ``uint8`` picture ``[size, size, 3]``: coloured waves and blobs, another one for every index."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[0:size, 0:size] / size
    channels = []
    for _ in range(3):
        fx, fy, phase = rng.uniform(0.5, 4.0), rng.uniform(0.5, 4.0), rng.uniform(0.0, 6.3)
        channels.append(0.5 + 0.35 * np.sin(6.3 * (fx * x + fy * y) + phase) + rng.normal(0.0, 0.08, x.shape))
    return (np.stack(channels, -1).clip(0.0, 1.0) * 255.0).round().astype(np.uint8)


def write_pictures(folder: Path, count: int, size: int = SIZE) -> Path:
    """``count`` PNG files ``000.png`` … in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(picture(index, size)).save(folder / f"{index:03d}.png")
    return folder


def save_net(path: Path, model: onnx.ModelProto | None = None) -> Path:
    """Write ``model``, by default `tiny_net`, as an ONNX file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((model or tiny_net()).SerializeToString())
    return path
