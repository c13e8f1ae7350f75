from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from edgevision.bundle import MANIFEST, Bundle, Manifest
from edgevision.detection import Candidates, Detections, Postprocess
from edgevision.detection.postprocess import parse_postprocess, refuse_infinite
from edgevision.errors import BundleError, EngineError, UsageError
from edgevision.preprocess import Placement, Preprocess
from edgevision.runtime.tensors import TensorSpec
from edgevision.tasks import Tensors, interpret

WHOLE = Placement(1.0, 1.0, 0.0, 0.0, 64, 64)
SIZE = (64, 64)


def table(*rows: tuple[float, ...], batch: int = 1) -> dict[str, np.ndarray]:
    """YOLOv8's kind of output for 64 by 64 pixels: rows of left, top, right, bottom, class probabilities."""
    values = np.zeros((batch, 4 + len(rows[0]) - 4, 84), np.float32)
    for column, row in enumerate(rows):
        left, top, right, bottom = row[:4]
        values[0, :4, column] = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        values[0, 4:, column] = row[4:]
    return {"output": values}


def test_outputs_become_boxes_of_the_picture():
    outputs = table(
        (8, 16, 40, 48, 0.9, 0.1), (9, 16, 40, 48, 0.8, 0.1), (8, 16, 40, 48, 0.0, 0.6), (0, 0, 9, 9, 0.2, 0)
    )
    # 128 by 64 pixels fitted into 64 by 64: half the size, 16 rows of border above
    placement = Preprocess(SIZE, "letterbox").placement(128, 64)
    (found,) = Postprocess("yolov8", confidence=0.25, iou=0.5)(outputs, SIZE, [placement], ("cat", "dog"))
    assert found.boxes.tolist() == [[16, 0, 80, 64], [16, 0, 80, 64]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.6])
    assert found.names == ("cat", "dog")
    assert found.labels.dtype == np.int64
    assert found.to_dict(1) == {
        "objects": [{"name": "cat", "label": 0, "score": pytest.approx(0.9), "box": [16, 0, 80, 64]}]
    }
    json.dumps(found.to_dict())


def test_boxes_are_clipped_and_what_lies_outside_goes():
    outputs = table((-10, -10, 20, 20, 0.9), (60, 60, 90, 90, 0.8), (70, 70, 90, 90, 0.7), (5, 5, 5, 30, 0.6))
    (found,) = Postprocess("yolov8")(outputs, SIZE, [WHOLE])
    assert found.boxes.tolist() == [[0, 0, 20, 20], [60, 60, 64, 64]]
    assert found.names == ("0", "0")


def test_thresholds_and_limits():
    rows = [(10 * i, 0, 10 * i + 9, 9, 0.9 - 0.1 * i, 0.05) for i in range(5)]
    outputs = table(*rows)
    count = lambda **changes: len(Postprocess("yolov8", **changes)(outputs, SIZE, [WHOLE])[0])  # noqa: E731
    assert count() == 5
    assert count(confidence=0.65) == 3
    assert count(max_detections=2) == 2
    assert count(max_candidates=1) == 1
    assert count(confidence=0.01, multi_label=True) == 10
    assert count(confidence=0.01, multi_label=True, class_agnostic=True) == 5


def test_pictures_of_a_batch_are_kept_apart():
    outputs = table((0, 0, 9, 9, 0.9), batch=3)
    found = Postprocess("yolov8")(outputs, SIZE, [WHOLE, WHOLE, WHOLE])
    assert [len(one) for one in found] == [1, 0, 0]
    assert found[1].boxes.shape == (0, 4)
    with pytest.raises(EngineError, match="gave 3 pictures; 2 were put in"):
        Postprocess("yolov8")(outputs, SIZE, [WHOLE, WHOLE])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_are_refused(value):
    outputs = table((0, 0, 9, 9, 0.9))
    outputs["output"][0, 0, 50] = value
    with pytest.raises(EngineError, match=r"NaN or infinity in output output \[1, 5, 84\]"):
        Postprocess("yolov8")(outputs, SIZE, [WHOLE])


