from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevision.errors import UsageError
from edgevision.images import to_image
from edgevision.pipeline.preprocessing import load_preprocess, read_toml
from edgevision.preprocess import COLOR_ORDERS, INTERPOLATIONS, PRESETS, RESIZE_RULES, Preprocess

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@st.composite
def preprocesses(draw, layouts=("NCHW", "NHWC")):
    size = draw(sizes)
    resize = draw(st.sampled_from(RESIZE_RULES))
    color = draw(st.sampled_from(COLOR_ORDERS))
    count = 1 if color == "GRAY" else 3
    values = st.floats(-10, 300, width=32)
    return Preprocess(
        size,
        resize,
        draw(st.integers(max(size), 60)) if resize == "shorter_side" else None,
        draw(st.sampled_from(sorted(INTERPOLATIONS))),
        color,
        draw(st.sampled_from([1.0, 1.0 / 255.0, 2.0 / 255.0])),
        tuple(draw(st.lists(values, min_size=count, max_size=count))),
        tuple(draw(st.lists(st.floats(0.0078125, 300, width=32), min_size=count, max_size=count))),
        draw(st.sampled_from(layouts)),
        draw(st.integers(0, 255)),
    )


@st.composite
def pictures(draw, limit=50):
    height, width = draw(st.integers(1, limit)), draw(st.integers(1, limit))
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=150, deadline=None)
@given(preprocess=preprocesses(), picture=pictures())
def test_any_picture_becomes_the_declared_shape_and_range(preprocess, picture):
    array = preprocess(picture)
    height, width = preprocess.size
    channels = preprocess.channels
    assert array.shape == ((channels, height, width) if preprocess.layout == "NCHW" else (height, width, channels))
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    planes = array if preprocess.layout == "NCHW" else array.transpose(2, 0, 1)
    for plane, mean, std in zip(planes, preprocess.mean, preprocess.std, strict=True):
        low, high = -mean / std, (255.0 * preprocess.scale - mean) / std
        # float32 of gain and shift: 1e-7 of either
        slack = 1e-5 * max(1.0, abs(low), abs(high), abs(mean / std))
        assert plane.min() >= low - slack
        assert plane.max() <= high + slack


@settings(max_examples=60, deadline=None)
@given(preprocess=preprocesses(), images=st.lists(pictures(), min_size=1, max_size=4))
def test_a_batch_is_its_pictures(preprocess, images):
    together = preprocess.batch(images)
    assert together.shape[0] == len(images)
    for row, picture in zip(together, images, strict=True):
        np.testing.assert_array_equal(row, preprocess(picture))


@settings(max_examples=60, deadline=None)
@given(preprocess=preprocesses(), picture=pictures())
def test_a_picture_written_into_a_batch_is_its_normalized_geometry(preprocess, picture):
    image = to_image(picture)
    batch = preprocess.empty(2)
    batch[...] = np.nan
    preprocess.fill(image, batch[1])
    expected = preprocess.normalize(np.asarray(preprocess.geometry(image)))
    assert batch[1].tobytes() == expected.tobytes()
    assert np.isnan(batch[0]).all()


@settings(max_examples=60, deadline=None)
@given(preprocess=preprocesses(), picture=pictures())
def test_the_formula_is_x_times_scale_minus_mean_over_std(preprocess, picture):
    pixels = np.asarray(preprocess.geometry(Image.fromarray(picture)))
    exact = pixels.reshape(*preprocess.size, -1).astype(np.float64)
    if preprocess.color == "BGR":
        exact = exact[:, :, ::-1]
    exact = (exact * preprocess.scale - preprocess.mean) / preprocess.std
    found = preprocess.normalize(pixels)
    found = found if preprocess.layout == "NHWC" else found.transpose(1, 2, 0)
    # two float32 roundings of values up to this size
    scale = max(
        1.0, float(np.abs(exact).max()), *(abs(m / s) for m, s in zip(preprocess.mean, preprocess.std, strict=True))
    )
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6 * scale)


@settings(max_examples=60, deadline=None)
@given(preprocess=preprocesses(layouts=("NCHW",)), picture=pictures())
def test_layouts_hold_the_same_values(preprocess, picture):
    last = replace(preprocess, layout="NHWC")
    scale = 1.0 + max(abs(m / s) for m, s in zip(preprocess.mean, preprocess.std, strict=True))
    spread = max(255.0 * preprocess.scale / s for s in preprocess.std)
    np.testing.assert_allclose(
        preprocess(picture).transpose(1, 2, 0), last(picture), rtol=0, atol=1e-6 * (scale + spread)
    )


