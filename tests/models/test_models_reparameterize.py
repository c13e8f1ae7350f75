from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgevision.models import create_model
from edgevision.models.qarepvgg import QARepVGGBlock
from edgevision.models.reparameterize import is_reparameterizable, reparameterization_error, reparameterize
from edgevision.models.repvgg import RepBlock, RepVGGBlock, fold_bn

# relative to the largest output. Every layer rounds to float32 (6e-8) on both sides and random batch norms pass that
# on through up to 29 layers: 2e-6 measured at most over all nets and ten seeds each; 2e-5 leaves a factor of ten
FLOAT32_TOLERANCE = 2e-5

# the algebra itself, with nothing but float64 rounding (1e-16 per operation)
FLOAT64_TOLERANCE = 1e-12

REP_NETS = [
    *(f"{kind}_{size}" for kind in ("repvgg", "qarepvgg", "repoptvgg") for size in ("a0", "a1", "a2", "b0", "tiny")),
    "efficientrep_n",
    "efficientrep_s",
]


def randomize_batch_norms(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return torch.empty_like(like).uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(uniform(module.weight, 0.3, 1.5))
                module.bias.copy_(uniform(module.bias, -0.5, 0.5))
                module.running_mean.copy_(uniform(module.running_mean, -1.0, 1.0))
                module.running_var.copy_(uniform(module.running_var, 0.2, 4.0))


@pytest.mark.parametrize("name", REP_NETS)
@pytest.mark.parametrize("input_size", [32, 96])
def test_fused_equals_train_form(name: str, input_size: int) -> None:
    torch.manual_seed(1)
    model = create_model(name, num_classes=10, input_size=input_size, width=0.25)
    randomize_batch_norms(model, seed=2)
    x = torch.randn(2, 3, input_size, input_size)
    fused = reparameterize(model)
    with torch.inference_mode():
        largest = float(fused(x).abs().max())
    error = reparameterization_error(model, fused, x)
    assert error <= FLOAT32_TOLERANCE * largest
    assert is_reparameterizable(model)
    assert not is_reparameterizable(fused)


@pytest.mark.parametrize("name", ["repvgg_tiny", "qarepvgg_tiny", "repoptvgg_tiny", "efficientrep_n"])
def test_the_algebra_is_exact_in_float64(name: str) -> None:
    torch.manual_seed(1)
    model = create_model(name, num_classes=10, input_size=32, width=0.5).double()
    randomize_batch_norms(model, seed=3)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    fused = reparameterize(model)
    assert next(fused.parameters()).dtype == torch.float64
    with torch.inference_mode():
        largest = float(fused(x).abs().max())
    assert reparameterization_error(model, fused, x) <= FLOAT64_TOLERANCE * largest


@pytest.mark.parametrize("name", ["repvgg_tiny", "qarepvgg_tiny"])
def test_fused_after_training_steps(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, in_channels=1, input_size=32, width=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        loss = nn.functional.cross_entropy(model(torch.randn(8, 1, 32, 32)), torch.randint(4, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fused = reparameterize(model)
    x = torch.randn(4, 1, 32, 32)
    with torch.inference_mode():
        largest = float(fused(x).abs().max())
    assert 0 < reparameterization_error(model, fused, x) <= FLOAT32_TOLERANCE * largest


@settings(max_examples=40, deadline=None)
@given(
    block=st.sampled_from([RepVGGBlock, QARepVGGBlock]),
    in_channels=st.integers(1, 9),
    out_channels=st.integers(1, 9),
    stride=st.sampled_from([1, 2]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_any_block(
    block: type[RepBlock], in_channels: int, out_channels: int, stride: int, height: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    train = block(in_channels, out_channels, stride=stride).eval().double()
    randomize_batch_norms(train, seed)
    fused = reparameterize(train)
    x = torch.randn(2, in_channels, height, width, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), train(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [RepVGGBlock, QARepVGGBlock])
def test_the_identity_branch_is_there_only_where_the_shape_is_kept(block: type[RepBlock]) -> None:
    assert block(4, 4).keeps_shape
    assert not block(4, 4, stride=2).keeps_shape
    assert not block(4, 5).keeps_shape


def test_qarepvgg_s4_has_norms_on_the_dense_branch_and_after_the_sum_only() -> None:
    names = {name for name, module in QARepVGGBlock(4, 4).named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert names == {"rbr_dense.bn", "bn"}
    names = {name for name, module in RepVGGBlock(4, 4).named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert names == {"rbr_dense.bn", "rbr_1x1.bn", "rbr_identity"}


@pytest.mark.parametrize("name", ["repvgg_tiny", "qarepvgg_tiny", "repoptvgg_tiny", "efficientrep_n"])
def test_fused_has_the_layout_of_deploy_and_says_so(name: str) -> None:
    model = create_model(name, num_classes=3, input_size=32, width=0.25)
    fused = reparameterize(model)
    deploy = create_model(name, num_classes=3, input_size=32, width=0.25, deploy=True)
    shapes = {key: value.shape for key, value in deploy.state_dict().items()}
    assert {key: value.shape for key, value in fused.state_dict().items()} == shapes
    assert fused.architecture["arguments"]["deploy"] is True
    assert "deploy" not in model.architecture["arguments"]


def test_the_model_is_left_as_it_was_and_no_random_numbers_are_drawn() -> None:
    model = create_model("repvgg_tiny", num_classes=3, input_size=32, width=0.25)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    fused = reparameterize(model)
    reparameterization_error(model, fused, torch.zeros(1, 3, 32, 32))
    assert model.training
    assert not fused.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_fusing_twice_is_fusing_once() -> None:
    fused = reparameterize(create_model("repvgg_tiny", num_classes=3, input_size=32))
    assert reparameterization_error(fused, reparameterize(fused), torch.randn(1, 3, 32, 32)) == 0


def test_nets_without_branches_come_back_as_they_are() -> None:
    model = create_model("mobilenet_v1", num_classes=3, input_size=32, width=0.25)
    copy = reparameterize(model)
    assert copy is not model
    assert reparameterization_error(model, copy, torch.randn(1, 3, 32, 32)) == 0
    assert "deploy" not in copy.architecture["arguments"]


def test_the_error_sees_a_wrong_fusion() -> None:
    model = create_model("repvgg_tiny", num_classes=3, input_size=32)
    fused = reparameterize(model)
    with torch.no_grad():
        fused.linear.bias += 0.5
    # exactly 0.5 but for float32 rounding of the rest
    assert reparameterization_error(model, fused, torch.randn(1, 3, 32, 32)) == pytest.approx(0.5, abs=1e-3)


def test_blocks_inside_somebodys_own_module_are_fused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), RepVGGBlock(8, 8), nn.Flatten())
    randomize_batch_norms(model, seed=0)
    fused = reparameterize(model)
    assert fused[1].is_fused
    assert reparameterization_error(model, fused, torch.randn(1, 3, 6, 6)) < 1e-5  # outputs of size 1, one layer


def test_fold_bn_with_a_bias() -> None:
    torch.manual_seed(0)
    conv, bn = nn.Conv2d(3, 4, 3).double(), nn.BatchNorm2d(4).double().eval()
    randomize_batch_norms(bn, seed=1)
    kernel, bias = fold_bn(conv.weight, conv.bias, bn)
    x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(nn.functional.conv2d(x, kernel, bias), bn(conv(x)), rtol=1e-12, atol=1e-12)
