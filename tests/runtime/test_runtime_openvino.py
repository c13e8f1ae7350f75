from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import onnx
import pytest

from edgevision.bundle import Bundle, Manifest
from edgevision.errors import BundleError, EngineError
from edgevision.preprocess import Preprocess
from edgevision.runtime import openvino as backend
from edgevision.runtime.backend import EngineOptions
from edgevision.runtime.session import Session, load
from edgevision.runtime.tensors import TensorSpec
from edgevision_converters.openvino import save_ir
from tests.conformance.nets import CLASSES, SIZE, tiny_net

IMAGES = np.random.default_rng(0).uniform(0, 1, (9, 3, SIZE, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("ir")
    onnx.save(tiny_net(), folder / "tiny.onnx")
    save_ir(str(folder / "tiny.onnx"), str(folder / "tiny.xml"), half=False)
    return {
        "engine/model.xml": (folder / "tiny.xml").read_bytes(),
        "engine/model.bin": (folder / "tiny.bin").read_bytes(),
    }


@pytest.fixture
def bundle(files) -> Bundle:
    manifest = Manifest(
        name="tiny",
        task="tensors",
        target="openvino",
        precision="fp32",
        inputs=(TensorSpec("images", "float32", (None, 3, SIZE, SIZE)),),
        outputs=(TensorSpec("logits", "float32", (None, CLASSES)),),
        preprocess=Preprocess((SIZE, SIZE)),
        engine_files={"model": "engine/model.xml", "weights": "engine/model.bin"},
    )
    return Bundle(manifest, files)


def test_every_batch_size_is_compiled_once_and_few_are_kept(bundle, monkeypatch):
    with load(bundle) as session:
        engine = session._engine
        compiled = []
        original = engine._core.compile_model
        monkeypatch.setattr(engine, "_core", _Counting(original, compiled))
        sizes = [1, 2, 3, 2, 1, 4, 5, 6, 7, 8, 9]
        answers = {size: session.infer({"images": IMAGES[:size]})["logits"] for size in sizes}
        assert len(engine._compiled) <= 4
        # 1 was compiled when the session was opened
        assert compiled == [2, 3, 4, 5, 6, 7, 8, 9]
        again = session.infer({"images": IMAGES[:2]})["logits"]
        assert compiled[-1] == 2
    for size, answer in answers.items():
        # other orders of addition at other batch sizes: 1e-6 of sums of a few units
        np.testing.assert_allclose(answer, answers[9][:size], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(again, answers[2])


class _Counting:
    def __init__(self, compile_model, compiled):
        self._compile = compile_model
        self.compiled = compiled

    def compile_model(self, model, *more):
        self.compiled.append(model.inputs[0].get_shape()[0])
        return self._compile(model, *more)


def test_threads_with_changing_batch_sizes_get_their_own_answers(bundle):
    """More batch sizes than are kept, from several threads: models come and go under their feet."""
    with load(bundle) as session:
        wanted = {size: session.infer({"images": IMAGES[:size]})["logits"] for size in range(1, 8)}
        failures: list[str] = []

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            try:
                for size in rng.integers(1, 8, 12).tolist():
                    answer = session.infer({"images": IMAGES[:size]})["logits"]
                    if not np.array_equal(answer, wanted[size]):
                        failures.append(f"batch {size}: {np.abs(answer - wanted[size]).max()}")
            except Exception as error:
                failures.append(repr(error))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_layers_come_beside_the_outputs_under_the_graphs_names(bundle):
    named = Bundle(replace(bundle.manifest, tensor_names={"before": "sum"}), {n: bundle.read(n) for n in bundle.files})
    with Session(named, EngineOptions(layers=("before", "pooled"))) as session:
        found = session.infer({"images": IMAGES[:2]})
    assert set(found) == {"logits", "before", "pooled"}
    assert found["before"].shape == (2, 16, 16, 16)
    with pytest.raises(EngineError, match="nothing"):
        Session(bundle, EngineOptions(layers=("nothing",)))


@pytest.mark.parametrize("which", ["engine/model.xml", "engine/model.bin"])
def test_damaged_files_are_an_engine_error_that_names_the_bundle(bundle, which):
    files = {name: bundle.read(name) for name in bundle.files}
    files[which] = files[which][: len(files[which]) // 3]
    with pytest.raises(EngineError, match=r"OpenVINO .*tiny"):
        load(Bundle(bundle.manifest, files))


def test_a_missing_role_is_a_bundle_error(bundle):
    manifest = replace(bundle.manifest, engine_files={"model": "engine/model.xml"})
    with pytest.raises(BundleError, match="names no engine file 'weights'"):
        load(Bundle(manifest, {name: bundle.read(name) for name in bundle.files}))


@pytest.mark.parametrize(
    ("precision", "capabilities", "hint"),
    [
        ("fp32", ["FP32", "FP16", "BF16"], "f32"),
        ("int8", ["FP32", "FP16", "BF16"], "f32"),
        ("fp16", ["FP32", "FP16"], "f16"),
        ("fp16", ["FP32", "BF16"], "f32"),
    ],
)
def test_the_precision_is_said_outright(bundle, monkeypatch, precision, capabilities, hint):
    monkeypatch.setattr(backend.OpenVINOEngine, "_capabilities", lambda self: capabilities)
    made = Bundle(replace(bundle.manifest, precision=precision), {name: bundle.read(name) for name in bundle.files})
    engine = backend.OpenVINOEngine.__new__(backend.OpenVINOEngine)
    settings = engine._properties(made, EngineOptions(threads=2))
    assert settings["INFERENCE_PRECISION_HINT"] == hint
    assert settings["INFERENCE_NUM_THREADS"] == 2
    assert "INFERENCE_NUM_THREADS" not in engine._properties(made, EngineOptions(threads=0))


def test_a_shape_the_network_cannot_have_is_an_engine_error(bundle):
    other = replace(bundle.manifest, inputs=(TensorSpec("images", "float32", (None, 4, SIZE, SIZE)),))
    with pytest.raises(EngineError, match="cannot compile"):
        load(Bundle(other, {name: bundle.read(name) for name in bundle.files}))
