"""Train a small RepVGG network on real handwritten digits: about a minute on two CPU cores, no download.

Run it as ``python examples/train_digits.py [RUN]``. Stopped with Ctrl-C, it goes on where it was when run again.
"""

from __future__ import annotations

import sys

import torch

from edgevision.models import create_model
from edgevision.training import train


def main(out: str = "runs/digits") -> None:
    torch.manual_seed(0)  # the initial weights; `train` has a seed of its own for everything else
    model = create_model("repvgg_tiny", num_classes=10, in_channels=1, input_size=32)
    checkpoint = train(model, "digits", out=out)
    print(
        f"test accuracy {checkpoint.metrics['top1']:.2%} after epoch {checkpoint.metrics['epoch']:.0f}, kept in {out}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:2])
