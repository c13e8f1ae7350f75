from __future__ import annotations

import importlib
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgevision.errors import ModelError, UnsupportedOpError, UsageError
from edgevision.graph import Graph
from edgevision.runtime.tensorrt_build import BuildOptions, build_plan, make_log
from edgevision_converters.target import ConversionRequest
from edgevision_converters.tensorrt import OPSET, convert, engine_options, trt_check
from edgevision_converters.tensorrt.check import SUPPORTED_OPS
from edgevision_converters.tensorrt.half import to_half
from edgevision_converters.tensorrt.opset import lower_opset
from edgevision_converters.tensorrt.target import convert as convert_target
from tests.fakes.models import find, pictures, quantized_net, replace_constant, session, small_net


def stated(model):
    """`model` as convert leaves it, before the check."""
    return onnx.load_from_string(convert(Graph(small_net()), model, "int8"))


def good():
    return stated(quantized_net())


def run(model, **feed):
    return session(model).run(None, feed)


def small_graph(nodes, shape, output_shape, constants=None, opset=18, kind=TensorProto.FLOAT, inferred=True):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, kind, output_shape) for name in nodes[-1].output],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model) if inferred else model


def test_int8_keeps_every_number_and_states_kernel_shapes():
    model = quantized_net(opset=18)
    data = convert(Graph(small_net(18)), model, "int8")
    images = pictures(4)
    np.testing.assert_array_equal(run(data, images=images)[0], run(model, images=images)[0])
    converted = onnx.load_from_string(data)
    onnx.checker.check_model(converted, full_check=True)
    assert (converted.opset_import[0].version, converted.ir_version) == (OPSET, 8)
    kernels = {node.name: node.attribute for node in converted.graph.node if node.op_type == "Conv"}
    sizes = {name: [list(a.ints) for a in attrs if a.name == "kernel_shape"] for name, attrs in kernels.items()}
    assert sizes == {"stem": [[3, 3]], "depthwise": [[3, 3]], "pointwise": [[1, 1]]}


def test_the_same_input_gives_the_same_bytes_and_stays_as_it_was():
    graph = Graph(small_net(18))
    before = graph.to_bytes()
    assert convert(graph, None, "fp16") == convert(graph, None, "fp16")
    assert graph.to_bytes() == before


def test_int8_is_near_the_float_model():
    images = pictures(16)
    float_logits = run(small_net(), images=images)[0]
    logits = run(good(), images=images)[0]
    noise = np.mean((logits - float_logits) ** 2) / np.mean(float_logits**2)
    # 20 dB: a form that TensorRT takes and that computes something else would give 0 dB or less
    assert -10 * np.log10(noise) > 20


def test_precision_and_model_must_go_together():
    graph = Graph(small_net())
    with pytest.raises(UsageError, match="precision int8 needs Q/DQ model; got none"):
        convert(graph, None, "int8")
    with pytest.raises(UsageError, match="precision fp16 takes no Q/DQ model; got one"):
        convert(graph, quantized_net(), "fp16")
    with pytest.raises(UsageError, match="unknown precision 'int4'"):
        convert(graph, None, "int4")


def test_engine_options_are_what_the_runtime_reads():
    assert engine_options("fp32") == {"fp16": False, "int8": False, "batch": {"min": 1, "opt": 1, "max": 8}}
    assert engine_options("fp16")["fp16"] is True
    assert engine_options("int8", max_batch=32, opt_batch=16) == {
        "fp16": True, "int8": True, "batch": {"min": 1, "opt": 16, "max": 32},
    }  # fmt: skip
    assert BuildOptions.from_manifest(engine_options("int8")) == BuildOptions(True, True, 1, 1, 8)
    with pytest.raises(UsageError, match="unknown precision"):
        engine_options("bf16")
    with pytest.raises(UsageError, match="opt_batch 9, max_batch 8"):
        engine_options("fp16", opt_batch=9)


