"""Rewrites of pnnx's result that make it faster without changing what it computes."""

from __future__ import annotations

from edgevision_converters.ncnn.model import NcnnModel
from edgevision_converters.ncnn.param import Layer

# fused activations of ncnn's convolutions: parameter 9
HARDSWISH = 6
_FUSABLE = ("Convolution", "ConvolutionDepthWise", "InnerProduct")


def fuse_hardswish(model: NcnnModel) -> NcnnModel:
    """Fuse HardSwish into the layer before it where that is its only reader.

    pnnx fuses ReLU, clip and the like and leaves HardSwish a layer of its own: one more pass over memory.
    """
    makers = {top: layer for layer in model.layers for top in layer.tops}
    read_by: dict[str, int] = {}
    for layer in model.layers:
        for blob in layer.bottoms:
            read_by[blob] = read_by.get(blob, 0) + 1
    kept: list[Layer] = []
    for layer in model.layers:
        before = makers.get(layer.bottoms[0]) if layer.type == "HardSwish" else None
        if before is None or not _takes_activation(before) or read_by[layer.bottoms[0]] != 1:
            kept.append(layer)
            continue
        before.set(9, HARDSWISH)
        before.set_array(10, [layer.number(0, 0.2), layer.number(1, 0.5)])
        before.tops = list(layer.tops)
        makers[layer.tops[0]] = before
    return NcnnModel(kept, model.weights)


def _takes_activation(layer: Layer) -> bool:
    return layer.type in _FUSABLE and layer.integer(9) == 0
