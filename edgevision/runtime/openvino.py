"""OpenVINO on the processor."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from edgevision.bundle import Bundle
from edgevision.dependencies import require
from edgevision.errors import EngineError
from edgevision.runtime.backend import EngineOptions
from edgevision.runtime.cache import CompiledCache

# compiled models kept, one per batch size; the least recently used goes first
_BATCH_SIZES = 4


class OpenVINOEngine:
    """One model compiled for each batch size that is asked for: static shapes are what OpenVINO runs fastest.

    Every thread has an infer request of its own, so calls from several threads run side by side.
    """

    def __init__(self, bundle: Bundle, options: EngineOptions) -> None:
        self._ov = require("openvino", purpose="run OpenVINO bundles")
        self.version = str(self._ov.__version__).partition("-")[0]
        self._label = str(bundle.path or bundle.manifest.name)
        self._lock = threading.Lock()
        self._local = threading.local()
        self._compiled: OrderedDict[int, Any] = OrderedDict()
        self._settings = self._properties(bundle, options)
        if options.cache_dir is not None:
            # OpenVINO itself keys what it keeps by the model's content, its version and the device
            self._settings["CACHE_DIR"] = str(CompiledCache("openvino", options.cache_dir).folder)
        files = bundle.engine_file("model"), bundle.engine_file("weights")
        try:
            self._core = self._ov.Core()
            self._model = self._core.read_model(*files)
            layers = [bundle.manifest.tensor_names.get(name, name) for name in options.layers]
            for name in dict.fromkeys(layers):
                self._model.add_outputs(name)
        except Exception as error:  # openvino raises RuntimeError and TypeError of its own making
            raise EngineError(f"OpenVINO {self.version} refuses {self._label}: {error}") from error
        inner = dict(zip(options.layers, layers, strict=True))
        self._outputs = {**{spec.name: spec.name for spec in bundle.manifest.outputs}, **inner}
        self._inputs = {spec.name: spec.shape for spec in bundle.manifest.inputs}
        self._compile(next(iter(self._inputs.values()))[0] or 1)

    def infer(self, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run one batch."""
        try:
            request, ports = self._request(len(next(iter(feed.values()))))
            results = request.infer(feed, share_inputs=True, share_outputs=True)
            # the request's own memory is overwritten by its next call
            return {name: results[port].copy() for name, port in ports}
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed to run {self._label}: {error}") from error

    def open_parallel(self, requests: int) -> ParallelRequests:
        """The model compiled for ``requests`` asynchronous requests of one picture each."""
        threads = int(self._settings.get("INFERENCE_NUM_THREADS", 0))
        settings = {**self._settings, "PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(requests)}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads * requests
        return ParallelRequests(self._compiled_for(1, settings), self._outputs, self.version, self._label)

    def close(self) -> None:
        """Free the compiled models."""
        self._compiled.clear()
        self._local = threading.local()
        del self._model, self._core

    def _request(self, batch: int) -> tuple[Any, list[tuple[str, Any]]]:
        """This thread's infer request for a batch size, and the ports behind the output names."""
        requests: dict[int, tuple[Any, Any, list[tuple[str, Any]]]] = self._local.__dict__.setdefault("requests", {})
        compiled = self._compiled.get(batch) or self._compile(batch)
        known = requests.get(batch)
        if known is None or known[0] is not compiled:
            ports = [(name, compiled.output(inner)) for name, inner in self._outputs.items()]
            if len(requests) > _BATCH_SIZES:
                requests.clear()
            known = requests[batch] = (compiled, compiled.create_infer_request(), ports)
        return known[1], known[2]

    def _compile(self, batch: int) -> Any:
        with self._lock:
            if batch in self._compiled:
                return self._compiled[batch]
            compiled = self._compiled_for(batch, self._settings)
            self._compiled[batch] = compiled
            while len(self._compiled) > _BATCH_SIZES:
                self._compiled.popitem(last=False)
            return compiled

    def _compiled_for(self, batch: int, settings: Mapping[str, Any]) -> Any:
        try:
            model = self._model.clone()
            model.reshape({name: [batch, *shape[1:]] for name, shape in self._inputs.items()})
            return self._core.compile_model(model, "CPU", dict(settings))
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO {self.version} cannot compile {self._label} for batch {batch}: {error}"
            ) from error

    def _properties(self, bundle: Bundle, options: EngineOptions) -> dict[str, Any]:
        return properties(bundle.manifest.precision, options.threads, self._capabilities)

    def _capabilities(self) -> list[str]:
        return capabilities(self._ov.Core())


def properties(precision: str, threads: int, able: Callable[[], list[str]]) -> dict[str, Any]:
    """What OpenVINO is told when it compiles a bundle for latency; ``able`` gives its `capabilities`, where needed."""
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    # left alone, OpenVINO runs FP32 models in bfloat16 where the processor has it
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    if precision == "fp16" and "FP16" in able():
        settings["INFERENCE_PRECISION_HINT"] = "f16"
    return settings


def capabilities(core: Any) -> list[str]:
    """Types that OpenVINO computes in on this processor."""
    return [str(name) for name in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]


class ParallelRequests:
    """A compiled model with an asynchronous infer request for every thread that calls it."""

    def __init__(self, compiled: Any, outputs: Mapping[str, str], version: str, label: str) -> None:
        self.version = version
        self._compiled, self._label = compiled, label
        self._ports = [(name, compiled.output(inner)) for name, inner in outputs.items()]
        self._local = threading.local()

    def infer(self, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Start a request and wait for it; other threads' requests run meanwhile."""
        try:
            request = self._local.__dict__.get("request")
            if request is None:
                request = self._local.request = self._compiled.create_infer_request()
            request.start_async(feed, share_inputs=True)
            # raises what went wrong; a callback would not be told
            request.wait()
            return {name: request.get_tensor(port).data.copy() for name, port in self._ports}
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed to run {self._label}: {error}") from error

    def close(self) -> None:
        """Free the compiled model."""
        self._local = threading.local()
        del self._compiled


def open_engine(bundle: Bundle, options: EngineOptions) -> OpenVINOEngine:
    """Load the bundle's ``model`` (IR xml) and ``weights`` (bin)."""
    return OpenVINOEngine(bundle, options)
