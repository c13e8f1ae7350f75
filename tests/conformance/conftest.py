from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from edgevision.bundle import Bundle
from edgevision.pipeline.convert import convert
from tests.conformance.nets import NAMES, save_net, write_pictures

TARGETS = ("onnxruntime", "openvino", "ncnn", "tensorrt")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("conformance") / "pictures", 24)


@pytest.fixture(scope="session")
def bundles(pictures) -> dict[tuple[str, str], Bundle]:
    """(target, precision) → bundle of `tiny_net`, all of one calibration."""
    source = save_net(pictures.parent / "tiny.onnx")
    common = {"data": str(pictures), "out": pictures.parent / "bundles", "preprocess": "unit", "classes": NAMES}
    made = convert(source, targets=TARGETS, precision=["fp32", "int8"], **common)
    # ONNX Runtime has no fp16 of its own
    made += convert(source, targets=TARGETS[1:], precision="fp16", **common)
    return {(bundle.manifest.target, bundle.manifest.precision): bundle for bundle in made}


@pytest.fixture
def runtime(request):
    """Make a target's runtime loadable: the real library, or for TensorRT the imaginary one."""

    def provide(target: str) -> None:
        if target == "tensorrt":
            request.getfixturevalue("fake_tensorrt")()
        else:
            importlib.import_module(target)

    return provide
