from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgevision.errors import UsageError
from edgevision.models import create_model
from edgevision.models.reparameterize import reparameterization_error, reparameterize
from edgevision.models.repopt_vgg import RepOptBlock, SearchBlock, scaled_blocks
from edgevision.training.repoptimizer import adopt_scales

# three steps of float64 arithmetic (1e-16 each operation) through two blocks and their batch norms
FLOAT64_TOLERANCE = 1e-10


class CslaBlock(nn.Module):
    """The paper's block of linear operators with constant scales, branch by branch as figure 2 draws it."""

    def __init__(self, block: RepOptBlock, identity: Tensor | None) -> None:
        super().__init__()
        weight = block.rbr_dense.conv.weight
        self.stride = block.stride
        self.kernel_3x3 = nn.Parameter(torch.zeros_like(weight))
        self.kernel_1x1 = nn.Parameter(torch.randn_like(weight[:, :, :1, :1]))
        # four dimensions, so that weight decay treats it like the other kernels
        self.identity = None if identity is None else nn.Parameter(identity[:, None, None, None].clone())
        self.s, self.t = block.scale_3x3[:, None, None], block.scale_1x1[:, None, None]
        self.bn = nn.BatchNorm2d(len(weight)).double()
        with torch.no_grad():
            # the 3×3 branch takes what the others leave over of the plain kernel
            rest = weight - self.outer_part()
            self.kernel_3x3.copy_(rest / block.scale_3x3[:, None, None, None])

    def outer_part(self) -> Tensor:
        part = nn.functional.pad(self.t[..., None] * self.kernel_1x1, [1, 1, 1, 1])
        if self.identity is not None:
            part = part + nn.functional.pad(torch.diag(self.identity[:, 0, 0, 0])[:, :, None, None], [1, 1, 1, 1])
        return part

    def summed(self) -> Tensor:
        return self.s[..., None] * self.kernel_3x3 + self.outer_part()

    def forward(self, x: Tensor) -> Tensor:
        out = self.s * nn.functional.conv2d(x, self.kernel_3x3, None, self.stride, 1)
        out = out + self.t * nn.functional.conv2d(x, self.kernel_1x1, None, self.stride)
        if self.identity is not None:
            out = out + nn.functional.conv2d(x, self.identity, groups=len(self.identity))
        return torch.relu(self.bn(out))


def randomize(scale: Tensor) -> None:
    with torch.no_grad():
        scale.copy_(torch.empty_like(scale).uniform_(0.3, 1.5))


