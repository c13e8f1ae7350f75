"""ONNX Runtime on the processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from edgevision.bundle import Bundle
from edgevision.dependencies import require
from edgevision.errors import EngineError
from edgevision.runtime.backend import EngineOptions

# One quantizes the weights of layers that the plan keeps in float, wherever integers lie around them, and coarsely:
# MobileNetV2 with one such layer fell from 22 to 1 dB (1.31).
DISABLED_OPTIMIZERS = ["WeightBiasQuantization"]


class OnnxRuntimeEngine:
    """One ``InferenceSession``; ONNX Runtime itself makes ``run`` safe from several threads."""

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        ort = require("onnxruntime", purpose="run ONNX Runtime bundles")
        self.version = str(ort.__version__)
        model = bundle.engine_file("model")
        outputs = [spec.name for spec in bundle.manifest.outputs]
        # Q/DQ models name the values behind a quantized tensor by a suffix; see manifest.tensor_names
        inner = {name: bundle.manifest.tensor_names.get(name, name) for name in options.layers}
        if inner:
            model = _with_outputs(model, list(inner.values()))
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(
                model, settings, providers=["CPUExecutionProvider"], disabled_optimizers=DISABLED_OPTIMIZERS
            )
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise EngineError(
                f"ONNX Runtime {self.version} refuses {bundle.path or bundle.manifest.name}: {error}"
            ) from error
        self._fetch = [*outputs, *inner.values()]
        self._names = [*outputs, *inner]
        self._run = self._session.run

    def infer(self, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run one batch."""
        try:
            return dict(zip(self._names, self._run(self._fetch, feed), strict=True))
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed to run: {error}") from error

    def close(self) -> None:
        """Free the session."""
        del self._run, self._session


def open_engine(bundle: Bundle, options: EngineOptions) -> OnnxRuntimeEngine:
    """Load the bundle's ``model`` file (ONNX)."""
    return OnnxRuntimeEngine(bundle, options)


def _with_outputs(model: bytes, names: list[str]) -> bytes:
    """Make inner tensors outputs, for layer-wise parity on the host."""
    onnx = require("onnx", purpose="compare a model layer by layer")
    proto = onnx.load_from_string(model)
    made = {name for node in proto.graph.node for name in node.output}
    if missing := [name for name in names if name not in made]:
        raise EngineError(f"the model has no tensor {missing[0]!r}")
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in dict.fromkeys(names)
        if name not in present
    )
    return bytes(proto.SerializeToString())
