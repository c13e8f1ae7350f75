"""The seam between `Session` and an engine: a backend writes only the inner call.

A backend is a module with one function, ``open_engine(bundle, options) -> Engine``, imported only when a
bundle of its target is opened. To add one: write the module, add a line to `BACKENDS`, and let the conformance
suite run over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from edgevision.registry import Registry

if TYPE_CHECKING:
    from edgevision.bundle import Bundle

BACKENDS = Registry(
    "target",
    "edgevision.backends",
    {
        "onnxruntime": "edgevision.runtime.onnxruntime:open_engine",
        "openvino": "edgevision.runtime.openvino:open_engine",
        "ncnn": "edgevision.runtime.ncnn:open_engine",
        "tensorrt": "edgevision.runtime.tensorrt:open_engine",
    },
)


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is opened.

    Attributes:
        threads: threads of one inference; 0 lets the engine choose.
        cache_dir: where engines compiled on this device are kept; None for the user's cache folder.
        layers: names of inner tensors to return besides the outputs, for layer-wise parity.
    """

    threads: int = 1
    cache_dir: str | None = None
    layers: tuple[str, ...] = ()


class Engine(Protocol):
    """A loaded engine. `Session` has checked the feed before ``infer`` sees it.

    ``infer`` takes C-contiguous arrays of the declared dtypes and shapes, keyed by the bundle's input names,
    with any batch size >= 1, and returns arrays that stay valid after the next call, keyed by the bundle's
    output names. It may be called from several threads at once.
    """

    version: str

    def infer(self, feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run one batch."""
        ...

    def close(self) -> None:
        """Free the engine; called once."""
        ...


class ParallelEngine(Engine, Protocol):
    """An engine that can be prepared for several calls at once, where that takes more than calling it from threads."""

    def open_parallel(self, requests: int) -> Engine:
        """The same network, ready for so many calls of one picture at once: for throughput, not for latency.

        Raises:
            EngineError: the runtime cannot prepare it.
        """
        ...


class OpenEngine(Protocol):
    """Signature of a backend's ``open_engine``."""

    def __call__(self, bundle: Bundle, options: EngineOptions) -> Engine:
        """Load ``bundle``'s engine files.

        Raises:
            MissingDependencyError: the runtime is not installed.
            EngineError: the runtime refused the files.
        """
        ...
