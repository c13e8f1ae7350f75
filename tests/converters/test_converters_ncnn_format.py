from __future__ import annotations

import struct

import ncnn_nets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.errors import ModelError
from edgevision_converters.ncnn.model import TAG_FLOAT16, TAG_FLOAT32, TAG_FLOAT32_UNSCALED, TAG_INT8, NcnnModel, Weight
from edgevision_converters.ncnn.param import Layer, format_param, parse_param
from edgevision_converters.ncnn.pnnx import lower
from edgevision_converters.ncnn.schema import weight_slots

words = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)
# a value is any word; the first "=" ends the key
layers = st.builds(
    Layer,
    type=words,
    name=words,
    bottoms=st.lists(words, max_size=4),
    tops=st.lists(words, max_size=4),
    params=st.dictionaries(st.integers(-23400, 400), words, max_size=6),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(layers, max_size=8))
def test_param_text_round_trip(made):
    text = format_param(made)
    assert parse_param(text) == made
    assert format_param(parse_param(text)) == text


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 40),
    st.integers(-(2**31), 2**31 - 1),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5),
)
def test_values_set_are_values_read(key, value, values):
    layer = Layer("Convolution", "conv", ["a"], ["b"])
    layer.set(key, value)
    layer.set_array(key, values)
    (again,) = parse_param(format_param([layer]))
    assert again.integer(key) == value
    assert again.array(key) == values
    assert again.integer(key + 41, 5) == 5
    assert again.array(key + 41) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line is not 7767517"),
        ("7767518\n1 1\n", "first line is not 7767517"),
        ("7767517\n", "line 2: expected the numbers"),
        ("7767517\nmany\n", "line 2: expected the numbers"),
        ("7767517\n2 1\nInput in0 0 1 in0\n", "announces 2 layers and has 1"),
        ("7767517\n1 1\nInput in0 0\n", "line 3: expected 'type name"),
        ("7767517\n1 1\nInput in0 0 2 in0\n", "line 3: expected 'type name"),
        ("7767517\n1 1\nInput in0 0 -1 in0\n", "line 3: expected 'type name"),
        ("7767517\n1 1\nInput in0 0 1 in0 width=3\n", "line 3: expected 'type name"),
        ("7767517\n1 1\nInput in0 0 1 in0 0=\n", "line 3: expected 'type name"),
    ],
)
def test_damaged_param_is_refused(text, message):
    with pytest.raises(ModelError, match=message):
        parse_param(text)


def test_damaged_values_are_refused():
    (layer,) = parse_param("7767517\n1 1\nInput in0 0 1 in0 0=x -23310=2,1.0 -23311=1,a\n")
    with pytest.raises(ModelError, match=r"layer in0 .* parameter 0='x' is not a number"):
        layer.integer(0)
    with pytest.raises(ModelError, match="array 10 announces 2, has 1"):
        layer.array(10)
    with pytest.raises(ModelError, match="array 11='1,a' holds no numbers"):
        layer.array(11)


def weighted(kind, params, name="layer"):
    return Layer(kind, name, ["in0"], ["out0"], {key: str(value) for key, value in params.items()})


