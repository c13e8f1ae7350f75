"""What each model is and how big, as literals: `edgevision models` lists them without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelInfo:
    """One line of the list of models.

    Attributes:
        name: what `create_model` takes.
        description: one line.
        paper: arXiv identifier; empty where there is none.
        parameters: learnable values in the form that runs on a device (RepVGG: fused); None where unknown.
        multiply_adds: of all convolutions and linear layers for one picture, the same form; None where unknown.
        num_classes: for which both were counted.
        in_channels: likewise.
        input_size: likewise, height and width in pixels.
        task: ``classification`` or ``detection``.
    """

    name: str
    description: str
    paper: str = ""
    parameters: int | None = None
    multiply_adds: int | None = None
    num_classes: int = 1000
    in_channels: int = 3
    input_size: int = 224
    task: str = "classification"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return dict(vars(self))


_V1, _V2, _V3 = "1704.04861", "1801.04381", "1905.02244"
_SQUEEZE, _REPVGG, _QAREPVGG, _EFFICIENTREP = "1602.07360", "2101.03697", "2212.01593", "2209.02976"
_REPOPT = "2205.15242"
_YOLOV6, _YOLOV3, _SSD_LITE = "2301.05586", "1804.02767", "1801.04381"


def _detector(
    name: str, description: str, paper: str, parameters: int, multiply_adds: int, input_size: int
) -> ModelInfo:
    return ModelInfo(name, description, paper, parameters, multiply_adds, 80, 3, input_size, "detection")


_ROWS = (
    ModelInfo(
        "efficientrep_n",
        "EfficientRep, the backbone of YOLOv6-N, with a classifier",
        _EFFICIENTREP,
        3_046_088,
        476_125_184,
    ),
    ModelInfo(
        "efficientrep_s",
        "EfficientRep, the backbone of YOLOv6-S, with a classifier",
        _EFFICIENTREP,
        11_662_760,
        1_893_150_720,
    ),
    ModelInfo("mobilenet_v1", "MobileNetV1: depthwise separable convolutions", _V1, 4_231_976, 568_740_352),
    ModelInfo("mobilenet_v2", "MobileNetV2: inverted residuals, linear bottlenecks", _V2, 3_504_872, 300_774_272),
    ModelInfo("mobilenet_v3_large", "MobileNetV3-Large: squeeze-and-excitation, h-swish", _V3, 5_483_032, 216_589_760),
    ModelInfo("mobilenet_v3_small", "MobileNetV3-Small: squeeze-and-excitation, h-swish", _V3, 2_542_856, 56_510_400),
    ModelInfo("qarepvgg_a0", "QARepVGG in the size of RepVGG-A0, for INT8", _QAREPVGG, 8_309_384, 1_361_451_008),
    ModelInfo("qarepvgg_a1", "QARepVGG in the size of RepVGG-A1, for INT8", _QAREPVGG, 12_789_864, 2_363_967_488),
    ModelInfo("qarepvgg_a2", "QARepVGG in the size of RepVGG-A2, for INT8", _QAREPVGG, 25_499_944, 5_116_951_552),
    ModelInfo("qarepvgg_b0", "QARepVGG in the size of RepVGG-B0, for INT8", _QAREPVGG, 14_339_048, 3_057_600_512),
    ModelInfo("qarepvgg_tiny", "QARepVGG of seven small blocks, for digits", _QAREPVGG, 146_938, 10_765_568, 10, 1, 32),
    ModelInfo("repoptvgg_a0", "RepOpt-VGG in the size of RepVGG-A0, for INT8", _REPOPT, 8_309_384, 1_361_451_008),
    ModelInfo("repoptvgg_a1", "RepOpt-VGG in the size of RepVGG-A1, for INT8", _REPOPT, 12_789_864, 2_363_967_488),
    ModelInfo("repoptvgg_a2", "RepOpt-VGG in the size of RepVGG-A2, for INT8", _REPOPT, 25_499_944, 5_116_951_552),
    ModelInfo("repoptvgg_b0", "RepOpt-VGG in the size of RepVGG-B0, for INT8", _REPOPT, 14_339_048, 3_057_600_512),
    ModelInfo("repoptvgg_tiny", "RepOpt-VGG of seven blocks, for digits", _REPOPT, 146_938, 10_765_568, 10, 1, 32),
    ModelInfo("repvgg_a0", "RepVGG-A0: one 3×3 convolution per block when fused", _REPVGG, 8_309_384, 1_361_451_008),
    ModelInfo("repvgg_a1", "RepVGG-A1: one 3×3 convolution per block when fused", _REPVGG, 12_789_864, 2_363_967_488),
    ModelInfo("repvgg_a2", "RepVGG-A2: one 3×3 convolution per block when fused", _REPVGG, 25_499_944, 5_116_951_552),
    ModelInfo("repvgg_b0", "RepVGG-B0: one 3×3 convolution per block when fused", _REPVGG, 14_339_048, 3_057_600_512),
    ModelInfo("repvgg_tiny", "RepVGG of seven small blocks, for digits", _REPVGG, 146_938, 10_765_568, 10, 1, 32),
    ModelInfo("squeezenet1_0", "SqueezeNet 1.0: Fire modules", _SQUEEZE, 1_248_424, 818_924_576),
    ModelInfo("squeezenet1_0_bypass", "SqueezeNet 1.0 with simple bypass", _SQUEEZE, 1_248_424, 818_924_576),
    ModelInfo(
        "squeezenet1_1", "SqueezeNet 1.1: 2.4 times fewer multiply-adds than 1.0", _SQUEEZE, 1_235_496, 349_151_936
    ),
    _detector(
        "ssdlite_mobilenet_v2",
        "SSD-Lite on MobileNetV2: multibox, depthwise heads",
        _SSD_LITE,
        4_337_013,
        788_830_144,
        320,
    ),
    _detector("yolov3", "YOLOv3 on Darknet-53: nine priors at three scales", _YOLOV3, 61_949_149, 32_932_037_632, 416),
    _detector("yolov3_tiny", "YOLOv3-tiny: six priors at two scales", _YOLOV3, 8_852_366, 2_782_480_896, 416),
    _detector(
        "yolov6_m",
        "YOLOv6-M 3.0: BepC3 stages, RepBi-PAN, boxes as distributions",
        _YOLOV6,
        34_866_196,
        42_542_899_200,
        640,
    ),
    _detector("yolov6_n", "YOLOv6-N 3.0: EfficientRep, RepBi-PAN, anchor-free", _YOLOV6, 4_649_212, 5_658_009_600, 640),
    _detector(
        "yolov6_s", "YOLOv6-S 3.0: EfficientRep, RepBi-PAN, anchor-free", _YOLOV6, 18_541_820, 22_483_353_600, 640
    ),
    _detector(
        "yolov6_t", "YOLOv6-T: EfficientRep, Rep-PAN, anchor-free", "2209.02976", 14_972_988, 18_157_977_600, 640
    ),
    _detector(
        "yolov6lite_s", "YOLOv6-Lite-S: depthwise convolutions for ARM, four scales", _YOLOV6, 557_976, 263_267_344, 320
    ),
)

CATALOGUE: dict[str, ModelInfo] = {row.name: row for row in _ROWS}
