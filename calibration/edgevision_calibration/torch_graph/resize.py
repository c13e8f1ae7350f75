"""ONNX Resize in torch, axis by axis, for every way it maps coordinates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgevision.errors import UnsupportedOpError

COORDINATES = frozenset({"half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"})


def resize(x: list[Any], a: dict[str, Any]) -> Tensor:
    """Resize by ``scales`` (input 2) or to ``sizes`` (input 3), nearest or linear.

    Raises:
        UnsupportedOpError: cubic, antialiased or cropping interpolation.
    """
    mode, coordinates = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    if mode not in {"nearest", "linear"} or coordinates not in COORDINATES or a.get("antialias", 0):
        raise UnsupportedOpError(f"Resize with mode {mode} and coordinates {coordinates} has no form with gradients")
    image: Tensor = x[0]
    axes = [int(axis) for axis in a.get("axes") or range(image.ndim)]
    scales, sizes = _scales_and_sizes(x, image, axes)
    for axis, scale, size in zip(axes, scales, sizes, strict=True):
        if size == image.shape[axis] and scale == 1.0:
            continue
        place = _places(size, image.shape[axis], scale, coordinates)
        if mode == "nearest":
            image = image.index_select(axis, _nearest(place, image.shape[axis], a.get("nearest_mode")))
        else:
            image = _linear(image, axis, place)
    return image


def _scales_and_sizes(x: list[Any], image: Tensor, axes: list[int]) -> tuple[list[float], list[int]]:
    lengths = [image.shape[axis] for axis in axes]
    if len(x) > 3 and x[3] is not None and x[3].numel():
        sizes = [int(size) for size in x[3].tolist()]
        return [size / length for size, length in zip(sizes, lengths, strict=True)], sizes
    scales = [float(scale) for scale in x[2].tolist()]
    return scales, [int(length * scale) for length, scale in zip(lengths, scales, strict=True)]


def _places(size: int, length: int, scale: float, coordinates: str) -> Tensor:
    """Where in the source each pixel of the result lies, float64 ``[size]``."""
    index = torch.arange(size, dtype=torch.float64)
    if coordinates == "asymmetric":
        return index / scale
    if coordinates == "align_corners":
        return index * ((length - 1) / (size - 1)) if size > 1 else index * 0.0
    if coordinates == "pytorch_half_pixel" and size == 1:
        return index * 0.0
    return (index + 0.5) / scale - 0.5


def _nearest(place: Tensor, length: int, mode: str | None) -> Tensor:
    if mode == "floor":
        index = torch.floor(place)
    elif mode == "ceil":
        index = torch.ceil(place)
    elif mode == "round_prefer_ceil":
        index = torch.floor(place + 0.5)
    else:
        index = torch.ceil(place - 0.5)
    return index.clamp(0, length - 1).to(torch.int64)


def _linear(image: Tensor, axis: int, place: Tensor) -> Tensor:
    place = place.clamp(0, image.shape[axis] - 1)
    low = torch.floor(place)
    share = (place - low).to(image.dtype).reshape([-1 if i == axis else 1 for i in range(image.ndim)])
    left = low.to(torch.int64)
    right = (left + 1).clamp(max=image.shape[axis] - 1)
    return image.index_select(axis, left) * (1 - share) + image.index_select(axis, right) * share
