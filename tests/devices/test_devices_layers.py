from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgevision.bundle import Bundle, Manifest
from edgevision.devices.layers import depthwise_share, integer_share, layer_costs, least_memory_bytes
from edgevision.devices.layers_ncnn import ncnn_layers, parse
from edgevision.devices.layers_onnx import onnx_layers
from edgevision.devices.layers_openvino import openvino_layers
from edgevision.errors import ModelError
from tests.conformance.nets import tiny_net
from tests.devices.bundles import PARAM, manifest

# of the tiny network: 16 × 16 maps of 16 channels, then 8 × 8
STEM, DEPTHWISE, POINTWISE, BRANCH, HEAD = 16 * 256 * 27, 16 * 256 * 9, 16 * 256 * 16, 16 * 64 * 144, 6 * 32


def test_costs_of_an_onnx_file() -> None:
    layers = onnx_layers(tiny_net().SerializeToString(), "fp32")
    by_name = {layer.name: layer for layer in layers}
    found = {name: by_name[name].macs for name in ("stem", "depthwise", "pointwise", "branch", "head")}
    assert found == {
        "stem": STEM, "depthwise": DEPTHWISE, "pointwise": POINTWISE, "branch": BRANCH, "head": HEAD,
    }  # fmt: skip
    assert by_name["depthwise"].kind == "depthwise"
    assert by_name["head"].kind == "dense"
    # 3 × 32 × 32 in, 16 × 16 × 16 out, 432 weights
    assert by_name["stem"].moved_bytes == 4 * (3072 + 4096 + 432)
    assert by_name["residual"].moved_bytes == 4 * 3 * 4096
    # activations are fused into what they follow
    assert not {"stem_relu6", "flatten"} & set(by_name)
    assert depthwise_share(layers) == pytest.approx(DEPTHWISE / (STEM + DEPTHWISE + POINTWISE + BRANCH + HEAD))
    weights = 432 + 144 + 256 + 2304 + 192
    assert least_memory_bytes(layers) == 4 * (weights + 3 * 4096)


@pytest.mark.parametrize("weights_behind", ["dequantize", "both"])
def test_integers_of_an_onnx_file_are_told(weights_behind: str) -> None:
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.int8), "w8")
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["xq"], "q"),
        helper.make_node("DequantizeLinear", ["xq", "s"], ["xd"], "d"),
        helper.make_node("DequantizeLinear", ["w8", "s"], ["wd"], "dw"),
        helper.make_node("Conv", ["xd", "wd"], ["y"], "conv"),
        helper.make_node("Conv", ["y", "float"], ["z"], "float_conv"),
    ]
    if weights_behind == "both":
        nodes.insert(2, helper.make_node("QuantizeLinear", ["wf", "s"], ["w8"], "qw"))
        weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "wf")
    kernel = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "float")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 5, 5])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4, 5, 5])],
        [weight, scale, kernel],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    layers = onnx_layers(model.SerializeToString(), "fp16")
    assert [(layer.name, layer.precision, layer.weights) for layer in layers] == [
        ("conv", "int8", 12),
        ("float_conv", "fp16", 16),
    ]
    assert integer_share(layers) == pytest.approx(300 / 700)


def test_costs_of_an_ncnn_file() -> None:
    layers = ncnn_layers(PARAM, [3, 32, 32], "fp32")
    assert [(layer.name, layer.kind, layer.macs, layer.precision) for layer in layers if layer.macs] == [
        ("stem", "convolution", STEM, "int8"),
        ("depthwise", "depthwise", DEPTHWISE, "fp32"),
        ("pointwise", "convolution", POINTWISE, "int8"),
        ("branch", "convolution", BRANCH, "int8"),
        ("head", "dense", HEAD, "int8"),
    ]