@pytest.mark.parametrize("kind", ["Conv", "Gemm"])
def test_a_layer_with_two_zeros_in_four_is_told_to_the_builder(kind, tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((6, 8, 3, 3) if kind == "Conv" else (6, 8)).astype(np.float32)
    shape = (1, 8, 5, 5) if kind == "Conv" else (1, 8)

    def options(values):
        node = helper.make_node(kind, ["images", "w"], ["y"], name="layer", **({} if kind == "Conv" else {"transB": 1}))
        outputs = (1, 6, 3, 3) if kind == "Conv" else (1, 6)
        graph = helper.make_graph(
            [node], "net", [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, outputs)], [numpy_helper.from_array(values, "w")],
        )  # fmt: skip
        net = Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
        return convert_target(ConversionRequest(net, "fp16", None, tmp_path)).options

    assert "sparse" not in options(weight)
    sparse = weight.copy()
    sparse[:, [0, 3, 5, 6]] = 0
    assert options(sparse)["sparse"] is True
    sparse[0, 3] = 1  # three of its first four
    assert "sparse" not in options(sparse)


def retype_zero(name, dtype):
    def change(model):
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        replace_constant(model, name, numpy_helper.to_array(tensor).astype(dtype))

    return change


def set_constant(name, value):
    return lambda model: replace_constant(model, name, np.asarray(value))


def drop_input(node, position):
    def change(model):
        del find(model, node).input[position:]

    return change


def store_int8_weights(model):
    node = find(model, "pointwise_w_dequantize")
    weight = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "pointwise_w")
    model.graph.initializer.append(numpy_helper.from_array((weight > 0).astype(np.int8), "stored"))
    node.input[0] = "stored"


def quantize_bias(model):
    constants = {"b_q": np.zeros(16, np.int32), "b_s": np.ones(16, np.float32), "b_z": np.zeros(16, np.int32)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    node = helper.make_node("DequantizeLinear", ["b_q", "b_s", "b_z"], ["b_dq"], "bias_dequantize", axis=0)
    model.graph.node.insert(0, node)
    find(model, "stem").input[2] = "b_dq"


def quantize_before_relu(model):
    relu = find(model, "stem_relu")
    position = list(model.graph.node).index(relu)
    constants = ["a0_scale", "a0_zero"]
    for node in (
        helper.make_node("DequantizeLinear", ["c0_q", *constants], ["c0_dq"], "between_dq"),
        helper.make_node("QuantizeLinear", ["c0", *constants], ["c0_q"], "between_q"),
    ):
        model.graph.node.insert(position, node)
    relu.input[0] = "c0_dq"


def give_concat_two_scales(model):
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "other_scale"))
    for name in ("r1_quantize", "r1_dequantize"):
        find(model, name).input[1] = "other_scale"
    # integers behind the concat, or it joins in float
    pool = find(model, "pool")
    position = list(model.graph.node).index(pool)
    constants = ["a0_scale", "a0_zero"]
    for node in (
        helper.make_node("DequantizeLinear", ["joined_q", *constants], ["joined_dq"], "joined_dequantize"),
        helper.make_node("QuantizeLinear", ["joined", *constants], ["joined_q"], "joined_quantize"),
    ):
        model.graph.node.insert(position, node)
    pool.input[0] = "joined_dq"


def use_qlinear(model):
    find(model, "residual").op_type = "QLinearAdd"
    find(model, "residual").domain = "com.microsoft"


def let_integers_out(model):
    find(model, "pool").input[0] = "r0_q"


def leave_the_input_in_float(model):
    find(model, "pointwise").input[0] = "r1"


def give_activation_channels(model):
    replace_constant(model, "r0_scale", np.full(16, 0.1, np.float32))
    replace_constant(model, "r0_zero", np.zeros(16, np.int8))


def no_axis(model):
    for name in ("stem_w_quantize", "stem_w_dequantize"):
        del find(model, name).attribute[:]


def other_axis(model):
    for name in ("pointwise_w_quantize", "pointwise_w_dequantize"):
        find(model, name).attribute[0].i = 1


def too_far_axis(model):
    for name in ("classifier_w_quantize", "classifier_w_dequantize"):
        find(model, name).attribute[0].i = 1


def no_kernel_shape(model):
    node = find(model, "stem")
    kept = [a for a in node.attribute if a.name != "kernel_shape"]
    del node.attribute[:]
    node.attribute.extend(kept)


def half_weights(model):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "stem_w")
    replace_constant(model, "stem_w", numpy_helper.to_array(tensor).astype(np.float16))


def one_scale_of_the_pair(model):
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "other_scale"))
    find(model, "features_dequantize").input[1] = "other_scale"


