"""What fusing and equalizing RepVGG blocks does to the ranges of their weights and activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import torch

from edgevision.graph import Graph
from edgevision.models.reparameterize import Reparameterizable, reparameterize
from edgevision_calibration.equalization import equalize
from edgevision_calibration.observe import CLIPPING_OPS
from edgevision_calibration.samples import ChannelSamples, collect_samples

if TYPE_CHECKING:
    from torch import Tensor, nn

_PICTURES, _PIXELS = 32, 24


@dataclass(frozen=True)
class BlockReport:
    """One block that was fused.

    A spread is the greatest channel's peak over the median channel's: what a scale per tensor wastes.

    Attributes:
        block: name of the module.
        branches: how many weights of convolutions and batch norms were summed into one.
        fusion_difference: largest difference the fusion makes to the block's own output, relative to its range.
        branch_peak: greatest magnitude among the branches' convolution weights.
        fused_peak: among the fused weights.
        weight_spread: of the fused weights, over output channels.
        weight_spread_equalized: after equalization.
        activation_peak: greatest magnitude of the block's output.
        activation_spread: of the block's output, over channels.
        activation_spread_equalized: after equalization.
    """

    block: str
    branches: int
    fusion_difference: float
    branch_peak: float
    fused_peak: float
    weight_spread: float
    weight_spread_equalized: float
    activation_peak: float
    activation_spread: float
    activation_spread_equalized: float


def report_blocks(model: nn.Module, graph: Graph, pictures: Sequence[npt.NDArray[np.float32]]) -> list[BlockReport]:
    """One row for every block of ``model`` that can still be fused, in order.

    Args:
        model: the network with its branches, in eval mode.
        graph: what was exported of it, with the fused blocks' weights under their module's name.
        pictures: preprocessed, float32 ``[B, C, H, W]`` each; the first 32 are used.
    """
    blocks: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, Reparameterizable) and not module.is_fused:
            blocks[name] = cast("nn.Module", module)
    fused = dict(reparameterize(model).named_modules())
    differences = _fusion_differences(model, blocks, fused, torch.from_numpy(np.concatenate(list(pictures[:4]))))
    equalized = equalize(graph, pictures).graph
    before = collect_samples(graph, pictures, pictures=_PICTURES, pixels=_PIXELS)
    after = collect_samples(equalized, pictures, pictures=_PICTURES, pixels=_PIXELS)
    rows = []
    for name, block in blocks.items():
        weight_name = _fused_weight(name, fused[name], graph)
        if weight_name is None:
            continue
        output = _block_output(graph, weight_name)
        weight = graph.initializers[weight_name]
        rows.append(
            BlockReport(
                block=name,
                branches=sum(value.ndim == 4 for value in block.parameters())
                + sum(isinstance(part, torch.nn.BatchNorm2d) for part in block.children()),
                fusion_difference=differences[name],
                branch_peak=max(float(value.detach().abs().max()) for value in block.parameters() if value.ndim == 4),
                fused_peak=float(np.abs(weight).max()),
                weight_spread=_spread(_peaks(weight)),
                weight_spread_equalized=_spread(_peaks(equalized.initializers[weight_name])),
                activation_peak=float(_greatest(before[output]).max()),
                activation_spread=_spread(_greatest(before[output])),
                activation_spread_equalized=_spread(_greatest(after[output])),
            )
        )
    return rows


def _fusion_differences(
    model: nn.Module, blocks: Mapping[str, nn.Module], fused: Mapping[str, nn.Module], images: Tensor
) -> dict[str, float]:
    """Each block on its own input, with and without branches."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> object:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (inputs[0], output)

        return blocks[name].register_forward_hook(hook)

    handles = [watch(name) for name in blocks]
    try:
        with torch.inference_mode():
            model(images)
            return {
                name: float((fused[name](x) - out).abs().max() / (out.max() - out.min()).clamp(min=1e-12))
                for name, (x, out) in seen.items()
            }
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]


def _fused_weight(name: str, module: nn.Module, graph: Graph) -> str | None:
    for parameter, value in module.named_parameters():
        if value.ndim == 4 and f"{name}.{parameter}" in graph.initializers:
            return f"{name}.{parameter}"
    return None


def _block_output(graph: Graph, weight: str) -> str:
    """The tensor behind the convolution with this weight, after the ReLU that alone reads it."""
    output = str(graph.consumers[weight][0].output[0])
    readers = graph.consumers.get(output, [])
    return str(readers[0].output[0]) if len(readers) == 1 and readers[0].op_type in CLIPPING_OPS else output


def _peaks(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    return np.asarray(np.abs(weight.reshape(len(weight), -1)).max(axis=1), np.float64)


def _spread(peaks: npt.NDArray[np.float64]) -> float:
    return float(peaks.max() / max(float(np.median(peaks)), 1e-12))


def _greatest(seen: ChannelSamples) -> npt.NDArray[np.float64]:
    greatest: npt.NDArray[np.float64] = np.maximum(seen.high, -seen.low).astype(np.float64)
    return greatest
