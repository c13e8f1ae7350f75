from __future__ import annotations

import json
from typing import Any

import pytest

from edgevision.distillation import DistillConfig
from edgevision.errors import UsageError


def test_pairs_are_written_in_three_ways() -> None:
    config = DistillConfig(features=("a.b", "c = d", ("e", "f"), "a.b"))  # type: ignore[arg-type]
    assert config.features == (("a.b", "a.b"), ("c", "d"), ("e", "f"))


def test_a_config_survives_json() -> None:
    config = DistillConfig(temperature=2, alpha=0.9, features=("x=y",), channelwise=("z",), channelwise_weight=3.0)
    assert DistillConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0}, "temperature must be above 0; got 0"),
        ({"temperature": float("nan")}, "temperature must be a number; got nan"),
        ({"alpha": 1.5}, "alpha is the teacher's share, 0 to 1; got 1.5"),
        ({"alpha": True}, "alpha must be a number; got True"),
        ({"feature_weight": -1}, "feature_weight must be above 0"),
        ({"features": "layer"}, "features must be a list of layers"),
        ({"features": ["=x"]}, "features takes LAYER, or STUDENT_LAYER=TEACHER_LAYER; got '=x'"),
        ({"channelwise": [("a", "b", "c")]}, "channelwise takes LAYER"),
        ({"channelwise": [3]}, "channelwise takes LAYER"),
        ({"alpha": 0}, "teaches nothing"),
        ({"temprature": 2}, "unknown distillation key 'temprature': did you mean temperature"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DistillConfig.from_dict(values)
