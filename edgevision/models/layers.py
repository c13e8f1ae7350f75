"""What several families share: channel rounding, the small-image stem, conv + norm + activation, initialisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

# up to this input size a network gets its small-image stem
SMALL_IMAGE = 64

NormLayer = Callable[[int], nn.Module]


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Round a scaled channel count to a multiple of ``divisor``, never losing more than 10 %.

    The rule of the MobileNetV2 authors' code: engines work on 8 or more channels at a time.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def fit_strides(strides: Sequence[int], input_size: int) -> list[int]:
    """Strides for an input size: up to 64 pixels the first two strides of 2 become 1.

    A network that divides an ImageNet picture by 32 then divides a small one by 8: 32 × 32 ends at 4 × 4.
    """
    fitted = list(strides)
    if input_size <= SMALL_IMAGE:
        for index in [index for index, stride in enumerate(fitted) if stride == 2][:2]:
            fitted[index] = 1
    return fitted


def stage_ends(strides: Sequence[int]) -> tuple[int, ...]:
    """Of layers one after the other: those before each of the last three halvings, and the last one.

    Their outputs are the maps at strides 4, 8, 16 and 32 of a network that divides the picture by 32.
    """
    halvings = [index for index, stride in enumerate(strides) if stride == 2]
    return (*(index - 1 for index in halvings[-3:]), len(strides) - 1)


def outputs_at(layers: nn.Sequential, indices: Sequence[int], x: Tensor) -> tuple[Tensor, ...]:
    """Outputs of the layers of those indices, in order; layers after the last of them do not run."""
    outputs = []
    for index, layer in enumerate(layers):
        x = layer(x)
        if index in indices:
            outputs.append(x)
        if index == indices[-1]:
            break
    return tuple(outputs)


def last_channels(module: nn.Module) -> int:
    """Output channels of the last convolution of a module; of a RepVGG block all branches have the same."""
    return [layer.out_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)][-1]


class ConvNormActivation(nn.Sequential):
    """Convolution without bias (``0``), normalisation (``1``) and, unless None, an activation (``2``).

    Padding keeps height and width at stride 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: NormLayer = nn.BatchNorm2d,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        padding = (kernel_size - 1) // 2
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False),
            norm(out_channels),
        ]
        if activation is not None:
            # partial: some activations take no inplace, and mypy knows only type[Module]
            layers.append(partial(activation, inplace=True)())
        super().__init__(*layers)


def global_average(x: Tensor) -> Tensor:
    """Mean over height and width: [B, C, H, W] → [B, C]. Exports as one GlobalAveragePool."""
    return nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)


def initialize(model: nn.Module) -> None:
    """He initialisation (fan-out, arXiv 1502.01852) of convolutions, N(0, 0.01) of linears, zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
            nn.init.zeros_(module.bias)
