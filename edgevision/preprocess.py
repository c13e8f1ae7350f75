"""From a picture to the network's input: one piece of code for validation, calibration and the device.

A `Preprocess` is stored in the bundle, and a bundle's model is never fed through another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgevision.errors import UsageError
from edgevision.images import ImageLike, to_image
from edgevision.registry import check_keys, unknown_name

Float32Array: TypeAlias = "npt.NDArray[np.float32]"

RESIZE_RULES = ("stretch", "shorter_side", "letterbox")
COLOR_ORDERS = ("RGB", "BGR", "GRAY")
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Placement:
    """Where a picture lies in the network's input: ``input = picture · scale + offset``, in pixels.

    Attributes:
        scale_x: pixels of the input for each pixel of the picture, sideways.
        scale_y: likewise downwards.
        left: the picture's left border in the input; below 0 where it is cropped.
        top: its upper border, likewise.
        width: of the picture, in its own pixels.
        height: likewise.
    """

    scale_x: float
    scale_y: float
    left: float
    top: float
    width: int
    height: int

    def to_input(self, boxes: Float32Array) -> Float32Array:
        """Boxes ``[N, 4]`` xyxy in the picture's pixels as they lie in the input."""
        return np.asarray(boxes * self._scale + self._offset, np.float32)

    def to_original(self, boxes: Float32Array) -> Float32Array:
        """Boxes ``[N, 4]`` xyxy in the input's pixels as they lie in the picture, perhaps beyond its borders."""
        return np.asarray((boxes - self._offset) / self._scale, np.float32)

    @property
    def _scale(self) -> npt.NDArray[np.float64]:
        return np.asarray([self.scale_x, self.scale_y, self.scale_x, self.scale_y])

    @property
    def _offset(self) -> npt.NDArray[np.float64]:
        return np.asarray([self.left, self.top, self.left, self.top])


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes a tensor ``[C, H, W]`` float32: resize, crop or pad, colour order, normalise.

    ``y = (x · scale − mean) / std`` per channel, with x in 0..255 and mean, std in the order of ``color``.

    Attributes:
        size: input height and width, in pixels.
        resize: ``stretch`` to ``size``; ``shorter_side`` to ``resize_to`` pixels, then centre crop ``size``;
            ``letterbox``: fit inside ``size`` keeping the aspect ratio, pad with ``pad_value``.
        resize_to: length of the shorter side before the crop, for ``shorter_side``.
        interpolation: ``nearest``, ``bilinear`` or ``bicubic``, antialiased as Pillow does it.
        color: channel order the network wants: ``RGB``, ``BGR``, or ``GRAY`` (ITU-R 601 luma, one channel).
        scale: factor on pixel values, usually 1/255 or 1.
        mean: subtracted after ``scale``; one value per channel.
        std: divisor after ``mean``; one value per channel.
        layout: ``NCHW`` or ``NHWC``: what the model file takes. Canonical graphs are NCHW.
        pad_value: grey level 0..255 of the letterbox's border.

    Raises:
        UsageError: a value outside what is listed above.
    """

    size: tuple[int, int]
    resize: str = "stretch"
    resize_to: int | None = None
    interpolation: str = "bilinear"
    color: str = "RGB"
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    layout: str = "NCHW"
    pad_value: int = 114

    def __post_init__(self) -> None:
        _choice("resize rule", self.resize, RESIZE_RULES)
        _choice("colour order", self.color, COLOR_ORDERS)
        _choice("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        _choice("layout", self.layout, ("NCHW", "NHWC"))
        self._normalize_numbers()
        if len(self.size) != 2 or min(self.size) < 1:
            raise UsageError(f"preprocess size must be (height, width) in pixels; got {self.size}")
        if self.resize == "shorter_side" and (self.resize_to is None or self.resize_to < max(self.size)):
            raise UsageError(
                f"resize rule 'shorter_side' needs resize_to >= {max(self.size)} (the crop must fit); "
                f"got {self.resize_to}"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UsageError(f"{self.color} needs {self.channels} values of mean and std")
        if min(self.std) <= 0 or not np.isfinite([self.scale, *self.mean, *self.std]).all():
            raise UsageError("preprocess scale, mean and std must be finite and std above 0")
        if not 0 <= self.pad_value <= 255:
            raise UsageError(f"preprocess pad_value is a grey level, 0 to 255; got {self.pad_value}")

    def _normalize_numbers(self) -> None:
        """Python's own int and float in every field: 0 and 0.0 from two files are one preprocess, with one digest."""
        values: dict[str, Any] = {
            "size": tuple(_integer("size", value) for value in _sequence("size", self.size)),
            "scale": _real("scale", self.scale),
            "mean": tuple(_real("mean", value) for value in _sequence("mean", self.mean)),
            "std": tuple(_real("std", value) for value in _sequence("std", self.std)),
            "pad_value": _integer("pad_value", self.pad_value),
        }
        if self.resize_to is not None:
            values["resize_to"] = _integer("resize_to", self.resize_to)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def channels(self) -> int:
        """Number of channels the network sees."""
        return 1 if self.color == "GRAY" else 3

    @property
    def digest(self) -> str:
        """Hash that two equal preprocesses share."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def __call__(self, image: ImageLike) -> Float32Array:
        """Turn one picture into float32 ``[C, H, W]`` (``[H, W, C]`` for ``NHWC``)."""
        return np.asarray(self.batch([image])[0])

    def batch(self, images: Sequence[ImageLike]) -> Float32Array:
        """Turn pictures into float32 ``[B, C, H, W]`` (``[B, H, W, C]`` for ``NHWC``)."""
        made = self.empty(len(images))
        for place, image in zip(made, images, strict=True):
            self.fill(to_image(image), place)
        return made

    def empty(self, count: int) -> Float32Array:
        """A batch of so many pictures, to `fill`: float32, its values not yet set."""
        planar = self.layout == "NCHW"
        return np.empty((count, *((self.channels, *self.size) if planar else (*self.size, self.channels))), np.float32)

    def fill(self, image: Image.Image, place: Float32Array) -> None:
        """Write what `normalize` makes of `geometry` of an RGB image into its place in a batch.

        Channel by channel, and without drawing the letterbox's border first: the values are the same, at half the cost.
        """
        if self.layout == "NHWC":
            place[...] = self.normalize(np.asarray(self.geometry(image)))
            return
        drawn, left, top = self._drawn(image)
        right, bottom = left + drawn.width, top + drawn.height
        bands = drawn.split()
        for channel, band in enumerate(reversed(bands) if self.color == "BGR" else bands):
            plane = place[channel]
            self._normalize_plane(np.asarray(band), channel, plane[top:bottom, left:right])
            if drawn.size != self.size[::-1]:
                border = np.empty((1, 1), np.float32)
                self._normalize_plane(np.full((1, 1), self.pad_value, np.uint8), channel, border)
                plane[:top] = plane[bottom:] = plane[top:bottom, :left] = plane[top:bottom, right:] = border

    def geometry(self, image: Image.Image) -> Image.Image:
        """Resize, crop or pad an RGB image to ``size``; the result has the mode the network wants."""
        drawn, left, top = self._drawn(image)
        if self.resize != "letterbox":
            return drawn
        fill = self.pad_value if drawn.mode == "L" else (self.pad_value,) * 3
        canvas = Image.new(drawn.mode, self.size[::-1], fill)
        canvas.paste(drawn, (left, top))
        return canvas

    def _drawn(self, image: Image.Image) -> tuple[Image.Image, int, int]:
        """What of an RGB image the network sees, resized and in its mode, and the left and top where it lies."""
        if self.color == "GRAY":
            image = image.convert("L")
        height, width = self.size
        method = INTERPOLATIONS[self.interpolation]
        if self.resize == "shorter_side":
            assert self.resize_to is not None
            sides = _shorter_sides(*image.size, self.resize_to)
            return _center_crop(_resized(image, sides, method), height, width), 0, 0
        if self.resize == "letterbox":
            sides = _fitted_sides(*image.size, height, width)
            return _resized(image, sides, method), *_border(*sides, height, width)
        return _resized(image, (width, height), method), 0, 0

    def placement(self, width: int, height: int) -> Placement:
        """Where `geometry` puts a picture of ``width`` by ``height`` pixels."""
        rows, columns = self.size
        sides, (left, top) = (columns, rows), (0, 0)
        if self.resize == "shorter_side":
            assert self.resize_to is not None
            sides = _shorter_sides(width, height, self.resize_to)
            left, top = (-start for start in _crop_corner(*sides, rows, columns))
        elif self.resize == "letterbox":
            sides = _fitted_sides(width, height, rows, columns)
            left, top = _border(*sides, rows, columns)
        return Placement(sides[0] / width, sides[1] / height, left, top, width, height)

    def normalize(self, pixels: npt.NDArray[np.uint8]) -> Float32Array:
        """Normalise ``uint8`` ``[H, W, 3]`` (RGB) or ``[H, W]`` (grey) of the right size into the input layout."""
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if self.color == "BGR":
            pixels = pixels[:, :, ::-1]
        if self.layout == "NHWC":
            gain, shift = self._gain_and_shift
            return np.asarray(pixels * gain + shift, np.float32)
        out = np.empty((self.channels, *pixels.shape[:2]), np.float32)
        for channel in range(self.channels):
            self._normalize_plane(pixels[:, :, channel], channel, out[channel])
        return out

    def _normalize_plane(self, pixels: npt.NDArray[np.uint8], channel: int, out: Float32Array) -> None:
        gain, shift = (values[channel] for values in self._gain_and_shift)
        np.multiply(pixels, gain, out=out)
        # x + 0 is x, but for a zero below 0
        if shift or gain < 0:
            out += shift

    @cached_property
    def _gain_and_shift(self) -> tuple[Float32Array, Float32Array]:
        """``(x·scale − mean) / std`` as one multiply-add per value: two numbers for each channel."""
        gain = np.asarray([self.scale / s for s in self.std], np.float32)
        return gain, np.asarray([-m / s for m, s in zip(self.mean, self.std, strict=True)], np.float32)

    def with_size(self, height: int, width: int) -> Preprocess:
        """The same preprocess at another input size; ``resize_to`` keeps its ratio to the crop."""
        resize_to = None
        if self.resize_to is not None:
            resize_to = round(self.resize_to * max(height, width) / max(self.size))
        return replace(self, size=(height, width), resize_to=resize_to)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocess:
        """Build from plain values (JSON or TOML).

        Raises:
            UsageError: an unknown key (the near ones are named) or a wrong value.
        """
        if not isinstance(values, Mapping):
            raise UsageError(f"a preprocess is a table of keys and values; got {type(values).__name__}")
        check_keys("preprocess key", values, [field.name for field in fields(cls)])
        if "size" not in values:
            raise UsageError("a preprocess needs size = [height, width]")
        tuples: dict[str, Any] = {
            key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in values.items()
        }
        if isinstance(tuples["size"], int) and not isinstance(tuples["size"], bool):
            tuples["size"] = (tuples["size"], tuples["size"])
        try:
            return cls(**tuples)
        except TypeError as error:
            raise UsageError(f"preprocess: {error}") from error


def _sequence(name: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, (tuple, list)):
        raise UsageError(f"preprocess {name} must be a list of numbers; got {value!r}")
    return value


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UsageError(f"preprocess {name}: expected a whole number; got {value!r}")
    return int(value)


def _real(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UsageError(f"preprocess {name}: expected a number; got {value!r}")
    return float(value)


def _choice(what: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise UsageError(unknown_name(what, str(value), list(valid)))


def _resized(image: Image.Image, sides: tuple[int, int], method: Image.Resampling) -> Image.Image:
    return image if image.size == sides else image.resize(sides, method)


def _shorter_sides(width: int, height: int, shorter: int) -> tuple[int, int]:
    """Width and height once the shorter side is ``shorter`` pixels long."""
    if min(width, height) == shorter:
        return width, height
    # the longer side is truncated, as torchvision's Resize does, so that published accuracies hold
    if width < height:
        return shorter, max(shorter, int(shorter * height / width))
    return max(shorter, int(shorter * width / height)), shorter


def _center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    left, top = _crop_corner(image.width, image.height, height, width)
    return image.crop((left, top, left + width, top + height))


def _crop_corner(width: int, height: int, rows: int, columns: int) -> tuple[int, int]:
    """Left and top of the centre of ``rows`` by ``columns`` pixels."""
    return round((width - columns) / 2), round((height - rows) / 2)


def _fitted_sides(width: int, height: int, rows: int, columns: int) -> tuple[int, int]:
    """Width and height that fit inside ``rows`` by ``columns`` pixels, the shape kept."""
    ratio = min(rows / height, columns / width)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def _border(width: int, height: int, rows: int, columns: int) -> tuple[int, int]:
    """Width of the border to the left of what was fitted, and height of that above it."""
    return (columns - width) // 2, (rows - height) // 2


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# name → preprocess, for ``--preprocess NAME``; `with_size` fits one to another input size
PRESETS: dict[str, Preprocess] = {
    "imagenet": Preprocess((224, 224), "shorter_side", 256, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "imagenet-stretch": Preprocess((224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "cifar10": Preprocess((32, 32), mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "digits": Preprocess((32, 32), color="GRAY", mean=(0.5,), std=(0.5,)),
    "unit": Preprocess((224, 224)),
    "letterbox": Preprocess((640, 640), "letterbox"),
}
