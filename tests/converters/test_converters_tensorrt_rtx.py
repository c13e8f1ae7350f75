"""NVIDIA's own builder, as a judge of form: TensorRT-RTX parses and compiles every network of the zoo without a GPU.

It judges syntax, types and Q/DQ, not speed; `pip install "edgevision[tensorrt-rtx]"` brings it.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import example, given, settings

from edgevision.models import create_model, model_names, task_of
from edgevision.runtime.tensorrt_build import BuildOptions, build_plan, make_log
from edgevision_calibration.equalization import equalize
from edgevision_calibration.observe import observe
from edgevision_calibration.planning import make_plan
from edgevision_calibration.scheme import scheme_for
from edgevision_converters.canonical import canonicalize
from edgevision_converters.export import export_module
from edgevision_converters.target import ConversionRequest
from edgevision_converters.tensorrt.target import convert
from tests.graphs import Layer, Recipe, recipes

# the wheel of the bindings is called one, its installer's redirection the other
RTX = next((name for name in ("tensorrt_rtx", "tensorrt_rtx_bindings") if find_spec(name)), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(RTX is None, reason='tensorrt_rtx is not installed: pip install "edgevision[tensorrt-rtx]"'),
]

# small pictures and thin networks: what the parser and the compiler look at is the same, and the zoo takes minutes
SIZE = 64
WIDTH = 0.25


@pytest.fixture(scope="module")
def trt():
    return importlib.import_module(RTX)


@pytest.fixture(scope="module", params=[name for name in model_names() if task_of(name) == "classification"])
def graph(request):
    module = create_model(request.param, num_classes=10, input_size=SIZE, width=WIDTH)
    return export_module(module, name=request.param)


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0.0, 1.0, (1, 3, SIZE, SIZE)).astype(np.float32) for _ in range(count)]


def build(trt, request: ConversionRequest) -> bytes:
    made = convert(request)
    options = BuildOptions.from_manifest(made.options)
    plan, _ = build_plan(trt, make_log(trt), made.files["model"][1], options, workspace_bytes=1 << 28)
    return plan


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_builder_takes_every_network(trt, graph, precision, tmp_path):
    plan = None
    if precision == "int8":
        batches = pictures(4)
        graph = equalize(graph, batches, threads=1).graph
        plan = make_plan(graph, observe(graph, batches, threads=1), scheme_for("tensorrt"))
        # a plan that left everything in float would prove nothing
        assert len(plan.weights) > len(plan.float_ops)
    engine = build(trt, ConversionRequest(graph, precision, plan, tmp_path))
    # an engine holds its weights, or references to them: more than a header
    assert len(engine) > 10_000


@settings(max_examples=25, deadline=None, derandomize=True)
# a layer quantized before its ReLU because another layer reads it too; a concatenation in float of two scales
@example(Recipe((Layer("conv"), Layer("relu"), Layer("conv", back=1)), ()))
@example(Recipe((Layer("conv"), Layer("conv"), Layer("conv", back=1), Layer("concat", back=2, other=2)), None))
@given(recipes())
def test_the_builder_takes_what_our_check_takes(trt, tmp_path_factory, recipe):
    graph = canonicalize(recipe.model())
    batches = [picture[None] for picture in recipe.pictures(8)]
    graph = equalize(graph, batches, threads=1).graph
    plan = make_plan(graph, observe(graph, batches, threads=1), scheme_for("tensorrt"))
    assert build(trt, ConversionRequest(graph, "int8", plan, tmp_path_factory.mktemp("random")))