@pytest.mark.parametrize(
    ("line", "shapes", "made"),
    [
        ("Pooling p 1 1 in0 out0 0=0 1=3 2=2 3=1 5=1", [(8, 112, 112)], (8, 56, 56)),
        # ncnn's default rounds up
        ("Pooling p 1 1 in0 out0 0=0 1=3 2=2", [(8, 55, 55)], (8, 27, 27)),
        ("Pooling p 1 1 in0 out0 0=0 1=3 2=2", [(8, 56, 56)], (8, 28, 28)),
        ("Pooling p 1 1 in0 out0 0=1 4=1", [(8, 7, 7)], (8,)),
        ("Pooling p 1 1 in0 out0 0=1 7=1 8=2 18=3", [(8, 7, 7)], (8, 3, 2)),
        ("Convolution c 1 1 in0 out0 0=8 1=3 3=2 4=-233 6=216", [(3, 7, 9)], (8, 4, 5)),
        ("Convolution c 1 1 in0 out0 0=8 1=5 11=3 3=1 2=2 6=360", [(3, 20, 20)], (8, 16, 12)),
        ("Deconvolution d 1 1 in0 out0 0=4 1=2 3=2 4=0 6=48", [(3, 5, 6)], (4, 10, 12)),
        ("Concat c 2 1 in0 in1 out0 0=0", [(3, 5, 6), (4, 5, 6)], (7, 5, 6)),
        ("Interp i 1 1 in0 out0 0=2 1=2.0 2=2.0", [(3, 5, 6)], (3, 10, 12)),
        ("Interp i 1 1 in0 out0 0=2 3=9 4=8", [(3, 5, 6)], (3, 9, 8)),
        ("Padding p 1 1 in0 out0 0=1 1=2 2=3 3=4", [(3, 5, 6)], (3, 8, 13)),
        ("Reshape r 1 1 in0 out0 0=-1 1=3", [(3, 5, 6)], (3, 30)),
        ("Permute p 1 1 in0 out0 0=3", [(3, 5, 6)], (5, 6, 3)),
        ("Flatten f 1 1 in0 out0", [(3, 5, 6)], (90,)),
        ("Reduction r 1 1 in0 out0 0=3 1=0 -23303=2,1,2 4=1", [(3, 5, 6)], (3, 1, 1)),
        ("BinaryOp b 2 1 in0 in1 out0 0=2", [(3, 1, 1), (3, 5, 6)], (3, 5, 6)),
        ("Swish s 1 1 in0 out0", [(3, 5, 6)], (3, 5, 6)),
    ],
)
def test_shapes_of_ncnn(line: str, shapes: list[tuple[int, ...]], made: tuple[int, ...]) -> None:
    inputs = [
        f"Input in{number} 0 1 in{number} " + " ".join(f"{key}={size}" for key, size in zip((0, 1, 2), shape[::-1]))  # noqa: B905
        for number, shape in enumerate(shapes)
    ]
    text = "\n".join(["7767517", "9 9", *inputs, line])
    last = ncnn_layers(text, [3, 1, 1], "fp32")[-1]
    assert last.outputs == int(np.prod(made))


def test_slices_of_ncnn() -> None:
    text = "7767517\n3 4\nInput in 0 1 a 0=6 1=5 2=8\nSlice s 1 3 a b c d -23300=3,2,-233,-233 1=0\nSwish w 1 1 c e\n"
    swish = ncnn_layers(text, [3, 1, 1], "fp32")[-1]
    assert swish.inputs == 3 * 5 * 6


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7767518\n1 1\n",
        "7767517\n1 1\nConvolution c one two\n",
        "7767517\n1 1\nSwish s 1 1 missing out\n",
        "7767517\n2 3\nInput i 0 1 a\nOdd o 1 2 a b c\n",
        "7767517\n2 3\nInput i 0 1 a\nSwish o 1 2 a b\n",
    ],
)
def test_damaged_ncnn_files(text: str) -> None:
    with pytest.raises(ModelError):
        ncnn_layers(text, [3, 8, 8], "fp32")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="01 -=,.ConvolutionInput\n#x", max_size=80))
