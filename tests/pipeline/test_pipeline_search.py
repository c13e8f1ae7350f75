from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgevision.bundle import PLAN, Bundle
from edgevision.cli import main
from edgevision.data import open_dataset
from edgevision.data.base import Subset
from edgevision.errors import DataError, ModelError, UsageError
from edgevision.pipeline import trial
from edgevision.pipeline.convert import ConvertOptions, convert
from edgevision.pipeline.search import Budget, OutOfTimeError, search
from edgevision.pipeline.sensitivity import sensitivity
from edgevision.runtime.session import load
from edgevision_calibration.plan import QuantPlan
from edgevision_converters.explain import explain
from tests.conformance.nets import NAMES, save_net, tiny_net, write_pictures


@dataclass(frozen=True)
class Layer:
    node: str
    sqnr_db: float
    macs: int


class Fake:
    """Layers add their harm to the loss while quantized, and their price to the latency while in float."""

    def __init__(self, harm: dict[str, float], price: dict[str, float], budget: int | None = None) -> None:
        self.harm = harm
        self.price = price
        self.budget = budget
        self.asked: list[frozenset[str]] = []

    def drop(self, float_nodes) -> float:
        if self.budget is not None and len(self.asked) >= self.budget:
            raise OutOfTimeError
        self.asked.append(frozenset(float_nodes))
        # whole numbers: sums do not depend on their order
        return sum(value for node, value in self.harm.items() if node not in float_nodes)

    def latencies(self, plans):
        return [10.0 + sum(self.price[node] for node in plan) for plan in plans]


def layers_of(harm: dict[str, float], macs: dict[str, int]) -> list[Layer]:
    order = sorted(harm, key=lambda node: -harm[node])
    return [Layer(node, 40.0 - harm[node], macs[node]) for node in order]


def test_nothing_goes_to_float_where_nothing_must():
    harm = {"a": 1.0, "b": 2.0}
    measure = Fake(harm, {"a": 1.0, "b": 1.0})
    found = search(layers_of(harm, {"a": 1, "b": 1}), measure, max_drop=3.0)
    assert (found.float_nodes, found.drop, found.met, found.complete) == ([], 3.0, True, True)
    assert (found.latency_ms, found.int8_latency_ms, found.fp32_latency_ms) == (10.0, 10.0, 12.0)
    assert measure.asked == [frozenset()]


def test_the_most_harmful_layers_go_to_float_with_their_price():
    harm = {"a": 8.0, "b": 4.0, "c": 2.0, "d": 1.0}
    price = {"a": 0.5, "b": 1.5, "c": 1.0, "d": 1.0}
    found = search(layers_of(harm, dict.fromkeys(harm, 10)), Fake(harm, price), max_drop=3.0)
    assert found.float_nodes == ["a", "b"]
    assert (found.drop, found.int8_drop, found.met) == (3.0, 15.0, True)
    assert found.latency_ms == 12.0
    assert found.cost_ms == pytest.approx({"a": 0.5, "b": 1.5})
    reasons = found.reasons(layers_of(harm, dict.fromkeys(harm, 10)))
    assert "32.0 dB" in reasons["a"]
    assert "+0.500 ms" in reasons["a"]


def test_a_costly_layer_goes_back_where_the_limit_allows():
    harm = {"a": 8.0, "b": 4.0, "c": 3.0}
    macs = {"a": 1, "b": 100, "c": 1}
    # a and b in float lose 3; without b the loss is 7 and within the limit
    found = search(layers_of(harm, macs), Fake(harm, dict.fromkeys(harm, 1.0)), max_drop=7.0)
    assert found.float_nodes == ["a"]


def test_the_faster_of_two_plans_is_taken():
    harm = {"a": 8.0, "b": 4.0, "c": 4.0}
    # less arithmetic in float, but b makes the engine leave its integers twice: a alone is not enough
    macs = {"a": 5, "b": 1, "c": 2}

    class Odd(Fake):
        def latencies(self, plans):
            return [{frozenset("ab"): 30.0, frozenset("abc"): 12.0}.get(plan, 20.0) for plan in plans]

        def drop(self, float_nodes):
            super().drop(float_nodes)
            return {frozenset("ab"): 1.0, frozenset("abc"): 0.0}.get(frozenset(float_nodes), 9.0)

    found = search(layers_of(harm, macs), Odd(harm, {}), max_drop=1.0)
    assert found.met
    assert set(found.float_nodes) in ({"a", "b"}, {"a", "b", "c"})
    times = {frozenset("ab"): 30.0, frozenset("abc"): 12.0}
    assert found.latency_ms == times[frozenset(found.float_nodes)]


