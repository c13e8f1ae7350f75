"""A ``tensorrt`` module over ONNX Runtime, in the shape of one of NVIDIA's versions.

It parses, "compiles" (a plan is the ONNX behind a header), runs on the imaginary driver's memory, and refuses what
the real ones refuse, in their words. Only calls and names that the version has exist.
"""

from __future__ import annotations

import ctypes
import enum
import json
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from tests.fakes.cuda_library import FakeCuda


@dataclass
class Faults:
    """What goes wrong on purpose, and how often the expensive calls were made."""

    builder: bool = False
    build: str = ""
    deserialize: bool = False
    context: str = ""
    refuse_batch: int = 0
    execute: str = ""
    plugins: bool = True
    plugins_known: bool = False
    builds: int = 0
    deserialized: int = 0
    timings_seen: list[bytes] = field(default_factory=list)
    workspace: int = 0
    flags: set[str] = field(default_factory=set)
    network_flags: set[str] = field(default_factory=set)
    cleared: set[str] = field(default_factory=set)


PLUGIN = "EfficientNMS_TRT"


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    INT64 = 8


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class MemoryPoolType(enum.IntEnum):
    WORKSPACE = 0


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3

    def __init__(self) -> None:
        self.ready = True


_KINDS = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.INT64: DataType.INT64,
    TensorProto.INT32: DataType.INT32,
    TensorProto.INT8: DataType.INT8,
    TensorProto.BOOL: DataType.BOOL,
}
_NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT64: np.int64,
    DataType.INT32: np.int32,
    DataType.INT8: np.int8,
    DataType.BOOL: np.bool_,
}


def make_tensorrt(version: str, cuda: FakeCuda, faults: Faults | None = None) -> ModuleType:
    """A module in the shape of TensorRT ``version``; install it with ``sys.modules["tensorrt"]``."""
    faults = faults or Faults()
    major = int(version.split(".")[0])
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    creation = {8: {"EXPLICIT_BATCH": 0}, 10: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}}.get(
        major, {"STRONGLY_TYPED": 1}
    )
    builder_flags = {"TF32": 7, "SPARSE_WEIGHTS": 8} | ({"FP16": 0, "INT8": 1} if major < 11 else {})
    names: dict[str, Any] = {
        "__version__": version,
        "ILogger": ILogger,
        "DataType": DataType,
        "TensorIOMode": TensorIOMode,
        "MemoryPoolType": MemoryPoolType,
        "NetworkDefinitionCreationFlag": enum.IntEnum("NetworkDefinitionCreationFlag", creation),
        "BuilderFlag": enum.IntEnum("BuilderFlag", builder_flags),
        "major": major,
        "faults": faults,
        "fake_cuda": cuda,
    }
    for name, value in names.items():
        setattr(module, name, value)

    def init_libnvinfer_plugins(log: Any, namespace: str) -> bool:
        assert namespace == ""
        faults.plugins_known = faults.plugins
        if not faults.plugins:
            log.log(ILogger.Severity.ERROR, "Plugin library could not be loaded")
        return faults.plugins

    module.init_libnvinfer_plugins = init_libnvinfer_plugins  # type: ignore[attr-defined]
    module.Builder = lambda log: Builder(module, log)  # type: ignore[attr-defined]
    module.OnnxParser = Parser  # type: ignore[attr-defined]
    module.Runtime = lambda log: Runtime(module, log)  # type: ignore[attr-defined]
    return module


class Builder:
    def __init__(self, trt: Any, log: Any) -> None:
        assert log.ready, "the logger's own constructor was not called"
        assert trt.fake_cuda.has_context, "TensorRT was touched without a current CUDA context"
        if trt.faults.builder:
            log.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self.trt, self.log = trt, log

    def create_builder_config(self) -> Config:
        return Config(self.trt)

    def create_network(self, flags: int) -> Network:
        known = {member.name: member.value for member in self.trt.NetworkDefinitionCreationFlag}
        self.trt.faults.network_flags = {name for name, bit in known.items() if flags >> bit & 1}
        if flags >> 2:
            raise TypeError("unknown network flag")
        return Network(self.trt)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        faults = self.trt.faults
        faults.builds += 1
        faults.flags = config.flag_names
        quantized = any(node.op_type == "QuantizeLinear" for node in network.model.graph.node)
        problem = faults.build
        typed = "STRONGLY_TYPED" in faults.network_flags
        if quantized and not typed and "INT8" not in config.flag_names:
            problem = "Int8 precision has been set for a layer or layer output, but int8 is not configured"
        if typed and config.flag_names & {"FP16", "INT8"}:
            problem = "precision flags cannot be set for a strongly typed network"
        if network.free and not config.profiles:
            problem = "network has dynamic or shape inputs, but no optimization profile has been defined"
        if problem:
            self.log.log(ILogger.Severity.ERROR, problem)
            self.log.log(ILogger.Severity.WARNING, "only a warning")
            return None
        header = {"version": self.trt.__version__, "profile": config.profiles[0].shapes if config.profiles else {}}
        return json.dumps(header).encode() + b"\n" + network.model.SerializeToString()


