"""A torch module of your own, with two outputs, without a file in between: its raw tensors on two engines.

python examples/custom_module.py [FOLDER]
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor, nn

import edgevision as ev


class TwoHeads(nn.Module):
    """A detector in miniature: a backbone, and one head each for boxes and scores on a grid."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.boxes = nn.Conv2d(32, 4, 1)
        self.scores = nn.Conv2d(32, classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)  # [B, 32, H/4, W/4]
        return {"boxes": self.boxes(features), "scores": self.scores(features).sigmoid()}


def main(folder: str = "bundles") -> None:
    torch.manual_seed(0)
    preprocess = ev.Preprocess(size=(64, 96), resize="letterbox")
    bundles = ev.convert(
        TwoHeads(), targets=["onnxruntime", "ncnn"], input_size=(64, 96), preprocess=preprocess, out=folder
    )
    picture = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    answers = []
    for bundle in bundles:
        assert ev.verify(bundle).passed
        with ev.load(bundle) as net:
            answers.append(net(picture).outputs)
        shapes = {name: value.shape for name, value in answers[-1].items()}
        print(bundle.path, shapes)
    # two engines, one network: they differ by the order of their additions
    apart = max(float(np.abs(answers[0][name] - answers[1][name]).max()) for name in answers[0])
    print(f"largest difference between the engines: {apart:.1e}")
    assert apart < 1e-3


if __name__ == "__main__":
    main(*sys.argv[1:2])
