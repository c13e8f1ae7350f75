from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from detection_nets import bright_cells
from PIL import Image

import edgevision as ev
from edgevision.bundle import Bundle
from edgevision.cli import main
from edgevision.detection import Candidates, Detections, Postprocess
from edgevision.detection.decoders import family_of
from edgevision.errors import EngineError, UsageError
from edgevision.images import to_image
from edgevision.pipeline.convert import ConvertOptions, convert
from edgevision.preprocess import Preprocess
from edgevision.recipe.options import check_options

DECODER = "yolov8:strides=[8],iou=0.5"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "bright.onnx"
    onnx.save(bright_cells(), str(path))
    return path


def make(source: Path, out: Path, decoder=DECODER, **changes) -> Bundle:
    options = ConvertOptions(decoder=decoder)
    return convert(source, **{"targets": ["onnxruntime"], "out": out, "options": options, **changes})[0]


@pytest.fixture(scope="module")
def bundle(source, tmp_path_factory) -> Bundle:
    return make(source, tmp_path_factory.mktemp("bundle"), classes=["lamp"])


@pytest.fixture(scope="module")
def session(bundle):
    with ev.load(bundle.path) as session:
        yield session


def marked(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    picture = Image.new("RGB", (width, height))
    picture.paste((255, 255, 255), box)
    return picture


def hull(found: Detections) -> list[float]:
    assert len(found)
    return [*found.boxes[:, :2].min(axis=0).tolist(), *found.boxes[:, 2:].max(axis=0).tolist()]


def test_a_family_brings_its_preprocess_and_a_bundle_says_what_it_is(bundle):
    manifest = Bundle.open(bundle.path).manifest
    assert manifest.task == "detection"
    assert manifest.preprocess == family_of("yolov8").preprocess.with_size(64, 64)
    assert manifest.postprocess == Postprocess("yolov8", {"strides": [8]}, confidence=0.25, iou=0.5)
    assert manifest.classes == ("lamp",)


def test_ones_own_preprocess_goes_before_the_familys(source, tmp_path):
    own = Preprocess((64, 64), color="BGR")
    assert make(source, tmp_path, preprocess=own).manifest.preprocess == own


def as_png(picture: Image.Image, path: Path) -> Path:
    picture.save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def as_cmyk(picture: Image.Image, path: Path) -> Path:
    picture.convert("CMYK").save(path.with_suffix(".tif"))
    return path.with_suffix(".tif")


def as_16_bit(picture: Image.Image, path: Path) -> Path:
    grey = np.asarray(picture.convert("L"), np.uint16) * 257
    Image.fromarray(grey).save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def as_alpha(picture: Image.Image, path: Path) -> Path:
    # white everywhere, seen where the marker is
    layered = Image.new("RGBA", picture.size, (255, 255, 255, 0))
    layered.putalpha(picture.convert("L"))
    layered.save(path.with_suffix(".png"))
    return path.with_suffix(".png")


def as_rotated(picture: Image.Image, path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise is needed to see it upright
    picture.transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".jpg"), exif=exif, quality=95)
    return path.with_suffix(".jpg")


@pytest.mark.parametrize("save", [as_png, as_cmyk, as_16_bit, as_alpha, as_rotated])
def test_boxes_of_any_file_are_in_the_upright_pictures_pixels(session, tmp_path, save):
    # 160 by 96: 2.5 pixels for one of the input, 12.8 rows of border above; the marker covers whole cells of 20 pixels
    path = save(marked(160, 96, (100, 8, 140, 48)), tmp_path / "picture")
    assert to_image(path).size == (160, 96)
    found = session(path)
    assert isinstance(found, Detections)
    assert set(found.names) == {"lamp"}
    left, top, right, bottom = hull(found)
    # the border of 13 rows, a pixel more or less, moves the cells' edges by as much
    assert (left, right) == pytest.approx((100, 140), abs=0.01)
    assert (top, bottom) == pytest.approx((8, 48), abs=2.5)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1, 1), (0, 0, 1, 1)),
        ((20_000, 313), (5000, 0, 15_000, 313)),
        ((40, 3000), (0, 1000, 40, 2000)),
        ((2, 500), (0, 0, 2, 500)),
    ],
)
def test_pictures_of_any_shape(session, size, box):
    found = session(marked(*size, box))
    assert found.boxes.min() >= 0
    assert (found.boxes[:, 2:] <= np.float32(size)).all()
    # a cell is an eighth of the longer side
    slack = max(size) / 8
    assert hull(found) == pytest.approx(box, abs=slack)


def test_a_picture_with_no_objects_has_none(session):
    found = session(np.zeros((50, 70, 3), np.uint8))
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.to_dict() == {"objects": []}


def test_pictures_of_several_sizes_in_one_call(session):
    found = session([marked(64, 64, (0, 0, 8, 8)), np.zeros((9, 9, 3), np.uint8), marked(128, 128, (64, 64, 128, 128))])
    assert [hull(one) if len(one) else None for one in found] == [[0, 0, 8, 8], None, [64, 64, 128, 128]]


def test_the_threshold_of_an_open_session_can_be_changed(bundle):
    import dataclasses

    grey = np.full((64, 64, 3), 140, np.uint8)  # a score of 0.73
    with ev.load(bundle) as session:
        assert len(session(grey)) == 64
        session.postprocess = dataclasses.replace(session.postprocess, confidence=0.8)
        assert len(session(grey)) == 0


