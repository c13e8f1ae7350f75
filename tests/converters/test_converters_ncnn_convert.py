from __future__ import annotations

import dataclasses

import ncnn_nets
import numpy as np
import onnx
import pytest
from ncnn_nets import Net, absmax_plan, fake_quantized, images_for, run_onnx, sqnr_db

from edgevision.bundle import Bundle, Manifest
from edgevision.errors import ConversionError, OutputError, UnsupportedOpError, UsageError
from edgevision.graph import Graph
from edgevision.preprocess import Preprocess
from edgevision.runtime.backend import EngineOptions
from edgevision.runtime.session import Session
from edgevision.runtime.tensors import TensorSpec
from edgevision_calibration.scheme import scheme_for
from edgevision_converters.ncnn import NcnnModel, convert
from edgevision_converters.ncnn.quantize import WINOGRAD_LIMIT, largest_accumulator


def session_for(files, graph, layers=()):
    """The bundle a pipeline would make of ``files``, opened."""
    shape = graph.input_shape
    manifest = Manifest(
        name="net",
        task="tensors",
        target="ncnn",
        precision=files.precision,
        inputs=(TensorSpec(graph.input_name, "float32", (None, *shape[1:])),),
        outputs=tuple(TensorSpec(name, "float32", (None, *rest)) for name, rest in files.output_shapes.items()),
        preprocess=Preprocess(size=(shape[2], shape[3])),
        engine_files={role: path for role, (path, _) in files.engine_files.items()},
        engine_options=files.engine_options,
        tensor_names=dict(files.tensor_names),
    )
    bundle = Bundle(Manifest.from_dict(manifest.to_dict()), dict(files.engine_files.values()))
    return Session(bundle, EngineOptions(layers=tuple(layers)))


@pytest.mark.parametrize("name", ncnn_nets.NETS)
def test_fp32_equals_onnx_runtime_in_every_tensor(name):
    graph = ncnn_nets.NETS[name]()
    files = convert(graph, precision="fp32")
    images = images_for(graph)
    layers = [tensor for tensor in files.tensor_names if tensor not in (*graph.output_names, graph.input_name)]
    assert layers
    expected = run_onnx(graph.model, images, layers)
    with session_for(files, graph, layers) as session:
        got = session.infer({graph.input_name: images})
    assert set(graph.output_names) <= set(got)
    for tensor, value in got.items():
        # float32 sums in another order, and Winograd's transforms: 80 dB is 1e-4 of the signal
        assert sqnr_db(expected[tensor], value.reshape(expected[tensor].shape)) > 80, tensor
    for tensor in graph.output_names:
        assert got[tensor].shape == expected[tensor].shape
    assert min(files.cosine.values()) > 0.99999
    assert set(files.explanation.values()) == {"float32"}


def test_both_layouts_of_a_linear_layer_are_recognized():
    for trans_b in (0, 1):
        graph = ncnn_nets.classifier(trans_b)
        plan = absmax_plan(graph, images_for(graph))
        files = convert(graph, precision="int8", plan=plan)
        linear = [node.name for node in graph.nodes if node.op_type == "Gemm"]
        assert [files.explanation[name] for name in linear] == ["int8", "int8"]


@pytest.mark.parametrize("name", ncnn_nets.NETS)
def test_int8_computes_what_the_plan_says(name):
    graph = ncnn_nets.NETS[name]()
    images = images_for(graph)
    # ncnn stores one scale per group; a plan that says the same is computed exactly
    plan = absmax_plan(graph, images, per_group=True)
    files = convert(graph, precision="int8", plan=plan)
    expected = run_onnx(fake_quantized(graph, plan), images)
    with session_for(files, graph) as session:
        got = session.infer({graph.input_name: images})
    float_ops = {node for node, text in files.explanation.items() if text.startswith("float")}
    assert float_ops == set(plan.float_ops)
    exact = run_onnx(graph.model, images)
    for output in graph.output_names:
        # The integers are the same but for values on a rounding boundary: each of those is off by one step of 1/127
        # of the range. All values off would be about 38 dB; few are.
        assert sqnr_db(expected[output], got[output]) > 45
        # and the plan itself costs what 8 bits cost: far from equal to FP32, and far from noise
        assert 15 < sqnr_db(exact[output], got[output]) < 60