# layer type, parameters, (count, tagged) of each blob as ncnn's load_model of that layer reads them
LAYOUTS = [
    ("Convolution", {0: 4, 6: 36, 5: 1}, [(36, True), (4, False)]),
    ("Convolution", {0: 4, 6: 36, 5: 1, 8: 2}, [(36, True), (4, False), (4, False), (1, False)]),
    ("Convolution", {0: 4, 6: 36, 8: 102}, [(36, True), (4, False), (1, False), (1, False)]),
    ("Convolution", {0: 4, 6: 36, 19: 1}, []),
    ("ConvolutionDepthWise", {0: 8, 6: 72, 7: 8, 5: 1, 8: 1}, [(72, True), (8, False), (8, False), (1, False)]),
    ("ConvolutionDepthWise", {0: 8, 6: 72, 7: 4, 8: 101}, [(72, True), (4, False), (1, False), (1, False)]),
    ("ConvolutionDepthWise", {0: 8, 6: 72, 7: 4, 8: 2}, [(72, True), (1, False), (1, False)]),
    ("InnerProduct", {0: 5, 1: 1, 2: 60, 8: 2}, [(60, True), (5, False), (5, False), (1, False)]),
    ("Deconvolution", {0: 3, 6: 27, 5: 1, 19: 1}, [(27, True), (3, False)]),
    ("Deconvolution", {0: 3, 6: 27, 28: 1}, []),
    ("Gemm", {4: 0, 5: 1, 6: 1, 8: 6, 9: 7, 10: 4}, [(42, True), (6, True)]),
    ("Gemm", {4: 1, 7: 2, 9: 7, 6: 1, 10: -1}, [(14, True)]),
    ("LSTM", {0: 4, 1: 64, 2: 2, 3: 4}, [(64, True), (32, True), (128, True)]),
    ("LSTM", {0: 2, 1: 64, 3: 4}, [(64, True), (16, True), (32, True), (8, True)]),
    ("GRU", {0: 4, 1: 60}, [(60, True), (16, True), (48, True)]),
    ("RNN", {0: 4, 1: 20}, [(20, True), (4, True), (16, True)]),
    (
        "MultiHeadAttention",
        {0: 8, 1: 2, 2: 64},
        [(64, True), (8, False), (64, True), (8, False), (64, True), (8, False), (64, True), (8, False)],
    ),
    ("MemoryData", {0: 5, 1: 3, 2: 2}, [(30, False)]),
    ("MemoryData", {0: 5, 21: 0}, [(5, True)]),
    ("MemoryData", {}, []),
    ("Embed", {0: 4, 1: 10, 2: 1, 3: 40}, [(40, True), (4, False)]),
    ("Scale", {0: 6, 1: 1}, [(6, False), (6, False)]),
    ("Scale", {0: -233}, []),
    ("BatchNorm", {0: 6}, [(6, False)] * 4),
    ("PReLU", {0: 6}, [(6, False)]),
    ("Bias", {0: 6}, [(6, False)]),
    ("LayerNorm", {0: 6}, [(6, False)] * 2),
    ("LayerNorm", {0: 6, 2: 0}, []),
    ("GroupNorm", {0: 2, 1: 6}, [(6, False)] * 2),
    ("InstanceNorm", {0: 6}, [(6, False)] * 2),
    ("RMSNorm", {0: 6}, [(6, False)]),
    ("Normalize", {3: 6}, [(6, False)]),
    ("Padding", {6: 3}, [(3, False)]),
    ("Padding", {}, []),
    ("Quantize", {0: 3}, [(3, False)]),
    ("Dequantize", {0: 3, 1: 4}, [(3, False), (4, False)]),
    ("Requantize", {0: 1, 1: 2, 2: 3}, [(1, False), (2, False), (3, False)]),
    ("DeformableConv2D", {0: 4, 5: 1, 6: 36}, [(36, True), (4, False)]),
    ("ReLU", {0: 0}, []),
]


@pytest.mark.parametrize(("kind", "params", "expected"), LAYOUTS)
def test_layout_of_weights(kind, params, expected):
    assert [(slot.count, slot.tagged) for slot in weight_slots(weighted(kind, params))] == expected


@pytest.mark.parametrize(
    ("kind", "params"),
    [("Deconvolution", {0: 1, 6: 9, 8: 2}), ("Gemm", {18: 4}), ("LSTM", {0: 4, 1: 64, 8: 2}), ("Embed", {18: 1})],
)
def test_integer_forms_that_are_not_known_are_refused(kind, params):
    with pytest.raises(ModelError, match=r"INT8 form|integer weights"):
        weight_slots(weighted(kind, params))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_weights_round_trip_bit_for_bit(data):
    made, weights = [], {}
    for index in range(data.draw(st.integers(1, 5))):
        kind, params, expected = data.draw(st.sampled_from(LAYOUTS))
        layer = weighted(kind, params, f"layer{index}")
        made.append(layer)
        blobs = []
        for count, tagged in expected:
            tags = [TAG_FLOAT32, TAG_FLOAT32_UNSCALED, TAG_FLOAT16, TAG_INT8]
            tag = data.draw(st.sampled_from(tags)) if tagged else None
            dtype = {TAG_FLOAT16: "<f2", TAG_INT8: "i1"}.get(tag, "<f4")
            # any bits, NaN and subnormal included
            bits = np.random.default_rng(data.draw(st.integers(0, 99))).bytes(count * np.dtype(dtype).itemsize)
            blobs.append(Weight(np.frombuffer(bits, dtype), tag))
        if blobs:
            weights[layer.name] = blobs
    param, binary = NcnnModel(made, weights).to_bytes()
    assert len(binary) % 4 == 0
    again = NcnnModel.from_bytes(param, binary)
    assert again.to_bytes() == (param, binary)
    assert again.layers == made
    assert {name: [blob.tag for blob in blobs] for name, blobs in again.weights.items()} == {
        name: [blob.tag for blob in blobs] for name, blobs in weights.items()
    }


