"""TensorRT: the bundle's ONNX is compiled on the device at first load, kept, and run on one stream.

Serves TensorRT 8.5 to 11 by their common calls. The driver is looked at before ``tensorrt`` is
imported: without one, TensorRT 8 ends the whole process with a segmentation fault.

What is proved where: the calls and refusals against an imaginary driver and library (tests/fakes), parsing and
compiling by NVIDIA's own builder in TensorRT-RTX, which needs no GPU. Running on a GPU has not been tried yet.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import platform
import sys
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.bundle import Bundle
from edgevision.dependencies import installed
from edgevision.errors import EngineError, MissingDependencyError, OutputError, UsageError
from edgevision.progress import Progress
from edgevision.runtime import cuda
from edgevision.runtime.backend import EngineOptions
from edgevision.runtime.cache import CompiledCache
from edgevision.runtime.tensorrt_build import BuildOptions, build_plan, create, load_plugins, make_log

OLDEST = (8, 5)

# part of the cache's key: raised when build_plan compiles the same model otherwise than before
BUILDER_REVISION = "1"

# trt.nptype of 8.5 fails with numpy 1.24 and later: it asks for np.bool
_DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


def open_engine(bundle: Bundle, options: EngineOptions) -> TensorRTEngine:
    """Load the bundle's model, compiled here before or compiled now (a minute or more on a Jetson).

    ``options.threads`` has no meaning on a GPU and is ignored.

    Raises:
        UsageError: ``options.layers`` is given.
        MissingDependencyError: TensorRT's Python package is not installed.
        EngineError: no driver or GPU, TensorRT older than 8.5, out of memory, or the model was refused.
    """
    if options.layers:
        raise UsageError(
            "TensorRT fuses layers and keeps no inner tensors to return; compare layers on the target onnxruntime"
        )
    if not installed("tensorrt"):
        raise MissingDependencyError(
            'tensorrt is needed to run TensorRT bundles: pip install "edgevision[tensorrt]" (on a Jetson it comes with '
            "JetPack: sudo apt install python3-libnvinfer, and a venv made with --system-site-packages)"
        )
    device = cuda.Device()
    try:
        trt = _import_tensorrt()
        with device.active():
            return TensorRTEngine(trt, device, bundle, options)
    except BaseException:
        device.close()
        raise


def _import_tensorrt() -> Any:
    try:
        trt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise EngineError(f"tensorrt is installed and cannot be imported: {error}") from error
    major, minor = (int(part) for part in trt.__version__.split(".")[:2])
    if (major, minor) < OLDEST:
        raise EngineError(
            f"TensorRT {trt.__version__} is too old: 8.5 or later is needed (JetPack 6 brings 8.6 and 10; JetPack 4.6 "
            "had 8.2); on this device use a bundle of the target ncnn or onnxruntime"
        )
    return trt


@dataclass
class _Tensor:
    """An input or output of the engine: its name, its types inside and outside, its memory on the GPU."""

    name: str
    dtype: np.dtype[Any]
    outer_dtype: np.dtype[Any]
    address: int = 0
    shape: tuple[int, ...] = ()


class TensorRTEngine:
    """An engine, one execution context and one stream; calls from several threads take turns."""

    def __init__(self, trt: Any, device: cuda.Device, bundle: Bundle, options: EngineOptions) -> None:
        self.version = str(trt.__version__)
        self._device = device
        self._build = BuildOptions.from_manifest(bundle.manifest.engine_options)
        self._lock = threading.Lock()
        self._log = make_log(trt)
        self._stream = 0
        self._events: list[int] = []
        self._inputs: list[_Tensor] = []
        self._outputs: list[_Tensor] = []
        if self._build.plugins:
            load_plugins(trt, self._log)
        self._runtime: Any = create(self._log, "start its runtime", lambda: trt.Runtime(self._log))
        self._engine: Any = None
        self._context: Any = None
        try:
            self._engine = self._obtain(trt, bundle, options)
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(f"TensorRT cannot set the engine up (out of GPU memory?): {self._log.last()}")
            self._stream = device.create_stream()
            self._events = [device.create_event(), device.create_event()]
            self._bind(trt, bundle)
        except BaseException:
            self._free()
            raise

    def infer(self, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run one batch, in pieces where it is greater than the engine's greatest.

        Raises:
            EngineError: the engine is closed, or TensorRT or CUDA failed.
        """
        return self.infer_timed(feed)[0]

    def infer_timed(self, feed: Mapping[str, npt.NDArray[Any]]) -> tuple[dict[str, npt.NDArray[Any]], float]:
        """Like `infer`, and the milliseconds the GPU computed, by CUDA events, copies not counted.

        Raises:
            EngineError: the engine is closed, or TensorRT or CUDA failed.
        """
        batch = next(iter(feed.values())).shape[0]
        most = self._build.max_batch
        with self._lock:
            if self._context is None:
                raise EngineError("this engine is closed; open the bundle again")
            with self._device.active():
                if batch <= most:
                    return self._launch(feed)
                parts = [
                    self._launch({name: array[start : start + most] for name, array in feed.items()})
                    for start in range(0, batch, most)
                ]
        names = parts[0][0]
        joined = {name: np.concatenate([outputs[name] for outputs, _ in parts]) for name in names}
        return joined, sum(milliseconds for _, milliseconds in parts)

    def close(self) -> None:
        """Free the engine, its GPU memory and the GPU; waits for a running call."""
        with self._lock:
            if self._context is None:
                return
            with self._device.active():
                self._free()
            self._device.close()

    def _obtain(self, trt: Any, bundle: Bundle, options: EngineOptions) -> Any:
        """The engine out of the cache, or compiled and put there."""
        cache = CompiledCache("tensorrt", options.cache_dir)
        key = self._key(bundle)
        with cache.lock(key, waiting=_say_waiting):
            plan = cache.get(key)
            engine = None if plan is None else self._runtime.deserialize_cuda_engine(plan)
            if engine is not None:
                return engine
            self._log.errors.clear()
            plan = self._compile(trt, cache, bundle)
            _keep(cache, key, plan)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"TensorRT {self.version} cannot load the engine it compiled: {self._log.last()}")
        return engine

    def _compile(self, trt: Any, cache: CompiledCache, bundle: Bundle) -> bytes:
        info = self._device.info
        timing_key = {"timings": "1", **self._machine()}
        what = f"compiling {bundle.manifest.name} for {info.name} with TensorRT {self.version}, once on this device"
        with Progress(what):
            plan, timings = build_plan(
                trt,
                self._log,
                bundle.engine_file("model"),
                self._build,
                # half: on a Jetson the memory is the system's too
                workspace_bytes=info.memory_bytes // 2,
                timings=cache.get(timing_key) or b"",
            )
        if timings:
            _keep(cache, timing_key, timings)
        return plan

    def _key(self, bundle: Bundle) -> dict[str, str]:
        """Everything a compiled engine depends on."""
        options = json.dumps(bundle.manifest.engine_options, sort_keys=True)
        return {"digest": bundle.digest, "options": options, "builder": BUILDER_REVISION, **self._machine()}

    def _machine(self) -> dict[str, str]:
        info = self._device.info
        # the board's own number: an engine compiled elsewhere is never run here
        return {
            "tensorrt": self.version,
            "gpu": info.name,
            "sm": info.sm,
            "uuid": info.uuid,
            "machine": platform.machine(),
        }

    def _bind(self, trt: Any, bundle: Bundle) -> None:
        """Match the engine's tensors with the manifest's and give each its memory, for the greatest batch."""
        found = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            found[name] = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        manifest = bundle.manifest
        wanted = {spec.name: True for spec in manifest.inputs} | {spec.name: False for spec in manifest.outputs}
        if found != wanted:
            raise EngineError(
                f"the compiled engine has the tensors {', '.join(sorted(found))}; manifest.json names "
                f"{', '.join(sorted(wanted))}: make the bundle again"
            )
        for spec in manifest.inputs:
            tensor = self._tensor(spec.name, spec.dtype)
            shape = tuple(self._build.max_batch if size is None else size for size in spec.shape)
            self._set_shape(tensor, shape)
            self._inputs.append(tensor)
        self._outputs = [self._tensor(spec.name, spec.dtype) for spec in manifest.outputs]
        self._read_output_shapes()
        for tensor in [*self._inputs, *self._outputs]:
            tensor.address = self._device.allocate(_nbytes(tensor))
            if not self._context.set_tensor_address(tensor.name, tensor.address):
                raise EngineError(f"TensorRT refuses memory for {tensor.name!r}: {self._log.last()}")

    def _tensor(self, name: str, outer_dtype: str) -> _Tensor:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _DTYPES:
            raise EngineError(f"the engine's tensor {name!r} is of type {kind}; known are {', '.join(_DTYPES)}")
        return _Tensor(name, np.dtype(_DTYPES[kind]), np.dtype(outer_dtype))

    def _set_shape(self, tensor: _Tensor, shape: tuple[int, ...]) -> None:
        if not self._context.set_input_shape(tensor.name, shape):
            raise EngineError(
                f"the compiled engine refuses {tensor.name!r} of shape {list(shape)} (batches {self._build.min_batch} "
                f"to {self._build.max_batch} were compiled): {self._log.last()}"
            )
        tensor.shape = shape

    def _read_output_shapes(self) -> None:
        for tensor in self._outputs:
            tensor.shape = tuple(self._context.get_tensor_shape(tensor.name))
            if -1 in tensor.shape:
                raise EngineError(
                    f"output {tensor.name!r} has a shape that depends on the data ({list(tensor.shape)}); cut the "
                    "model before the op that makes it (NonMaxSuppression, NonZero) and do that part outside"
                )

    def _launch(self, feed: Mapping[str, npt.NDArray[Any]]) -> tuple[dict[str, npt.NDArray[Any]], float]:
        device, stream = self._device, self._stream
        # held until the stream is done: it reads and writes these arrays meanwhile
        arrays = [np.ascontiguousarray(feed[tensor.name], tensor.dtype) for tensor in self._inputs]
        reshaped = False
        for tensor, array in zip(self._inputs, arrays, strict=True):
            if array.shape != tensor.shape:
                self._set_shape(tensor, array.shape)
                reshaped = True
        if reshaped:
            self._read_output_shapes()
        results = [np.empty(tensor.shape, tensor.dtype) for tensor in self._outputs]
        try:
            for tensor, array in zip(self._inputs, arrays, strict=True):
                device.copy_in(tensor.address, array.ctypes.data, array.nbytes, stream)
            device.record(self._events[0], stream)
            if not self._context.execute_async_v3(stream):
                raise EngineError(f"TensorRT failed to run the network: {self._log.last()}")
            device.record(self._events[1], stream)
            for tensor, result in zip(self._outputs, results, strict=True):
                device.copy_out(result.ctypes.data, tensor.address, result.nbytes, stream)
        except BaseException:
            with contextlib.suppress(EngineError):
                device.synchronize(stream)
            raise
        device.synchronize(stream)
        milliseconds = device.elapsed_ms(*self._events)
        # TensorRT 8 has no int64 and gives int32 in its place
        return {
            tensor.name: result.astype(tensor.outer_dtype, copy=False)
            for tensor, result in zip(self._outputs, results, strict=True)
        }, milliseconds

    def _free(self) -> None:
        # in this order: a context must not outlive its engine, nor an engine its runtime
        self._context = None
        self._engine = None
        self._runtime = None
        for tensor in [*self._inputs, *self._outputs]:
            if tensor.address:
                self._device.free(tensor.address)
        self._inputs, self._outputs = [], []
        for event in self._events:
            self._device.destroy_event(event)
        self._events = []
        if self._stream:
            self._device.destroy_stream(self._stream)
            self._stream = 0


def _nbytes(tensor: _Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize


def _keep(cache: CompiledCache, key: Mapping[str, str], data: bytes) -> None:
    """Put into the cache; a device with a read-only disk runs on without."""
    try:
        cache.put(key, data)
    except OutputError as error:
        warnings.warn(f"{error}; until then it is compiled again at every load", RuntimeWarning, stacklevel=2)


def _say_waiting() -> None:
    print("another process is compiling this engine; waiting for it …", file=sys.stderr, flush=True)  # noqa: T201
