"""Optional dependencies, imported where they are used and named by the extra that installs them."""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

from edgevision.errors import MissingDependencyError

# top-level module → the extra that brings it
EXTRA_OF: dict[str, str] = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ncnn": "ncnn",
    "tensorrt": "tensorrt",
    "torch": "train",
    "torch_pruning": "train",
    "sklearn": "train",
    "safetensors": "convert",
    "onnx": "convert",
    "onnxscript": "convert",
    "pnnx": "convert",
    "tomli": "convert",
    "jinja2": "report",
    "psutil": "report",
    "rich": "report",
    "matplotlib": "train",
    "faster_coco_eval": "detection",
    "av": "video",
    "sqlalchemy": "history",
    "dask": "fleet",
    "distributed": "fleet",
}


def require(module: str, *, purpose: str, extra: str | None = None) -> ModuleType:
    """Import ``module`` or say in one line which extra installs it.

    Args:
        module: dotted module name, as ``import`` takes it.
        purpose: what it is needed for, as the object of "is needed to …".
        extra: the extra to name; by default the one that brings the top-level module.

    Raises:
        MissingDependencyError: the module is not installed, or what is installed cannot be imported.
    """
    top = module.partition(".")[0]
    extra = extra or EXTRA_OF.get(top)
    package = f'"edgevision[{extra}]"' if extra else top
    if find_spec(top) is None:
        raise MissingDependencyError(f"{top} is needed to {purpose}: pip install {package}")
    if top == "openvino":
        _silence_openvino()
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if is_interrupt(error):
            raise KeyboardInterrupt from error
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MissingDependencyError(
            f"{top} is needed to {purpose}; it is installed and cannot be imported ({told}): "
            f"pip install --force-reinstall {package}"
        ) from error


def _silence_openvino() -> None:
    """Keep OpenVINO from reporting its use over the network: it takes its own stub where the reporter is absent.

    EdgeVision sends nothing anywhere, and on a board without a network each report waits for its time-out.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: native modules that are being imported make an ImportError of it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def installed(module: str) -> bool:
    """Tell whether ``module`` could be imported, without importing it."""
    return find_spec(module) is not None
