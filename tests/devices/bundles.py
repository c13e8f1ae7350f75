"""Bundles for ncnn that hold a network's description and no weights: enough to reckon with, nothing to run."""

from __future__ import annotations

from pathlib import Path

from edgevision.bundle import Bundle, Manifest
from edgevision.preprocess import Preprocess
from edgevision.runtime.tensors import TensorSpec

# the network of tests/conformance/nets.py as ncnn has it, dense layers in INT8
PARAM = """7767517
13 15
Input      in0       0 1 in0
Convolution stem     1 1 in0 1 0=16 1=3 11=3 12=1 13=2 14=1 2=1 3=2 4=1 5=1 6=432 8=2 9=3
Split      s0        1 2 1 2 3
ConvolutionDepthWise depthwise 1 1 3 4 0=16 1=3 11=3 12=1 13=1 14=1 2=1 3=1 4=1 5=1 6=144 7=16 9=1
Convolution pointwise 1 1 4 5 0=16 1=1 11=1 12=1 13=1 14=0 2=1 3=1 4=0 5=1 6=256 8=2
HardSwish  swish     1 1 5 6
BinaryOp   residual  2 1 6 2 7 0=0
Pooling    pool      1 1 7 8 0=0 1=2 11=2 12=2 2=2 5=1
Split      s1        1 2 8 9 10
Convolution branch   1 1 10 11 0=16 1=3 11=3 12=1 13=1 14=1 2=1 3=1 4=1 5=1 6=2304 8=2 9=1
Concat     join      2 1 9 11 12 0=0
Pooling    average   1 1 12 13 0=1 4=1
InnerProduct head    1 1 13 out0 0=6 1=1 2=192 8=2"""

FLOAT_PARAM = PARAM.replace(" 8=2", "")


def manifest(**changed: object) -> Manifest:
    """Manifest of the tiny network for ncnn in INT8, with changes."""
    values: dict[str, object] = {
        "name": "tiny",
        "task": "classification",
        "target": "ncnn",
        "precision": "int8",
        "inputs": (TensorSpec("images", "float32", (None, 3, 32, 32)),),
        "outputs": (TensorSpec("logits", "float32", (None, 6)),),
        "preprocess": Preprocess(size=(32, 32)),
        "engine_files": {"param": "engine/model.param", "bin": "engine/model.bin"},
    }
    return Manifest(**{**values, **changed})  # type: ignore[arg-type]


def save(folder: Path, precision: str = "int8", **changed: object) -> Path:
    """Save such a bundle as ``tiny-ncnn-PRECISION.evb``."""
    param = PARAM if precision == "int8" else FLOAT_PARAM
    files = {"engine/model.param": param.encode(), "engine/model.bin": b"weights"}
    bundle = Bundle(manifest(precision=precision, **changed), files)
    return Path(bundle.save(folder / f"tiny-ncnn-{precision}.evb"))
