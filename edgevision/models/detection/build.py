"""From a `DetectorConfig` to a `Detector`: the names of the parts, and how they are put together."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from edgevision.errors import UsageError
from edgevision.models import MODELS
from edgevision.models.detection.config import DetectorConfig
from edgevision.models.detection.detector import Detector, check_input_size
from edgevision.models.efficientrep import block_builder
from edgevision.models.layers import SMALL_IMAGE, initialize
from edgevision.registry import Registry

# a backbone: (*, in_channels, width, block, deploy, options) → module with `channels`, picture → tuple of maps
BACKBONES = Registry(
    "backbone",
    "edgevision.detection.backbones",
    {
        "darknet53": "edgevision.models.detection.darknet:Darknet53",
        "darknet_tiny": "edgevision.models.detection.darknet:DarknetTiny",
        "efficientrep": "edgevision.models.detection.backbones.efficientrep:EfficientRepPyramid",
        "lite": "edgevision.models.detection.backbones.lite:LiteBackbone",
        "mobilenet_ssd": "edgevision.models.detection.backbones.mobilenet_ssd:mobilenet_ssd",
    },
)

# a neck: (in_channels, *, width, block, deploy, options) → module with `channels`, tuple of maps → tuple of maps
NECKS = Registry(
    "neck",
    "edgevision.detection.necks",
    {
        "fpn": "edgevision.models.detection.necks.fpn:FPN",
        "lite_pan": "edgevision.models.detection.necks.lite_pan:LitePAN",
        "pan": "edgevision.models.detection.necks.pan:PAN",
        "rep_bi_pan": "edgevision.models.detection.necks.rep_pan:RepBiPAN",
        "rep_pan": "edgevision.models.detection.necks.rep_pan:RepPAN",
        "ssd_extras": "edgevision.models.detection.necks.ssd_extras:SSDExtras",
        "yolov3": "edgevision.models.detection.necks.yolov3:YOLOv3Neck",
        "yolov3_tiny": "edgevision.models.detection.necks.yolov3:YOLOv3TinyNeck",
    },
)

# a head: (in_channels, *, num_classes, strides, options) → module, tuple of maps → named raw maps
HEADS = Registry(
    "head",
    "edgevision.detection.heads",
    {
        "decoupled": "edgevision.models.detection.heads.decoupled:DecoupledHead",
        "ssd": "edgevision.models.detection.heads.ssd:SSDHead",
        "yolov3": "edgevision.models.detection.heads.yolov3:YOLOv3Head",
    },
)


def build_detector(
    config: DetectorConfig,
    *,
    num_classes: int = 80,
    in_channels: int = 3,
    input_size: int = 640,
    width: float = 1.0,
    block: str = "repvgg",
    deploy: bool = False,
) -> Detector:
    """A detector with fresh weights, in training mode.

    Args:
        config: its parts; see `edgevision.models.detection.yolov6` for examples.
        num_classes: things to be found.
        in_channels: channels of the picture.
        input_size: height and width in pixels that it is meant for; others of the same multiple run as well.
        width: multiplier of all channels, on top of the configuration's own.
        block: ``repvgg`` or ``qarepvgg``, where the parts have such blocks.
        deploy: build their fused form.

    Raises:
        UsageError: an unknown part or option, or an input size that is no multiple of the largest stride.
    """
    check_input_size(input_size, input_size, config.size_multiple)
    block_builder(block)
    common: dict[str, Any] = {"width": width, "block": block, "deploy": deploy}
    backbone = _backbone(config.backbone, in_channels=in_channels, **common)
    neck = _part(NECKS, config.neck, backbone.channels, **common)
    head = _part(HEADS, config.head, neck.channels, num_classes=num_classes, strides=config.strides)
    detector = Detector(backbone, neck, head, size_multiple=config.size_multiple)
    initialize(detector)
    head.set_priors()
    if config.norm:
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = config.norm["eps"], config.norm["momentum"]
    return detector


def _backbone(part: Mapping[str, Any], *, in_channels: int, width: float, block: str, deploy: bool) -> Any:
    if part["name"] in BACKBONES:
        return _part(BACKBONES, part, in_channels=in_channels, width=width, block=block, deploy=deploy)
    from edgevision.models.detection.backbones.zoo import ZooBackbone

    name, options = part["name"], {key: value for key, value in part.items() if key != "name"}
    if name not in MODELS:
        raise UsageError(f"unknown backbone {name!r}: choose from {', '.join(sorted({*BACKBONES, *MODELS}))}")
    builder = MODELS.resolve(name)
    if "deploy" in inspect.signature(builder).parameters:
        options["deploy"] = deploy
    # above the size of the small-image stem, whose strides are others
    network = builder(in_channels=in_channels, input_size=SMALL_IMAGE + 1, width=width, **options)
    return ZooBackbone(network, name)


def _part(registry: Registry, part: Mapping[str, Any], *inputs: Any, **arguments: Any) -> Any:
    options = {key: value for key, value in part.items() if key != "name"}
    builder = registry.resolve(part["name"])
    try:
        return builder(*inputs, **arguments, **options)
    except TypeError as error:
        raise UsageError(f"{registry.kind} {part['name']}: {error}") from error