REFUSALS = {
    "uint8 activations": (retype_zero("r0_zero", np.uint8), r"'r0_quantize' has a uint8 zero point.*wrong numbers"),
    "unsigned weights": (retype_zero("stem_w_zero", np.uint8), r"'stem_w_quantize' has a uint8.*quantize weights"),
    "int16": (retype_zero("r0_zero", np.int16), r"'r0_quantize' has a int16 zero point"),
    "asymmetric activations": (set_constant("r0_zero", np.int8(-3)), r"zero point -3.*quantize activations"),
    "asymmetric weights": (
        set_constant("stem_w_zero", np.arange(16, dtype=np.int8)),
        r"'stem_w_quantize' has the zero point 1; .*quantize weights with zero point 0",
    ),
    "int32 bias": (quantize_bias, r"'bias_dequantize' dequantizes int32.*leave biases in float32"),
    "int32 zero point": (retype_zero("r0_zero", np.int32), "quantized bias"),
    "no zero point": (drop_input("r0_quantize", 2), r"'r0_quantize' has no zero point.*add an int8"),
    "int8 weights in the file": (store_int8_weights, r"'pointwise_w_dequantize' dequantizes int8.*weights_as_float"),
    "float16 weights": (half_weights, r"'stem_w_quantize' quantizes float16 weights"),
    "between conv and relu": (quantize_before_relu, r"between Conv 'stem' and Relu 'stem_relu'.*output of Relu"),
    "two scales at concat": (give_concat_two_scales, r"Concat 'join' joins 'r1_dq' of scale 0.5 and 'a0_dq'.*greatest"),
    "integers elsewhere": (
        let_integers_out,
        r"integers of QuantizeLinear 'r0_quantize' reach Global.*'pool'",
    ),
    "weights alone": (leave_the_input_in_float, r"Conv 'pointwise' has quantized weights and a float input"),
    "activation per channel": (give_activation_channels, r"'r0_quantize' has 16 scales on an activation"),
    "no axis": (no_axis, r"'stem_w_quantize' has 16 scales and no axis; state it"),
    "input channels": (other_axis, r"Conv 'pointwise' has weight scales along axis 1;.*axis 0"),
    "scales that do not fit": (too_far_axis, r"10 scales along axis 1 of weights \[10, 32\]"),
    "no kernel shape": (no_kernel_shape, r"Conv 'stem' has quantized weights and no kernel_shape"),
    "zero scale": (set_constant("r0_scale", np.float32(0)), r"'r0_quantize' has a scale that is not a positive"),
    "NaN scale": (set_constant("r0_scale", np.float32("nan")), "not a positive number"),
    "double scale": (set_constant("r0_scale", np.float64(1)), "float64 scales"),
    "fewer zero points": (set_constant("stem_w_zero", np.int8(0)), "16 scales and 1 zero points"),
    "pair of two scales": (one_scale_of_the_pair, r"'features_dequantize' and QuantizeLinear 'features_quantize'"),
}


def test_a_concat_of_two_scales_may_join_in_float():
    model = good()
    give_concat_two_scales(model)
    find(model, "pool").input[0] = "joined"
    for name in ("joined_dequantize", "joined_quantize"):
        model.graph.node.remove(find(model, name))
    trt_check(model)


def test_a_layer_may_be_quantized_before_relu_where_another_reads_it_too():
    model = good()
    quantize_before_relu(model)
    # the layer's own output is needed: nothing that could have been fused
    find(model, "residual").input[1] = "c0_dq"
    trt_check(model)


@pytest.mark.parametrize("case", REFUSALS)
def test_other_forms_of_qdq_are_refused_with_node_and_mend(case):
    change, message = REFUSALS[case]
    model = good()
    trt_check(model)  # only the change below is wrong
    change(model)
    with pytest.raises(ModelError, match=message):
        trt_check(model)


def test_computed_scales_and_zero_points_are_refused():
    for position, word in ((1, "computes its scale"), (2, "computes its zero point")):
        model = good()
        node = find(model, "r0_quantize")
        model.graph.node.insert(0, helper.make_node("Identity", [node.input[position]], ["computed"], "computed"))
        node.input[position] = "computed"
        with pytest.raises(ModelError, match=f"'r0_quantize' {word}"):
            trt_check(model)


