"""What chosen layers put out during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgevision.errors import UsageError
from edgevision.registry import unknown_name


def check_layers(network: nn.Module, names: Sequence[str], whose: str) -> None:
    """Refuse names that are no module of ``network``; ``whose`` is for the message: ``"student"``.

    Raises:
        UsageError: names the near ones.
    """
    known = [name for name, _ in network.named_modules() if name]
    for name in names:
        if name not in known:
            raise UsageError(unknown_name(f"layer of the {whose}", name, known))


@contextmanager
def recorded(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the layers ``names``, filled in while ``network`` runs inside the block.

    The hooks are gone after it, so that nobody else's forward pass, and no copy of the network, has them.

    Raises:
        UsageError: a layer's output is no tensor, or it ran more than once.
    """
    outputs: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name in dict.fromkeys(names):
            hooks.enter_context(network.get_submodule(name).register_forward_hook(_keep(outputs, name)))
        yield outputs


def _keep(outputs: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise UsageError(f"layer {name} puts out a {type(output).__name__}; distillation compares tensors")
        if name in outputs:
            raise UsageError(f"layer {name} runs more than once in a forward pass; choose one that runs once")
        # a copy: the next layer may be an activation that works in place. An ordinary tensor, too: autograd cannot
        # keep those of inference mode for its backward pass
        with torch.inference_mode(False):
            outputs[name] = output.clone()

    return hook