def test_a_spent_budget_leaves_the_best_so_far():
    harm = {"a": 8.0, "b": 4.0, "c": 2.0, "d": 1.0}
    layers = layers_of(harm, dict.fromkeys(harm, 10))
    full = search(layers, Fake(harm, dict.fromkeys(harm, 1.0)), max_drop=1.0)
    assert full.complete
    for allowed in range(1, full.tried):
        found = search(layers, Fake(harm, dict.fromkeys(harm, 1.0), budget=allowed), max_drop=1.0)
        assert not found.complete
        assert found.tried == allowed
        assert found.met == (found.drop <= 1.0)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 1000), st.integers(0, 9)), min_size=1, max_size=12),
    st.integers(0, 60),
)
def test_a_finished_search_holds_the_limit_and_wastes_nothing(values, limit):
    names = [f"n{index:02d}" for index in range(len(values))]
    harm = {name: float(value[0]) for name, value in zip(names, values, strict=True)}
    macs = {name: value[1] for name, value in zip(names, values, strict=True)}
    layers = layers_of(harm, macs)
    # equal latencies: the plan with least in float must win
    measure = Fake(harm, dict.fromkeys(harm, 0.0))
    found = search(layers, measure, max_drop=limit)
    assert found.met
    assert found.drop == sum(harm[name] for name in names if name not in found.float_nodes) <= limit
    for name in found.float_nodes:
        assert found.drop + harm[name] > limit, "a layer stays in float that need not"
    again = search(layers, Fake(harm, dict.fromkeys(harm, 0.0)), max_drop=limit)
    assert again == found


def test_budget_counts_down():
    now = [100.0]
    budget = Budget(5.0, lambda: now[0])
    budget.check()
    now[0] = 105.0
    with pytest.raises(OutOfTimeError):
        budget.check()
    assert Budget(None).left() == float("inf")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A net, its calibration pictures, and validation pictures labelled with the FP32 net's own answers."""
    root = tmp_path_factory.mktemp("search")
    source = save_net(root / "tiny.onnx")
    write_pictures(root / "pictures", 24)
    common = {"preprocess": "unit", "classes": NAMES, "data": f"images:{root / 'pictures'}"}
    float_bundle = convert(source, targets=["onnxruntime"], out=root / "float", **common)[0]
    validation = write_pictures(root / "validation", 60)
    with load(float_bundle) as session, (validation / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("file", "label"))
        for path in sorted(validation.glob("*.png")):
            logits = session.run(float_bundle.manifest.preprocess.batch([path]))["logits"]
            writer.writerow((path.name, int(logits.argmax())))
    return source, common, f"csv:{validation}"


@pytest.fixture(autouse=True)
def short_timings(monkeypatch):
    # what is timed does not matter here, only that it is
    monkeypatch.setattr(trial, "_ROUNDS", 1)
    monkeypatch.setattr(trial, "_SECONDS", 0.01)


def searched(world, out, target="onnxruntime", max_drop=0.0, **options):
    source, common, validation = world
    chosen = ConvertOptions(max_drop=max_drop, ranges="entropy", equalize=False, **options)
    arguments = {"targets": [target], "precision": "int8", "out": out, "val_data": validation, "options": chosen}
    return convert(source, **arguments, **common)[0]


def test_the_search_keeps_the_accuracy_on_the_engine(world, tmp_path):
    from edgevision_benchmarks.accuracy import evaluate

    bundle = searched(world, tmp_path)
    found = bundle.manifest.provenance["calibration"]["search"]
    assert found["met"]
    assert found["complete"]
    assert (found["measure"], found["pictures"], found["engine"]) == ("top-1", 60, "onnxruntime")
    assert found["int8_drop"] > 0, "the search had nothing to do: entropy ranges should cost this net answers"
    with load(bundle) as session:
        measured = evaluate(session, open_dataset(world[2]), batch_size=1)
    # the labels are the FP32 net's own answers, and nothing may be lost
    assert measured.top1 == 1.0
    plan = QuantPlan.from_json(bundle.read(PLAN))
    assert set(found["float_nodes"]) <= set(plan.float_ops)
    assert set(found["cost_ms"]) == set(found["float_nodes"])
    assert found["latency_ms"] > 0
    lines = explain(bundle)
    assert any("kept by the search" in line and "float" in line for line in lines)
    assert "conversions between them" in lines[-1]