class Config:
    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.flag_names: set[str] = set()
        self.profiles: list[Profile] = []
        self.cache: TimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.flag_names.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.trt.faults.cleared.add(flag.name)

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE
        self.trt.faults.workspace = size

    def add_optimization_profile(self, profile: Profile) -> int:
        for least, best, most in profile.shapes.values():
            if not all(a <= b <= c for a, b, c in zip(least, best, most, strict=True)):
                return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, blob: bytes) -> TimingCache:
        self.trt.faults.timings_seen.append(blob)
        return TimingCache(blob or self._mark())

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if not ignore_mismatch and not cache.blob.startswith(self._mark()):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache and TimingCache(self.cache.blob + b"+")

    def _mark(self) -> bytes:
        return f"timings {self.trt.__version__}".encode()


class TimingCache:
    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def serialize(self) -> bytes:
        return self.blob


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, least: tuple[int, ...], best: tuple[int, ...], most: tuple[int, ...]) -> None:
        self.shapes[name] = [least, best, most]


@dataclass
class Tensor:
    name: str
    shape: tuple[int, ...]


class Network:
    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.model = onnx.ModelProto()

    @property
    def inputs(self) -> list[Tensor]:
        return [
            Tensor(value.name, tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim))
            for value in self.model.graph.input
        ]

    @property
    def free(self) -> bool:
        return any(-1 in tensor.shape for tensor in self.inputs)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    def get_input(self, index: int) -> Tensor:
        return self.inputs[index]


@dataclass
class ParserError:
    text: str
    index: int

    def desc(self) -> str:
        return self.text

    def node(self) -> int:
        return self.index


class Parser:
    """Refuses what NVIDIA's parser refuses of Q/DQ, in its words."""

    def __init__(self, network: Network, log: Any) -> None:
        self.network, self.log = network, log
        self.errors: list[ParserError] = []

    def parse(self, data: bytes) -> bool:
        try:
            model = onnx.load_from_string(data)
            constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        except Exception:
            self.log.log(ILogger.Severity.ERROR, "ModelImporter.cpp: failed to parse the ONNX model")
            return False
        for index, node in enumerate(model.graph.node):
            if node.op_type == PLUGIN and not self.network.trt.faults.plugins_known:
                self.errors.append(ParserError("Assertion failed: creator && Plugin not found", index))
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            zero_point = constants[node.input[2]]
            if zero_point.any():
                self.errors.append(ParserError("Assertion failed: shiftIsAllZeros(zeroPoint)", index))
            if zero_point.dtype == np.int32:
                self.errors.append(ParserError("Invalid data type INT32 for DequantizeLinear", index))
        self.network.model = model
        return not self.errors

    @property
    def num_errors(self) -> int:
        return len(self.errors)

    def get_error(self, index: int) -> ParserError:
        return self.errors[index]


class Runtime:
    def __init__(self, trt: Any, log: Any) -> None:
        assert trt.fake_cuda.has_context, "TensorRT was touched without a current CUDA context"
        self.trt, self.log = trt, log

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        self.trt.faults.deserialized += 1
        header, _, model = plan.partition(b"\n")
        if self.trt.faults.deserialize or json.loads(header)["version"] != self.trt.__version__:
            self.log.log(ILogger.Severity.ERROR, "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION")
            return None
        return Engine(self.trt, self.log, model, json.loads(header)["profile"])