def test_per_channel_scales_of_a_grouped_convolution_become_one_per_group():
    graph = ncnn_nets.grouped()
    images = images_for(graph)
    plan = absmax_plan(graph, images)
    files = convert(graph, precision="int8", plan=plan)
    assert "one weight scale per group" in files.explanation["conv_2"]
    expected = run_onnx(graph.model, images)
    with session_for(files, graph) as session:
        got = session.infer({graph.input_name: images})
    # 8-bit weights that share a range with 5 others of up to 7 times their size keep 5 bits and more
    (output,) = graph.output_names
    assert sqnr_db(expected[output], got[output]) > 25


def test_depthwise_runs_on_integers_when_the_scheme_says_so():
    graph = ncnn_nets.inverted_residual()
    images = images_for(graph)
    plan = absmax_plan(graph, images, depthwise_float=False)
    plan = dataclasses.replace(plan, scheme=dataclasses.replace(plan.scheme, depthwise=True))
    files = convert(graph, precision="int8", plan=plan)
    assert all(text.startswith("int8") for text in files.explanation.values())
    expected = run_onnx(fake_quantized(graph, plan), images)
    with session_for(files, graph) as session:
        got = session.infer({graph.input_name: images})
    # as in test_int8_computes_what_the_plan_says
    (output,) = graph.output_names
    assert sqnr_db(expected[output], got[output]) > 45


def test_integers_stay_between_layers_where_every_reader_wants_them():
    graph = ncnn_nets.chain()
    images = images_for(graph)
    plan = absmax_plan(graph, images)
    files = convert(graph, precision="int8", plan=plan)
    stays = [name for name, text in files.explanation.items() if "output stays int8" in text]
    assert stays == ["conv_0", "conv_2", "conv_4"]
    # the tensor behind the fused ReLU is the one that is integer
    tensors = ["t1", "t3", "t5"]
    assert {files.tensor_names[tensor] for tensor in tensors} == set(files.integer_blobs)
    expected = run_onnx(fake_quantized(graph, plan), images, tensors)
    with session_for(files, graph, tensors) as session:
        got = session.infer({graph.input_name: images})
    for tensor in tensors:
        step = plan.activations[tensor].scale
        rounded = np.clip(np.rint(expected[tensor] / step), -127, 127) * step
        assert got[tensor].dtype == np.float32
        np.testing.assert_allclose(got[tensor] / step, np.rint(got[tensor] / step), atol=1e-3)  # whole steps
        assert sqnr_db(rounded, got[tensor]) > 45


def test_integers_do_not_stay_where_a_float_layer_or_an_output_reads_them():
    net = Net()
    x = net.op("Relu", net.conv("images", 16, stride=2))
    y = net.op("Relu", net.conv(x, 16))
    z = net.op("Add", [x, y], 16)
    graph = net.graph(net.conv(z, 8), y)
    images = images_for(graph)
    plan = absmax_plan(graph, images)
    files = convert(graph, precision="int8", plan=plan)
    assert not files.integer_blobs
    expected = run_onnx(fake_quantized(graph, plan), images)
    with session_for(files, graph) as session:
        got = session.infer({graph.input_name: images})
    for output in graph.output_names:
        assert sqnr_db(expected[output], got[output]) > 45  # as above


def test_ops_the_plan_keeps_in_float_stay_in_float():
    graph = ncnn_nets.chain()
    images = images_for(graph)
    plan = absmax_plan(graph, images, float_ops={"conv_2": "sensitive: 3 dB"})
    del plan.activations["t5"]
    files = convert(graph, precision="int8", plan=plan)
    assert files.explanation["conv_2"] == "float: sensitive: 3 dB"
    assert files.explanation["conv_6"] == "float: the plan has no range for its input 't5'"
    expected = run_onnx(fake_quantized(graph, plan), images)
    with session_for(files, graph) as session:
        got = session.infer({graph.input_name: images})
    assert sqnr_db(expected["features"], got["features"]) > 45  # as above


