"""How a target wants its integers: one frozen `QuantScheme` per target, and why."""

from __future__ import annotations

from dataclasses import dataclass

from edgevision.errors import UsageError
from edgevision.registry import unknown_name


@dataclass(frozen=True)
class Stem:
    """First layers that stay in float, see `edgevision_calibration.mixed_precision.stem_layers`.

    Attributes:
        products: as many are summed for an output, at most.
        first_channels: as many the layer that reads the picture makes, at most.
        channels: as many a later one reads or makes, at most.
    """

    products: int
    first_channels: int = 32
    channels: int = 32


@dataclass(frozen=True)
class QuantScheme:
    """What one engine runs fastest.

    Attributes:
        target: the engine.
        activation_dtype: ``uint8`` (affine: any zero point) or ``int8`` (symmetric: zero point 0).
        weight_per_channel: one weight scale per output channel rather than per tensor; weights are always
            symmetric int8 in -127..127.
        compute_ops: ops that run on integers.
        integer_ops: ops that pass integers on, so that a chain of compute ops stays integer end to end.
        quantize_outputs: whether the outputs of compute ops carry Q/DQ too (their inputs always do).
        depthwise: whether depthwise convolutions run on integers.
        quantize_bias: whether biases are stored as int32 with scale ``s_activation · s_weight``.
        weights_as_float: whether weights stay float32 behind QuantizeLinear → DequantizeLinear in the file
            (else int8 behind DequantizeLinear).
        weight_per_group: whether a grouped convolution has one weight scale per group rather than per channel.
        layers_round_alone: whether a layer rounds its input for itself, so that other readers of the same tensor
            get it in float (else they all get the rounded one).
        stem: the first layers, of few channels, that stay in float because that is about as quick and their rounding
            is heard through the whole net; None for none.
        float_budget: share that layers in float for accuracy may add to the time of the net on integers, see
            `edgevision_calibration.mixed_precision.precise_layers`. Nine hundredths go to MobileNetV2's last blocks,
            which cost 7 to 11 in ONNX Runtime as measured, take away 38% of the noise and leave it as quick as other
            quantizers' files; another block would make it slower than these.
        signed_symmetric: whether a ``uint8`` tensor with negative values has its zero in the middle, at 128.
        least_products: products per value read and written below which a convolution stays in float because rounding
            its input takes what its integers save, see `edgevision_calibration.mixed_precision.thin_layers`.
        products_per_value: what reading or writing a value in float takes, in float products of a convolution, see
            `edgevision_calibration.float_cost`. Fitted to what a layer of SqueezeNet 1.1, MobileNetV2 and, in ONNX
            Runtime, FastestDet adds when it alone is in float (x86-64 with VNNI, one thread, 224 layers): 18 in
            OpenVINO, 35 in ONNX Runtime, where it scatters more.
    """

    target: str
    activation_dtype: str
    weight_per_channel: bool
    compute_ops: frozenset[str]
    integer_ops: frozenset[str]
    quantize_outputs: bool
    depthwise: bool
    quantize_bias: bool
    weights_as_float: bool = False
    weight_per_group: bool = False
    layers_round_alone: bool = False
    stem: Stem | None = None
    float_budget: float = 0.10
    signed_symmetric: bool = False
    least_products: float = 0.0
    products_per_value: float = 20.0

    @property
    def symmetric(self) -> bool:
        """Whether activations have zero point 0."""
        return self.activation_dtype == "int8"

    @property
    def quant_range(self) -> tuple[int, int]:
        """Least and greatest integer of an activation."""
        return (-127, 127) if self.symmetric else (0, 255)


# ops that multiply by weights
COMPUTE_OPS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_COMPUTE = COMPUTE_OPS - {"ConvTranspose"}
# what joins or picks values and computes none, and is quicker on integers in every engine
_MOVE = frozenset({"Concat", "MaxPool"})

SCHEMES: dict[str, QuantScheme] = {
    # uint8 activations take the u8·s8 dot-product kernels (VNNI, and dotprod on ARM); int8-symmetric ones take
    # twice FP32's time on x86. Everything between two convolutions must carry Q/DQ, or the chain leaves integers.
    "onnxruntime": QuantScheme(
        target="onnxruntime",
        activation_dtype="uint8",
        weight_per_channel=True,
        compute_ops=_COMPUTE,
        integer_ops=_MOVE | {"Add", "AveragePool", "Flatten", "Reshape", "Resize", "Slice", "Squeeze", "Transpose"},
        quantize_outputs=True,
        depthwise=True,
        quantize_bias=True,
        # with the 64 channels of SqueezeNet 1.1's in float it took 0.41 of FP32's time, else 0.46
        stem=Stem(products=32, first_channels=64),
    ),
    # OpenVINO reads Q/DQ as FakeQuantize and propagates it itself; additions are fused into the convolution
    # before them in float, so only the inputs of compute ops carry Q/DQ. A zero in the middle becomes int8 without a
    # zero point, which its kernels need not make good.
    "openvino": QuantScheme(
        target="openvino",
        activation_dtype="uint8",
        weight_per_channel=True,
        compute_ops=_COMPUTE,
        integer_ops=_MOVE,
        quantize_outputs=False,
        depthwise=True,
        quantize_bias=False,
        signed_symmetric=True,
        # MobileNetV2's first two add 4% to its time and take 1 dB off its noise, its third (32 products) another 2% for
        # 0.2 dB; SqueezeNet 1.1's 64 channels would add 27%
        stem=Stem(products=27),
        # beside it, each hundredth of the budget adds about a hundredth of MobileNetV2's time for 0.1 to 0.2 dB
        float_budget=0.03,
    ),
    # ncnn quantizes the input of a layer and dequantizes its output; there is no integer addition or concat.
    # Its depthwise INT8 kernels cost more than float on x86 and ARM, and 3 dB. One scale per group is all that its
    # format stores. Each layer rounds its input and returns floats, which costs layers of few channels more than their
    # integers save: at 25 MobileNetV2, SqueezeNet, UltraFace and FastestDet were all quicker than at 0.
    "ncnn": QuantScheme(
        target="ncnn",
        activation_dtype="int8",
        weight_per_channel=True,
        compute_ops=frozenset({"Conv", "Gemm"}),
        integer_ops=frozenset(),
        quantize_outputs=False,
        depthwise=False,
        quantize_bias=False,
        weight_per_group=True,
        layers_round_alone=True,
        least_products=25.0,
    ),
    # Explicit Q/DQ with zero point 0 is the one form TensorRT 8.5 to 11 all take; biases stay float. A GPU has products
    # in plenty and waits for memory: not measured, but a board of 21 TMAC/s in half precision and 204 GB/s (as Jetson
    # AGX Orin's figures are published) makes 200 of them while two bytes come.
    "tensorrt": QuantScheme(
        target="tensorrt",
        activation_dtype="int8",
        weight_per_channel=True,
        compute_ops=frozenset({"Conv", "Gemm"}),
        integer_ops=_MOVE,
        quantize_outputs=False,
        depthwise=True,
        quantize_bias=False,
        weights_as_float=True,
        products_per_value=200.0,
        # symmetric steps are twice as wide behind a Relu, and nowhere does it cost more than here: 2.5 dB of
        # MobileNetV2; what it does to the time was not measured, three colours fill no integer kernel of a GPU
        stem=Stem(products=27),
    ),
}


def scheme_for(target: str) -> QuantScheme:
    """The scheme that is fastest on ``target``.

    Raises:
        UsageError: no such target.
    """
    if target not in SCHEMES:
        raise UsageError(unknown_name("target", target, SCHEMES))
    return SCHEMES[target]
