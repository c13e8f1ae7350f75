"""Detectors out of torch: as a Checkpoint that another process opens, and as bundles of every engine."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

import edgevision as ev
from edgevision.checkpoint import Checkpoint
from edgevision.errors import CheckpointError
from edgevision.graph import Graph
from edgevision.models import create_model
from edgevision.models.detection.build import build_detector
from edgevision.models.detection.detector import Detector
from edgevision.models.detection.yolov6 import YOLOV6_M
from edgevision.models.reparameterize import reparameterize
from edgevision.preprocess import Preprocess
from edgevision_converters.export import export_module, open_source
from edgevision_converters.passes.numerics import run

CLASSES = ("red cell", "white cell", "platelet")
LETTERBOX = Preprocess((64, 64), "letterbox")

RELOAD = """
import json, sys
import numpy as np, torch
import edgevision as ev
torch.set_num_threads(1)
checkpoint = ev.load_checkpoint(sys.argv[1])
x = torch.from_numpy(np.load(sys.argv[2]))
with torch.no_grad():
    outputs = checkpoint.build()(x)
np.savez(sys.argv[3], **{key: value.numpy() for key, value in outputs.items()})
print(json.dumps([checkpoint.task, checkpoint.postprocess.to_dict(), checkpoint.classes, list(outputs)]))
"""


def lived_in(name: str, width: float = 0.125, **arguments: object) -> Detector:
    """A detector whose norms know pictures, in eval mode."""
    torch.manual_seed(0)
    return with_statistics(create_model(name, num_classes=3, input_size=64, width=width, **arguments))


def with_statistics(model: nn.Module) -> Detector:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
    with torch.no_grad():
        for _ in range(6):
            model(torch.rand(4, 3, 64, 64))
    assert isinstance(model, Detector)
    return model.eval()


def test_a_checkpoint_is_opened_by_another_process_with_equal_answers(tmp_path: Path) -> None:
    model = lived_in("yolov6_m")
    postprocess = replace(model.postprocess(), confidence=0.4, class_agnostic=True)
    Checkpoint.from_model(model, preprocess=LETTERBOX, classes=CLASSES, postprocess=postprocess).save(tmp_path / "c")
    x = torch.rand(2, 3, 64, 64)
    np.save(tmp_path / "x.npy", x.numpy())
    command = [sys.executable, "-c", RELOAD, str(tmp_path / "c"), str(tmp_path / "x.npy"), str(tmp_path / "out.npz")]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    with torch.no_grad():
        expected = model(x)
    assert told == ["detection", postprocess.to_dict(), list(CLASSES), list(expected)]
    with np.load(tmp_path / "out.npz") as got:
        for key, value in expected.items():
            # the same weights and kernels; another process may lay its memory out otherwise
            np.testing.assert_allclose(got[key], value.numpy(), rtol=0, atol=1e-5 * float(value.abs().max()))


@pytest.mark.parametrize("name", ["yolov3_tiny", "ssdlite_mobilenet_v2", "yolov6lite_s"])
def test_a_checkpoint_comes_back_with_the_same_answers(name: str, tmp_path: Path) -> None:
    arguments = {"anchors": [[4, 5], [9, 9], [20, 11], [30, 33]]} if name == "yolov3_tiny" else {}
    model = lived_in(name, **arguments)
    Checkpoint.from_model(model, preprocess=LETTERBOX, classes=CLASSES).save(tmp_path)
    checkpoint = ev.load_checkpoint(tmp_path)
    again, x = checkpoint.build(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, got = model(x), again(x)
    assert list(expected) == list(got)
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert (checkpoint.task, checkpoint.postprocess) == ("detection", again.postprocess())


def test_a_checkpoint_of_a_fused_detector_reloads_fused(tmp_path: Path) -> None:
    fused = reparameterize(lived_in("yolov6_n"))
    checkpoint = Checkpoint.from_model(fused, preprocess=LETTERBOX)
    assert checkpoint.changes == ("reparameterized",)
    assert checkpoint.postprocess == fused.postprocess()
    checkpoint.save(tmp_path)
    again = ev.load_checkpoint(tmp_path).build()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, got = fused(x), again(x)
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_checkpoints_without_postprocess_open_and_damaged_ones_do_not(tmp_path: Path) -> None:
    Checkpoint.from_model(lived_in("yolov6_n"), preprocess=LETTERBOX).save(tmp_path)
    file = tmp_path / "model.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "postprocess": {"decoder": "yolov6", "confidence": "much"}}))
    with pytest.raises((CheckpointError, ValueError), match="confidence"):
        ev.load_checkpoint(tmp_path)
    del values["postprocess"]
    file.write_text(json.dumps(values))
    assert ev.load_checkpoint(tmp_path).postprocess is None


# ncnn's own graph differs most from the canonical one, so it has a say on every detector
@pytest.mark.parametrize(
    ("name", "targets"),
    [("yolov6_n", ["onnxruntime", "openvino", "ncnn"]), ("yolov3_tiny", ["onnxruntime", "openvino", "ncnn"]),
     ("yolov6lite_s", ["ncnn"]), ("ssdlite_mobilenet_v2", ["ncnn"])],
)  # fmt: skip
def test_bundles_of_every_engine_are_verified(name: str, targets: list[str], tmp_path: Path) -> None:
    model = lived_in(name)
    checkpoint = Checkpoint.from_model(model, preprocess=LETTERBOX, classes=CLASSES)
    bundles = ev.convert(checkpoint, targets=targets, precision="fp32", out=tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (48, 96, 3), np.uint8)
    x = torch.from_numpy(LETTERBOX(picture))[None]
    with torch.no_grad():
        expected = {key: value.numpy() for key, value in model(x).items()}
    for bundle in bundles:
        assert bundle.manifest.task == "detection"
        assert bundle.manifest.postprocess == model.postprocess()
        assert bundle.manifest.classes == CLASSES
        assert ev.verify(bundle).passed
        with ev.load(bundle) as net:
            outputs = net.infer({net.inputs[0].name: x.numpy()})
            net(picture)
        assert list(outputs) == list(expected)
        for key, value in expected.items():
            # FP32 sums in another order through some thirty layers
            np.testing.assert_allclose(outputs[key], value, rtol=0, atol=1e-3 * np.abs(value).max())


def test_a_detector_of_bep_c3_and_distributions_exports() -> None:
    torch.manual_seed(0)
    shallow = replace(YOLOV6_M, backbone={**YOLOV6_M.backbone, "depth": 0.17}, neck={**YOLOV6_M.neck, "depth": 0.17})
    model = with_statistics(build_detector(shallow, num_classes=3, width=0.125, input_size=64))
    graph = export_module(model, input_shape=(3, 64, 64))
    assert graph.output_names == ["scores_8", "boxes_8", "scores_16", "boxes_16", "scores_32", "boxes_32"]
    assert "reparameterization_max_difference" in graph.metadata
    # a batch of two through a graph exported with one
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
    for value, got in zip(expected.values(), run(graph.model, {"images": x.numpy()}), strict=True):
        # FP32 sums in another order, through fused branches
        np.testing.assert_allclose(got, value.numpy(), rtol=0, atol=1e-3 * float(value.abs().max()))


def test_a_modules_dictionary_gives_the_outputs_their_names() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"zebra": self.first(x), "apple": self.second(x)}

    graph = export_module(TwoHeads(), input_shape=(3, 8, 8))
    assert graph.output_names == ["zebra", "apple"]
    assert [graph.shapes[name][1] for name in graph.output_names] == [2, 4]


def test_a_zoo_name_with_weights_opens_at_the_catalogues_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = create_model("yolov6_n", num_classes=2, width=0.125)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    asked = []

    def small(module: nn.Module, *, input_shape: tuple[int, int, int], name: str) -> Graph:
        asked.append(input_shape)
        assert isinstance(module, Detector)
        two = helper.make_graph(
            [helper.make_node("Relu", ["images"], ["out"], name="relu")], name,
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, *input_shape])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, *input_shape])],
        )  # fmt: skip
        told = json.dumps(module.postprocess().to_dict())
        return Graph(helper.make_model(two)).with_metadata({"postprocess": told})

    monkeypatch.setattr("edgevision_converters.export.export_module", small)
    arguments = {"width": 0.125}
    found = open_source("yolov6_n", weights=tmp_path / "w.safetensors", num_classes=2, model_arguments=arguments)
    assert asked == [(3, 640, 640)]
    # how pictures become the input is the decoder's to say
    assert (found.task, found.preprocess) == ("detection", None)
    assert found.postprocess == model.postprocess()
