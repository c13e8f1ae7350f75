from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgevision.bundle import GOLDEN, PLAN, Bundle
from edgevision.data import open_dataset
from edgevision.errors import CalibrationError, ConversionError, EdgeVisionError, OutputError, UsageError
from edgevision.parity import verify
from edgevision.pipeline import convert as module
from edgevision.pipeline.convert import ConvertOptions, convert
from edgevision.preprocess import PRESETS, Preprocess
from edgevision_calibration.plan import QuantPlan
from edgevision_converters.canonical import canonicalize
from tests.conformance.nets import CLASSES, NAMES, SIZE, save_net, tiny_net, write_pictures


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("material")
    save_net(root / "tiny.onnx")
    write_pictures(root / "photos", 16)
    return root


@pytest.fixture(scope="module")
def converted(material, tmp_path_factory) -> Path:
    """A folder with an FP32 and an INT8 bundle for ONNX Runtime, and what they were made with."""
    out = tmp_path_factory.mktemp("converted") / "bundles"
    make(material, out, precision=["fp32", "int8"])
    return out


@pytest.fixture
def out(converted, tmp_path) -> Path:
    """A copy of `converted` to go on from, times included."""
    shutil.copytree(converted, tmp_path / "bundles")
    return tmp_path / "bundles"


def make(material: Path, out: Path, **changes) -> list[Bundle]:
    values = {
        "targets": ["onnxruntime"],
        "precision": "int8",
        "data": str(material / "photos"),
        "out": out,
        "preprocess": "unit",
        "classes": NAMES,
    }
    return convert(material / "tiny.onnx", **{**values, **changes})


