"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from edgevision.training.config import RunConfig


def learning_rate(config: RunConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of ``step`` (from 0) over the whole run.

    During the warm-up of W steps it is ``lr · (step + 1) / W`` (Goyal et al. 2017, section 2.2). After it:

    - ``cosine``: ``lr · (1 + cos(π t)) / 2`` with t from 0 to 1 over the steps that remain
      (Loshchilov & Hutter 2017, equation 5, one cycle down to zero);
    - ``step``: ``lr · gamma^⌊epoch / step_size⌋``;
    - ``constant``: ``lr``.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * ((step + 1) / warmup)
    if config.schedule == "cosine":
        progress = (step - warmup) / max(1, config.epochs * steps_per_epoch - warmup)
        return config.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    if config.schedule == "step":
        return config.lr * config.gamma ** (step // steps_per_epoch // config.step_size)
    return config.lr
