from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgevision.bundle import Manifest
from edgevision.errors import EngineError
from edgevision.preprocess import Preprocess
from edgevision.runtime.tensors import TensorSpec
from edgevision.tasks import Classification, Tensors, classification_logits, interpret, softmax

logits = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    elements=st.floats(-1000, 1000, width=32),
)


def manifest(task: str, classes: tuple[str, ...] = ()) -> Manifest:
    spec = TensorSpec("images", "float32", (None, 3, 4, 4))
    return Manifest("small", task, "ncnn", "fp32", (spec,), (spec,), Preprocess((4, 4)), {}, classes)


@settings(max_examples=100, deadline=None)
@given(values=logits)
def test_softmax_gives_probabilities_in_the_logits_order(values):
    probabilities = softmax(values)
    assert probabilities.dtype == np.float32
    assert probabilities.shape == values.shape
    assert (probabilities >= 0).all()
    # float32 sums of at most 9 values, and rows within 1e-3 of 1 pass as probabilities already
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, atol=1.1e-3)
    rows = np.arange(len(values))
    np.testing.assert_allclose(
        probabilities[rows, values.argmax(-1)], probabilities.max(-1), rtol=1e-6
    )  # equal up to rounding: values that differ by less than float32 can tell


def test_softmax_leaves_probabilities_alone_and_does_not_overflow():
    given_already = np.float32([[0.25, 0.75], [1.0, 0.0]])
    assert softmax(given_already) is given_already
    np.testing.assert_array_equal(softmax(np.float32([[1e30, -1e30]])), [[1.0, 0.0]])
    # one negative value: logits that happen to sum to 1
    assert softmax(np.float32([[2.0, -1.0]]))[0, 0] < 1.0


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1, 1), (2, 1, 1, 5)])
def test_logits_lose_their_trailing_dimensions(shape):
    values = np.arange(10, dtype=np.float64).reshape(shape)
    found = classification_logits({"logits": values, "more": np.zeros(3)})
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.arange(10, dtype=np.float32).reshape(2, 5))


@settings(max_examples=50, deadline=None)
@given(values=logits, k=st.integers(1, 12))
def test_top_is_sorted_and_starts_with_the_label(values, k):
    for result in interpret(manifest("classification"), {"logits": values}):
        assert isinstance(result, Classification)
        top = result.top(k)
        assert len(top) == min(k, values.shape[1])
        assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
        assert top[0] == (result.name, float(result.probabilities.max()))
        assert result.label == int(result.probabilities.argmax())


def test_a_classification_as_json_names_its_classes():
    result = interpret(manifest("classification", ("cat", "dog")), {"logits": np.float32([[0.0, 5.0, 2.0]])})[0]
    values = json.loads(json.dumps(result.to_dict(2)))
    assert list(values) == ["label", "name", "probability", "top"]
    assert values["label"] == 1
    assert values["name"] == "dog"
    # a class beyond the names is called by its index
    assert [entry["name"] for entry in values["top"]] == ["dog", "2"]
    assert values["probability"] == values["top"][0]["probability"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_engine_that_answers_nan_is_an_engine_error(value):
    with pytest.raises(EngineError, match="NaN or infinity among the 2 class scores"):
        interpret(manifest("classification"), {"logits": np.float32([[0.0, 1.0], [value, 1.0]])})


def test_tensors_that_are_empty_or_not_finite_have_a_json_form():
    outputs = {"boxes": np.zeros((1, 0, 4), np.float32), "mask": np.float32([[0.0, -np.inf]])}
    values = interpret(manifest("tensors"), outputs)[0].to_dict()
    json.dumps(values, allow_nan=False)
    assert values["outputs"]["boxes"] == {"shape": [0, 4], "min": None, "max": None, "mean": None}
    assert values["outputs"]["mask"] == {"shape": [2], "min": None, "max": 0.0, "mean": None}


def test_other_networks_give_their_tensors_picture_by_picture():
    outputs = {"boxes": np.arange(12, dtype=np.float32).reshape(2, 2, 3), "scores": np.ones((2, 4), np.float32)}
    first, second = interpret(manifest("tensors"), outputs)
    assert isinstance(second, Tensors)
    np.testing.assert_array_equal(second.outputs["boxes"], outputs["boxes"][1])
    values = json.loads(json.dumps(first.to_dict()))
    assert values["outputs"]["boxes"] == {"shape": [2, 3], "min": 0.0, "max": 5.0, "mean": 2.5}
