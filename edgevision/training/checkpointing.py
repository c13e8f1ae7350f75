"""The state of a run after an epoch, in one safetensors file that is either the old one or the new one.

What follows from the config and the epoch alone (learning rates, orders, augmentations, the seeds of dropout)
is not saved; it is computed again. Nothing is pickled: tensors are safetensors, the rest is JSON in the file's header.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from edgevision.errors import TrainingError
from edgevision.files import write_bytes
from edgevision.training.metrics import Row

FORMAT = 1
_HEADER_KEY = "edgevision"


@dataclass
class RunProgress:
    """How far a run has come.

    Attributes:
        epoch: epochs that are done.
        step: optimizer steps that are done.
        best_epoch: epoch (from 1) whose weights are the checkpoint; 0 before there is one.
        best_accuracy: its validation accuracy, 0 to 1; None without validation data.
        best_loss: its validation loss; None without validation data.
        history: one row per epoch, see `edgevision.training.metrics.COLUMNS`.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best_accuracy: float | None = None
    best_loss: float | None = None
    history: list[Row] = field(default_factory=list)


@dataclass
class TrainingState:
    """Everything a run needs to go on as if it had never stopped.

    Attributes:
        progress: how far it has come.
        model: parameters and buffers by name.
        average: those of the exponential moving average; empty without one.
        optimizer: momentum buffers and the like, by parameter number: ``{0: {"momentum_buffer": tensor}}``.
        scaler: state of the fp16 gradient scaler; empty without one.
        adapters: distillation's, which are trained beside the model; empty without any.
    """

    progress: RunProgress
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    scaler: dict[str, Any]
    adapters: dict[str, Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The safetensors file."""
        tensors = {f"model/{name}": value for name, value in self.model.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        tensors |= {f"adapters/{name}": value for name, value in self.adapters.items()}
        for number, slots in self.optimizer.items():
            tensors |= {f"optimizer/{number}/{slot}": value for slot, value in slots.items()}
        # copies, so that tied weights are stored twice instead of being refused
        copies = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()
        }
        header = {"format": FORMAT, "progress": vars(self.progress), "scaler": self.scaler}
        return safetensors.torch.save(copies, metadata={_HEADER_KEY: json.dumps(header)})

    def save(self, path: Path) -> None:
        """Write to ``path`` atomically. Raises `OutputError` where that is not possible."""
        write_bytes(path, self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> TrainingState:
        """Read what `to_bytes` wrote; ``name`` is for messages.

        Raises:
            TrainingError: the file is damaged or of another version.
        """
        header = _header(data, name)
        try:
            tensors = safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise _damaged(name, error) from error
        optimizer: dict[int, dict[str, Tensor]] = {}
        for key in [key for key in tensors if key.startswith("optimizer/")]:
            _, number, slot = key.split("/")
            optimizer.setdefault(int(number), {})[slot] = tensors[key]
        return cls(
            RunProgress(**header["progress"]),
            _under("model/", tensors),
            _under("average/", tensors),
            optimizer,
            header["scaler"],
            _under("adapters/", tensors),
        )


def capture_optimizer(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """The tensors of an optimizer by parameter number (learning rates follow from the schedule)."""
    return {
        number: {slot: value for slot, value in slots.items() if isinstance(value, Tensor)}
        for number, slots in optimizer.state_dict()["state"].items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    """Give an optimizer over the same parameters what `capture_optimizer` took."""
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_module(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Copy saved weights into a module.

    Raises:
        TrainingError: names or shapes differ.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise TrainingError(f"{name} does not fit the model: {error}") from error


def _header(data: bytes, name: str) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_HEADER_KEY])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(name, error) from error
    if header.get("format") != FORMAT:
        raise TrainingError(
            f"{name} has format {header.get('format')!r}, this version reads {FORMAT}; remove the run folder to start "
            "over"
        )
    return dict(header)


def _damaged(name: str, reason: object) -> TrainingError:
    return TrainingError(f"{name} is damaged and cannot be resumed from ({reason}); remove it to start over")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
