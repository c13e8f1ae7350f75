"""Bundles of ``convert --nms graph``: their detections are those of the same network decoded on the device."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from detection_nets import SIZE, anchor_free, bright_cells, pictures
from PIL import Image

import edgevision as ev
from edgevision.bundle import Bundle
from edgevision.checkpoint import Checkpoint
from edgevision.cli import main
from edgevision.detection.compare import partners
from edgevision.errors import EngineError, UsageError
from edgevision.pipeline.convert import ConvertOptions, convert
from edgevision.preprocess import Preprocess
from edgevision.recipe.options import check_options
from edgevision_converters.explain import explain
from tests import cells

FOREIGN = "yolov8:strides=[32],confidence=0.15,iou=0.5"
BRIGHT = "yolov8:strides=[8],iou=0.5"
ENGINES = ("onnxruntime", "openvino")


def shown_pictures(count: int, seed: int = 9) -> list[np.ndarray]:
    return [(p[0].transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8) for p in pictures(count, seed)]


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number, picture in enumerate(shown_pictures(count, seed=1)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module", params=["foreign", "ours"])
def pair(request, tmp_path_factory):
    """Bundles that leave the suppression to the device, and those that do not: (engine, precision) → both."""
    folder = tmp_path_factory.mktemp(request.param)
    for engine in ENGINES:
        pytest.importorskip(engine, reason=f"{engine} is not installed")
    photos = write_pictures(folder / "photos", 8)
    if request.param == "foreign":
        onnx.save(anchor_free(), str(folder / "net.onnx"))
        source, decoder, given = folder / "net.onnx", FOREIGN, {}
    else:
        detector = request.getfixturevalue("detector")
        own = replace(detector.postprocess(), confidence=0.2)
        preprocess = Preprocess((64, 64), "letterbox")
        source = Checkpoint.from_model(detector, preprocess=preprocess, classes=("a", "b", "c"), postprocess=own)
        decoder, given = None, {"name": "net"}
    made = {}
    for nms in ("device", "graph"):
        options = ConvertOptions(decoder=decoder, nms=nms)
        for bundle in convert(
            source, targets=ENGINES, precision=("fp32", "int8"), data=photos, out=folder, options=options, **given
        ):
            key = (bundle.manifest.target, bundle.manifest.precision)
            made[key] = (*made.get(key, ()), bundle)
    return made


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_engine_gives_the_detections_of_the_device(pair, engine, precision):
    outside, inside = pair[engine, precision]
    assert inside.path.name == f"net-nms-{engine}-{precision}.evb"
    first_picture, second_picture = shown_pictures(2)
    # of other sizes and shapes, and one that holds nothing
    shown = [first_picture, second_picture[:400], second_picture[:, :300], np.zeros((30, 40, 3), np.uint8)]
    with ev.load(outside) as first, ev.load(inside) as second:
        expected, found = first(shown), second(shown)
        one_by_one = [second(picture) for picture in shown]
    assert sum(map(len, expected)) >= 8
    for own, other, alone in zip(expected, found, one_by_one, strict=True):
        assert own.classes == other.classes
        for compared in (other, alone):
            pairs = partners(own, compared, iou=0.999)
            assert len(own) == len(compared) == len(pairs)
            # the same kernels, but float32 sigmoids and exponentials of two libraries
            differences = [own.scores[i] - compared.scores[j] for i, j, _ in pairs]
            assert np.abs(differences).max(initial=0.0) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("engine", ENGINES)
def test_bundles_say_what_they_do_and_prove_it(pair, engine, precision):
    outside, inside = (Bundle.open(bundle.path).manifest for bundle in pair[engine, precision])
    assert inside.postprocess.decoder == "end2end"
    assert inside.postprocess.fixed == outside.postprocess
    assert [(spec.name, spec.dtype, spec.shape[0]) for spec in inside.outputs] == [
        ("num_detections", "int32", None), ("detection_boxes", "float32", None),
        ("detection_scores", "float32", None), ("detection_classes", "int32", None),
    ]  # fmt: skip
    proof = ev.verify(pair[engine, precision][1])
    assert proof.passed
    # not by default: there is something to lose
    assert all(found.expected and found.limits is not None for found in proof.detections.values())
    assert len(proof.detections) == (1 if precision == "fp32" else 2)
    assert explain(pair[engine, precision][1])[-1].startswith("detections  ")


def test_nothing_behind_the_network_is_put_into_integers(pair):
    _, inside = pair["onnxruntime", "int8"]
    model = onnx.load_from_string(inside.engine_file("model"))
    made = {name: node for node in model.graph.node for name in node.output}
    appended = [node for node in model.graph.node if node.name.startswith("detection")]
    assert "QuantizeLinear" in {node.op_type for node in model.graph.node}
    assert "NonMaxSuppression" in {node.op_type for node in appended}
    for node in appended:
        assert node.op_type not in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input:
            assert name not in made or made[name].op_type != "DequantizeLinear"


@pytest.fixture
def source(tmp_path) -> Path:
    onnx.save(bright_cells(), str(tmp_path / "bright.onnx"))
    return tmp_path / "bright.onnx"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_verbs_take_such_bundles(source, tmp_path, capsys):
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed: mAP cannot be measured here")
    base = ["convert", source, "--decoder", f"{BRIGHT},confidence=0.4", "--targets", "onnxruntime", "-o", tmp_path]
    assert run(*base, "--nms", "graph") == run(*base) == 0
    capsys.readouterr()
    path = tmp_path / "bright-nms-onnxruntime-fp32.evb"
    picture = tmp_path / "lamp.png"
    Image.fromarray(np.pad(np.full((16, 16, 3), 255, np.uint8), ((8, 40), (8, 40), (0, 0)))).save(picture)
    answers = []
    for bundle in (path, tmp_path / "bright-onnxruntime-fp32.evb"):
        assert run("predict", bundle, picture, "--json", "--confidence", "0.5") == 0
        answers.append(json.loads(capsys.readouterr().out)["objects"])
    assert [one["box"] for one in answers[0]] == [one["box"] for one in answers[1]]
    assert len(answers[0]) == 4
    assert run("predict", path, picture, "--stream", "--json") == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[0])["objects"]) == 4
    data = cells.write_cells(tmp_path / "set", 4)
    assert run("eval", path, "--data", f"coco:{data}", "--split", "all", "--json") in (0, 1)
    assert "counts only boxes above 0.4, at IoU 0.5" in capsys.readouterr().err
    assert run("verify", path) == 0
    assert "cosine -1" not in capsys.readouterr().out
    for option, value in (("--confidence", "0.3"), ("--iou", "0.4")):
        assert run("predict", path, picture, option, value) == 2
        assert "this bundle's graph suppresses by itself" in capsys.readouterr().err


def test_bench_measures_them(source, tmp_path, capsys):
    made = convert(source, targets=["onnxruntime"], out=tmp_path, options=ConvertOptions(decoder=BRIGHT, nms="graph"))
    assert run("bench", made[0].path, "--rounds", "1", "--seconds", "0.01", "--queries", "1", "--json") == 0
    [row] = json.loads(capsys.readouterr().out)["results"]
    assert row["model"] == "bright-nms"


def test_what_cannot_be_is_refused_before_any_work(source, tmp_path, capsys):
    base = ["convert", source, "--nms", "graph", "-o", tmp_path / "out"]
    assert run(*base, "--decoder", BRIGHT, "--targets", "onnxruntime,ncnn") == 2
    assert "ncnn does not suppress boxes inside the graph" in capsys.readouterr().err
    assert run(*base, "--targets", "onnxruntime", "--preprocess", "unit") == 2
    assert "--nms graph is for detectors" in capsys.readouterr().err
    assert run(*base, "--decoder", "my.boxes:decode", "--targets", "onnxruntime", "--preprocess", "unit") == 2
    assert "--nms graph knows the decoders fastestdet, " in capsys.readouterr().err
    assert not list(tmp_path.glob("out/*.evb"))
    with pytest.raises(UsageError, match="unknown place of the suppression 'grap': did you mean graph"):
        check_options("convert", {"targets": ["onnxruntime"], "decoder": BRIGHT, "nms": "grap"})
    check_options("convert", {"targets": ["onnxruntime"], "decoder": BRIGHT, "nms": "graph"})


def test_another_place_of_the_suppression_makes_another_bundle(source, tmp_path):
    recipes = {
        convert(source, targets=["onnxruntime"], out=tmp_path, options=options)[0].manifest.provenance["recipe"]
        for options in (
            ConvertOptions(decoder=BRIGHT), ConvertOptions(decoder=BRIGHT, nms="graph"),
            ConvertOptions(decoder=f"{BRIGHT},confidence=0.4", nms="graph"),
        )
    }  # fmt: skip
    assert len(recipes) == 3


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrts_plugin_gives_the_detections_of_the_device(fake_cuda, fake_tensorrt, tmp_path, precision):
    onnx.save(anchor_free(), str(tmp_path / "net.onnx"))
    photos = write_pictures(tmp_path / "photos", 2)
    made = [
        convert(
            tmp_path / "net.onnx", targets=["tensorrt"], precision=precision, data=photos, out=tmp_path / "out",
            options=ConvertOptions(decoder=FOREIGN, nms=nms),
        )[0]
        for nms in ("device", "graph")
    ]  # fmt: skip
    fake_cuda.reset(memory=256 << 20)
    fake_tensorrt()
    shown = shown_pictures(3)
    with ev.load(made[0]) as first, ev.load(made[1]) as second:
        expected, found = first(shown), second(shown)
    assert sum(map(len, expected)) >= 4
    assert [one.labels.tolist() for one in found] == [one.labels.tolist() for one in expected]
    for own, other in zip(expected, found, strict=True):
        # one ONNX Runtime behind both: float32 of the decoding alone differs
        np.testing.assert_allclose(other.scores, own.scores, atol=1e-6)
        np.testing.assert_allclose(other.boxes, own.boxes, atol=1e-3)
    inner = onnx.load_from_string(made[1].engine_file("model"))
    assert {node.name: node.op_type for node in inner.graph.node}["EfficientNMS_TRT"] == "EfficientNMS_TRT"
    assert made[0].manifest.preprocess.size == (SIZE, SIZE)


def test_a_tensorrt_without_its_plugins_says_so(fake_tensorrt, source, tmp_path):
    made = convert(source, targets=["tensorrt"], out=tmp_path, options=ConvertOptions(decoder=BRIGHT, nms="graph"))[0]
    fake_tensorrt(plugins=False)
    with pytest.raises(EngineError, match=r"without NVIDIA's plugin library .*Plugin library could not be loaded"):
        ev.load(made)