def test_constants_may_be_nodes():
    model = good()
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "r0_zero")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["r0_zero"], "zero", value=zero))
    model.graph.initializer.remove(zero)
    trt_check(model)


@pytest.mark.parametrize("op", ["QLinearConv", "QLinearMatMul", "ConvInteger", "DynamicQuantizeLinear"])
def test_integer_ops_are_refused(op):
    model = good()
    find(model, "residual").op_type = op
    with pytest.raises(UnsupportedOpError, match=f"{op} 'residual'.*Q/DQ form"):
        trt_check(model)


def test_ops_of_other_domains_and_unknown_ops_are_refused_in_branches_too():
    model = small_net()
    find(model, "stem_relu").domain = "com.example"
    with pytest.raises(UnsupportedOpError, match=r"Relu 'stem_relu' is of domain 'com\.example'"):
        trt_check(model)
    model = small_net()
    find(model, "stem_relu").op_type = "Mish"
    with pytest.raises(UnsupportedOpError, match=r"TensorRT 8.5 has no Mish 'stem_relu'"):
        trt_check(model)
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Mish", ["x"], ["y"], "inner")], "branch", [], [value])
    inside = helper.make_node("If", ["condition"], ["y"], "choice", then_branch=branch, else_branch=branch)
    condition = {"condition": np.asarray(True)}
    with pytest.raises(UnsupportedOpError, match="Mish 'inner'"):
        trt_check(small_graph([inside], [1], [1], condition, opset=17, inferred=False))


def test_the_list_of_ops_holds_what_vision_networks_are_made_of():
    for op in ("Conv", "HardSwish", "HardSigmoid", "Resize", "Softmax", "ConvTranspose", "PRelu", "DepthToSpace"):
        assert op in SUPPORTED_OPS
    # in the standard and in the parsers of TensorRT 10 only
    for op in ("GroupNormalization", "Gelu", "LayerNormalization", "Mish", "QLinearConv", "DeformConv"):
        assert op not in SUPPORTED_OPS


def test_settings_the_parser_has_not_are_refused():
    resize = {"roi": np.empty(0, np.float32), "scales": np.asarray([1, 1, 2, 2], np.float32)}
    for setting, value in (
        ("mode", "cubic"),
        ("coordinate_transformation_mode", "tf_crop_and_resize"),
    ):
        node = helper.make_node("Resize", ["x", "roi", "scales"], ["y"], "up", **{setting: value})
        with pytest.raises(UnsupportedOpError, match=f"Resize 'up': TensorRT 8.5 has no {setting} '{value}'"):
            trt_check(small_graph([node], [1, 3, 4, 4], [1, 3, 8, 8], resize, opset=17, inferred=False))
    node = helper.make_node("MaxPool", ["x"], ["y", "indices"], "pool", kernel_shape=[2, 2])
    with pytest.raises(UnsupportedOpError, match=r"MaxPool 'pool'.*Indices"):
        trt_check(small_graph([node], [1, 3, 4, 4], None, opset=17, inferred=False))
    nodes = [
        helper.make_node("Shape", ["x"], ["axes"], "shape"),
        helper.make_node("Unsqueeze", ["x", "axes"], ["y"], "grow"),
    ]
    with pytest.raises(UnsupportedOpError, match=r"Unsqueeze 'grow'.*'axes'.*constant"):
        trt_check(small_graph(nodes, [1], None, opset=17, inferred=False))


def test_newer_opsets_free_sizes_and_functions_are_refused():
    with pytest.raises(ModelError, match=r"opset 18; TensorRT 8.5 and 8.6 read up to 17"):
        trt_check(small_net(18))
    model = small_net()
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "W"
    with pytest.raises(ModelError, match="'images' is free in dimension 3"):
        trt_check(model)
    model = small_net()
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    with pytest.raises(ModelError, match=r"functions of its own .Twice."):
        trt_check(model)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["ReduceMean", "ReduceMax", "ReduceL2", "ReduceSumSquare", "ReduceSum"]),
    st.lists(st.integers(0, 3), unique=True, min_size=1, max_size=3),
    st.booleans(),
)
def test_reductions_keep_their_axes_in_opset_17(op, axes, keep):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    node = helper.make_node(op, ["x", "axes"], ["y"], op, keepdims=int(keep))
    model = small_graph([node], x.shape, None, {"axes": np.asarray(axes, np.int64)})
    lowered = lower_opset(model)
    onnx.checker.check_model(lowered, full_check=True)
    assert lowered.opset_import[0].version == 17
    np.testing.assert_array_equal(run(lowered, x=x)[0], run(model, x=x)[0])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(1, 4))
