"""ResNet-20 for CIFAR-10: K. He et al., Deep Residual Learning for Image Recognition, 2015, section 4.2, option A."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import edgevision as ev
from edgevision.data.base import evenly_spaced
from edgevision.data.datasets import Concatenation
from edgevision.preprocess import PRESETS
from other_networks.boxes import Array
from other_networks.case import Case, Figure, Outputs

CALIBRATION_PICTURES = 300


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut without parameters: every second pixel, missing channels zero."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        # half of the new channels before the old ones, half behind, as these weights were trained
        self.new_channels = (channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in, H, W]`` → ``[B, out, H / stride, W / stride]``."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            # every second pixel; a slice with a step, which is the same, has no layer in ncnn
            x = nn.functional.max_pool2d(x, 1, self.stride)
        if self.new_channels:
            x = nn.functional.pad(x, (0, 0, 0, 0, self.new_channels, self.new_channels))
        return torch.relu(x + y)


class ResNet20(nn.Module):
    """6n + 2 layers with n = 3: three stages of 16, 32 and 64 channels on maps of 32, 16 and 8 pixels."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
        rest = (Block(channels, channels, 1) for _ in range(2))
        return nn.Sequential(Block(in_channels, channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, 3, 32, 32]`` → logits ``[B, num_classes]``."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))  # type: ignore[no-any-return]


def load_resnet20(weights: Path) -> ResNet20:
    """The network with its published weights, in eval mode."""
    from safetensors.torch import load_file

    net = ResNet20()
    net.load_state_dict(load_file(weights))
    return net.eval()


def judge_answers(where: str, fp32: Array, int8: Array, labels: Array) -> Figure:
    """Top-1 of two sets of logits ``[N, K]``, and how many answers they share."""
    before, after = fp32.argmax(axis=1), int8.argmax(axis=1)
    right, still_right = before == labels, after == labels
    return Figure(
        measured_on=where,
        count=len(labels),
        metric="top-1 (%)",
        fp32=100 * float(np.mean(right)),
        int8=100 * float(np.mean(still_right)),
        agreement=float(np.mean(before == after)),
        agreement_of="answers",
        lost=int(np.sum(right & ~still_right)),
        gained=int(np.sum(still_right & ~right)),
    )


def open_resnet20(data: Path) -> Case:
    """Calibrated on training pictures, judged by top-1 on test pictures and on JPEG files of four times as many.

    The JPEG files cost the network a tenth of its answers, but an answer of theirs is 0.05 points, not 0.2.
    """
    train = ev.open_dataset(f"npz:{data}/cifar10/train.npz")
    tests = [
        ev.open_dataset(f"npz:{data}/cifar10/test.npz"),
        ev.open_dataset(f"folder:{data}/cifar10-jpeg/test.zip"),
    ]
    judged = Concatenation("cifar10", tests)
    assert judged.labels is not None
    labels, first = judged.labels, len(tests[0])
    parts = {"cifar10/test": slice(0, first), "cifar10-jpeg/test": slice(first, None)}

    def judge(fp32: Outputs, int8: Outputs) -> list[Figure]:
        before, after = (next(iter(outputs.values())) for outputs in (fp32, int8))
        return [judge_answers(where, before[part], after[part], labels[part]) for where, part in parts.items()]

    return Case(
        name="resnet20_cifar10",
        source=load_resnet20(data / "weights" / "resnet20_cifar10.safetensors"),
        preprocess=PRESETS["cifar10"],
        calibration=evenly_spaced(train, CALIBRATION_PICTURES),
        calibrated_on="cifar10/train",
        judged=judged,
        judge=judge,
        arguments={"input_size": (32, 32)},
    )
