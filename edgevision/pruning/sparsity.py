"""Zeros inside layers, only where an engine gains from them: two of every four weights, for TensorRT.

Mishra et al. 2021, arXiv 2104.08378: GPUs of compute capability 8.0 and later multiply 2:4 sparse matrices at up to
twice the rate. Zeros anywhere else are multiplied like other numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from edgevision.errors import UsageError
from edgevision.registry import unknown_name

PATTERNS = ("2:4", "unstructured")

# why no engine but TensorRT is quicker for zeros in its weights
_NO_GAIN = {
    "onnxruntime": "ONNX Runtime's kernels multiply zeros like other numbers",
    "openvino": "OpenVINO's convolutions multiply zeros like other numbers",
    "ncnn": "ncnn's kernels multiply zeros like other numbers",
}
_INSTEAD = "Remove whole channels instead (--macs, --params): that is faster everywhere"


def check_sparsity(pattern: str, target: str | None) -> None:
    """Refuse sparsity that would cost accuracy and gain nothing.

    Raises:
        UsageError: an unknown pattern, or one that ``target`` does not gain from, and why.
    """
    if pattern not in PATTERNS:
        raise UsageError(unknown_name("sparsity", pattern, PATTERNS))
    if pattern == "unstructured":
        raise UsageError(
            "no engine runs faster with zeros scattered over its weights: they are stored and multiplied like other "
            f"numbers. {_INSTEAD}; on a GPU of the Ampere generation or later, --sparsity 2:4 --target tensorrt"
        )
    if target != "tensorrt":
        reason = _NO_GAIN.get(str(target), f"{target} is not known to skip zeros")
        raise UsageError(
            f"2:4 sparsity gains nothing on {target}: {reason}; only TensorRT, on GPUs of compute capability 8.0 "
            f"(Ampere) and later, skips them (--target tensorrt). {_INSTEAD}"
        )


def two_of_four(model: nn.Module) -> dict[str, Tensor]:
    """Masks that keep, of every four weights along the inputs, the two of the greatest magnitude.

    Convolutions that are not grouped and linear layers take part, where their inputs divide by four; the others stay
    dense. Of equal weights the first stay.

    Returns:
        layer → bool mask of its weight's shape.

    Raises:
        UsageError: no layer takes part.
    """
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            weight = module.weight.detach()
            if weight.shape[1] % 4 == 0:
                masks[name] = _mask(weight)
    if not masks:
        raise UsageError("2:4 sparsity needs dense layers whose input channels divide by four; the network has none")
    return masks


def _mask(weight: Tensor) -> Tensor:
    rows = weight.movedim(1, -1)  # [O, …, I]: the inputs of one place beside each other
    quads = rows.reshape(-1, 4)
    order = quads.abs().argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(quads, dtype=torch.bool).scatter_(1, order[:, :2], True)
    return mask.reshape(rows.shape).movedim(-1, 1).contiguous()


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set what is masked to zero, in place."""
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        weight.mul_(mask.to(weight.device))


@contextmanager
def kept_zero(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """While the block runs, masked weights get no gradient: zero now, they stay zero under any optimizer here.

    SGD's momentum, AdamW's moments and weight decay all leave a zero weight without a gradient at zero.
    """
    handles = []
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        hook = partial(_masked, mask=mask)
        handles.append(weight.register_hook(hook))  # type: ignore[no-untyped-call] # untyped in torch's stubs
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _masked(gradient: Tensor, mask: Tensor) -> Tensor:
    return gradient * mask.to(gradient.device)


def is_two_of_four(weight: Tensor) -> bool:
    """Whether of every four weights along the inputs at least two are zero."""
    if weight.dim() < 2 or weight.shape[1] % 4:
        return False
    quads = weight.detach().movedim(1, -1).reshape(-1, 4)
    return bool(((quads == 0).sum(1) >= 2).all())