def convolution_bytes():
    layer = weighted("Convolution", {0: 2, 6: 6, 5: 1})
    weight = Weight(np.arange(6, dtype=np.float32), TAG_FLOAT32)
    return NcnnModel([layer], {"layer": [weight, Weight.raw([0.5, 1.5])]}).to_bytes()


def test_bytes_of_a_convolution():
    _, binary = convolution_bytes()
    assert binary == struct.pack("<I6f2f", 0, *range(6), 0.5, 1.5)


def test_damaged_bin_is_refused():
    param, binary = convolution_bytes()
    for cut in (0, 3, 10, len(binary) - 1):
        with pytest.raises(ModelError, match=rf"ends after {cut} bytes, within layer layer \(Convolution\)"):
            NcnnModel.from_bytes(param, binary[:cut])
    with pytest.raises(ModelError, match=f"has {len(binary) + 4} bytes, the .param describes {len(binary)}"):
        NcnnModel.from_bytes(param, binary + bytes(4))
    with pytest.raises(ModelError, match="unknown weight tag 0xdeadbeef"):
        NcnnModel.from_bytes(param, struct.pack("<I", 0xDEADBEEF) + binary[4:])
    with pytest.raises(ModelError, match="it is no text"):
        NcnnModel.from_bytes(b"\xff\xfe", binary)
    with pytest.raises(ModelError, match="announces -6 weights"):
        NcnnModel.from_bytes(param.replace(b"6=6", b"6=-6"), binary)


def test_a_name_with_weights_twice_is_refused():
    layer = weighted("PReLU", {0: 1})
    text = format_param([layer, layer])
    with pytest.raises(ModelError, match="names layer 'layer' with weights twice"):
        NcnnModel.from_bytes(text, bytes(8))


def test_readers_are_seen_through_splits():
    lines = [
        "Input in0 0 1 in0",
        "ReLU r 1 1 in0 a",
        "Split s 1 2 a a0 a1",
        "Split s 1 2 a1 a2 a3",
        "ReLU x 1 1 a0 x",
        "ReLU y 1 1 a2 y",
    ]
    model = NcnnModel.from_bytes("7767517\n6 8\n" + "\n".join(lines), b"")
    assert model.inputs == ["in0"]
    assert model.outputs == ["a3", "x", "y"]
    assert [layer.name for layer in model.readers()["a"]] == ["x", "y"]
    assert model.output_behind("a")
    assert not model.output_behind("in0")


def test_float16_keeps_biases_constants_and_weights_beyond_its_range():
    layers = [
        weighted("Convolution", {0: 1, 6: 3, 5: 1}, "small"),
        weighted("InnerProduct", {0: 1, 2: 2}, "large"),
        weighted("MemoryData", {0: 2, 21: 0}, "constant"),
    ]
    floats = {
        "small": [Weight(np.float32([1, 1 / 3, -2]), TAG_FLOAT32), Weight.raw([1 / 3])],
        "large": [Weight(np.float32([1, 70000]), TAG_FLOAT32)],
        "constant": [Weight(np.float32([1, 1 / 3]), TAG_FLOAT32)],
    }
    halved = NcnnModel(layers, floats).to_float16()
    assert [blob.tag for blob in halved.weights["small"]] == [TAG_FLOAT16, None]
    np.testing.assert_array_equal(halved.weights["small"][0].values, np.float16([1, 1 / 3, -2]))
    assert halved.weights["large"] == floats["large"]
    assert halved.weights["constant"] == floats["constant"]
    again = NcnnModel.from_bytes(*halved.to_bytes())
    assert again.to_bytes() == halved.to_bytes()


def test_what_pnnx_writes_comes_out_byte_for_byte(tmp_path):
    model, _ = lower(ncnn_nets.inverted_residual(), tmp_path)
    written = (tmp_path / "model.ncnn.param").read_bytes(), (tmp_path / "model.ncnn.bin").read_bytes()
    assert model.to_bytes() == written
