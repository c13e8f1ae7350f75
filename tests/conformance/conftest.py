from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from edgevision.bundle import Bundle
from edgevision.pipeline.convert import convert
from edgevision.runtime import cuda
from tests.conformance.nets import NAMES, save_net, write_pictures
from tests.fakes.cuda_library import FakeCuda
from tests.fakes.fake_tensorrt import make_tensorrt

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


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory) -> FakeCuda:
    return FakeCuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def runtime(request, monkeypatch, tmp_path):
    """Make a target's runtime loadable: the real library, or for TensorRT the imaginary one."""

    def provide(target: str) -> None:
        if target != "tensorrt":
            importlib.import_module(target)
            return
        library = request.getfixturevalue("cuda_library")
        library.reset()
        monkeypatch.setattr(cuda, "LIBRARY", str(library.path))
        monkeypatch.setenv("EDGEVISION_CACHE", str(tmp_path / "cache"))
        cuda._load.cache_clear()
        request.addfinalizer(cuda._load.cache_clear)
        monkeypatch.setitem(sys.modules, "tensorrt", make_tensorrt("10.3.0", library))

    return provide
