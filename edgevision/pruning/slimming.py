"""Network Slimming: training with an L1 penalty on batch norm scales, so that channels fade before they are removed.

Liu et al. 2017, arXiv 1708.06519, equation 1: the loss plus λ Σ |γ|, by its subgradient λ sign(γ).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from edgevision.errors import UsageError


@contextmanager
def l1_on_scales(model: nn.Module, strength: float) -> Iterator[int]:
    """While the block runs, every gradient of a batch norm's γ has λ sign(γ) added; training code need not know.

    Args:
        model: the network that is trained in the block; its parameters must stay the same objects.
        strength: λ; the paper uses 1e-4 to 1e-5. Weight decay on γ is left out by `edgevision.training` as it is.

    Yields:
        how many scales are penalized.

    Raises:
        UsageError: a strength that is not above 0, or no batch norms.
    """
    if not 0 < strength < 1:
        raise UsageError(f"the strength of slimming must be above 0 and below 1; got {strength:g}")
    scales = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine
    ]
    if not scales:
        raise UsageError("slimming trains the scales of batch norms, and the network has none")
    handles = [
        scale.register_hook(partial(_penalty, scale=scale, strength=strength))  # type: ignore[no-untyped-call] # torch's stubs
        for scale in scales
    ]
    try:
        yield sum(scale.numel() for scale in scales)
    finally:
        for handle in handles:
            handle.remove()


def _penalty(gradient: Tensor, scale: Tensor, strength: float) -> Tensor:
    return gradient + strength * scale.detach().sign()
