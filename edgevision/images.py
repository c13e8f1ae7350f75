"""Opening pictures: whatever a file holds becomes an RGB array, the same on the host and on the device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from edgevision.errors import DataError

if TYPE_CHECKING:
    from typing import TypeAlias

UInt8Array: TypeAlias = "npt.NDArray[np.uint8]"
ImageLike: TypeAlias = Union[str, Path, Image.Image, "npt.NDArray[np.uint8]"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})


def read_image(path: str | Path) -> Image.Image:
    """Decode a picture into an upright PIL image of mode ``RGB``.

    EXIF orientation is applied, palettes and CMYK are converted, alpha is laid over black, 16-bit grey is
    scaled to 8 bits.

    Raises:
        DataError: the file is missing, empty, truncated or no image.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the image file is empty (0 bytes)")
        with Image.open(path) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such image file") from None
    except Exception as error:  # on a damaged file decoders raise whatever they stumble over, struct.error included
        raise DataError(f"{path}: cannot be read as an image: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL image to mode ``RGB``."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image, dtype=np.float64)
        peak = 65535.0 if grey.max(initial=0.0) > 255.0 else 255.0
        image = Image.fromarray((grey * (255.0 / peak)).clip(0, 255).astype(np.uint8))
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(canvas, image)
    return image.convert("RGB")


def to_image(source: ImageLike) -> Image.Image:
    """Take a path, a PIL image, or a ``uint8`` array ``[H, W, 3]`` (RGB) or ``[H, W]`` (grey).

    Raises:
        DataError: an unreadable file, or an array of another shape or dtype.
    """
    if isinstance(source, (str, Path)):
        return read_image(source)
    if isinstance(source, Image.Image):
        return to_rgb(source)
    array = np.asarray(source)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise DataError(
            f"an image array must be uint8 of shape [H, W, 3] (RGB) or [H, W] (grey); "
            f"got {array.dtype} {list(array.shape)}"
        )
    if array.size == 0:
        raise DataError(f"an image array must not be empty; got shape {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