class Engine:
    def __init__(self, trt: Any, log: Any, model: bytes, profile: dict[str, Any]) -> None:
        self.trt, self.log, self.profile = trt, log, profile
        self.model = onnx.load_from_string(model)
        graph = self.model.graph
        self.values = {value.name: value for value in [*graph.input, *graph.output]}
        self.inputs = {value.name for value in graph.input}

    @property
    def num_io_tensors(self) -> int:
        return len(self.values)

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        kind = _KINDS[self.values[name].type.tensor_type.elem_type]
        # 8 has no INT64
        return DataType.INT32 if kind is DataType.INT64 and self.trt.major < 9 else kind

    def create_execution_context(self) -> Context | None:
        if self.trt.faults.context:
            self.log.log(ILogger.Severity.ERROR, self.trt.faults.context)
            return None
        return Context(self)


def efficient_nms(boxes: np.ndarray, scores: np.ndarray, settings: dict[str, Any]) -> list[np.ndarray]:
    """The plugin as its documentation has it, box by box: corners, scores as they are, classes apart or together."""
    assert (settings["box_coding"], settings["score_activation"], settings["background_class"]) == (0, 0, -1)
    batch, most = len(boxes), settings["max_output_boxes"]
    count = np.zeros((batch, 1), np.int32)
    # what is not written is not 0 on a GPU
    kept_boxes = np.full((batch, most, 4), 7.0, np.float32)
    kept_scores, kept_classes = np.full((batch, most), 0.9, np.float32), np.full((batch, most), 5, np.int32)
    for picture in range(batch):
        above = np.argwhere(scores[picture] > settings["score_threshold"]).tolist()
        pairs = [(float(scores[picture, at, label]), -at, label) for at, label in above]
        kept: list[tuple[np.ndarray, int]] = []
        for score, at, label in sorted(pairs, reverse=True):
            box = boxes[picture, -at]
            rivals = [other for other, its in kept if settings["class_agnostic"] or its == label]
            if len(kept) < most and all(_overlap(box, other) <= settings["iou_threshold"] for other in rivals):
                row = len(kept)
                kept_boxes[picture, row], kept_scores[picture, row], kept_classes[picture, row] = box, score, label
                kept.append((box, label))
        count[picture] = len(kept)
    return [count, kept_boxes, kept_scores, kept_classes]


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    width, height = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = float(max(width, 0) * max(height, 0))
    union = sum(float((box[2] - box[0]) * (box[3] - box[1])) for box in (first, second)) - shared
    return shared / union if union else 0.0


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        model = onnx.ModelProto()
        model.CopyFrom(engine.model)
        self.plugin = next((node for node in model.graph.node if node.op_type == PLUGIN), None)
        if self.plugin is not None:
            # what goes into the plugin comes out of the rest, which ONNX Runtime knows
            del model.graph.node[-1:], model.graph.output[:]
            model.graph.output.extend(
                onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.plugin.input
            )
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        faults, log = self.engine.trt.faults, self.engine.log
        least, _, most = self.engine.profile.get(name, [list(shape)] * 3)
        within = all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))
        if not within or shape[0] == faults.refuse_batch:
            log.log(ILogger.Severity.ERROR, "setInputShape: Static dimension mismatch")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next(iter(self.shapes.values()))[0]
        dims = self.engine.values[name].type.tensor_type.shape.dim
        return tuple(dim.dim_value or (batch if position == 0 else -1) for position, dim in enumerate(dims))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 4 == 0 and address != 0

    def execute_async_v3(self, stream: int) -> bool:
        assert stream, "the default stream is not to be used"
        trt = self.engine.trt
        assert trt.fake_cuda.has_context
        if trt.faults.execute:
            self.engine.log.log(ILogger.Severity.ERROR, trt.faults.execute)
            return False
        feed = {name: self._view(name, shape).copy() for name, shape in self.shapes.items()}
        names = [name for name in self.engine.values if name not in self.engine.inputs]
        if self.plugin is None:
            results = self.session.run(names, feed)
        else:
            settings = {its.name: onnx.helper.get_attribute_value(its) for its in self.plugin.attribute}
            results = efficient_nms(*self.session.run(list(self.plugin.input), feed), settings)
        for name, array in zip(names, results, strict=True):
            self._view(name, array.shape)[...] = array
        return True

    def _view(self, name: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        dtype = np.dtype(_NUMPY[self.engine.get_tensor_dtype(name)])
        size = int(np.prod(shape)) * dtype.itemsize
        buffer = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(buffer, dtype).reshape(shape)