def test_large_values_whose_sum_overflows_are_no_infinity():
    refuse_infinite({"x": np.full(100, 3e38, np.float32)})


def test_a_decoder_of_ones_own():
    def decode(outputs, size, *, confidence, multi_label, factor):
        boxes = outputs["mine"][:, :4] * factor
        return [Candidates(boxes, outputs["mine"][:, 4], np.zeros(len(boxes)))]

    outputs = {"mine": np.asarray([[1, 1, 5, 5, 0.5]])}
    stored = Postprocess("mypackage.detect:decode", {"factor": 2})
    with pytest.raises(UsageError, match=r"imports\s+nothing that a bundle names.*from mypackage.detect import decode"):
        stored(outputs, SIZE, [WHOLE])
    (found,) = stored.with_function(decode)(outputs, SIZE, [WHOLE])
    assert found.boxes.tolist() == [[2, 2, 10, 10]]
    assert "function" not in stored.with_function(decode).to_dict()
    with pytest.raises(UsageError, match="must return a list with one"):
        stored.with_function(lambda *_, **__: outputs["mine"])(outputs, SIZE, [WHOLE])
    with pytest.raises(EngineError, match="boxes that are NaN or infinite"):
        stored.with_function(lambda *_, **__: [Candidates(np.full((1, 4), np.nan), np.ones(1), np.zeros(1))])(
            outputs, SIZE, [WHOLE]
        )


def test_a_named_module_is_never_imported(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="Pass it"):
        Postprocess("trap:decode")(table((0, 0, 9, 9, 0.9)), SIZE, [WHOLE])
    assert parse_postprocess("trap:decode").decoder == "trap:decode"


def test_what_is_stored_is_what_was_given():
    given = Postprocess("yolov3", {"anchors": (((1, 2), (3, 4)),), "strides": (8,)}, 0.1, 0.6, 9, 8, True, True)
    again = Postprocess.from_dict(json.loads(json.dumps(given.to_dict())))
    assert again == given
    assert again.options == {"anchors": [[[1, 2], [3, 4]]], "strides": [8]}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"decoder": "yolov8", "confidnce": 0.3}, "unknown postprocess key 'confidnce': did you mean confidence"),
        ({"decoder": "yolov8", "confidence": 1.5}, "confidence must be a number from 0 to 1; got 1.5"),
        ({"decoder": "yolov8", "iou": "high"}, "iou must be a number from 0 to 1; got 'high'"),
        ({"decoder": "yolov8", "iou": float("nan")}, "iou must be a number from 0 to 1"),
        ({"decoder": "yolov8", "max_detections": 0}, "max_detections must be a whole number of at least 1; got 0"),
        ({"decoder": "yolov8", "multi_label": 1}, "multi_label must be true or false; got 1"),
        ({"decoder": "yolov8", "options": {"a": {1, 2}}}, "plain values"),
        ({"decoder": ""}, "named by a text"),
        ({"confidence": 0.5}, "with a decoder"),
        (["yolov8"], "with a decoder"),
    ],
)
def test_wrong_values_are_told(values, told):
    with pytest.raises(UsageError, match=told):
        Postprocess.from_dict(values)


def test_unknown_decoders_and_options_are_told():
    outputs = table((0, 0, 9, 9, 0.9))
    with pytest.raises(UsageError, match="unknown decoder 'yolo8': did you mean"):
        Postprocess("yolo8")(outputs, SIZE, [WHOLE])
    with pytest.raises(UsageError, match="unknown option of decoder yolov8 'stride': did you mean strides"):
        Postprocess("yolov8", {"stride": [8]})(outputs, SIZE, [WHOLE])


