"""Augmentations whose every draw follows from (seed, epoch, sample): the same in any order, batch or process.

Single pictures are changed as ``uint8`` ``[B, H, W, C]`` arrays; mixup and CutMix mix pairs of a normalised
batch ``[B, C, H, W]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgevision.images import UInt8Array
from edgevision.training.config import TrainConfig

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Draw(IntEnum):
    """What a random number is for: each use has a sequence of its own."""

    CROP_TOP = 1
    CROP_LEFT = 2
    FLIP = 3
    ERASE = 4
    ERASE_AREA = 5
    ERASE_ASPECT = 6
    ERASE_TOP = 7
    ERASE_LEFT = 8
    ERASE_COLOR = 9  # and the following numbers, one per channel


def uniform(seed: int, epoch: int, indices: npt.NDArray[np.int64], draw: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), one per sample index: a counter-based generator (SplitMix64, Steele et al. 2014).

    Args:
        seed: of the run.
        epoch: from 0.
        indices: positions in the data set ``[B]``.
        draw: which use the number is for, see `Draw`.
    """
    key = 0
    for part in (seed, epoch, draw):
        key = int(_splitmix(np.asarray([(key + part + 1) * _GOLDEN & _MASK], np.uint64))[0])
    counters = indices.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(key)
    return np.asarray((_splitmix(counters) >> np.uint64(11)) * 2.0**-53, np.float64)


def _splitmix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def random_crop(
    images: UInt8Array, padding: int, vertical: npt.NDArray[np.float64], horizontal: npt.NDArray[np.float64]
) -> UInt8Array:
    """Crop ``[B, H, W, C]`` back to its size out of a black border of ``padding`` pixels on each side.

    ``vertical`` and ``horizontal`` are in [0, 1), one per picture: where the crop lies in its ``2·padding + 1``
    places along each axis.
    """
    height, width = images.shape[1:3]
    tops = (vertical * (2 * padding + 1)).astype(int) - padding
    lefts = (horizontal * (2 * padding + 1)).astype(int) - padding
    out = np.zeros_like(images)
    for position, (top, left) in enumerate(zip(tops.tolist(), lefts.tolist(), strict=True)):
        # a crop that starts at −2 shows two border rows first, then the picture without its last two rows
        rows = slice(max(0, top), max(0, height + min(0, top)))
        columns = slice(max(0, left), max(0, width + min(0, left)))
        source = images[position, rows, columns]
        y, x = max(0, -top), max(0, -left)
        out[position, y : y + source.shape[0], x : x + source.shape[1]] = source
    return out


def flip(images: UInt8Array, chosen: npt.NDArray[np.bool_]) -> UInt8Array:
    """Mirror the chosen pictures of ``[B, H, W, C]`` left to right."""
    return np.where(chosen[:, None, None, None], images[:, :, ::-1], images)


def erased_box(height: int, width: int, area: float, aspect: float, top: float, left: float) -> tuple[slice, slice]:
    """Rows and columns of random erasing from four numbers in [0, 1) (Zhong et al. 2020, algorithm 1).

    The box covers 2% to 33% of the picture, its height over width lies between 0.3 and 1/0.3 (uniform in the
    logarithm), and it is cut to fit where a thin picture would not hold it.
    """
    pixels = (0.02 + 0.31 * area) * height * width
    ratio = math.exp((2 * aspect - 1) * math.log(1 / 0.3))
    box_height = min(height, max(1, round(math.sqrt(pixels * ratio))))
    box_width = min(width, max(1, round(math.sqrt(pixels / ratio))))
    y, x = int(top * (height - box_height + 1)), int(left * (width - box_width + 1))
    return slice(y, y + box_height), slice(x, x + box_width)


class Augment:
    """Random crop, flip and erasing, as ``config`` asks for them.

    Calling it with ``uint8`` images ``[B, H, W, C]``, their positions in the data set ``[B]`` and the epoch
    (from 0) gives images of the same shape and dtype; the input is left as it is.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def __call__(self, images: UInt8Array, indices: npt.NDArray[np.int64], epoch: int) -> UInt8Array:
        """Augmented copies ``[B, H, W, C]``."""
        config = self.config

        def draw(use: int) -> npt.NDArray[np.float64]:
            return uniform(config.seed, epoch, indices, use)

        if config.crop_padding:
            images = random_crop(images, config.crop_padding, draw(Draw.CROP_TOP), draw(Draw.CROP_LEFT))
        if config.flip:
            images = flip(images, draw(Draw.FLIP) < 0.5)
        if config.erasing:
            images = self._erase(images, indices, epoch)
        return images

    def _erase(self, images: UInt8Array, indices: npt.NDArray[np.int64], epoch: int) -> UInt8Array:
        chosen = np.flatnonzero(uniform(self.config.seed, epoch, indices, Draw.ERASE) < self.config.erasing)
        height, width, channels = images.shape[1:]
        uses = [Draw.ERASE_AREA, Draw.ERASE_ASPECT, Draw.ERASE_TOP, Draw.ERASE_LEFT]
        uses += [Draw.ERASE_COLOR + channel for channel in range(channels)]  # type: ignore[misc] # an int will do
        numbers = np.stack([uniform(self.config.seed, epoch, indices[chosen], use) for use in uses], axis=1)
        images = images.copy()
        for position, values in zip(chosen.tolist(), numbers, strict=True):
            rows, columns = erased_box(height, width, *values[:4].tolist())
            images[position, rows, columns] = (values[4:] * 256).astype(np.uint8)
        return images


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed.

    Each picture is mixed with its neighbour (0 with 1, 2 with 3, …). Batches are in random order, so neighbours
    are random pairs, and an even share of a batch holds whole pairs: several processes mix as one would.

    Attributes:
        weight: λ, the share of the picture itself.
        box: top, bottom, left, right of the neighbour's part for CutMix; None for mixup.
    """

    weight: float
    box: tuple[int, int, int, int] | None = None

    def images(self, images: Tensor) -> Tensor:
        """Mix ``[B, C, H, W]``."""
        others = images[neighbors(len(images), images.device)]
        if self.box is None:
            return others.lerp_(images, self.weight)
        top, bottom, left, right = self.box
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        return mixed


def neighbors(count: int, device: torch.device | None = None) -> Tensor:
    """Each picture's partner ``[B]`` int64: 1, 0, 3, 2, …; the odd one out at the end is its own."""
    return (torch.arange(count, device=device) ^ 1).clamp_(max=count - 1)


def draw_mix(config: TrainConfig, epoch: int, step: int, height: int, width: int) -> Mix | None:
    """The mix of one step; None where the config asks for none.

    λ ~ Beta(α, α). CutMix cuts a box of the share 1 − λ around a uniform centre, clips it to the picture and
    corrects λ to the area that was cut in fact (Yun et al. 2019, section 3.1).
    """
    if not (config.mixup or config.cutmix):
        return None
    generator = np.random.default_rng([config.seed, epoch, step])
    cut = bool(config.cutmix) and (not config.mixup or generator.random() < 0.5)
    alpha = config.cutmix if cut else config.mixup
    weight = float(generator.beta(alpha, alpha))
    if not cut:
        return Mix(weight)
    side = math.sqrt(1.0 - weight)
    y, x = int(generator.integers(height)), int(generator.integers(width))
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    top, bottom = max(0, y - half_height), min(height, y + half_height)
    left, right = max(0, x - half_width), min(width, x + half_width)
    return Mix(1.0 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))