def wide_convolution(channels):
    """3×3 convolutions over many channels whose weights all have one sign: the largest accumulators there are."""
    net = Net(channels=channels, height=12, width=12)
    x = net.op("Relu", net.conv("images", channels))
    graph = net.graph(net.conv(x, 16))
    for tensor in graph.model.graph.initializer:
        if tensor.name.startswith("w"):
            values = np.abs(onnx.numpy_helper.to_array(tensor)) * 0 + np.float32(0.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return Graph(graph.model)


def test_winograd_is_off_where_its_sums_could_overflow():
    graph = wide_convolution(128)
    # 128 · 9 products of up to 127² are beyond the limit
    assert WINOGRAD_LIMIT < 128 * 9 * 127 * 127
    images = np.full((1, 128, 12, 12), 1, np.float32)
    plan = absmax_plan(graph, images)
    files = convert(graph, precision="int8", plan=plan)
    assert all("without Winograd" in text for text in files.explanation.values())
    expected = run_onnx(fake_quantized(graph, plan), images)
    with session_for(files, graph) as session:
        got = session.infer({graph.input_name: images})
    # an overflow would leave nothing of the signal
    assert sqnr_db(expected["t2"], got["t2"]) > 45


def test_winograd_stays_where_its_sums_cannot_overflow():
    graph = ncnn_nets.chain()
    files = convert(graph, precision="int8", plan=absmax_plan(graph, images_for(graph)))
    assert not any("Winograd" in text for text in files.explanation.values())


def test_accumulator_bound_uses_the_sign_of_the_input():
    integers = np.int8([[100, -50], [-20, 90]])
    assert largest_accumulator(integers, non_negative=False) == 150 * 127
    assert largest_accumulator(integers, non_negative=True) == 100 * 127


@pytest.mark.parametrize("factors", [(2.0, 2.0), (3.0, 2.0)])
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel"])
def test_nearest_neighbours_are_taken_however_they_are_written(coordinates, nearest, factors):
    net = Net(height=5, width=7)
    scales = net.constant("scales", np.float32([1, 1, *factors]))
    x = net.op("Relu", net.conv("images", 4))
    x = net.op("Resize", [x, "", scales], coordinate_transformation_mode=coordinates, nearest_mode=nearest)
    graph = net.graph(net.conv(x, 4))
    images = images_for(graph)
    files = convert(graph, precision="fp32")
    expected = run_onnx(graph.model, images)
    with session_for(files, graph) as session:
        got = session.infer({graph.input_name: images})
    (output,) = graph.output_names
    assert sqnr_db(expected[output], got[output]) > 80  # as above


def test_hardswish_is_fused_into_the_convolution_before_it():
    files = convert(ncnn_nets.hardswish_squeeze(), precision="fp32")
    model = NcnnModel.from_bytes(files.param, files.bin)
    assert not any(layer.type == "HardSwish" for layer in model.layers)
    assert sum(layer.integer(9) == 6 for layer in model.layers if layer.type == "Convolution") == 2


def test_fp16_halves_the_file_and_keeps_the_answers():
    graph = ncnn_nets.classifier()
    images = images_for(graph)
    single, half = convert(graph, precision="fp32"), convert(graph, precision="fp16")
    assert len(half.bin) < 0.6 * len(single.bin)
    assert half.engine_options["fp16"]
    expected = run_onnx(graph.model, images)
    with session_for(half, graph) as session:
        got = session.infer({graph.input_name: images})
    # float16 has 11 bits: 2^-11 of each weight and activation is about 66 dB, a few layers cost some of it
    assert sqnr_db(expected["logits"], got["logits"]) > 50


def test_conversion_is_reproducible_and_leaves_nothing_behind(tmp_path):
    graph = ncnn_nets.fire()
    plan = absmax_plan(graph, images_for(graph))
    first = convert(graph, precision="int8", plan=plan, workdir=tmp_path)
    second = convert(graph, precision="int8", plan=plan, workdir=tmp_path)
    assert first == second
    assert list(tmp_path.iterdir()) == []


def one_op(kind, domain="", opsets=(), **attrs):
    net = Net()
    net.op("Relu", "images", output="a")
    node = onnx.helper.make_node(kind, ["a"], ["y"], name="the_node", domain=domain, **attrs)
    net.nodes.append(node)
    return net.graph("y", opsets=opsets)


def test_ops_of_other_domains_are_refused_by_name():
    graph = one_op("Frobnicate", domain="com.example", opsets=("com.example",))
    with pytest.raises(UnsupportedOpError, match=r"op Frobnicate of domain 'com.example' \(node 'the_node'\)"):
        convert(graph, precision="fp32")


def test_ops_that_ncnn_lacks_are_refused_by_name():
    # pnnx hands an op it does not know on under its own name
    net = Net(height=16, width=16)
    net.op("Det", "images", output="y")
    with pytest.raises(UnsupportedOpError, match=r"ncnn has no layer for op Det \(node 'det_0'\)"):
        convert(net.graph("y"), precision="fp32")
    # and leaves an op it knows but ncnn does not as torch.gt
    net = Net()
    zero = net.constant("zero", np.float32(0))
    mask = net.op("Greater", ["images", zero])
    net.op("Where", [mask, "images", zero], output="y")
    with pytest.raises(UnsupportedOpError, match=r"ncnn has no layer for op Greater \(node 'greater_0'\)"):
        convert(net.graph("y"), precision="fp32")


def test_a_wrong_lowering_is_noticed():
    # pnnx hands ArgMax on under a name that ncnn uses for a layer with other parameters
    net = Net()
    x = net.op("ArgMax", "images", axis=1)
    net.op("Cast", x, output="y", to=onnx.TensorProto.FLOAT)
    with pytest.raises((ConversionError, UnsupportedOpError)):
        convert(net.graph("y"), precision="fp32")


def test_a_crash_of_pnnx_is_an_error_message():
    net = Net(channels=8)
    k = net.constant("k", np.int64([3]))
    net.nodes.append(onnx.helper.make_node("TopK", ["images", k], ["y", "i"], name="topk", axis=1))
    with pytest.raises(ConversionError, match=r"(?s)pnnx, .* crashed \(SIGSEGV\); .*TopK"):
        convert(net.graph("y"), precision="fp32")


def test_a_tool_that_takes_too_long_is_an_error_message():
    with pytest.raises(ConversionError, match=r"pnnx, .* took longer than 0\.001 s"):
        convert(ncnn_nets.chain(), precision="fp32", timeout_s=0.001)


def test_outputs_without_a_batch_are_refused():
    net = Net()
    x = net.op("ReduceMean", ["images", net.constant("axes", np.int64([0, 2, 3]))], keepdims=0)
    with pytest.raises(ConversionError, match=r"output 't0' has shape \[3\]|no output of"):
        convert(net.graph(x), precision="fp32")


def test_requests_that_cannot_be_met_are_refused():
    graph = ncnn_nets.chain()
    plan = absmax_plan(graph, images_for(graph))
    with pytest.raises(UsageError, match="precisions fp32, fp16, int8; got 'int4'"):
        convert(graph, precision="int4")
    with pytest.raises(UsageError, match="needs a quantization plan"):
        convert(graph, precision="int8")
    with pytest.raises(UsageError, match="made for another graph"):
        convert(ncnn_nets.fire(), precision="int8", plan=plan)
    foreign = dataclasses.replace(plan, scheme=scheme_for("openvino"))
    with pytest.raises(UsageError, match="symmetric int8 activations; the plan is for openvino"):
        convert(graph, precision="int8", plan=foreign)


def rewritten_ops(net, x):
    """What pnnx lowers wrongly or not at all, unless it is rewritten first."""
    low, high = net.op("Split", x, 4, output="low", axis=1), "high"
    net.nodes[-1].output.append(high)
    net.channels[high] = 4
    joined = net.op("Concat", [low, net.conv(high, 4), high], 12, axis=1)
    peak = net.op("ReduceMax", joined, 12, axes=[2, 3], keepdims=0)
    least = net.op("ReduceMin", joined, 1, axes=[1], keepdims=1)
    groups = net.op("Reshape", [joined, net.constant("groups", np.int64([0, 3, -1]))])
    ones = net.constant("ones", np.float32([1, 2, 3])), net.constant("zeros", np.float32([0, 0.5, 1]))
    normal = net.op("InstanceNormalization", [groups, *ones], epsilon=1e-5)
    normal = net.op("Reshape", [normal, net.constant("whole", np.int64([0, 12, 10, 12]))])
    return net.op("Mul", [joined, least]), peak, normal


def test_ops_that_pnnx_lowers_wrongly_are_rewritten_first():
    net = Net(opset=17)
    graph = net.graph(*rewritten_ops(net, net.conv("images", 8, stride=2)))
    images = images_for(graph)
    files = convert(graph, precision="fp32")
    expected = run_onnx(graph.model, images)
    with session_for(files, graph) as session:
        got = session.infer({graph.input_name: images})
    for output in graph.output_names:
        assert got[output].shape == expected[output].shape
        assert sqnr_db(expected[output], got[output]) > 80, output  # as in the first test
    assert {"low", "high"} <= set(files.tensor_names)


def test_a_working_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("")
    with pytest.raises(OutputError, match=r"cannot write working files in .*file"):
        convert(ncnn_nets.chain(), precision="fp32", workdir=occupied)


# Zoo networks of unlike kinds: squeeze-and-excite with HardSwish, Concat, fused RepVGG blocks
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "qarepvgg_tiny"])
def test_networks_of_the_zoo_convert(name):
    torch = pytest.importorskip("torch")
    from edgevision.models import create_model
    from edgevision_converters.export import export_module

    torch.manual_seed(0)
    graph = export_module(create_model(name, num_classes=10, input_size=32))
    images = images_for(graph)
    (output,) = graph.output_names
    files = convert(graph, precision="fp32")
    with session_for(files, graph) as session:
        got = session.infer({graph.input_name: images})
    # float32 sums in another order
    assert sqnr_db(run_onnx(graph.model, images)[output], got[output]) > 80
    plan = absmax_plan(graph, images)
    files = convert(graph, precision="int8", plan=plan)
    assert {name for name, text in files.explanation.items() if text.startswith("float")} == set(plan.float_ops)
    with session_for(files, graph) as session:
        got = session.infer({graph.input_name: images})
    # a value on a rounding boundary that goes the other way changes values on boundaries in all layers that follow
    assert sqnr_db(run_onnx(fake_quantized(graph, plan), images)[output], got[output]) > 25


