"""Runs an ncnn model beside ONNX Runtime and finds out which blob is which tensor. Called in a child process:
a model ncnn does not survive must not take the converter with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.dependencies import require
from edgevision.errors import ConversionError, UnsupportedOpError

Float = npt.NDArray[np.float32]

# values that tell a tensor apart before all of it is compared
_SAMPLE = 64
# blobs of an FP32 model are equal to their tensors up to the order of additions; 40 dB is 1% of the signal
_SAME_DB = 40.0
_FLOATS = (1,)


def compare(onnx_file: str, param_file: str, bin_file: str) -> dict[str, Any]:
    """Run both on random input and pair blobs with tensors by their values.

    Args:
        onnx_file: the graph with batch 1.
        param_file: structure of the FP32 ncnn model.
        bin_file: its weights.

    Returns:
        ``blobs``: blob → [tensor, SQNR in dB]; ``outputs``: graph output → [blob, cosine]; ``shapes``: graph
        output → shape with batch 1.

    Raises:
        UnsupportedOpError: the model names a layer this ncnn does not have.
        ConversionError: ncnn refuses the model or fails to run it.
    """
    feeds = _feeds(onnx_file)
    net = _load(param_file, bin_file, fp16=False)
    blobs = _run_ncnn(net, feeds)
    tensors, outputs = _run_onnx(onnx_file, feeds)
    names = [name for name in blobs if name not in set(net.input_names())]
    paired = _pair(names, blobs, tensors)
    return {
        "blobs": {blob: [tensor, decibel] for blob, (tensor, decibel) in paired.items()},
        "outputs": _find_outputs(outputs, tensors, blobs, list(net.output_names())),
        "shapes": {name: list(tensors[name].shape) for name in outputs},
    }


def run(onnx_file: str, param_file: str, bin_file: str, fp16: bool, outputs: dict[str, str]) -> dict[str, float]:
    """Run a finished model on the same input as `compare` and return each output's cosine with ONNX Runtime's.

    Raises:
        ConversionError: ncnn refuses the model, fails to run it, or answers with NaN or infinity.
    """
    feeds = _feeds(onnx_file)
    net = _load(param_file, bin_file, fp16=fp16)
    blobs = _run_ncnn(net, feeds, list(outputs.values()))
    tensors, _ = _run_onnx(onnx_file, feeds, inner=False)
    for name, blob in outputs.items():
        if not np.isfinite(blobs[blob].stacked).all():
            raise ConversionError(f"the converted model answers NaN or infinity at output {name!r} on random input")
    return {name: cosine(tensors[name].stacked, blobs[blob].stacked) for name, blob in outputs.items()}


@dataclass(frozen=True)
class Observed:
    """Values of one tensor in every run, flat and side by side, and its shape in one run."""

    stacked: Float
    shape: tuple[int, ...]


def cosine(reference: Float, value: Float) -> float:
    """Cosine similarity of two arrays of one size; 1 where both are zero."""
    a, b = reference.astype(np.float64), value.astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(a @ b) / norms


def sqnr_db(reference: Float, value: Float) -> float:
    """Signal-to-noise ratio of ``value`` against ``reference`` in dB, capped at 200."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    noise = float(np.square(reference.astype(np.float64) - value).sum())
    if noise == 0:
        return 200.0
    return min(200.0, 10 * np.log10(signal / noise)) if signal else -200.0


