from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevision.errors import DataError
from edgevision.images import IMAGE_SUFFIXES, read_image, to_image, to_rgb

GRADIENT = np.arange(24 * 16 * 3, dtype=np.uint32).reshape(24, 16, 3).astype(np.uint8)


def encoded(kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GRADIENT).save(stream, kind, **options)
    return stream.getvalue()


def refusal(path) -> str | None:
    """Why a file is refused; None where it is read, and then it is RGB."""
    try:
        image = read_image(path)
    except DataError as error:
        return str(error)
    assert image.mode == "RGB"
    return None


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_files_are_read_exactly(tmp_path, kind):
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(encoded(kind))
    image = read_image(path)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), GRADIENT)
    np.testing.assert_array_equal(np.asarray(read_image(str(path))), GRADIENT)


def test_every_suffix_is_a_format_pillow_opens():
    Image.init()
    assert set(Image.registered_extensions()) >= IMAGE_SUFFIXES


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # white in the upper left corner
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = Image.fromarray(upright)
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    stored.save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(path)), upright)


def test_modes_become_rgb():
    grey = Image.fromarray(np.uint8([[0, 100, 255]]))
    assert np.asarray(to_rgb(grey)).tolist() == [[[0] * 3, [100] * 3, [255] * 3]]
    assert np.asarray(to_rgb(grey.convert("1"))).max() == 255
    deep = Image.fromarray(np.uint16([[0, 25700, 65535]]))
    assert np.asarray(to_rgb(deep)).tolist() == [[[0] * 3, [100] * 3, [255] * 3]]
    shallow = Image.fromarray(np.int32([[0, 100, 255]]))
    assert np.asarray(to_rgb(shallow)).tolist() == [[[0] * 3, [100] * 3, [255] * 3]]
    cmyk = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert np.asarray(to_rgb(cmyk)).tolist() == [[[255, 0, 0]]]
    half = Image.new("RGBA", (1, 1), (200, 100, 50, 128))
    np.testing.assert_allclose(np.asarray(to_rgb(half))[0, 0], [100, 50, 25], atol=1)  # 128/255 is a little over half
    clear = Image.new("LA", (1, 1), (255, 0))
    assert np.asarray(to_rgb(clear)).tolist() == [[[0, 0, 0]]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    assert np.asarray(to_rgb(palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    palette.info["transparency"] = 0
    assert np.asarray(to_rgb(palette)).tolist() == [[[0, 0, 0], [40, 50, 60]]]
    rgb = Image.fromarray(GRADIENT)
    assert to_rgb(rgb) is rgb


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 20), width=st.integers(1, 20), channels=st.sampled_from([None, 1, 3]))
def test_arrays_become_images_of_their_size(height, width, channels):
    shape = (height, width) if channels is None else (height, width, channels)
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pixels = np.asarray(to_image(array))
    assert pixels.shape == (height, width, 3)
    expected = array if channels == 3 else np.repeat(array.reshape(height, width, 1), 3, axis=2)
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(np.asarray(to_image(array[::-1, ::-1])), expected[::-1, ::-1])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.uint8(3),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.uint8),
        [[1, 2], [3, 4]],
        None,
    ],
)
def test_other_arrays_are_refused(array):
    with pytest.raises(DataError, match="an image array must"):
        to_image(array)


def test_files_that_are_no_images_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: no such image file"):
        read_image(tmp_path / "gone.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png: the image file is empty \(0 bytes\)"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: cannot be read as an image"):
        read_image(tmp_path / "text.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=r"folder\.png: cannot be read as an image"):
        read_image(tmp_path / "folder.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of the very damage that is done here
def test_files_cut_short_are_named(tmp_path, kind):
    data = encoded(kind)
    path = tmp_path / "cut"
    refused = 0
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        told = refusal(path)
        if told is None:
            # a picture whose last bytes say nothing about its pixels is whole all the same
            assert read_image(path).size == (16, 24)
        else:
            assert str(path) in told
            refused += 1
    assert refused > 0.5 * len(data) / 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of the very damage that is done here
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_files_are_a_data_error_or_an_image(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(kind, exif=exif) if kind != "TIFF" else encoded(kind)
    path = tmp_path / "damaged"
    rng = np.random.default_rng(0)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        told = refusal(path)
        if told is not None:
            assert str(path) in told


@pytest.mark.parametrize("error", [struct.error("short"), TypeError("tag"), KeyError(1), MemoryError(), EOFError()])
def test_whatever_a_decoder_raises_is_a_data_error(tmp_path, monkeypatch, error):
    def stumble(*_: object) -> None:
        raise error

    path = tmp_path / "picture.png"
    path.write_bytes(encoded("PNG"))
    monkeypatch.setattr(Image, "open", stumble)
    with pytest.raises(DataError, match=r"picture\.png: cannot be read as an image"):
        read_image(path)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path):
    """A PNG header that claims 60000 × 60000 pixels over a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    )
    with pytest.raises(DataError, match=r"bomb\.png: cannot be read as an image: .*decompression bomb"):
        read_image(path)
