from __future__ import annotations

from typing import Any

import pytest

from edgevision.errors import UsageError
from edgevision.training import RECIPES, TrainConfig, recipe_for


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"epochs": 2.5}, "epochs must be a whole number"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"batch_size": -4}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be between"),
        ({"lr": "fast"}, "lr must be a number; got 'fast'"),
        ({"lr": float("nan")}, "lr must be between"),
        ({"label_smoothing": 1.0}, "label_smoothing must be between 0 and 1"),
        ({"optimizer": "sdg"}, "did you mean sgd"),
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"precision": "fp61"}, "did you mean fp16"),
        ({"channels_last": "yes"}, "channels_last must be true, false or 'auto'"),
        ({"flip": 1}, "flip must be true or false"),
        ({"workers": -1}, "workers must be between 0 and 256"),
        ({"threads": 0}, "threads must be between 1 and 1024"),
        ({"epochs": 2, "warmup_epochs": 3}, "must not exceed epochs"),
        ({"momentum": 0}, "nesterov needs a momentum above 0"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_dict(values)


def test_an_unknown_key_names_the_near_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown training key 'weigth_decay': did you mean weight_decay"):
        TrainConfig.from_dict({"weigth_decay": 0.1})


def test_plain_values_come_back() -> None:
    config = TrainConfig(epochs=7, lr=0.3, optimizer="adamw", channels_last=True, workers=2)
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_other_epochs_keep_the_warmup_in_proportion() -> None:
    assert TrainConfig(epochs=30, warmup_epochs=3).with_epochs(60).warmup_epochs == 3
    assert TrainConfig(epochs=30, warmup_epochs=3).with_epochs(1).warmup_epochs == pytest.approx(0.2)
    with pytest.raises(UsageError, match="epochs must be at least 1"):
        TrainConfig().with_epochs(0)


def test_recipes_go_by_the_data() -> None:
    assert recipe_for("digits (train)", input_size=32) is RECIPES["digits"]
    assert not RECIPES["digits"].flip  # a mirrored 2 is no digit
    assert recipe_for("npz:data/cifar10 (train)", input_size=32) is RECIPES["cifar10"]
    assert recipe_for("folder:photos", input_size=224) is RECIPES["photos"]