def _feeds(onnx_file: str) -> list[Float]:
    onnx = require("onnx", purpose="convert to ncnn")
    graph = onnx.load(onnx_file).graph
    shape = [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
    generator = np.random.default_rng(20170404)
    # two runs of different scale and offset: a ReLU that clips nothing in one run clips in the other
    first = generator.standard_normal(shape)
    second = generator.uniform(-2.0, 3.0, shape)
    return [first.astype(np.float32), second.astype(np.float32)]


def _load(param_file: str, bin_file: str, *, fp16: bool) -> Any:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    ncnn = require("ncnn", purpose="convert to ncnn")
    for line in Path(param_file).read_text().splitlines()[2:]:
        kind, name, *_ = line.split()
        if ncnn.layer_to_index(kind) < 0:
            # the caller traces the layer back to a node of the graph
            raise UnsupportedOpError(f"{kind} {name}")
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.lightmode = False
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(net.opt, option, fp16)
    net.opt.use_bf16_storage = False
    if net.load_param(param_file) != 0 or net.load_model(bin_file) != 0:
        raise ConversionError("ncnn refuses the model that was made for it; report the graph it was made from")
    return net


def _run_ncnn(net: Any, feeds: list[Float], wanted: list[str] | None = None) -> dict[str, Observed]:
    import ncnn

    names = wanted if wanted is not None else [blob.name for blob in net.blobs()]
    runs: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
    for feed in feeds:
        extractor = net.create_extractor()
        extractor.set_light_mode(False)
        # a Mat borrows the array's memory, which ``feed`` keeps; the clone is ncnn's own
        if extractor.input(net.input_names()[0], ncnn.Mat(feed[0]).clone()) != 0:
            raise ConversionError("ncnn does not take the input of the model that was made for it")
        for name in names:
            code, mat = extractor.extract(name)
            if code != 0:
                raise ConversionError(f"ncnn fails to compute blob {name!r} (return code {code})")
            runs[name].append(np.array(mat))
    return _observed(runs.items())


def _run_onnx(onnx_file: str, feeds: list[Float], inner: bool = True) -> tuple[dict[str, Observed], list[str]]:
    onnx = require("onnx", purpose="convert to ncnn")
    ort = require("onnxruntime", purpose="check the converted model")
    model = onnx.load(onnx_file)
    outputs = [value.name for value in model.graph.output]
    if inner:
        known = {value.name for value in model.graph.value_info if value.type.tensor_type.elem_type in _FLOATS}
        made = [name for node in model.graph.node for name in node.output if name in known and name not in outputs]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    runs: dict[str, list[npt.NDArray[Any]]] = {value.name: [] for value in session.get_outputs()}
    for feed in feeds:
        for value, array in zip(runs, session.run(list(runs), {name: feed}), strict=True):
            runs[value].append(array)
    # order of execution, the outputs where their nodes stand
    order = [output for node in model.graph.node for output in node.output if output in runs]
    return _observed((key, runs[key]) for key in dict.fromkeys([*order, *runs])), outputs


def _observed(runs: Iterable[tuple[str, list[npt.NDArray[Any]]]]) -> dict[str, Observed]:
    return {
        name: Observed(np.concatenate([array.ravel() for array in arrays]).astype(np.float32), arrays[0].shape)
        for name, arrays in runs
    }


def _pair(names: list[str], blobs: dict[str, Observed], tensors: dict[str, Observed]) -> dict[str, tuple[str, float]]:
    """The tensor each blob is, both in order of execution; blobs that equal none are left out."""
    by_size: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        by_size.setdefault(tensor.stacked.size, []).append(name)
    taken: set[str] = set()
    paired: dict[str, tuple[str, float]] = {}
    for blob in names:
        found = list(_equal(blobs[blob], by_size.get(blobs[blob].stacked.size, []), tensors))
        if not found:
            continue
        shape = _without_ones(blobs[blob].shape)
        # views of one tensor (flatten, reshape) are told apart by their shape, copies by their order
        found.sort(key=lambda pair: (pair[0] in taken, _without_ones(tensors[pair[0]].shape) != shape))
        paired[blob] = found[0]
        taken.add(found[0][0])
    return paired


def _equal(blob: Observed, candidates: list[str], tensors: dict[str, Observed]) -> Iterator[tuple[str, float]]:
    step = max(1, blob.stacked.size // _SAMPLE)
    sample = blob.stacked[::step]
    for name in candidates:
        tensor = tensors[name].stacked
        if sqnr_db(tensor[::step], sample) > _SAME_DB / 2:
            decibel = sqnr_db(tensor, blob.stacked)
            if decibel > _SAME_DB:
                yield name, decibel


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def _find_outputs(
    outputs: list[str], tensors: dict[str, Observed], blobs: dict[str, Observed], names: list[str]
) -> dict[str, tuple[str, float]]:
    """The output blob of each graph output: pnnx keeps their order, and the values must agree."""
    found: dict[str, tuple[str, float]] = {}
    for name in outputs:
        reference = tensors[name].stacked
        free = [blob for blob in names if blob not in {taken for taken, _ in found.values()}]
        scored = [
            (blob, cosine(reference, blobs[blob].stacked))
            for blob in free
            if blobs[blob].stacked.size == reference.size
        ]
        if not scored:
            raise ConversionError(
                f"pnnx's model has no output of {reference.size // 2} values for {name!r}; "
                "the graph's output does not survive the loss of the batch dimension"
            )
        # the first of equals: pnnx's own order
        found[name] = max(scored, key=lambda pair: round(pair[1], 4))
    return found
