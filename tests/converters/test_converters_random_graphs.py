"""Random small networks through every converter and engine: what comes out is what the plan says."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace

import numpy as np
import onnx
import pytest
from hypothesis import assume, example, given, settings

from edgevision.bundle import Bundle, Manifest
from edgevision.graph import Graph
from edgevision.pipeline.golden import run_graph
from edgevision.preprocess import Preprocess
from edgevision.runtime.backend import EngineOptions
from edgevision.runtime.session import Session
from edgevision.runtime.tensors import TensorSpec
from edgevision_calibration.equalization import equalize
from edgevision_calibration.observe import observe
from edgevision_calibration.plan import QuantPlan
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import scheme_for
from edgevision_converters.canonical import canonicalize
from edgevision_converters.qdq import quantize_dequantize
from edgevision_converters.target import CONVERTERS, ConversionRequest
from tests.graphs import Layer, Recipe, recipes

pytest.importorskip("torch")
from tests.enclosure import Enclosure

# Sums of float32 in another order; the worst are Winograd's transforms in ncnn. Share of an output's greatest value.
FLOAT = 1e-4
# The same networks in every run, so that a red test is a change's doing.
few = settings(max_examples=8, deadline=None, derandomize=True)
many = settings(max_examples=30, deadline=None, derandomize=True)

# Each once broke something.
RESIDUAL = Recipe((Layer("conv", channels=8), Layer("add", variant=1), Layer("conv", channels=4)), None)
TWO_CLIPS = Recipe((Layer("conv", channels=4), Layer("relu"), Layer("relu6", back=1), Layer("add", variant=0)), ())
READ_BESIDE_RELU = Recipe((Layer("conv"), Layer("relu"), Layer("conv", back=1)), ())
TWO_SCALES_AT_CONCAT = Recipe(
    (Layer("conv"), Layer("conv"), Layer("conv", back=1), Layer("concat", back=2, other=2)), None
)
GROUPED = Recipe((Layer("conv", channels=8), Layer("grouped", kernel=3), Layer("relu")), None, spread=True)
HALF_PIXEL = Recipe((Layer("conv"), Layer("upsample", variant=0), Layer("conv", kernel=3)), None)
PADDED_AVERAGE = Recipe(
    (Layer("conv", kernel=3), Layer("avg_pool", kernel=3, stride=2, variant=1), Layer("conv"), Layer("conv", back=2)),
    None,
)
# whose zero point, written as a range and read back, lies a hair below a whole number
CLIP_BEHIND_INTEGERS = Recipe(
    (
        Layer("shared"), Layer("batch_norm"), Layer("relu6"), Layer("concat", back=1, other=2, variant=3),
        Layer("grouped", kernel=2, variant=3),
    ),
    None, size=(12, 11), seed=100,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    """Converters call native tools in a child process; that is tested elsewhere, and starting one costs a second."""

    def call(function, kwargs, **_):
        module, _, name = function.partition(":")
        return getattr(importlib.import_module(module), name)(**kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for module in ("edgevision_converters.openvino", "edgevision_converters.ncnn.convert"):
            patch.setattr(importlib.import_module(module), "run_python", call)
        yield


@dataclass
class Case:
    """A network, calibrated: its canonical and equalized graphs, pictures, and what it answers in float."""

    recipe: Recipe

    def __post_init__(self) -> None:
        model = self.recipe.model()
        onnx.checker.check_model(model, full_check=True)
        self.feed = self.recipe.pictures(3, seed=5)
        self.expected = run_graph(model.SerializeToString(), self.feed, exact=True)
        self.graph = canonicalize(model)
        batches = [picture[None] for picture in self.recipe.pictures(20)]
        self.equalized = equalize(self.graph, batches, threads=1).graph
        self.table = observe(self.equalized, batches, threads=1)

    def plan(self, target: str) -> QuantPlan:
        """Everything on integers that the target can: speed is not the question here."""
        return make_plan(self.equalized, self.table, replace(scheme_for(target), stem=None, least_products=0.0))

    def convert(self, target, graph, precision, folder, plan=None):
        return CONVERTERS.resolve(target)(ConversionRequest(graph, precision, plan, folder, 120.0))

    def answers(self, made, graph: Graph, target: str, precision: str) -> dict[str, np.ndarray]:
        shape = graph.input_shape
        manifest = Manifest(
            name="random",
            task="tensors",
            target=target,
            precision=precision,
            inputs=(TensorSpec(graph.input_name, "float32", shape),),
            outputs=tuple(
                TensorSpec(name, "float32", (shape[0], *value.shape[1:])) for name, value in self.expected.items()
            ),
            preprocess=Preprocess(size=(shape[2], shape[3])),
            engine_files={role: path for role, (path, _) in made.files.items()},
            engine_options=dict(made.options),
            tensor_names=dict(made.tensor_names),
        )
        bundle = Bundle(Manifest.from_dict(manifest.to_dict()), dict(made.files.values()))
        with Session(bundle, EngineOptions(threads=1)) as session:
            return session.infer({graph.input_name: self.feed})


def assert_float_equal(expected: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> None:
    assert set(got) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=FLOAT * np.abs(value).max() + 1e-6, err_msg=name)


def assert_enclosed(enclosure, reference, got) -> None:
    """Within the interval of `Enclosure`, but for float sums of ops that no integer follows."""
    for name, value in reference.items():
        low, high = enclosure[name]
        slack = 1e-5 * np.abs(value).max() + 1e-6
        beyond = np.maximum(low - got[name], got[name] - high).max()
        assert beyond <= slack, f"{name}: {beyond:.3g} beyond what rounding explains"


def check_engine(recipe: Recipe, target: str, folder) -> None:
    case = Case(recipe)
    made = case.convert(target, case.graph, "fp32", folder)
    assert_float_equal(case.expected, case.answers(made, case.graph, target, "fp32"))
    plan = case.plan(target)
    model = quantize_dequantize(case.equalized, plan)
    reference = run_graph(model.SerializeToString(), case.feed, exact=True)
    # ncnn clips at -127 where QuantizeLinear clips at -128: one step of what lies beyond the range
    enclosure = Enclosure(model, least_integer=-127 if target == "ncnn" else -128)(case.feed)
    assert_enclosed(enclosure, reference, reference)
    made = case.convert(target, case.equalized, "int8", folder, plan)
    assert_enclosed(enclosure, reference, case.answers(made, case.equalized, target, "int8"))


@many
@example(TWO_CLIPS)
@example(GROUPED)
@given(recipes())
def test_onnxruntime(tmp_path_factory, recipe):
    check_engine(recipe, "onnxruntime", tmp_path_factory.mktemp("random"))


@few
@example(RESIDUAL)
@example(PADDED_AVERAGE)
@example(CLIP_BEHIND_INTEGERS)
@given(recipes())
def test_openvino(tmp_path_factory, recipe):
    check_engine(recipe, "openvino", tmp_path_factory.mktemp("random"))


@few
@example(RESIDUAL)
@example(GROUPED)
@example(HALF_PIXEL)
@given(recipes())
def test_ncnn(tmp_path_factory, recipe):
    # without a layer pnnx cannot tell which dimension of a concatenation is the batch, and the converter says so
    assume(any(layer.kind in ("conv", "depthwise", "grouped") for layer in recipe.maps))
    check_engine(recipe, "ncnn", tmp_path_factory.mktemp("random"))


@many
@example(TWO_CLIPS)
@example(READ_BESIDE_RELU)
@example(TWO_SCALES_AT_CONCAT)
@given(recipes())
def test_tensorrt(tmp_path_factory, recipe):
    """The ONNX passes `trt_check`, which `convert` calls, and says what the plan says."""
    case = Case(recipe)
    folder = tmp_path_factory.mktemp("random")
    made = case.convert("tensorrt", case.graph, "fp32", folder)
    assert_float_equal(case.expected, run_graph(made.files["model"][1], case.feed, exact=True))
    plan = case.plan("tensorrt")
    model = quantize_dequantize(case.equalized, plan)
    reference = run_graph(model.SerializeToString(), case.feed, exact=True)
    assert_enclosed(Enclosure(model)(case.feed), reference, reference)
    made = case.convert("tensorrt", case.equalized, "int8", folder, plan)
    found = run_graph(made.files["model"][1], case.feed, exact=True)
    for name, value in reference.items():
        # the same kernels on the same numbers
        np.testing.assert_array_equal(found[name], value)


@many
@given(recipes())
def test_equalization_keeps_the_function(recipe):
    # a Clip's few greatest values may change: `equalize` says which
    assume(not any(layer.kind == "relu6" for layer in (*recipe.maps, *(recipe.head or ()))))
    case = Case(recipe)
    assert_float_equal(case.expected, run_graph(case.equalized.to_bytes(), case.feed, exact=True))
