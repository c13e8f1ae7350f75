from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgevision.bundle import Bundle, Manifest
from edgevision.errors import EngineError
from edgevision.preprocess import Preprocess
from edgevision.runtime.backend import EngineOptions
from edgevision.runtime.session import Session, load
from edgevision.runtime.tensors import TensorSpec
from tests.conformance.nets import CLASSES, SIZE, tiny_net
from tests.fakes.models import float_layer_between_integers


def bundle(model=None, outputs=None, tensor_names=None) -> Bundle:
    manifest = Manifest(
        name="tiny",
        task="tensors",
        target="onnxruntime",
        precision="fp32",
        inputs=(TensorSpec("images", "float32", (None, 3, SIZE, SIZE)),),
        outputs=outputs or (TensorSpec("logits", "float32", (None, CLASSES)),),
        preprocess=Preprocess((SIZE, SIZE)),
        engine_files={"model": "engine/model.onnx"},
        tensor_names=tensor_names or {},
    )
    return Bundle(manifest, {"engine/model.onnx": (model or tiny_net()).SerializeToString()})


IMAGES = np.random.default_rng(0).uniform(0, 1, (2, 3, SIZE, SIZE)).astype(np.float32)


def test_layers_come_beside_the_outputs_under_the_graphs_names():
    renamed = {"stem6": "sum"}  # what a quantized model calls a tensor may differ from the graph's name
    with Session(bundle(tensor_names=renamed), EngineOptions(layers=("stem6", "pooled", "logits"))) as session:
        found = session.infer({"images": IMAGES})
    assert set(found) == {"logits", "stem6", "pooled"}
    assert found["pooled"].shape == (2, 16, 8, 8)
    with Session(bundle(), EngineOptions(layers=("sum",))) as session:
        np.testing.assert_array_equal(session.infer({"images": IMAGES})["sum"], found["stem6"])


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(EngineError, match="the model has no tensor 'nothing'"):
        Session(bundle(), EngineOptions(layers=("nothing",)))


def test_outputs_keep_their_dtype_and_the_manifests_choice():
    model = tiny_net()
    model.graph.node.append(helper.make_node("ArgMax", ["logits"], ["best"], "best", axis=1, keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["N"]))
    specs = (TensorSpec("best", "int64", (None,)),)
    with load(bundle(model, specs)) as session:
        found = session.infer({"images": IMAGES})
    assert list(found) == ["best"]
    assert found["best"].dtype == np.int64
    with load(bundle(model)) as session:
        np.testing.assert_array_equal(session.infer({"images": IMAGES})["logits"].argmax(1), found["best"])


def test_an_output_the_model_has_not_is_an_engine_error():
    specs = (TensorSpec("nothing", "float32", (None, 2)),)
    with load(bundle(outputs=specs)) as session, pytest.raises(EngineError, match="ONNX Runtime failed to run"):
        session.infer({"images": IMAGES})


def test_a_model_onnx_runtime_refuses_is_an_engine_error_that_names_the_bundle(tmp_path):
    model = tiny_net()
    model.graph.node[0].input[1] = "no_such_weight"
    path = bundle(model).save(tmp_path / "broken.evb")
    with pytest.raises(EngineError, match=r"ONNX Runtime .* refuses .*broken\.evb"):
        load(path)


def test_what_is_computed_in_float_stays_finite_or_says_so():
    """The engine passes NaN on; it is `verify` and the task that judge."""
    with load(bundle()) as session:
        assert np.isnan(session.infer({"images": np.full_like(IMAGES, np.nan)})["logits"]).all()


def test_a_float_layer_between_integers_keeps_its_weights():
    model, expected, tolerance = float_layer_between_integers(SIZE)
    outputs = (TensorSpec("logits", "float32", (None, 8, SIZE, SIZE)),)
    with Session(bundle(model, outputs=outputs)) as session:
        got = session.infer({"images": IMAGES})["logits"]
    assert np.abs(got - expected(IMAGES)).max() <= tolerance