def test_an_interrupted_search_goes_on_and_a_finished_one_is_not_repeated(world, tmp_path, monkeypatch):
    calls = []
    evaluate_once = trial.EngineTrials._loss

    def interrupted(self, nodes):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(nodes)
        return evaluate_once(self, nodes)

    monkeypatch.setattr(trial.EngineTrials, "_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        searched(world, tmp_path)
    second = []
    monkeypatch.setattr(trial.EngineTrials, "_time", lambda self, plans: [10.0 + len(plan) for plan in plans])
    monkeypatch.setattr(
        trial.EngineTrials, "_loss", lambda self, nodes: second.append(nodes) or evaluate_once(self, nodes)
    )
    bundle = searched(world, tmp_path)
    assert not set(calls) & set(second), "a plan was measured twice"
    digest = bundle.digest

    def refuse(*unused):
        raise AssertionError("a finished search measured again")

    monkeypatch.setattr(trial.EngineTrials, "_loss", refuse)
    monkeypatch.setattr(trial.EngineTrials, "_time", refuse)
    assert searched(world, tmp_path).digest == digest


def test_a_budget_of_nothing_still_gives_a_bundle(world, tmp_path):
    bundle = searched(world, tmp_path, time_budget_s=1e-6)
    found = bundle.manifest.provenance["calibration"]["search"]
    assert not found["complete"]
    assert found["tried"] == 1
    assert found["met"] == (found["drop"] <= 0)


def test_a_target_that_does_not_run_here_is_searched_on_its_plan(world, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    found = searched(world, tmp_path, target="tensorrt").manifest.provenance["calibration"]["search"]
    assert found["engine"] == "onnxruntime"
    assert found["met"]
    assert found["latency_ms"] is None


def test_raw_outputs_are_compared_with_fp32(world, tmp_path):
    _, common, validation = world
    common = {key: value for key, value in common.items() if key != "classes"}
    graph = tiny_net()
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info("joined", onnx.TensorProto.FLOAT, ["N", 32, 8, 8]))
    del graph.graph.node[-3:]
    net = save_net(tmp_path / "joined.onnx", graph)
    options = ConvertOptions(max_drop=5.0)
    arguments = {"targets": ["onnxruntime"], "precision": "int8", "out": tmp_path / "out", "val_data": validation}
    found = convert(net, **arguments, options=options, **common)[0].manifest.provenance["calibration"]["search"]
    assert found["measure"] == "cosine"
    assert found["met"]
    # 1 − cosine of a net quantized to 8 bits is small but not nothing
    assert 0.0 < found["drop"] < 5.0


def test_limit_and_validation_data_go_together(world, tmp_path):
    source, common, validation = world
    arguments = {"targets": ["onnxruntime"], "precision": "int8", "out": tmp_path, **common}
    with pytest.raises(UsageError, match="--val-data"):
        convert(source, options=ConvertOptions(max_drop=0.5), **arguments)
    with pytest.raises(UsageError, match="--max-drop"):
        convert(source, val_data=validation, **arguments)
    with pytest.raises(UsageError, match="0 points or more"):
        ConvertOptions(max_drop=-1.0)
    with pytest.raises(UsageError, match="above 0"):
        ConvertOptions(time_budget_s=0.0)
    nothing = Subset(open_dataset(validation), [])
    with pytest.raises(DataError, match="no pictures"):
        convert(source, val_data=nothing, options=ConvertOptions(max_drop=0.5), **arguments)


def test_auto_ranges_reach_the_plan(world, tmp_path):
    source, common, _ = world
    made = {"targets": ["openvino"], "precision": "int8", "out": tmp_path, "options": ConvertOptions(ranges="auto")}
    bundle = convert(source, **made, **common)[0]
    chosen = bundle.manifest.provenance["calibration"]["ranges"]
    plan = QuantPlan.from_json(bundle.read(PLAN))
    assert set(chosen) == set(plan.activations)
    assert convert(source, **made, **common)[0].digest == bundle.digest


def test_sensitivity_of_a_source(world, tmp_path):
    source, common, _ = world
    result = sensitivity(source, target="ncnn", out=tmp_path, pictures=4, **common)
    # ncnn runs depthwise convolutions in float, and those of few products for each value
    assert {layer.node for layer in result.layers} == {"branch", "head"}
    with pytest.raises(UsageError, match="1 or more"):
        sensitivity(source, target="ncnn", pictures=0, **common)


def test_the_verb_prints_and_writes(world, tmp_path, capsys):
    source, common, _ = world
    arguments = ["sensitivity", str(source), "--data", common["data"], "--preprocess", "unit", "--pictures", "4"]
    assert main([*arguments, "--json", "-o", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "sensitivity.json").read_text()) == printed
    rows = list(csv.DictReader((tmp_path / "sensitivity.csv").read_text().splitlines()))
    assert [row["node"] for row in rows] == [layer["node"] for layer in printed["layers"]]
    svg = ElementTree.parse(tmp_path / "sensitivity.svg").getroot()
    # one bar for each layer, on one background
    assert len(svg.findall("{http://www.w3.org/2000/svg}rect")) == len(rows) + 1
    assert main([*arguments, "-o", str(tmp_path)]) == 0
    assert "all layers together" in capsys.readouterr().out


def test_findings_reach_the_bundle_and_the_terminal(world, tmp_path, capsys):
    source, common, _ = world
    arguments = ["convert", str(source), "--targets", "onnxruntime", "--precision", "int8", "--preprocess", "unit"]
    few = ["--data", f"{common['data']}[:3]", "-o", str(tmp_path), "--no-verify"]
    assert main([*arguments, *few, "--json"]) == 0
    captured = capsys.readouterr()
    assert "edgevision convert: warning: 3 calibration pictures are too few" in captured.err
    document = json.loads(captured.out)
    assert [finding["kind"] for finding in document["warnings"]] == ["too_few"]
    # a finished bundle is not made again, and still says so
    assert main([*arguments, *few]) == 0
    assert "too few" in capsys.readouterr().err


def test_a_loss_beyond_the_limit_is_exit_code_3(world, tmp_path, capsys):
    source, common, validation = world
    arguments = ["convert", str(source), "--targets", "onnxruntime", "--precision", "int8", "--preprocess", "unit"]
    more = ["--data", common["data"], "--val-data", validation, "--max-drop", "0", "--time-budget", "0.000001"]
    more += ["--ranges", "entropy", "--no-equalize", "--no-verify"]
    assert main([*arguments, *more, "-o", str(tmp_path)]) == 3
    captured = capsys.readouterr()
    assert "the time budget ended the search" in captured.err
    assert "all-int8" in captured.out


def test_a_quantized_model_is_refused(world, tmp_path):
    source, common, _ = world
    bundle = convert(source, targets=["onnxruntime"], precision="int8", out=tmp_path, **common)[0]
    quantized = tmp_path / "quantized.onnx"
    quantized.write_bytes(bundle.engine_file("model"))
    with pytest.raises(ModelError, match="quantized already"):
        convert(quantized, targets=["onnxruntime"], precision="int8", out=tmp_path / "again", **common)


def shared_weights() -> onnx.ModelProto:
    """Two convolutions one after the other with one weight and one bias between them, at different ranges."""
    rng = np.random.default_rng(3)
    constants = {
        "stem_w": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "stem_b": rng.normal(0, 0.1, 8),
        "shared_w": rng.normal(0, 0.3, (8, 8, 3, 3)),
        "shared_b": rng.normal(0, 0.1, 8),
        "head_w": rng.normal(0, 1, (6, 8)),
        "head_b": rng.normal(0, 0.1, 6),
    }
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["images", "stem_w", "stem_b"], ["s"], "stem", strides=[2, 2], **same),
        helper.make_node("Relu", ["s"], ["sr"], "stem_relu"),
        helper.make_node("Conv", ["sr", "shared_w", "shared_b"], ["a"], "first", **same),
        helper.make_node("Relu", ["a"], ["ar"], "first_relu"),
        helper.make_node("Conv", ["ar", "shared_w", "shared_b"], ["b"], "second", **same),
        helper.make_node("Relu", ["b"], ["br"], "second_relu"),
        helper.make_node("GlobalAveragePool", ["br"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "head_w", "head_b"], ["logits"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "ncnn"])