def test_a_decoder_of_ones_own(source, tmp_path):
    def decode(outputs, size, *, confidence, multi_label, grow):
        (values,) = outputs["output"]
        chosen = values[4] > confidence
        x, y, w, h = values[:4, chosen]
        boxes = np.stack([x - w / 2 - grow, y - h / 2, x + w / 2, y + h / 2], axis=1)
        return [Candidates(boxes, values[4, chosen], np.zeros(chosen.sum()))]

    made = make(source, tmp_path, "mypackage.detect:decode:grow=1,confidence=0.6", preprocess="unit", classes=["lamp"])
    assert made.manifest.postprocess.decoder == "mypackage.detect:decode"
    picture = marked(64, 64, (8, 16, 16, 24))
    with ev.load(made.path, decoder=decode) as session:
        assert session(picture).boxes.tolist() == [[7, 16, 16, 24]]
    with ev.load(made.path) as session:
        # the engine itself runs; what the numbers mean is not known here
        assert session.infer({"images": np.zeros((1, 3, 64, 64), np.float32)})["output"].shape == (1, 5, 64)
        with pytest.raises(UsageError, match=r"edgevision\.load\(bundle, decoder=decode\)"):
            session(picture)


def test_a_decoder_for_something_that_is_no_detector(source, tmp_path):
    made = convert(source, targets=["onnxruntime"], out=tmp_path, preprocess="unit")[0]
    assert made.manifest.task == "tensors"
    with pytest.raises(UsageError, match="is no detector"):
        ev.load(made.path, decoder=lambda *_, **__: [])


@pytest.mark.parametrize(
    ("decoder", "changes", "told"),
    [
        ("yolov8", {}, r"decoder yolov8 expects one output \[B, 4 \+ classes, 84\].*the network gives output"),
        ("fastestdet", {}, "decoder fastestdet expects"),
        (DECODER, {"classes": ["a", "b"]}, "the detector has 1 classes; 2 names were given"),
        ("yolov8:strydes=[8]", {}, "unknown option of decoder yolov8 'strydes': did you mean strides"),
    ],
)
def test_a_wrong_decoder_is_told_before_a_bundle_is_made(source, tmp_path, decoder, changes, told):
    with pytest.raises(UsageError, match=told):
        make(source, tmp_path, decoder, **changes)
    assert not list(tmp_path.glob("*.evb"))


def test_another_decoder_makes_another_bundle(source, tmp_path):
    first = make(source, tmp_path)
    again = make(source, tmp_path)
    assert again.manifest == first.manifest
    other = make(source, tmp_path, f"{DECODER},confidence=0.5")
    assert other.manifest.provenance["recipe"] != first.manifest.provenance["recipe"]
    assert other.manifest.postprocess.confidence == 0.5


def test_outputs_that_are_not_finite_are_an_error_of_the_engine(bundle, monkeypatch):
    with ev.load(bundle) as session:
        monkeypatch.setattr(session, "run", lambda batch: {"output": np.full((1, 5, 64), np.nan, np.float32)})
        with pytest.raises(EngineError, match="NaN or infinity"):
            session(marked(64, 64, (0, 0, 8, 8)))


def test_a_checkpoint_of_ours_brings_its_own(detector, tmp_path):
    import torch

    from edgevision.checkpoint import Checkpoint

    preprocess = Preprocess((64, 64), "letterbox")
    checkpoint = Checkpoint.from_model(detector, preprocess=preprocess, classes=("a", "b", "c"), task="detection")
    made = convert(checkpoint, targets=["onnxruntime"], out=tmp_path)[0]
    assert made.manifest.postprocess == detector.postprocess()
    assert made.manifest.classes == ("a", "b", "c")
    picture = np.random.default_rng(0).integers(0, 256, (48, 100, 3)).astype(np.uint8)
    with torch.no_grad():
        outputs = detector(torch.from_numpy(preprocess(picture)[None]))
    values = {name: value.numpy() for name, value in outputs.items()}
    (expected,) = detector.postprocess()(values, (64, 64), [preprocess.placement(100, 48)], checkpoint.classes)
    with ev.load(made) as session:
        found = session(picture)
    assert len(found) > 2
    assert found.names == expected.names
    # ONNX Runtime adds in another order than torch; boxes are e^t of what it adds
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=0.05)


def test_a_detector_of_the_zoo_by_its_weights(detector, tmp_path):
    from safetensors.torch import save_file

    save_file(detector.state_dict(), tmp_path / "w.safetensors")
    made = convert(
        "yolov3_tiny", weights=tmp_path / "w.safetensors", targets=["onnxruntime"], out=tmp_path, input_size=(64, 64),
        model_arguments={"num_classes": 3, "width": 0.25},
    )[0]  # fmt: skip
    assert made.manifest.postprocess == detector.postprocess()
    # without a word from anybody: the family's
    assert made.manifest.preprocess == family_of("yolov3").preprocess.with_size(64, 64)


def test_the_command_line_and_recipes_take_it(source, tmp_path, capsys):
    assert main(["convert", str(source), "--targets", "onnxruntime", "--decoder", DECODER, "-o", str(tmp_path)]) == 0
    capsys.readouterr()
    assert Bundle.open(tmp_path / "bright-onnxruntime-fp32.evb").manifest.postprocess.options == {"strides": [8]}
    check_options("convert", {"targets": ["onnxruntime"], "decoder": DECODER})
    with pytest.raises(UsageError, match="unknown decoder 'yolo8'"):
        check_options("convert", {"targets": ["onnxruntime"], "decoder": "yolo8"})