def test_the_command_lines_form():
    plain = parse_postprocess("fastestdet")
    # its authors' thresholds
    assert (plain.confidence, plain.iou, plain.options) == (0.3, 0.45, {})
    full = parse_postprocess("yolov8:confidence=0.1,strides=[8,16,32,64],num_classes=3,class_agnostic=true,iou=1")
    assert full.options == {"strides": [8, 16, 32, 64], "num_classes": 3}
    assert (full.confidence, full.iou, full.class_agnostic) == (0.1, 1.0, True)
    assert parse_postprocess("ssd_onnx:order=yxyx").options == {"order": "yxyx"}
    own = parse_postprocess("a.b:decode:factor=2,confidence=0.5")
    assert (own.decoder, own.options, own.confidence) == ("a.b:decode", {"factor": 2}, 0.5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("yolo8", "unknown decoder 'yolo8': did you mean .* Or name a function of yours"),
        ("yolov8:confidence=2", "from 0 to 1"),
        ("yolov8:a=1,b", "expected NAME.*got 'b'"),
        ("yolov8:=1", "expected NAME"),
        ("os.system", "unknown decoder"),
        (3, "NAME"),
    ],
)
def test_wrong_forms_are_told(text, told):
    with pytest.raises(UsageError, match=told):
        parse_postprocess(text)


def manifest(**changes) -> Manifest:
    spec = TensorSpec("output", "float32", (None, 5, 84))
    values = {
        "name": "small", "task": "detection", "target": "ncnn", "precision": "fp32",
        "inputs": (TensorSpec("images", "float32", (None, 3, 64, 64)),), "outputs": (spec,),
        "preprocess": Preprocess(SIZE, "letterbox"), "engine_files": {"model": "engine/x"}, "classes": ("cat",),
        "postprocess": Postprocess("yolov8", {"num_classes": 1}),
    }  # fmt: skip
    return Manifest(**{**values, **changes})


def test_a_bundle_carries_its_postprocess(tmp_path):
    path = Bundle(manifest(), {"engine/x": b"model"}).save(tmp_path / "b.evb")
    assert Bundle.open(path).manifest == manifest()


def test_a_bundle_of_a_detector_is_refused_by_older_readers_and_others_are_not(tmp_path):
    detector = Bundle(manifest(), {"engine/x": b"model"}).save(tmp_path / "detector")
    others = Bundle(manifest(task="tensors", postprocess=None), {"engine/x": b"model"}).save(tmp_path / "tensors")
    read = [json.loads((path / MANIFEST).read_text()) for path in (detector, others)]
    # a reader of version 2 would give tensors where boxes are meant
    assert [values["schema_version"] for values in read] == [3, 1]
    assert "postprocess" not in read[1]


def test_a_detector_without_a_postprocess_is_damaged():
    values = manifest().to_dict()
    for broken in ({**values, "task": "classification"}, {key: v for key, v in values.items() if key != "postprocess"}):
        with pytest.raises(BundleError, match="says how outputs become boxes for task detection alone"):
            Manifest.from_dict(broken)
    with pytest.raises(BundleError, match="confidence must be a number"):
        Manifest.from_dict({**values, "postprocess": {"decoder": "yolov8", "confidence": "x"}})


def test_interpreting_needs_the_pictures_places():
    outputs = table((0, 0, 9, 9, 0.3))
    (found,) = interpret(manifest(), outputs, [WHOLE])
    assert isinstance(found, Detections)
    assert found.names == ("cat",)
    stricter = dataclasses.replace(manifest().postprocess, confidence=0.5)
    assert len(interpret(manifest(), outputs, [WHOLE], stricter)[0]) == 0
    assert isinstance(interpret(manifest(), outputs)[0], Tensors)


def test_a_plot_is_a_picture_of_the_same_size():
    picture = np.zeros((40, 60, 3), np.uint8)
    found = Detections(np.float32([[5, 5, 30, 30]]), np.float32([0.9]), np.asarray([0]), ("cat",))
    plotted = found.plot(picture)
    assert plotted.size == (60, 40)
    assert np.asarray(plotted).any()
    assert not picture.any()
