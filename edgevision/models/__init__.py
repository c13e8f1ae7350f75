"""Light networks, written like their papers. Importable without torch; building one needs it.

Weights, fusion and sizes are in `edgevision.models.weights`, `.reparameterize` and `.statistics`.
"""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

from edgevision.dependencies import require
from edgevision.errors import UsageError
from edgevision.models.catalogue import CATALOGUE, ModelInfo
from edgevision.registry import Registry, unknown_name

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "ModelInfo", "create_model", "model_names", "model_table", "task_of"]

MODELS = Registry(
    "model",
    "edgevision.models",
    {
        "efficientrep_n": "edgevision.models.efficientrep:efficientrep_n",
        "efficientrep_s": "edgevision.models.efficientrep:efficientrep_s",
        "mobilenet_v1": "edgevision.models.mobilenet_v1:mobilenet_v1",
        "mobilenet_v2": "edgevision.models.mobilenet_v2:mobilenet_v2",
        "mobilenet_v3_large": "edgevision.models.mobilenet_v3:mobilenet_v3_large",
        "mobilenet_v3_small": "edgevision.models.mobilenet_v3:mobilenet_v3_small",
        "qarepvgg_a0": "edgevision.models.qarepvgg:qarepvgg_a0",
        "qarepvgg_a1": "edgevision.models.qarepvgg:qarepvgg_a1",
        "qarepvgg_a2": "edgevision.models.qarepvgg:qarepvgg_a2",
        "qarepvgg_b0": "edgevision.models.qarepvgg:qarepvgg_b0",
        "qarepvgg_tiny": "edgevision.models.qarepvgg:qarepvgg_tiny",
        "repoptvgg_a0": "edgevision.models.repopt_vgg:repoptvgg_a0",
        "repoptvgg_a1": "edgevision.models.repopt_vgg:repoptvgg_a1",
        "repoptvgg_a2": "edgevision.models.repopt_vgg:repoptvgg_a2",
        "repoptvgg_b0": "edgevision.models.repopt_vgg:repoptvgg_b0",
        "repoptvgg_tiny": "edgevision.models.repopt_vgg:repoptvgg_tiny",
        "repvgg_a0": "edgevision.models.repvgg:repvgg_a0",
        "repvgg_a1": "edgevision.models.repvgg:repvgg_a1",
        "repvgg_a2": "edgevision.models.repvgg:repvgg_a2",
        "repvgg_b0": "edgevision.models.repvgg:repvgg_b0",
        "repvgg_tiny": "edgevision.models.repvgg:repvgg_tiny",
        "squeezenet1_0": "edgevision.models.squeezenet:squeezenet1_0",
        "squeezenet1_0_bypass": "edgevision.models.squeezenet:squeezenet1_0_bypass",
        "squeezenet1_1": "edgevision.models.squeezenet:squeezenet1_1",
        "ssdlite_mobilenet_v2": "edgevision.models.detection.ssd_lite:ssdlite_mobilenet_v2",
        "yolov3": "edgevision.models.detection.yolov3:yolov3",
        "yolov3_tiny": "edgevision.models.detection.yolov3:yolov3_tiny",
        "yolov6_m": "edgevision.models.detection.yolov6:yolov6_m",
        "yolov6_n": "edgevision.models.detection.yolov6:yolov6_n",
        "yolov6_s": "edgevision.models.detection.yolov6:yolov6_s",
        "yolov6_t": "edgevision.models.detection.yolov6:yolov6_t",
        "yolov6lite_s": "edgevision.models.detection.yolov6:yolov6lite_s",
    },
)

# three max pools of a small-image stem, or the five halvings of an ImageNet stem, still leave a pixel
SMALLEST_INPUT = 16


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    input_size: int | None = None,
    width: float = 1.0,
    **kwargs: Any,
) -> nn.Module:
    """Build a network of the zoo with fresh weights, in training mode.

    Args:
        name: one of `model_names`.
        num_classes: outputs, at least 1; by default 1000, of detectors 80.
        in_channels: channels of the picture, at least 1.
        input_size: height and width of the picture in pixels, at least 16; by default 224, of detectors what
            `model_table` says. It chooses a classifier's stem: up to 64 the network divides the picture by 8 instead
            of by 32 (SqueezeNet: 16); each family's class says which strides change. Other sizes run as well; a
            detector's must be multiples of its largest stride.
        width: multiplier of all channels, which stay multiples of 8.
        kwargs: what the family has besides: ``dropout`` (MobileNets, SqueezeNets), ``deploy`` (RepVGG, QARepVGG,
            RepOpt-VGG, EfficientRep, YOLOv6: the fused form), ``block`` (EfficientRep, YOLOv6: ``repvgg`` or
            ``qarepvgg``), ``search`` (RepOpt-VGG: the form whose scales are learned), ``anchors`` (YOLOv3: priors of
            your own data, ``[[width, height], …]`` in input pixels).

    Returns:
        a network float [B, in_channels, H, W] → logits [B, num_classes], or, of a detector, raw maps by name (see
        `edgevision.models.detection.detector.Detector`); with ``architecture``: the name and the arguments that
        `edgevision.checkpoint` writes down to build it again.

    Raises:
        UsageError: an unknown name or argument (the valid ones are named) or a value out of range.
        MissingDependencyError: torch is not installed.
    """
    usual = CATALOGUE.get(name, ModelInfo(name, ""))
    arguments: dict[str, Any] = {
        "num_classes": (80 if usual.task == "detection" else 1000) if num_classes is None else num_classes,
        "in_channels": in_channels,
        "input_size": (usual.input_size if usual.task == "detection" else 224) if input_size is None else input_size,
        "width": width,
        **kwargs,
    }
    _check_ranges(arguments)
    if name not in MODELS:
        raise UsageError(unknown_name("model", name, MODELS.names()))
    require("torch", purpose="build models")
    builder = MODELS.resolve(name)
    _check_arguments(name, builder, arguments)
    model: nn.Module = builder(**arguments)
    # through object: a dict is no submodule, and nn.Module's own signature takes only those
    object.__setattr__(model, "architecture", {"name": name, "arguments": arguments})
    return model


def model_names() -> list[str]:
    """Names that `create_model` takes, sorted, third parties' included."""
    return MODELS.names()


def model_table() -> list[ModelInfo]:
    """One line per model of `model_names`: what it is and how big. Needs no torch."""
    return [CATALOGUE.get(name, ModelInfo(name, "third-party model")) for name in model_names()]


def task_of(name: str) -> str:
    """``detection`` or ``classification``: what a model of the registry is for. Third parties' count as the latter.

    Raises:
        UsageError: no such name.
    """
    if name not in MODELS:
        raise UsageError(unknown_name("model", name, MODELS.names()))
    return CATALOGUE.get(name, ModelInfo(name, "")).task


def _check_ranges(arguments: dict[str, Any]) -> None:
    for key, least in (("num_classes", 1), ("in_channels", 1), ("input_size", SMALLEST_INPUT)):
        value = arguments[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{key} must be a whole number of at least {least}; got {value!r}")
    width = arguments["width"]
    if not isinstance(width, (int, float)) or isinstance(width, bool) or not (math.isfinite(width) and width > 0):
        raise UsageError(f"width must be a number above 0; got {width!r}")


def _check_arguments(name: str, builder: Any, arguments: dict[str, Any]) -> None:
    parameters = inspect.signature(builder).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in arguments:
        if key not in parameters:
            raise UsageError(f"model {name} takes no argument {key!r}; it takes {', '.join(parameters)}")