def test_splits_keep_their_parts_in_opset_17(length, parts):
    # opset 18 wants every part but the last full
    parts = min(parts, length)
    if -(-length // parts) * (parts - 1) >= length:
        return
    x = np.arange(2 * length, dtype=np.float32).reshape(2, length)
    node = helper.make_node("Split", ["x"], [f"y{i}" for i in range(parts)], "split", axis=1, num_outputs=parts)
    model = small_graph([node], x.shape, None)
    lowered = lower_opset(model)
    onnx.checker.check_model(lowered)
    for ours, theirs in zip(run(lowered, x=x), run(model, x=x), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("opset", [18, 19, 20, 21, 22, 23])
def test_a_network_of_a_newer_opset_keeps_its_numbers(opset):
    scales = {"roi": np.empty(0, np.float32), "scales": np.asarray([1, 1, 2, 2], np.float32)}
    shape = {"shape": np.asarray([1, -1], np.int64), "pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"], "pad"),
        helper.make_node("AveragePool", ["p"], ["a"], "average", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Resize", ["a", "roi", "scales"], ["r"], "up", mode="linear", antialias=0),
        helper.make_node("HardSwish", ["r"], ["h"], "swish"),
        helper.make_node("Reshape", ["h", "shape"], ["y"], "flat"),
    ]
    model = small_graph(nodes, [1, 3, 4, 4], None, {**scales, **shape}, opset=opset)
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
    lowered = lower_opset(model)
    onnx.checker.check_model(lowered, full_check=True)
    assert {opset.version for opset in lowered.opset_import} == {17}
    # ONNX Runtime has other kernels for other opsets: the last bit of values up to 3 may differ
    np.testing.assert_allclose(run(lowered, x=x)[0], run(model, x=x)[0], rtol=0, atol=1e-6)


def test_grid_sample_modes_take_their_old_names():
    grid = np.random.default_rng(1).uniform(-1, 1, (1, 2, 2, 2)).astype(np.float32)
    for name, old in (("linear", b"bilinear"), (None, b"bilinear"), ("cubic", b"bicubic"), ("nearest", b"nearest")):
        mode = {"mode": name} if name else {}
        node = helper.make_node("GridSample", ["x", "grid"], ["y"], "sample", **mode)
        model = small_graph([node], [1, 3, 4, 4], None, {"grid": grid}, opset=20)
        lowered = lower_opset(model)
        assert [attribute.s for attribute in lowered.graph.node[0].attribute] == [old]
        x = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
        np.testing.assert_array_equal(run(lowered, x=x)[0], run(model, x=x)[0])


def test_an_older_opset_stays():
    assert lower_opset(small_net(13)).opset_import[0].version == 13


def test_what_opset_17_cannot_say_is_refused_by_name():
    resize = {"roi": np.empty(0, np.float32), "scales": np.asarray([1, 1, 0.5, 0.5], np.float32)}
    node = helper.make_node("Resize", ["x", "roi", "scales"], ["y"], "down", mode="linear", antialias=1)
    with pytest.raises(UnsupportedOpError, match="Resize 'down' sets antialias=1"):
        lower_opset(small_graph([node], [1, 3, 4, 4], None, resize))
    node = helper.make_node("Gelu", ["x"], ["y"], "gelu")
    with pytest.raises(UnsupportedOpError, match="has no Gelu 'gelu'"):
        lower_opset(small_graph([node], [1, 3], None, opset=20))
    constants = {"pads": np.asarray([1, 1], np.int64), "value": np.float32(0), "axes": np.asarray([1], np.int64)}
    node = helper.make_node("Pad", ["x", "pads", "value", "axes"], ["y"], "pad")
    with pytest.raises(UnsupportedOpError, match="Pad 'pad' has 4 inputs; opset 17 has 3"):
        lower_opset(small_graph([node], [1, 3], None, constants))
    nodes = [
        helper.make_node("Identity", ["axes"], ["computed"], "axes"),
        helper.make_node("ReduceMean", ["x", "computed"], ["y"], "mean"),
    ]
    with pytest.raises(UnsupportedOpError, match="ReduceMean 'mean' computes its axes"):
        lower_opset(small_graph(nodes, [1, 3], None, {"axes": np.asarray([1], np.int64)}))
    node = helper.make_node("ReduceMean", ["x"], ["y"], "mean", noop_with_empty_axes=1)
    with pytest.raises(UnsupportedOpError, match="ReduceMean 'mean' reduces over no axes"):
        lower_opset(small_graph([node], [1, 3], None))
    node = helper.make_node("Split", ["x"], ["y", "z"], "split", axis=0, num_outputs=2)
    with pytest.raises(UnsupportedOpError, match=r"Split 'split'.*unknown length"):
        lower_opset(small_graph([node], ["N", 3], None, inferred=False))


def test_fp16_is_float32_outside_and_near_the_float32_model():
    images = pictures(16)
    data = convert(Graph(small_net(18)), None, "fp16")
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    borders = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in borders} == {TensorProto.FLOAT}
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}
    wanted = run(small_net(), images=images)[0]
    # float16 has 11 significant bits: 5 layers of sums over up to 144 products stay well within 1 % of the peak
    np.testing.assert_allclose(run(data, images=images)[0], wanted, atol=0.01 * np.abs(wanted).max())