@settings(max_examples=60, deadline=None)
@given(picture=pictures(), size=sizes)
def test_colour_orders_are_permutations(picture, size):
    rgb, bgr = Preprocess(size)(picture), Preprocess(size, color="BGR")(picture)
    np.testing.assert_array_equal(rgb, bgr[::-1])
    grey = Preprocess(size, color="GRAY", mean=(0.0,), std=(1.0,), interpolation="nearest")(picture)
    luma = np.tensordot(Preprocess(size, interpolation="nearest")(picture), [0.299, 0.587, 0.114], (0, 0))
    # ITU-R 601 luma in whole grey levels
    np.testing.assert_allclose(grey[0], luma, atol=1.01 / 255)


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 300), width=st.integers(1, 300), size=st.tuples(st.integers(8, 64), st.integers(8, 64)))
def test_a_letterbox_keeps_the_aspect_ratio_and_centres(height, width, size):
    preprocess = Preprocess(size, "letterbox", pad_value=7, scale=1.0)
    white = Image.new("RGB", (width, height), (255, 255, 255))
    pixels = np.asarray(preprocess.geometry(white))[:, :, 0]
    assert set(np.unique(pixels)) <= {7, 255}
    rows, columns = np.flatnonzero((pixels == 255).any(1)), np.flatnonzero((pixels == 255).any(0))
    inner = (len(rows), len(columns))
    # one block, as large as fits
    assert (pixels == 255).sum() == inner[0] * inner[1]
    assert inner[0] == size[0] or inner[1] == size[1]
    ratio = min(size[0] / height, size[1] / width)
    # to the nearest pixel, and at least one
    assert abs(inner[0] - max(1.0, height * ratio)) <= 0.5 + 1e-9
    assert abs(inner[1] - max(1.0, width * ratio)) <= 0.5 + 1e-9
    assert abs(rows[0] - (size[0] - 1 - rows[-1])) <= 1
    assert abs(columns[0] - (size[1] - 1 - columns[-1])) <= 1


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 200), width=st.integers(1, 200), crop=st.integers(1, 40), more=st.integers(0, 20))
def test_shorter_side_crops_the_centre(height, width, crop, more):
    preprocess = Preprocess((crop, crop), "shorter_side", crop + more, scale=1.0)
    # a picture whose value is its relative column: the crop's mean is the picture's
    ramp = np.linspace(0, 255, width)[None, :, None].repeat(height, 0).repeat(3, 2)
    found = preprocess(ramp.round().astype(np.uint8))
    assert found.shape == (3, crop, crop)
    if width >= 2 * crop and crop >= 8:
        # a pixel of the crop is at most 255/crop wide, and the centre lies between two of them
        assert abs(float(found.mean()) - 127.5) <= 255.0 / crop


def test_nothing_is_resized_when_the_size_is_right():
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    for resize, to in (("stretch", None), ("letterbox", None), ("shorter_side", 32)):
        preprocess = Preprocess((32, 32), resize, to, scale=1.0)
        np.testing.assert_array_equal(preprocess(picture), picture.transpose(2, 0, 1).astype(np.float32))


def test_a_path_an_image_and_an_array_are_the_same_picture(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    image = Image.fromarray(picture)
    image.save(tmp_path / "picture.png")
    preprocess = Preprocess((16, 16))
    wanted = preprocess(picture)
    for form in (image, tmp_path / "picture.png", str(tmp_path / "picture.png"), image.convert("RGBA")):
        np.testing.assert_array_equal(preprocess(form), wanted)
    grey = Preprocess((16, 16), color="GRAY", mean=(0.0,), std=(1.0,))
    assert grey(picture).shape == (1, 16, 16)
    np.testing.assert_array_equal(grey(picture[:, :, 0]), grey(np.repeat(picture[:, :, :1], 3, 2)))


@settings(max_examples=100, deadline=None)
@given(preprocess=preprocesses())
def test_it_survives_json(preprocess):
    back = Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict())))
    assert back == preprocess
    assert back.digest == preprocess.digest


def toml(values) -> str:
    lines = []
    for key, value in values.items():
        if value is None:
            continue
        text = json.dumps(value) if isinstance(value, str) else repr(value)
        lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"


@settings(max_examples=60, deadline=None)
@given(preprocess=preprocesses(), table=st.booleans())
def test_it_survives_toml(tmp_path_factory, preprocess, table):
    path = tmp_path_factory.mktemp("toml") / "preprocess.toml"
    path.write_text(("[preprocess]\n" if table else "") + toml(preprocess.to_dict()))
    assert load_preprocess(path) == preprocess
    assert load_preprocess(str(path)) == preprocess


