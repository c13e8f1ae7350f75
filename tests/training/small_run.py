"""A network and pictures small enough for runs of well under a second, shared by the tests and their subprocesses."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgevision.data.datasets import ArrayDataset
from edgevision.distillation import DistillConfig
from edgevision.preprocess import Preprocess
from edgevision.training import TrainConfig

PREPROCESS = Preprocess((12, 12), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))

# everything that draws random numbers or keeps a state, at once
EVERYTHING = {
    "epochs": 6,
    "batch_size": 16,
    "lr": 0.05,
    "warmup_epochs": 1.5,
    "label_smoothing": 0.1,
    "mixup": 0.2,
    "cutmix": 1.0,
    "crop_padding": 2,
    "flip": True,
    "erasing": 0.5,
    "ema_decay": 0.9,
    "grad_clip": 1.0,
    "seed": 3,
}


class SmallNet(nn.Module):
    """Two convolutions, with or without batch norm and dropout."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(16, 4)
        arguments = {"num_classes": 4, "in_channels": 3, "input_size": 12, "norm": norm, "dropout": dropout}
        self.architecture = {"name": "small", "arguments": arguments}

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        x = torch.relu(self.conv2(x))
        return self.linear(self.dropout(x.mean((2, 3))))


def small_net(seed: int = 0, **kwargs: object) -> SmallNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallNet(**kwargs)


class WideNet(SmallNet):
    """A teacher of other widths; the layers have the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 24, 3, padding=1)
        self.linear = nn.Linear(24, 4)


def wide_net(seed: int = 50) -> WideNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WideNet()


# every loss at once, with an adapter each for features and channels
LESSON = DistillConfig(temperature=3.0, alpha=0.6, features=(("conv2", "conv2"),), channelwise=(("norm", "norm"),))


def pictures(count: int = 96, seed: int = 0, name: str = "pictures") -> ArrayDataset:
    """Four classes told apart by which quarter is bright."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 4
    images = generator.integers(0, 120, (count, 12, 12, 3), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        top, left = 6 * (label // 2), 6 * (label % 2)
        image[top : top + 6, left : left + 6] += 120
    return ArrayDataset(name, images, labels, ("nw", "ne", "sw", "se"), source=name)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def native_threads() -> list[str]:
    """Names of this process's threads as the kernel knows them; none where it does not tell."""
    return [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]


def main(job: str) -> None:
    """A run in a process of its own; ``job`` is JSON."""
    import safetensors.torch

    from edgevision.training import train

    torch.set_num_threads(1)
    values = json.loads(job)
    model = small_net(values["init"], **values["net"])
    # one process's own random start must not matter: rank 0's weights are everybody's
    out = Path(values["out"])
    lesson = {}
    if "distill" in values:
        lesson = {"teacher": wide_net(), "distill": DistillConfig.from_dict(values["distill"])}
    checkpoint = train(
        model, pictures(), val_data=pictures(40, seed=9), out=out, config=TrainConfig.from_dict(values["config"]),
        preprocess=PREPROCESS, **lesson,
    )  # fmt: skip
    rank = os.environ.get("RANK", "0")
    safetensors.torch.save_file(weights(model), f"{out}-rank{rank}.safetensors")
    assert same_bits(dict(checkpoint.weights), weights(model))
    assert not [name for name in native_threads() if "gloo" in name], native_threads()


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(argument)