def test_fp16_keeps_what_float16_would_break():
    constants = {
        "scales": np.asarray([1, 1, 2, 2], np.float32),
        "roi": np.empty(0, np.float32),
        "epsilon": np.float32(1e-12),
        "least": np.float32(-np.inf),
        "most": np.float32(6),
    }
    nodes = [
        helper.make_node("Resize", ["x", "roi", "scales"], ["r"], "up"),
        helper.make_node("Clip", ["r", "least", "most"], ["c"], "clip"),
        helper.make_node("Add", ["c", "epsilon"], ["a"], "add"),
        helper.make_node("Div", ["c", "a"], ["y"], "div"),
    ]
    model = small_graph(nodes, [1, 1, 2, 2], [1, 1, 4, 4], constants, opset=17)
    half = to_half(model)
    onnx.checker.check_model(half, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert kinds["scales"] == TensorProto.FLOAT
    assert kinds["epsilon"] == kinds["least"] == TensorProto.FLOAT16
    # 0 / (0 + epsilon): an epsilon rounded to zero would give NaN
    assert run(half, x=np.zeros((1, 1, 2, 2), np.float32))[0].max() == 0


def test_fp16_refuses_what_float16_cannot_hold():
    model = small_net()
    replace_constant(model, "stem_b", np.full(16, 1e5, np.float32))
    with pytest.raises(ModelError, match=r"'stem_b' holds 1e\+05; the greatest float16 is 65504: .*fp32"):
        convert(Graph(model), None, "fp16")
    boxes = {
        "scores": np.ones((1, 1, 4), np.float32),
        "most": np.int64(3), "iou": np.float32(0.5), "least": np.float32(0.1),
    }  # fmt: skip
    node = helper.make_node("NonMaxSuppression", ["x", "scores", "most", "iou", "least"], ["y"], "nms")
    graph = small_graph([node], [1, 4, 4], None, boxes, opset=17, kind=TensorProto.INT64)
    with pytest.raises(UnsupportedOpError, match="NonMaxSuppression 'nms' has no float16 form"):
        to_half(graph)


def test_a_model_without_an_opset_is_refused():
    model = small_net()
    del model.opset_import[:]
    with pytest.raises(ModelError, match="names no version"):
        convert(Graph(model), None, "fp32")


RTX = next((name for name in ("tensorrt_rtx", "tensorrt_rtx_bindings") if find_spec(name)), None)


@pytest.mark.skipif(RTX is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_nvidias_own_builder_takes_every_precision(precision):
    """TensorRT-RTX parses and compiles without a GPU: a judge of form and types, not of speed."""
    trt = importlib.import_module(RTX)
    for opset in (17, 18):
        model = quantized_net(opset) if precision == "int8" else None
        data = convert(Graph(small_net(opset)), model, precision)
        options = BuildOptions.from_manifest(engine_options(precision))
        plan, _ = build_plan(trt, make_log(trt), data, options, workspace_bytes=1 << 30)
        assert len(plan) > 1000