def test_a_model_that_shares_weights_keeps_its_answers(world, tmp_path, target):
    from edgevision.parity import verify

    _, common, _ = world
    net = save_net(tmp_path / "shared.onnx", shared_weights())
    bundle = convert(net, targets=[target], precision="int8", out=tmp_path, **common)[0]
    found = verify(bundle)
    assert found.passed
    # three layers at 8 bits keep far more than this; one with its neighbour's scale does not
    assert found.fp32.sqnr_db > 20.0


def test_the_budget_counts_from_before_the_calibration(world, tmp_path, monkeypatch):
    from edgevision_calibration import observe

    now = [0.0]
    monkeypatch.setattr(Budget.__init__, "__defaults__", (lambda: now[0],))
    original = observe.observe

    def slow(*arguments, **more):
        now[0] += 100.0
        return original(*arguments, **more)

    monkeypatch.setattr(observe, "observe", slow)
    found = searched(world, tmp_path, time_budget_s=90.0).manifest.provenance["calibration"]["search"]
    assert not found["complete"], "the calibration alone took more than the budget"
    assert found["tried"] == 1
    # the calibration is kept: the same command goes on, and now the time is enough
    found = searched(world, tmp_path, time_budget_s=90.0).manifest.provenance["calibration"]["search"]
    assert found["complete"]
    assert found["met"]
    assert now[0] == 100.0


