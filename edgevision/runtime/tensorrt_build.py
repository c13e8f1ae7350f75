"""ONNX → serialized TensorRT engine, by the calls that TensorRT 8.5, 8.6, 10 and 11 have in common.

Where they differ, the library is asked what it has (``hasattr``), never which version it is.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgevision.errors import BundleError, EngineError


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is compiled for; ``engine_options`` of a TensorRT bundle's manifest.

    Attributes:
        fp16: whether layers may run in float16.
        int8: whether the model holds Q/DQ.
        min_batch: least batch of one launch.
        opt_batch: the batch that kernels are chosen for.
        max_batch: greatest batch of one launch.
        sparse: whether the builder may choose kernels that skip 2:4 zeros.
        plugins: whether the model holds ops of NVIDIA's plugin library.
    """

    fp16: bool
    int8: bool
    min_batch: int
    opt_batch: int
    max_batch: int
    sparse: bool = False
    plugins: bool = False

    @classmethod
    def from_manifest(cls, values: Mapping[str, Any]) -> BuildOptions:
        """Read a manifest's ``engine_options``.

        Raises:
            BundleError: a value is missing or of another kind.
        """
        try:
            batch = values["batch"]
            sizes = [batch["min"], batch["opt"], batch["max"]]
            flags = [values["fp16"], values["int8"], *(values.get(name, False) for name in ("sparse", "plugins"))]
        except (KeyError, TypeError) as error:
            raise BundleError(f"engine_options of manifest.json lack {error}; make the bundle again") from error
        if not all(type(flag) is bool for flag in flags) or not all(type(size) is int for size in sizes):
            raise BundleError(f"engine_options of manifest.json are damaged: {dict(values)}; make the bundle again")
        if not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
            raise BundleError(f"engine_options of manifest.json want 1 <= min <= opt <= max batch; got {sizes}")
        fp16, int8, sparse, plugins = flags
        least, usual, most = sizes
        return cls(fp16, int8, least, usual, most, sparse, plugins)


def make_log(trt: Any) -> Any:
    """A TensorRT logger that keeps what the library says of errors, instead of printing it."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

        def last(self) -> str:
            """The last errors in one line; taken out, so that the next failure does not repeat them."""
            text = "; ".join(list(self.errors)[-3:]) or "TensorRT gives no reason"
            self.errors.clear()
            return text

    return Log()


def load_plugins(trt: Any, log: Any) -> None:
    """Make NVIDIA's plugin library known to the parser, and to engines that hold its ops.

    Raises:
        EngineError: it is not installed.
    """
    if not hasattr(trt, "init_libnvinfer_plugins") or not trt.init_libnvinfer_plugins(log, ""):
        raise EngineError(
            f"TensorRT {trt.__version__} is here without NVIDIA's plugin library (libnvinfer_plugin), whose "
            f"EfficientNMS this bundle needs: install it, or convert without --nms graph; {log.last()}"
        )


def build_plan(
    trt: Any, log: Any, model: bytes, options: BuildOptions, *, workspace_bytes: int, timings: bytes = b""
) -> tuple[bytes, bytes]:
    """Compile a model for the GPU at hand.

    Args:
        trt: the ``tensorrt`` module.
        log: from `make_log`.
        model: serialized ONNX whose inputs are static but for the batch.
        options: types and batches.
        workspace_bytes: memory that one layer may borrow.
        timings: what an earlier build on this GPU returned as its second value; makes this one shorter.

    Returns:
        The serialized engine, and the timing cache.

    Raises:
        EngineError: TensorRT refused the model or found no way to run it; with its own last words.
    """
    with warnings.catch_warnings():
        # what the newest version calls deprecated is all that the older ones have
        warnings.simplefilter("ignore", DeprecationWarning)
        return _build(trt, log, model, options, workspace_bytes, timings)


def _build(
    trt: Any, log: Any, model: bytes, options: BuildOptions, workspace_bytes: int, timings: bytes
) -> tuple[bytes, bytes]:
    builder = create(log, "start its builder", lambda: trt.Builder(log))
    config = builder.create_builder_config()
    network = create(log, "start a network", lambda: builder.create_network(_network_flags(trt, config, options)))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise EngineError(f"TensorRT {trt.__version__} cannot read the model: {_parse_errors(parser, log)}")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    if not (options.fp16 or options.int8) and hasattr(trt.BuilderFlag, "TF32"):
        # on by default from Ampere on, with 10 bits of mantissa: fp32 means fp32 here, and fp16 is there for speed
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.sparse and hasattr(trt.BuilderFlag, "SPARSE_WEIGHTS"):
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    _add_profile(builder, config, network, options)
    cache = config.create_timing_cache(timings)
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")  # of another version or GPU
        config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT {trt.__version__} cannot compile the model: {log.last()}")
    kept = config.get_timing_cache()
    return bytes(memoryview(plan)), b"" if kept is None else bytes(memoryview(kept.serialize()))


def create(log: Any, what: str, make: Callable[[], Any]) -> Any:
    """Make one of the library's objects; raises `EngineError` with the log's last words where it comes to nothing."""
    # pybind11 says "factory function returned nullptr" where the C++ side gave up
    try:
        made = make()
    except (TypeError, RuntimeError) as error:
        raise EngineError(f"TensorRT cannot {what}: {log.last()}") from error
    if made is None:
        raise EngineError(f"TensorRT cannot {what}: {log.last()}")
    return made


def _network_flags(trt: Any, config: Any, options: BuildOptions) -> int:
    """Choose who decides on types, and tell it.

    Up to 10 a builder with flags may choose float16 (and, on 8, int8 for Q/DQ only with its flag), which makes the
    layers between the quantized ones fast. From 11 on there are no such flags, and types are the file's.
    """
    wanted = [name for name, on in (("FP16", options.fp16), ("INT8", options.int8)) if on]
    creation = trt.NetworkDefinitionCreationFlag
    flags = 0
    if hasattr(creation, "EXPLICIT_BATCH"):
        flags |= 1 << int(creation.EXPLICIT_BATCH)
    if wanted and all(hasattr(trt.BuilderFlag, name) for name in wanted):
        for name in wanted:
            config.set_flag(getattr(trt.BuilderFlag, name))
    elif hasattr(creation, "STRONGLY_TYPED"):
        flags |= 1 << int(creation.STRONGLY_TYPED)
    return flags


def _parse_errors(parser: Any, log: Any) -> str:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = "; ".join(f"{error.desc()} (node {error.node()})" for error in errors[:3])
    return said or str(log.last())


def _add_profile(builder: Any, config: Any, network: Any, options: BuildOptions) -> None:
    profile = builder.create_optimization_profile()
    free = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 in shape[1:]:
            raise EngineError(
                f"input {tensor.name!r} has the shape {list(shape)}; only the batch may be free: make the bundle again"
            )
        if -1 in shape:
            free = True
            profile.set_shape(
                tensor.name, *((n, *shape[1:]) for n in (options.min_batch, options.opt_batch, options.max_batch))
            )
    if free and config.add_optimization_profile(profile) < 0:
        raise EngineError(
            f"TensorRT refuses batches {options.min_batch} to {options.max_batch}; make the bundle with others"
        )