def plain_blocks() -> list[RepOptBlock]:
    """A block that halves the picture, and one with an identity branch, with random scales."""
    blocks = []
    for stride, channels in ((2, 3), (1, 6)):
        searched = SearchBlock(channels, 6, stride=stride).double()
        for name in ("scale_3x3", "scale_1x1", "scale_identity"):
            if hasattr(searched, name):
                randomize(getattr(searched, name))
        block = RepOptBlock(channels, 6, stride=stride).double()
        block.adopt(searched)
        blocks.append(block)
    return blocks


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_of_the_plain_net_are_those_of_the_net_with_branches(nesterov: bool) -> None:
    torch.manual_seed(0)
    blocks = plain_blocks()
    identity = torch.rand(6, dtype=torch.float64)
    branches = [CslaBlock(blocks[0], None), CslaBlock(blocks[1], identity)]
    heads = [nn.Linear(6, 4).double() for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    nets = [nn.Sequential(*blocks).train(), nn.Sequential(*branches).train()]
    optimizers = [
        torch.optim.SGD(
            [*net.parameters(), *head.parameters()], lr=0.05, momentum=0.9, nesterov=nesterov, weight_decay=1e-2
        )
        for net, head in zip(nets, heads, strict=True)
    ]
    began = blocks[1].rbr_dense.conv.weight.detach().clone()
    for step in range(3):
        images = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        labels = torch.arange(4)
        for net, head, optimizer in zip(nets, heads, optimizers, strict=True):
            loss = nn.functional.cross_entropy(head(net(images).mean(dim=(2, 3))), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for plain, branched in zip(blocks, branches, strict=True):
            torch.testing.assert_close(
                plain.rbr_dense.conv.weight, branched.summed(), rtol=0, atol=FLOAT64_TOLERANCE, check_dtype=True
            )
            torch.testing.assert_close(plain.rbr_dense.bn.weight, branched.bn.weight, rtol=0, atol=FLOAT64_TOLERANCE)
    assert float((blocks[1].rbr_dense.conv.weight.detach() - began).abs().max()) > 1e-3


def test_the_mask_is_the_papers() -> None:
    block = RepOptBlock(3, 3)
    assert torch.equal(block.gradient_mask(), torch.ones(3, 3, 3, 3))
    block.scale_3x3.copy_(torch.tensor([1.0, 2.0, 3.0]))
    block.scale_1x1.copy_(torch.tensor([0.5, 1.0, 2.0]))
    block.scale_identity.fill_(1.0)
    mask = block.gradient_mask()
    assert mask[1, 0, 0, 2] == 4.0
    assert mask[1, 0, 1, 1] == 5.0
    assert mask[1, 1, 1, 1] == 6.0
    assert mask[2, 2, 1, 1] == 14.0
    assert mask[2, 2, 1, 0] == 9.0
    # a block that changes the shape has no identity branch
    assert "scale_identity" not in dict(RepOptBlock(3, 6, stride=2).named_buffers())


def test_the_answer_does_not_depend_on_the_scales_and_evaluation_leaves_gradients_alone() -> None:
    torch.manual_seed(0)
    block = RepOptBlock(4, 4)
    x = torch.randn(2, 4, 5, 5)
    before = block(x)
    for name in ("scale_3x3", "scale_1x1", "scale_identity"):
        randomize(getattr(block, name))
    assert torch.equal(block(x), before)
    weight = block.rbr_dense.conv.weight
    block.eval()
    block(x).sum().backward()
    plain = weight.grad.clone()
    block.scale_3x3.mul_(2.0)
    weight.grad = None
    block(x).sum().backward()
    assert torch.equal(weight.grad, plain)


def test_the_search_form_learns_its_scales_and_fuses() -> None:
    torch.manual_seed(0)
    model = create_model("repoptvgg_tiny", num_classes=3, input_size=32, width=0.25, search=True)
    blocks = list(scaled_blocks(model))
    assert [block.scale_3x3[0].item() for block in blocks] == pytest.approx([(2 / d) ** 0.5 for d in range(1, 8)])
    images = torch.randn(4, 3, 32, 32)
    model(images).square().sum().backward()
    for block in blocks:
        assert float(block.scale_3x3.grad.abs().max()) > 0
        assert float(block.scale_1x1.grad.abs().max()) > 0
    fused = reparameterize(model)
    # as in test_models_reparameterize: float32 rounding through seven layers, logits of about 0.1
    assert reparameterization_error(model, fused, images) < 1e-6
    deploy = create_model("repoptvgg_tiny", num_classes=3, input_size=32, width=0.25, deploy=True)
    assert set(fused.state_dict()) == set(deploy.state_dict())


def test_scales_are_adopted_by_the_same_network_alone_and_the_seed_decides() -> None:
    arguments = {"num_classes": 3, "input_size": 32, "width": 0.25}
    searched = create_model("repoptvgg_tiny", **arguments, search=True)
    for block in scaled_blocks(searched):
        randomize(block.scale_3x3)
    state = torch.get_rng_state()
    nets = [create_model("repoptvgg_tiny", **arguments) for _ in range(3)]
    torch.set_rng_state(state)
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        adopt_scales(net, searched, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [next(iter(scaled_blocks(net))).rbr_dense.conv.weight for net in nets]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(next(iter(scaled_blocks(nets[0]))).scale_3x3, next(iter(scaled_blocks(searched))).scale_3x3)
    for wrong in (create_model("repvgg_tiny", **arguments), nets[0], create_model("repoptvgg_a0", **arguments)):
        with pytest.raises(UsageError, match="search form"):
            adopt_scales(nets[1], wrong, seed=0)