# Opset 9 to 18, from three exporters: initializers among the inputs, batch norms unfolded, batch fixed
@pytest.mark.data
@pytest.mark.parametrize("name", ["fastestdet_coco_352", "ultraface_rfb_320", "mobilefacenet_112"])
def test_files_of_other_people_convert(data_root, name):
    pytest.importorskip("edgevision_converters.canonical", reason="the canonical form is made there")
    from edgevision_converters.canonical import canonicalize

    graph = canonicalize(onnx.load(data_root / "weights" / f"{name}.onnx"))
    images = images_for(graph, count=2)
    expected = run_onnx(graph.model, images)
    files = convert(graph, precision="fp32")
    with session_for(files, graph) as session:
        got = session.infer({graph.input_name: images})
    for output in graph.output_names:
        # float32 sums in another order through 50 and more layers
        assert sqnr_db(expected[output], got[output]) > 80
    plan = absmax_plan(graph, images)
    files = convert(graph, precision="int8", plan=plan)
    expected = run_onnx(fake_quantized(graph, plan), images)
    with session_for(files, graph) as session:
        got = session.infer({graph.input_name: images})
    for output in graph.output_names:
        # one step off in one layer is passed on and amplified by all that follow
        assert sqnr_db(expected[output], got[output]) > 25


@pytest.mark.parametrize("name", ncnn_nets.NETS)
def test_the_biases_of_a_plan_take_the_place_of_the_graphs(name):
    graph = ncnn_nets.NETS[name]()
    plan = absmax_plan(graph, images_for(graph))
    rng = np.random.default_rng(5)
    biased = [node for node in graph.nodes if node.op_type in {"Conv", "Gemm"} and len(node.input) > 2]
    biases, model = {}, onnx.ModelProto()
    model.CopyFrom(graph.model)
    for node in biased:
        if node.name not in plan.float_ops:
            own = graph.initializers[node.input[2]]
            biases[node.name] = rng.normal(0, 1, own.size).astype(np.float32)
            changed = onnx.numpy_helper.from_array(biases[node.name].reshape(own.shape), node.input[2])
            next(tensor for tensor in model.graph.initializer if tensor.name == node.input[2]).CopyFrom(changed)
    assert biases or not biased
    changed_graph = Graph(model)
    same_steps = dataclasses.replace(plan, graph_sha256=changed_graph.sha256)
    expected = convert(changed_graph, precision="int8", plan=same_steps)
    got = convert(graph, precision="int8", plan=dataclasses.replace(plan, biases=biases))
    assert got.engine_files == expected.engine_files