def test_any_text_as_ncnn_is_parsed_or_refused(text: str) -> None:
    try:
        entries = parse("7767517\n1 1\n" + text)
    except ModelError:
        return
    assert all(entry.kind for entry in entries)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_changed_number_in_an_ncnn_file_is_an_error_or_a_cost(data: st.DataObject) -> None:
    lines = PARAM.split("\n")
    row = data.draw(st.integers(3, len(lines) - 1))
    words = lines[row].split()
    column = data.draw(st.integers(4, max(4, len(words) - 1)))
    words[min(column, len(words) - 1)] = data.draw(
        st.sampled_from(["0=-1", "3=0", "13=0", "7=x", "1=1e400", "6=5", "zz"])
    )
    lines[row] = " ".join(words)
    bundle = Bundle(manifest(), {"engine/model.param": "\n".join(lines).encode(), "engine/model.bin": b"x"})
    try:
        layers = layer_costs(bundle)
    except ModelError:
        return
    assert any(layer.macs for layer in layers)


IR = """<?xml version="1.0"?>
<net name="n" version="11"><layers>
<layer id="0" name="x" type="Parameter"><output><port id="0">{x}</port></output></layer>
<layer id="1" name="w" type="Const"><output><port id="0">{w}</port></output></layer>
<layer id="2" name="fq" type="FakeQuantize"><input><port id="0">{x}</port></input>
  <output><port id="5">{x}</port></output></layer>
<layer id="3" name="conv" type="Convolution"><input><port id="0">{x}</port><port id="1">{w}</port></input>
  <output><port id="2">{y}</port></output></layer>
<layer id="4" name="b" type="Const"><output><port id="0">{b}</port></output></layer>
<layer id="5" name="bias" type="Add"><input><port id="0">{y}</port><port id="1">{b}</port></input>
  <output><port id="2">{y}</port></output></layer>
<layer id="6" name="g" type="Const"><output><port id="0">{g}</port></output></layer>
<layer id="7" name="depthwise" type="GroupConvolution"><input><port id="0">{y}</port><port id="1">{g}</port></input>
  <output><port id="2">{y}</port></output></layer>
<layer id="8" name="pool" type="MaxPool"><input><port id="0">{y}</port></input>
  <output><port id="1">{y}</port></output></layer>
</layers><edges>
<edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
<edge from-layer="2" from-port="5" to-layer="3" to-port="0"/>
<edge from-layer="1" from-port="0" to-layer="3" to-port="1"/>
<edge from-layer="3" from-port="2" to-layer="5" to-port="0"/>
<edge from-layer="4" from-port="0" to-layer="5" to-port="1"/>
<edge from-layer="5" from-port="2" to-layer="7" to-port="0"/>
<edge from-layer="6" from-port="0" to-layer="7" to-port="1"/>
<edge from-layer="7" from-port="2" to-layer="8" to-port="0"/>
</edges></net>"""


def dims(*sizes: int) -> str:
    return "".join(f"<dim>{size}</dim>" for size in sizes)


def test_costs_of_an_openvino_ir() -> None:
    text = IR.format(
        x=dims(-1, 3, 32, 32), w=dims(16, 3, 3, 3), y=dims(-1, 16, 16, 16), b=dims(1, 16, 1, 1), g=dims(16, 1, 1, 3, 3)
    )
    layers = openvino_layers(text, "fp32")
    assert [(layer.name, layer.kind, layer.macs, layer.precision) for layer in layers] == [
        ("conv", "convolution", STEM, "int8"),
        ("depthwise", "depthwise", DEPTHWISE, "fp32"),
        ("pool", "other", 0, "fp32"),
    ]
    assert layers[0].weights == 432
    assert layers[0].inputs == 3072


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="OpenVINO"):
        openvino_layers("<net", "fp32")
    with pytest.raises(ModelError, match="ONNX"):
        onnx_layers(b"\xff\xff no model", "fp32")
    empty = Bundle(manifest(), {"engine/model.param": b"7767517\n1 1\nInput i 0 1 in0\n", "engine/model.bin": b"x"})
    with pytest.raises(ModelError, match="no convolution"):
        layer_costs(empty)


def test_the_manifest_says_which_file_and_what_is_wide() -> None:
    files = {"engine/model.param": PARAM.encode(), "engine/model.bin": b"x"}
    half: Manifest = manifest(precision="fp16")
    layers = layer_costs(Bundle(half, files))
    assert {layer.precision for layer in layers} == {"int8", "fp16"}
