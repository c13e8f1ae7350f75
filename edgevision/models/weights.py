"""Weights from files into networks: strictly, and with every misfit named."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevision.dependencies import require
from edgevision.errors import CheckpointError, UsageError

# how many names a message lists before it says how many more there are
LISTED = 4

# training programs wrap the state dict in one of these
WRAPPERS = ("state_dict", "model_state_dict", "model")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a weight file into ``model``, strictly: every tensor must be there, fit, and be finite.

    Args:
        model: changed only when everything fits.
        path: ``.safetensors``, or a state dict in ``.pt`` or ``.pth`` (read with ``weights_only=True``: no code of
            the file runs), also one level down under ``state_dict``, ``model_state_dict`` or ``model``, and also
            with the ``module.`` that DistributedDataParallel puts before each name. ``num_batches_tracked`` may be
            absent, as in old files.

    Raises:
        UsageError: the suffix is none of these.
        CheckpointError: the file is missing or damaged, a tensor is missing, unexpected, of another shape or
            dtype, or not finite; the message names the first of them.
    """
    apply_weights(model, read_weights(path), source=str(path))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a weight file by name, on the CPU. See `load_weights` for formats and errors."""
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise UsageError(f"{path}: weights must be .safetensors, .pt or .pth; got {path.suffix or 'no suffix'!r}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weight file")
    if path.suffix == ".safetensors":
        return parse_safetensors(path.read_bytes(), source=str(path))
    return _read_torch(path)


def parse_safetensors(data: bytes, *, source: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name.

    Raises:
        CheckpointError: ``data`` is no complete safetensors file.
    """
    safetensors = require("safetensors", purpose="read weights")
    numbers = require("safetensors.torch", purpose="read weights")
    try:
        return dict(numbers.load(data))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{source}: damaged safetensors file ({error}); copy or download it again") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is damaged; save it again as torch.save(model.state_dict(), …) or "
            "as .safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged weight file ({type(error).__name__}: {error})") from error
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    return _state_dict(state, path)


def _state_dict(state: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: expected a state dict (name → tensor); got {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: expected a state dict (name → tensor); {name!r} is a {type(value).__name__}"
            )
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def apply_weights(model: nn.Module, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Load ``weights`` into ``model`` with the checks of `load_weights`; ``source`` begins the messages.

    Raises:
        CheckpointError: see `load_weights`.
    """
    expected = model.state_dict()
    _check_fit(expected, weights, source)
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise CheckpointError(
                f"{source}: tensor {name} has {bad} NaN or infinite of {value.numel()} values; the training that "
                "wrote it diverged or the file is damaged"
            )
    model.load_state_dict({**expected, **weights})


def _check_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: str) -> None:
    missing = [name for name in expected if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in expected]
    common = [name for name in expected if name in weights]
    shapes = [
        f"{name} (file {list(weights[name].shape)}, network {list(expected[name].shape)})"
        for name in common
        if weights[name].shape != expected[name].shape
    ]
    kinds = [
        f"{name} (file {weights[name].dtype}, network {expected[name].dtype})"
        for name in common
        if weights[name].is_floating_point() != expected[name].is_floating_point()
    ]
    problems = [
        f"{len(names)} {what}: {_first(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
            ("of another kind of number", kinds),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{source}: weights do not fit the network; {'; '.join(problems)}. Check the model's name, width, "
            "number of classes and input channels"
        )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
