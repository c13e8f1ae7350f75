"""`convert --compress` from the network to the engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevision.bundle import PLAN, Bundle
from edgevision.cli import main
from edgevision.compression import packing
from edgevision.compression.codec import KEPT, SCALED, SHARED
from edgevision.errors import UsageError
from edgevision.parity import verify
from edgevision.pipeline.convert import ConvertOptions, convert
from edgevision.runtime.session import load
from edgevision_calibration.plan import QuantPlan
from edgevision_converters.target import PRECISIONS_OF
from tests.conformance.nets import NAMES, picture, save_net, write_pictures

# 4 bits: the branch (2304 weights) and the head (192) are large enough for a codebook of 16
SHARED_LAYERS = {"branch", "head"}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("material")
    save_net(root / "tiny.onnx")
    write_pictures(root / "photos", 16)
    return root


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("bundles")


def make(material: Path, out: Path, compress, **changes) -> list[Bundle]:
    values = {
        "targets": ["onnxruntime"],
        "precision": "fp32",
        "data": str(material / "photos"),
        "out": out,
        "preprocess": "unit",
        "classes": NAMES,
        "options": ConvertOptions(compress=compress),
    }
    return convert(material / "tiny.onnx", **{**values, **changes})


@pytest.fixture
def kinds(monkeypatch) -> list[list[int]]:
    """Kinds of the tensors of every file that is packed from now on."""
    seen: list[list[int]] = []
    original = packing.encode
    monkeypatch.setattr(
        packing,
        "encode",
        lambda segments, streams: seen.append([s.kind for s in segments]) or original(segments, streams),
    )
    return seen


@pytest.mark.parametrize(
    ("target", "precision"), [(target, precision) for target in PRECISIONS_OF for precision in PRECISIONS_OF[target]]
)
def test_shared_weights_are_found_in_every_engines_files(material, out, kinds, target, precision):
    (made,) = make(material, out, 4, targets=[target], precision=precision)
    assert made.path == out / f"tiny-{target}-{precision}-4bit.evb"
    assert set(made.manifest.provenance["compression"]["layers"]) == SHARED_LAYERS
    engine = max(kinds, key=len)
    assert sum(kind in (SHARED, SCALED) for kind in engine) == len(SHARED_LAYERS)
    opened = Bundle.open(made.path)
    assert opened.compression == "4 bits"
    assert {name: opened.read(name) for name in opened.files} == {name: made.read(name) for name in made.files}
    if target != "tensorrt":
        check = verify(opened)
        assert check.passed
        # the engine answers as the shared weights do; the loss is theirs
        assert check.reference is not None
        if precision == "fp32":
            assert check.reference.sqnr_db > 60 > check.fp32.sqnr_db


def test_lossless_engines_are_those_that_are_not_compressed(material, tmp_path, kinds):
    for precision in ("fp32", "int8"):
        (plain,) = make(material, tmp_path, None, precision=precision)
        (packed,) = make(material, tmp_path, "lossless", precision=precision)
        assert packed.path == tmp_path / f"tiny-onnxruntime-{precision}-lossless.evb"
        assert plain.path == tmp_path / f"tiny-onnxruntime-{precision}.evb"
        assert packed.digest == plain.digest
        assert packed.compression == "lossless"
        assert "compression" not in packed.manifest.provenance
        assert packed.stored_engine_bytes < plain.stored_engine_bytes
    assert {kind for found in kinds for kind in found} == {KEPT}


def test_answers_are_those_of_the_bundle_that_was_made(material, out):
    (made,) = make(material, out, 4)
    pixels = made.manifest.preprocess.batch([picture(3)])
    with load(made) as fresh, load(made.path) as stored:
        np.testing.assert_array_equal(fresh.run(pixels)["logits"], stored.run(pixels)["logits"])


def test_without_pictures_biases_stay_and_weights_are_shared(material, tmp_path):
    (made,) = make(material, tmp_path, 4, data=None)
    assert set(made.manifest.provenance["compression"]["layers"]) == SHARED_LAYERS
    assert verify(made).passed


def test_the_same_command_again_does_nothing_and_other_bits_are_another_bundle(material, out):
    (first,) = make(material, out, 4)
    before = first.path.stat().st_mtime_ns
    assert make(material, out, 4)[0].path.stat().st_mtime_ns == before
    (other,) = make(material, out, 2)
    assert other.path != first.path
    assert other.stored_engine_bytes < first.stored_engine_bytes
    assert verify(other).fp32.sqnr_db < verify(first).fp32.sqnr_db


def test_an_int8_plan_lies_beside_its_own_graph(material, out):
    (made,) = make(material, out, 4, precision="int8")
    plan = QuantPlan.from_json(made.read(PLAN))
    assert plan.graph_sha256 == made.manifest.provenance["graph_sha256"]


def test_layers_can_be_compared(material, out, capsys):
    (made,) = make(material, out, 4, targets=["openvino"])
    assert main(["verify", str(made.path), "--layers", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert layers
    # against the shared weights: float differs by the order of additions alone
    assert min(layer["sqnr_db"] for layer in layers) > 60


@pytest.mark.parametrize("given", ["many", "0", "9", 0, 9, "-3", "6.5"])
def test_bits_that_are_none(given):
    with pytest.raises(UsageError, match="1 to 8, or lossless"):
        ConvertOptions(compress=given)


def test_options_are_read_alike_from_text_and_numbers():
    assert ConvertOptions(compress="6") == ConvertOptions(compress=6)
    assert replace(ConvertOptions(compress="lossless"), force=True).compress == "lossless"


def test_the_command_line_prints_both_sizes(material, tmp_path, capsys):
    command = ["convert", str(material / "tiny.onnx"), "--preprocess", "unit", "--targets", "onnxruntime", "-o"]
    assert main([*command, str(tmp_path), "--compress", "4", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["bundles"]
    assert row["compression"] == "4 bits"
    assert 0 < row["stored_bytes"] < row["size_bytes"]
    assert main([*command, str(tmp_path), "--compress"]) in (0, 3)
    said = capsys.readouterr().out
    assert "-6bit.evb" in said
    assert "→" in said
    assert main([*command, str(tmp_path), "--compress", "12"]) == 2
    assert "1 to 8, or lossless" in capsys.readouterr().err