def stamps(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def calibrations(monkeypatch) -> list[str]:
    """Every pass over the pictures from now on."""
    from edgevision_calibration import observe

    seen: list[str] = []
    original = observe.observe
    monkeypatch.setattr(observe, "observe", lambda *a, **k: seen.append("pass") or original(*a, **k))
    return seen


def test_a_bundle_says_what_it_is_and_what_it_was_made_from(converted):
    bundle = Bundle.open(converted / "tiny-onnxruntime-int8.evb")
    manifest = bundle.manifest
    assert (manifest.name, manifest.task, manifest.target, manifest.precision) == (
        "tiny", "classification", "onnxruntime", "int8",
    )  # fmt: skip
    assert manifest.classes == NAMES
    assert manifest.preprocess == PRESETS["unit"].with_size(SIZE, SIZE)
    assert set(bundle.files) == {"engine/model.onnx", GOLDEN, PLAN}
    plan = QuantPlan.from_json(bundle.read(PLAN))
    assert plan.graph_sha256 == manifest.provenance["graph_sha256"]
    assert plan.calibration["images"] == 16
    assert manifest.provenance["source"] == "ONNX file tiny.onnx"
    assert {"edgevision", "onnx", "onnxruntime"} <= set(manifest.provenance["versions"])
    assert {"fp32", "reference"} == set(manifest.thresholds)
    golden = bundle.golden()
    assert golden["inputs"]["images"].shape == (8, 3, SIZE, SIZE)
    assert golden["outputs"]["logits"].shape == golden["reference"]["logits"].shape == (8, CLASSES)
    assert not np.array_equal(golden["outputs"]["logits"], golden["reference"]["logits"])


def test_a_float_bundle_has_no_plan_and_no_reference(converted):
    bundle = Bundle.open(converted / "tiny-onnxruntime-fp32.evb")
    assert set(bundle.files) == {"engine/model.onnx", GOLDEN}
    assert set(bundle.manifest.thresholds) == {"fp32"}
    assert bundle.golden()["reference"] == {}
    assert bundle.manifest.provenance["calibration"] == {}


def test_the_same_command_again_does_nothing(material, out, calibrations):
    before = stamps(out)
    bundles = make(material, out, precision=["fp32", "int8"])
    assert stamps(out) == before
    assert calibrations == []
    assert [bundle.manifest.precision for bundle in bundles] == ["fp32", "int8"]
    assert all(bundle.path is not None and bundle.path.exists() for bundle in bundles)


def test_another_target_takes_the_calibration_that_is_there(material, out, calibrations):
    before = stamps(out)
    make(material, out, targets=["onnxruntime", "openvino"])
    assert calibrations == []
    assert {name: stamps(out)[name] for name in before} == before
    assert (out / "tiny-openvino-int8.evb").exists()


def test_another_range_method_needs_no_new_pass(material, out, calibrations):
    before = Bundle.open(out / "tiny-onnxruntime-int8.evb").read(PLAN)
    made = make(material, out, options=ConvertOptions(ranges="minmax"))[0]
    assert made.read(PLAN) != before
    assert calibrations == []
    assert verify(made).passed


def test_what_changes_the_ranges_needs_a_new_pass(material, out, calibrations):
    make(material, out, options=ConvertOptions(calibration_images=5))
    assert len(calibrations) == 1
    assert Bundle.open(out / "tiny-onnxruntime-int8.evb").manifest.provenance["calibration"]["images"] == 5
    make(material, out, preprocess="imagenet-stretch")
    assert len(calibrations) == 2
    make(material, out, options=ConvertOptions(equalize=False))
    assert len(calibrations) == 3


def test_other_classes_and_preprocess_make_the_bundle_anew(material, out):
    before = stamps(out)["tiny-onnxruntime-fp32.evb"]
    others = tuple(name.upper() for name in NAMES)
    assert make(material, out, precision="fp32", classes=others)[0].manifest.classes == others
    assert stamps(out)["tiny-onnxruntime-fp32.evb"] != before
    again = make(material, out, precision="fp32", preprocess="imagenet")[0]
    assert again.manifest.preprocess.mean == PRESETS["imagenet"].mean


def test_force_makes_everything_anew(material, out):
    before = stamps(out)["tiny-onnxruntime-fp32.evb"]
    content = (out / "tiny-onnxruntime-fp32.evb").read_bytes()
    make(material, out, precision="fp32", options=ConvertOptions(force=True))
    assert stamps(out)["tiny-onnxruntime-fp32.evb"] != before
    # and to the same bytes: nothing in a bundle tells the time or the folder
    assert (out / "tiny-onnxruntime-fp32.evb").read_bytes() == content


@pytest.mark.parametrize("damaged", ["*.evb", "*.onnx", "table.json", "table.safetensors"])
@pytest.mark.parametrize("how", ["empty", "cut", "flipped", "gone"])
def test_whatever_is_damaged_is_made_again(material, out, damaged, how):
    content = {path.name: path.read_bytes() for path in out.glob("*.evb")}
    for path in out.rglob(damaged):
        data = path.read_bytes()
        middle = len(data) // 2
        if how == "gone":
            path.unlink()
            continue
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes({"empty": b"", "cut": data[:middle], "flipped": flipped}[how])
    for path in out.glob("*.evb") if damaged != "*.evb" else ():
        path.unlink()
    for bundle in make(material, out, precision=["fp32", "int8"]):
        assert verify(bundle).passed
    if damaged in ("*.evb", "*.onnx"):
        assert {path.name: path.read_bytes() for path in out.glob("*.evb")} == content


def test_a_bundle_of_another_model_under_the_same_name_is_replaced(material, out, tmp_path):
    model = tiny_net()
    onnx.helper.set_model_props(model, {})
    del model.graph.node[-1]
    model.graph.output[0].name = "features"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 32
    other = save_net(tmp_path / "tiny.onnx", model)
    made = convert(other, targets=["onnxruntime"], out=out, preprocess="unit", data=str(material / "photos"))[0]
    assert made.manifest.outputs[0].name == "features"
    assert Bundle.open(out / "tiny-onnxruntime-fp32.evb").manifest.outputs[0].name == "features"


def test_fp32_needs_no_pictures(material, tmp_path):
    made = make(material, tmp_path, precision="fp32", data=None)[0]
    assert verify(made).passed
    assert len(made.golden()["inputs"]["images"]) == 8


def test_a_data_set_a_graph_and_a_model_in_memory_are_taken(material, tmp_path):
    dataset = open_dataset(material / "photos")
    made = convert(
        canonicalize(tiny_net()), targets=["onnxruntime"], precision="int8", data=dataset, out=tmp_path,
        preprocess=Preprocess((SIZE, SIZE)), name="mine",
    )  # fmt: skip
    assert made[0].path == tmp_path / "mine-onnxruntime-int8.evb"
    assert made[0].manifest.classes == ()


def test_few_pictures_are_enough(tmp_path, material):
    few = write_pictures(tmp_path / "few", 1)
    made = make(material, tmp_path / "out", data=str(few))[0]
    assert len(made.golden()["inputs"]["images"]) == 1
    assert verify(made).n == 1


def test_targets_and_precisions_named_twice_are_made_once(material, tmp_path):
    made = make(material, tmp_path, targets=["onnxruntime", "onnxruntime"], precision=["fp32", "fp32"])
    assert len(made) == 1


def test_class_names_come_from_the_data_where_their_number_fits(tmp_path, material):
    for name in NAMES:
        write_pictures(tmp_path / "six" / name, 2)
    write_pictures(tmp_path / "two" / "a", 2)
    write_pictures(tmp_path / "two" / "b", 2)
    six = make(material, tmp_path / "out", precision="fp32", classes=None, data=f"folder:{tmp_path / 'six'}")[0]
    assert six.manifest.classes == NAMES
    two = make(material, tmp_path / "out2", precision="fp32", classes=None, data=f"folder:{tmp_path / 'two'}")[0]
    assert two.manifest.classes == ()


def test_a_fixed_batch_stays_in_the_bundle(tmp_path, material):
    """A network whose second half takes one picture: its batch cannot be set free."""
    model = tiny_net(batch=1)
    shape = onnx.numpy_helper.from_array(np.int64([1, 32]), "one_row")
    model.graph.initializer.append(shape)
    flatten = next(node for node in model.graph.node if node.name == "flatten")
    flatten.CopyFrom(onnx.helper.make_node("Reshape", ["averaged", "one_row"], ["features"], "flatten"))
    made = convert(
        save_net(tmp_path / "one.onnx", model), targets=["onnxruntime", "openvino", "ncnn"], out=tmp_path / "out",
        preprocess="unit", data=str(material / "photos"),
    )  # fmt: skip
    for bundle in made:
        assert bundle.manifest.inputs[0].shape[0] in (1, None)
        assert verify(bundle).passed


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"targets": []}, UsageError, "name at least one target and one precision"),
        ({"precision": []}, UsageError, "name at least one target and one precision"),
        ({"targets": ["tensort"]}, UsageError, "did you mean tensorrt"),
        ({"data": None}, CalibrationError, "int8 needs pictures to calibrate with"),
        ({"preprocess": None}, UsageError, "how do pictures become images"),
        ({"classes": ("one",)}, UsageError, "the network has 6 classes; 1 names were given"),
        ({"input_size": (64, 64)}, EdgeVisionError, "fixed at 32×32"),
        ({"weights": "w.safetensors"}, UsageError, "weights goes with the name of a zoo network"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(material, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        make(material, tmp_path / "out", **changes)
    assert not list(tmp_path.rglob("*.evb"))


def test_options_without_sense_are_refused():
    for values in ({"calibration_images": 0}, {"timeout_s": 0.0}, {"timeout_s": -1.0}):
        with pytest.raises(UsageError):
            ConvertOptions(**values)


def test_a_converter_that_takes_too_long_leaves_what_was_finished(material, tmp_path):
    with pytest.raises(ConversionError, match="took longer than 0"):
        make(
            material, tmp_path, targets=["onnxruntime", "openvino"], precision="fp32",
            options=ConvertOptions(timeout_s=0.02),
        )  # fmt: skip
    assert [path.name for path in tmp_path.glob("*.evb")] == ["tiny-onnxruntime-fp32.evb"]
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(make(material, tmp_path, targets=["onnxruntime", "openvino"], precision="fp32")) == 2


def test_a_disk_without_room_for_working_files_is_an_output_error(material, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(OutputError, match=r"working files for onnxruntime: .*No space left.*TMPDIR"):
        make(material, tmp_path, precision="fp32")
    assert not list(tmp_path.glob("*.evb"))


def test_thresholds_of_the_bundle_are_honest(converted):
    """What verify demands is near what the plan's own reference reaches: a worse engine would not pass."""
    bundle = Bundle.open(converted / "tiny-onnxruntime-int8.evb")
    found = verify(bundle)
    demanded = bundle.manifest.thresholds["fp32"]
    assert found.fp32.sqnr_db - 6.0 < demanded.sqnr_db < found.fp32.sqnr_db
    assert demanded.cosine > 0.98
    noisy = bundle.golden()
    noise = np.random.default_rng(0).normal(0, 1, noisy["outputs"]["logits"].shape)
    spoiled = noisy["outputs"]["logits"] + noise * np.abs(noisy["outputs"]["logits"]).mean()
    from edgevision.parity import compare

    assert not compare(noisy["outputs"], {"logits": spoiled}, task="classification", thresholds=demanded).passed


def test_the_manifest_is_json_a_person_can_read(converted):
    folder = Bundle.open(converted / "tiny-onnxruntime-int8.evb")
    values = json.loads(folder._manifest_bytes())
    assert values["schema_version"] == 1
    assert values["inputs"] == [{"name": "images", "dtype": "float32", "shape": [None, 3, SIZE, SIZE]}]
    assert replace(folder.manifest) == folder.manifest