@pytest.fixture
def rounded(monkeypatch) -> list[str]:
    """The long method as it may come out, in no time: weights on their grid, some of them a step away from nearest."""
    from edgevision.graph import Graph
    from edgevision_calibration import reconstruction, tail
    from edgevision_calibration.weights import quantize_weight, weight_axis

    calls = []

    def reconstruct(graph, plan, images, *, config):
        calls.append(plan.scheme.target)
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        axes = {node.input[1]: weight_axis(node) for node in graph.nodes if len(node.input) > 1}
        for tensor in model.graph.initializer:
            if tensor.name in plan.weights:
                weight, steps = graph.initializers[tensor.name], plan.weights[tensor.name]
                shape = [1] * weight.ndim
                shape[axes[tensor.name]] = -1
                integers = quantize_weight(weight, steps, axes[tensor.name]).astype(np.float32)
                integers.flat[::97] += np.sign(weight.flat[::97] - (integers * steps.reshape(shape)).flat[::97])
                learned = np.clip(integers, -127, 127) * steps.reshape(shape)
                tensor.CopyFrom(numpy_helper.from_array(learned.astype(np.float32), tensor.name))
        learned_graph = Graph(model)
        biases = {name: bias + np.float32(0.001) for name, bias in plan.biases.items()}
        calibration = {**plan.calibration, "method": "long"}
        return learned_graph, replace(plan, graph_sha256=learned_graph.sha256, biases=biases, calibration=calibration)

    monkeypatch.setattr(reconstruction, "reconstruct", reconstruct)
    monkeypatch.setattr(tail, "is_decoded", lambda graph: True)
    return calls


def test_the_search_judges_the_weights_that_are_converted(world, tmp_path, rounded, monkeypatch):
    judged = {}
    original = trial.EngineTrials._loss
    monkeypatch.setattr(
        trial.EngineTrials,
        "_loss",
        lambda self, nodes: judged.setdefault(nodes, self._bundle(nodes)) and original(self, nodes),
    )
    bundle = searched(world, tmp_path, method="long", max_drop=20.0)
    found = bundle.manifest.provenance["calibration"]["search"]
    assert rounded == ["onnxruntime"], "weights are learned once, before the search"
    assert found["met"]
    assert found["float_nodes"], "the search had nothing to do"
    assert bundle.manifest.provenance["calibration"]["method"] == "long"
    # the very engine files that were judged
    assert 0 < len(found["float_nodes"]) < 5, found
    assert judged[frozenset(found["float_nodes"])].digest == bundle.digest


def test_layers_in_float_take_their_own_weights_back(world, tmp_path, rounded):
    from edgevision.pipeline.convert import open_job

    source, common, _ = world
    options = ConvertOptions(method="long")
    job = open_job(source, targets=["onnxruntime"], precisions=["int8"], out=tmp_path, options=options, **common)
    original, _ = job.calibration()
    learned_graph, learned = job.learned("onnxruntime")
    graph, plan = job.learned("onnxruntime", {"branch": "a test"})
    assert plan.graph_sha256 == graph.sha256
    assert "branch_w" not in plan.weights
    for name, array in graph.initializers.items():
        expected = original if name.startswith("branch") else learned_graph
        np.testing.assert_array_equal(array, expected.initializers[name])
    assert set(plan.biases) == set(learned.biases) - {"branch"}
    for name, bias in plan.biases.items():
        np.testing.assert_array_equal(bias, learned.biases[name])
    for name, steps in plan.weights.items():
        np.testing.assert_array_equal(steps, learned.weights[name])
    assert rounded == ["onnxruntime"]


def test_a_search_with_shared_weights_judges_them(world, tmp_path):
    bundle = searched(world, tmp_path, compress=4, max_drop=100.0)
    assert bundle.manifest.provenance["compression"]["bits"] == 4
    kept = list((tmp_path / ".edgevision" / "search").glob("*/onnxruntime-*.evb"))
    digests = {Bundle.open(path).digest for path in kept if "fp32" not in path.name}
    assert bundle.digest in digests
    plain = searched(world, tmp_path, max_drop=100.0)
    assert plain.digest not in digests
