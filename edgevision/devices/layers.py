"""What each layer of a bundle computes and moves, read out of the engine's own files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgevision.errors import ModelError

if TYPE_CHECKING:
    from edgevision.bundle import Bundle

BYTES_OF = {"fp32": 4, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class LayerCost:
    """One layer at batch 1.

    Attributes:
        name: as the engine's file has it.
        kind: ``convolution``, ``depthwise``, ``dense``, or ``other`` (adds, pooling and the like: no multiplications
            to speak of).
        macs: multiply-accumulates.
        weights: number of weights.
        inputs: elements read, of all inputs.
        outputs: elements written.
        precision: what it is computed in: ``fp32``, ``fp16`` or ``int8``.
    """

    name: str
    kind: str
    macs: int
    weights: int
    inputs: int
    outputs: int
    precision: str

    @property
    def moved_bytes(self) -> int:
        """Bytes that go through the memory if nothing stays in a cache: weights, inputs, outputs, once each."""
        return (self.weights + self.inputs + self.outputs) * BYTES_OF[self.precision]


def layer_costs(bundle: Bundle) -> list[LayerCost]:
    """Layers of a bundle in their order.

    Layers that engines fuse into the one before (activations, Q and DQ, splits, reshapes) are left out.

    Raises:
        ModelError: a layer's shape cannot be told, or the engine's file is damaged.
        MissingDependencyError: an ONNX file, and onnx is not installed.
    """
    manifest = bundle.manifest
    wide = "fp16" if manifest.precision == "fp16" or bool(manifest.engine_options.get("fp16")) else "fp32"
    shape = [1 if size is None else size for size in manifest.inputs[0].shape[1:]]
    try:
        if manifest.target == "ncnn":
            from edgevision.devices.layers_ncnn import ncnn_layers

            layers = ncnn_layers(bundle.engine_file("param").decode("utf-8"), shape, wide)
        elif manifest.target == "openvino":
            from edgevision.devices.layers_openvino import openvino_layers

            layers = openvino_layers(bundle.engine_file("model").decode("utf-8"), wide)
        else:
            from edgevision.devices.layers_onnx import onnx_layers

            layers = onnx_layers(bundle.engine_file("model"), wide)
    except (LookupError, ValueError, TypeError, ArithmeticError) as error:
        raise ModelError(
            f"{bundle.path or manifest.name}: the layers cannot be told from the engine's file: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not any(layer.macs for layer in layers):
        raise ModelError(
            f"{bundle.path or manifest.name}: no convolution and no dense layer found; nothing to estimate"
        )
    return layers


def depthwise_share(layers: Sequence[LayerCost]) -> float:
    """Share of the depthwise layers in the multiplications, 0..1."""
    return _share(layers, lambda layer: layer.kind == "depthwise")


def integer_share(layers: Sequence[LayerCost]) -> float:
    """Share of the multiplications that are done in INT8, 0..1."""
    return _share(layers, lambda layer: layer.precision == "int8")


def _share(layers: Sequence[LayerCost], counts: Callable[[LayerCost], bool]) -> float:
    total = sum(layer.macs for layer in layers)
    return sum(layer.macs for layer in layers if counts(layer)) / total if total else 0.0


def least_memory_bytes(layers: Sequence[LayerCost]) -> int:
    """Memory that any engine needs: all weights, and the inputs and outputs of the greatest layer."""
    weights = sum(layer.weights * BYTES_OF[layer.precision] for layer in layers)
    return weights + max((layer.inputs + layer.outputs) * BYTES_OF[layer.precision] for layer in layers)


def kind_of(groups: int, channels: int) -> str:
    """``depthwise`` where each channel has a filter of its own."""
    return "depthwise" if groups > 1 and groups == channels else "convolution"


def elements(shape: Sequence[int]) -> int:
    """Elements of a tensor; free dimensions (below 1) count once."""
    return math.prod(max(1, size) for size in shape)