def test_the_digest_tells_every_field_apart():
    base = Preprocess((32, 32), "shorter_side", 40)
    others = {
        "size": (32, 16),
        "resize": "stretch",
        "resize_to": 41,
        "interpolation": "nearest",
        "color": "BGR",
        "scale": 1.0,
        "mean": (0.1, 0.0, 0.0),
        "std": (0.5, 1.0, 1.0),
        "layout": "NHWC",
        "pad_value": 0,
    }
    assert set(others) == {field.name for field in fields(Preprocess)}
    digests = {replace(base, **{key: value}).digest for key, value in others.items()}
    assert len(digests | {base.digest}) == len(others) + 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": [4, 4], "colour": "RGB"}, "unknown preprocess key 'colour': did you mean color"),
        ({"size": [4, 4], "xyzzy": 1}, "unknown preprocess key 'xyzzy': choose from color, interpolation"),
        ({}, r"needs size = \[height, width\]"),
        ({"size": [4]}, r"size must be \(height, width\)"),
        ({"size": [0, 4]}, r"size must be \(height, width\)"),
        ({"size": [4, -4]}, r"size must be \(height, width\)"),
        ({"size": "big"}, "size"),
        ({"size": [4.5, 4]}, "size"),
        ({"size": None}, "size"),
        ({"size": [True, 4]}, "size"),
        ({"size": [4, 4], "resize": "strech"}, r"unknown resize rule 'strech': did you mean stretch\?"),
        ({"size": [4, 4], "resize": "shorter_side"}, "needs resize_to >= 4"),
        ({"size": [4, 8], "resize": "shorter_side", "resize_to": 7}, "needs resize_to >= 8"),
        ({"size": [4, 4], "resize": "shorter_side", "resize_to": "9"}, "resize_to"),
        ({"size": [4, 4], "color": "BRG"}, "unknown colour order 'BRG'"),
        ({"size": [4, 4], "color": ["RGB"]}, "unknown colour order"),
        ({"size": [4, 4], "interpolation": "lanczos"}, "unknown interpolation 'lanczos'"),
        ({"size": [4, 4], "layout": "CHW"}, "unknown layout 'CHW'"),
        ({"size": [4, 4], "color": "GRAY"}, "GRAY needs 1 values of mean and std"),
        ({"size": [4, 4], "mean": [0.5]}, "RGB needs 3 values of mean and std"),
        ({"size": [4, 4], "mean": 0.5}, "mean"),
        ({"size": [4, 4], "std": [1, 1, 0]}, "std above 0"),
        ({"size": [4, 4], "std": [1, 1, -1]}, "std above 0"),
        ({"size": [4, 4], "std": [1, 1, "a"]}, "std"),
        ({"size": [4, 4], "scale": float("nan")}, "finite"),
        ({"size": [4, 4], "scale": "1/255"}, "scale"),
        ({"size": [4, 4], "mean": [0, 0, float("inf")]}, "finite"),
        ({"size": [4, 4], "pad_value": 300}, "pad_value"),
        ({"size": [4, 4], "pad_value": -1}, "pad_value"),
        ({"size": [4, 4], "pad_value": "black"}, "pad_value"),
    ],
)
def test_wrong_values_are_a_usage_error_that_says_what_is_right(values, message):
    with pytest.raises(UsageError, match=message):
        Preprocess.from_dict(values)


def test_one_number_is_a_square():
    assert Preprocess.from_dict({"size": 64}).size == (64, 64)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_fit_other_sizes(name):
    preset = load_preprocess(name)
    assert preset is PRESETS[name]
    smaller = preset.with_size(48, 64)
    assert smaller.size == (48, 64)
    assert smaller(np.zeros((100, 70, 3), np.uint8)).shape == (preset.channels, 48, 64)
    assert preset.with_size(*preset.size) == preset


def test_toml_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.toml: no such TOML file"):
        load_preprocess(tmp_path / "gone.toml")
    (tmp_path / "bad.toml").write_text("size = [")
    with pytest.raises(UsageError, match=r"bad\.toml: not a readable TOML file"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"bytes\.toml: not a readable TOML file"):
        read_toml(tmp_path / "bytes.toml")
    (tmp_path / "key.toml").write_text("size = 32\nmeen = [0, 0, 0]\n")
    with pytest.raises(UsageError, match=r"key\.toml: unknown preprocess key 'meen': did you mean mean\?"):
        load_preprocess(tmp_path / "key.toml")
    (tmp_path / "table.toml").write_text("preprocess = 3\n")
    with pytest.raises(UsageError, match=r"table\.toml: "):
        load_preprocess(tmp_path / "table.toml")
    with pytest.raises(UsageError, match=r"unknown preprocess 'imagenett': did you mean imagenet"):
        load_preprocess("imagenett")
