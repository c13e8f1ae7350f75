"""Pictures with their boxes changed together: mosaic, mixup, colours, mirrors and affine maps.

Everything is drawn from (seed, epoch, index), so an epoch is the same in any order, batch, thread or process. Pictures
stay ``uint8``; each is resampled once from the cached one straight to its place (twice where it is turned or sheared).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgevision.detection.boxes import areas, clip_boxes
from edgevision.images import UInt8Array
from edgevision.training.detection.config import DetectionConfig

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

# boxes with a side below this many pixels of the input hold nothing that could be learned
SMALLEST_SIDE = 2.0
# mixup's share of a picture is Beta(32, 32): nearly a half (Ge et al. 2021, *YOLOX*)
_BETA = 32.0
# the same draws serve batches of other sizes, see `input_size`
BATCHES_PER_SIZE = 10
# tells their draws from those of the examples
_SIZES = 1 << 32


@dataclass(frozen=True)
class Picture:
    """A picture as it is kept for training.

    Attributes:
        image: mode RGB or L, as large as it is kept.
        boxes: float32 ``[N, 4]`` xyxy in its pixels.
        labels: int64 ``[N]``.
        scale: pixels of the input per pixel of ``image``, along x and y, by the preprocess's own rule.
        origin: where its left upper corner lies in the input, by that rule.
    """

    image: Image.Image
    boxes: Float32Array
    labels: Labels
    scale: tuple[float, float]
    origin: tuple[float, float]


@dataclass(frozen=True)
class Example:
    """What the network sees: pixels uint8 ``[H, W, C]``, boxes float32 ``[N, 4]`` in them, labels int64 ``[N]``."""

    pixels: UInt8Array
    boxes: Float32Array
    labels: Labels


@dataclass(frozen=True)
class _Tile:
    """A picture at its place: ``place = pixel · scale + origin``."""

    picture: Picture
    scale: tuple[float, float]
    origin: tuple[float, float]

    def moved(self, gain: float, shift: tuple[float, float]) -> _Tile:
        """Scaled by ``gain`` about (0, 0), then shifted."""
        (sx, sy), (x, y) = self.scale, self.origin
        return _Tile(self.picture, (sx * gain, sy * gain), (x * gain + shift[0], y * gain + shift[1]))


class Augmenter:
    """Makes examples of a detector's training pictures.

    Args:
        config: what is done to them.
        count: how many pictures there are.
        picture: gives one by its index.
        size: height and width of the input by the preprocess, which the pictures' ``scale`` and ``origin`` fit.
        pad_value: grey level where no picture is.
    """

    def __init__(
        self,
        config: DetectionConfig,
        count: int,
        picture: Callable[[int], Picture],
        size: tuple[int, int],
        pad_value: int,
    ) -> None:
        self.config = config
        self.count = count
        self.picture = picture
        self.size = size
        self.pad_value = pad_value

    def __call__(self, index: int, epoch: int, size: tuple[int, int]) -> Example:
        """The example that ``index`` is in this epoch (from 0), of ``size`` (height, width)."""
        config = self.config
        numbers = np.random.default_rng([config.seed, epoch, index])
        composes = config.composes(epoch)
        composed = composes and numbers.random() < config.mosaic
        image, boxes, labels = self._scene(index, numbers, size, composed=composed)
        if composed and numbers.random() < config.mixup:
            other = self._scene(int(numbers.integers(self.count)), numbers, size, composed=True)
            image = Image.blend(other[0], image, float(numbers.beta(_BETA, _BETA)))
            boxes, labels = np.concatenate([boxes, other[1]]), np.concatenate([labels, other[2]])
        pixels = np.asarray(_recolored(image, numbers, config))
        pixels, boxes = _mirrored(pixels[:, :, None] if pixels.ndim == 2 else pixels, boxes, numbers, config)
        return Example(pixels, boxes, labels)

    def _scene(
        self, index: int, numbers: np.random.Generator, size: tuple[int, int], *, composed: bool
    ) -> tuple[Image.Image, Float32Array, Labels]:
        """One picture or four of them, scaled, moved, turned and sheared; boxes cut to what is seen."""
        config = self.config
        height, width = size
        # a rectangle's two ratios differ where multiples of 32 are not to be had otherwise
        ratio = (width / self.size[1], height / self.size[0])
        gain = 1.0 + float(numbers.uniform(-config.scale, config.scale))
        x, y = (float(value) for value in numbers.uniform(-config.translate, config.translate, 2))
        turn = _turn(config, numbers)
        if composed:
            tiles = self._mosaic(index, numbers, size, ratio)
            middle = (float(width), float(height))
        else:
            tiles = [_single(self.picture(index), ratio)]
            middle = (width / 2, height / 2)
        shift = ((0.5 + x) * width - gain * middle[0], (0.5 + y) * height - gain * middle[1])
        return self._render([tile.moved(gain, shift) for tile in tiles], size, turn)

    def _mosaic(
        self, index: int, numbers: np.random.Generator, size: tuple[int, int], ratio: tuple[float, float]
    ) -> list[_Tile]:
        """Four pictures around a random point of a sheet twice as large as the input."""
        height, width = size
        x, y = float(numbers.uniform(0.5, 1.5)) * width, float(numbers.uniform(0.5, 1.5)) * height
        others = numbers.integers(self.count, size=3).tolist()
        tiles = []
        for place, number in enumerate([index, *others]):
            picture = self.picture(number)
            scale = (picture.scale[0] * ratio[0], picture.scale[1] * ratio[1])
            left = x - picture.image.width * scale[0] if place % 2 == 0 else x
            top = y - picture.image.height * scale[1] if place < 2 else y
            tiles.append(_Tile(picture, scale, (left, top)))
        return tiles

    def _render(
        self, tiles: list[_Tile], size: tuple[int, int], turn: FloatArray | None
    ) -> tuple[Image.Image, Float32Array, Labels]:
        height, width = size
        margin_x = margin_y = 0
        if turn is not None:  # what is turned into view must have been drawn
            reach = np.abs(np.linalg.inv(turn)) @ [width / 2, height / 2]
            margin_x, margin_y = (max(0, math.ceil(value)) for value in reach - [width / 2, height / 2])
        mode = tiles[0].picture.image.mode
        fill = self.pad_value if mode == "L" else (self.pad_value,) * 3
        canvas = Image.new(mode, (width + 2 * margin_x, height + 2 * margin_y), fill)
        for tile in tiles:
            _paste(canvas, tile.moved(1.0, (margin_x, margin_y)))
        if turn is not None:
            canvas = _turned(canvas, size, turn, fill)
        boxes = np.concatenate([_placed(tile) for tile in tiles])
        labels = np.concatenate([tile.picture.labels for tile in tiles])
        if turn is not None:
            boxes = _turned_boxes(boxes, size, turn)
        kept, boxes = visible(boxes, size, self.config.min_visible)
        return canvas, boxes, labels[kept]


def input_size(config: DetectionConfig, size: tuple[int, int], step: int, multiple: int = 32) -> tuple[int, int]:
    """Height and width of the batches around global ``step``: those of ``size``, or others (``multi_scale``).

    The others are multiples of ``multiple``, which the network's strides ask for.
    """
    if not config.multi_scale:
        return size
    numbers = np.random.default_rng([config.seed, _SIZES, step // BATCHES_PER_SIZE])
    factor = 1.0 + float(numbers.uniform(-config.multi_scale, config.multi_scale))
    height, width = (max(multiple, round(side * factor / multiple) * multiple) for side in size)
    return height, width


def visible(boxes: FloatArray | Float32Array, size: tuple[int, int], share: float) -> tuple[Labels, Float32Array]:
    """Boxes ``[N, 4]`` cut to a picture of ``size`` (height, width), where enough of them is left.

    Returns:
        positions ``[K]`` of those that are kept, and the boxes float32 ``[K, 4]``.
    """
    clipped = clip_boxes(boxes, size[1], size[0])
    left, whole = areas(clipped), areas(boxes)
    sides = clipped[:, 2:] - clipped[:, :2]
    kept = np.flatnonzero((left > 0) & (left >= share * whole) & (sides >= SMALLEST_SIDE).all(axis=1))
    return kept, np.asarray(clipped[kept], np.float32)


def _single(picture: Picture, ratio: tuple[float, float]) -> _Tile:
    scale = (picture.scale[0] * ratio[0], picture.scale[1] * ratio[1])
    return _Tile(picture, scale, (picture.origin[0] * ratio[0], picture.origin[1] * ratio[1]))


def _paste(canvas: Image.Image, tile: _Tile) -> None:
    """Draw what of a tile lies on the canvas."""
    image, (sx, sy), (x, y) = tile.picture.image, tile.scale, tile.origin
    left, top = max(0, round(x)), max(0, round(y))
    right, bottom = min(canvas.width, round(x + image.width * sx)), min(canvas.height, round(y + image.height * sy))
    if right <= left or bottom <= top:
        return
    # whole pixels of the canvas, fractions of pixels of the picture; edges within rounding of the picture's own
    box = (
        max(0.0, (left - x) / sx),
        max(0.0, (top - y) / sy),
        min(float(image.width), (right - x) / sx),
        min(float(image.height), (bottom - y) / sy),
    )
    if box[2] > box[0] and box[3] > box[1]:
        size = (right - left, bottom - top)
        canvas.paste(image.resize(size, Image.Resampling.BILINEAR, box=box), (left, top))


def _placed(tile: _Tile) -> FloatArray:
    scale = np.asarray([*tile.scale, *tile.scale], np.float64)
    return tile.picture.boxes.reshape(-1, 4) * scale + np.asarray([*tile.origin, *tile.origin], np.float64)


def _turn(config: DetectionConfig, numbers: np.random.Generator) -> FloatArray | None:
    """The linear map ``[2, 2]`` of a random rotation and shear; None where the config asks for neither."""
    if not (config.degrees or config.shear):
        return None
    angle = math.radians(float(numbers.uniform(-config.degrees, config.degrees)))
    x, y = (math.tan(math.radians(float(value))) for value in numbers.uniform(-config.shear, config.shear, 2))
    rotation = np.asarray([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return np.asarray(np.asarray([[1.0, x], [y, 1.0]]) @ rotation)


def _turned(canvas: Image.Image, size: tuple[int, int], turn: FloatArray, fill: int | tuple[int, ...]) -> Image.Image:
    """The middle of the canvas, ``size`` (height, width) large, after ``turn`` about its centre."""
    height, width = size
    inverse = np.linalg.inv(turn)
    offset = np.asarray([canvas.width / 2, canvas.height / 2]) - inverse @ [width / 2, height / 2]
    (a, b), (d, e) = inverse.tolist()
    return canvas.transform(
        (width, height),
        Image.Transform.AFFINE,
        (a, b, float(offset[0]), d, e, float(offset[1])),
        Image.Resampling.BILINEAR,
        fillcolor=fill,
    )


def _turned_boxes(boxes: FloatArray, size: tuple[int, int], turn: FloatArray) -> FloatArray:
    """The upright boxes around turned ones."""
    centre = np.asarray([size[1] / 2, size[0] / 2])
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
    turned = (corners - centre) @ turn.T + centre
    return np.concatenate([turned.min(axis=1), turned.max(axis=1)], axis=1)


def _recolored(image: Image.Image, numbers: np.random.Generator, config: DetectionConfig) -> Image.Image:
    """Hue shifted, saturation and brightness scaled; of grey pictures the brightness alone."""
    shift, saturation, value = (
        float(number) for number in numbers.uniform(-1, 1, 3) * [config.hue, config.saturation, config.value]
    )
    levels = np.arange(256)
    bright = np.clip(levels * (1 + value), 0, 255).round().astype(int).tolist()
    if image.mode == "L":
        return image.point(bright) if config.value else image
    if not (config.hue or config.saturation or config.value):
        return image
    hues = ((levels + round(shift * 256)) % 256).tolist()
    colors = np.clip(levels * (1 + saturation), 0, 255).round().astype(int).tolist()
    return image.convert("HSV").point([*hues, *colors, *bright]).convert("RGB")


def _mirrored(
    pixels: UInt8Array, boxes: Float32Array, numbers: np.random.Generator, config: DetectionConfig
) -> tuple[UInt8Array, Float32Array]:
    height, width = pixels.shape[:2]
    sideways, upside_down = (numbers.random(2) < [config.flip, config.flip_vertical]).tolist()
    if sideways:
        pixels = pixels[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    if upside_down:
        pixels = pixels[::-1]
        boxes = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], axis=1)
    return pixels, boxes
