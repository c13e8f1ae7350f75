"""The device side: a bundle, an engine, a `Session`. Needs numpy, Pillow and one runtime, nothing else."""

from edgevision.runtime.backend import BACKENDS, Engine, EngineOptions
from edgevision.runtime.session import Session, load
from edgevision.runtime.tensors import TensorSpec

__all__ = ["BACKENDS", "Engine", "EngineOptions", "Session", "TensorSpec", "load"]
