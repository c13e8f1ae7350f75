from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgevision.errors import UsageError
from edgevision.models import MODELS, create_model, model_names, model_table, task_of
from edgevision.models.efficientrep import EfficientRep
from edgevision.models.layers import fit_strides, make_divisible
from edgevision.models.squeezenet import Fire

# the zoo's classifiers; what third parties have installed is theirs to test
NAMES = [name for name in sorted(MODELS._entries) if task_of(name) == "classification"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("input_size", [32, 224])
def test_forward_of_every_model_at_both_stems(name: str, input_size: int) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=7, in_channels=2, input_size=input_size, width=0.25).eval()
    with torch.inference_mode():
        logits = model(torch.randn(2, 2, input_size, input_size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert not torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, in_channels=1, input_size=32, width=0.25)
    model(torch.randn(8, 1, 32, 32)).square().sum().backward()
    without = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert not without


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("input_size", "last"), [(32, 4), (64, 8), (65, None), (224, None)])
def test_last_map_of_the_small_stem_is_an_eighth(name: str, input_size: int, last: int | None) -> None:
    sizes: list[int] = []
    with torch.device("meta"):
        model = create_model(name, input_size=input_size).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-1]))
        model(torch.empty(1, 3, input_size, input_size))
    maps = [size for size in sizes if size > 1]  # squeeze-and-excitation convolves 1×1 maps
    if last is not None:
        assert min(maps) == last
        assert maps[0] == input_size
    else:
        # ImageNet stems divide by 32, SqueezeNet's by 16 with no padding in front
        expected = {65: {3}, 224: {7}} if "squeeze" not in name else {65: {3, 4}, 224: {12, 13}}
        assert min(maps) in expected[input_size]


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    num_classes=st.integers(1, 50),
    in_channels=st.integers(1, 6),
    input_size=st.integers(16, 96),
    width=st.floats(0.05, 2.0),
    batch=st.integers(1, 3),
)
def test_any_classes_channels_sizes_and_widths(
    name: str, num_classes: int, in_channels: int, input_size: int, width: float, batch: int
) -> None:
    with torch.device("meta"):
        model = create_model(
            name, num_classes=num_classes, in_channels=in_channels, input_size=input_size, width=width
        ).eval()
        assert model(torch.empty(batch, in_channels, input_size, input_size)).shape == (batch, num_classes)
    inner = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.num_features % 4 == 0 for m in inner)  # 8, halved inside EfficientRep's SPPF


@pytest.mark.parametrize("name", NAMES)
def test_architecture_records_what_builds_it_again(name: str) -> None:
    model = create_model(name, num_classes=3, in_channels=1, input_size=32, width=0.25)
    architecture = model.architecture
    assert architecture["name"] == name
    again = create_model(architecture["name"], **architecture["arguments"])
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_unknown_model_names_the_near_ones() -> None:
    with pytest.raises(UsageError, match=r"did you mean .*mobilenet_v2"):
        create_model("mobilenetv2")


def test_unknown_argument_names_the_valid_ones() -> None:
    with pytest.raises(UsageError, match=r"mobilenet_v2 takes no argument 'droput'.*num_classes.*dropout"):
        create_model("mobilenet_v2", droput=0.1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_classes", 0),
        ("num_classes", 2.5),
        ("in_channels", -1),
        ("input_size", 8),
        ("input_size", (224, 224)),
        ("width", 0.0),
        ("width", float("nan")),
        ("width", "wide"),
        ("num_classes", True),
    ],
)
def test_values_out_of_range(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=key):
        create_model("mobilenet_v2", **{key: value})


def test_unknown_block() -> None:
    with pytest.raises(UsageError, match="unknown block 'repvg': did you mean"):
        create_model("efficientrep_n", block="repvg")


@pytest.mark.parametrize("name", NAMES)
def test_builders_share_defaults_and_take_keywords_only(name: str) -> None:
    parameters = inspect.signature(MODELS.resolve(name)).parameters
    common = {key: parameters[key].default for key in ("num_classes", "in_channels", "input_size", "width")}
    assert common == {"num_classes": 1000, "in_channels": 3, "input_size": 224, "width": 1.0}
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters.values())


def test_table_has_a_line_for_every_name() -> None:
    assert [info.name for info in model_table()] == model_names()
    assert all(info.description and info.paper for info in model_table() if info.name in NAMES)


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['numpy'] = None\n"
        "from edgevision.models import model_names, model_table\n"
        "assert len(model_table()) == len(model_names()) >= 19\n"
        "assert 'edgevision.models.layers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("size", "channels"), [("n", (64, 128, 256)), ("s", (128, 256, 512))])
@pytest.mark.parametrize(("input_size", "strides"), [(224, (8, 16, 32)), (32, (2, 4, 8))])
def test_efficientrep_feature_maps(
    size: str, channels: tuple[int, ...], input_size: int, strides: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        model = create_model(f"efficientrep_{size}", input_size=input_size).eval()
        assert isinstance(model, EfficientRep)
        maps = model.features(torch.empty(1, 3, input_size, input_size))
    assert model.feature_channels == channels
    assert [m.shape for m in maps] == [
        (1, c, input_size // s, input_size // s) for c, s in zip(channels, strides, strict=True)
    ]


def test_efficientrep_depths_of_yolov6() -> None:
    # 6, 12, 18, 6 blocks times 0.33, after the one that downsamples
    with torch.device("meta"):
        model = create_model("efficientrep_n")
    assert [len(stage) for stage in (model.stage2, model.stage3, model.stage4, model.stage5)] == [3, 5, 7, 3]


def test_simple_bypass_is_around_fire_3_5_7_9_and_adds_the_input() -> None:
    plain, bypass = (create_model(name, input_size=32) for name in ("squeezenet1_0", "squeezenet1_0_bypass"))
    assert [m.bypass for m in bypass.modules() if isinstance(m, Fire)] == [False, True] * 4
    bypass.load_state_dict(plain.state_dict())
    x = torch.rand(1, 128, 5, 5)
    with torch.inference_mode():
        # index 4 is fire3
        torch.testing.assert_close(bypass.features[4](x), x + plain.features[4](x))


@given(st.floats(1, 5000))
def test_make_divisible(channels: float) -> None:
    rounded = make_divisible(channels)
    assert rounded % 8 == 0
    assert rounded >= 0.9 * channels
    assert rounded <= max(8, channels + 8)
    assert make_divisible(rounded) == rounded


def test_fit_strides() -> None:
    assert fit_strides([2, 1, 2, 2, 1, 2, 2], 224) == [2, 1, 2, 2, 1, 2, 2]
    assert fit_strides([2, 1, 2, 2, 1, 2, 2], 64) == [1, 1, 1, 2, 1, 2, 2]
