"""What a training run is told: one frozen dataclass, checked when it is made, and recipes for known data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

from edgevision.errors import UsageError
from edgevision.registry import check_keys, unknown_name

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "step", "constant")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

# these change how fast a run goes and what it logs, never its weights: a resumed run may have other ones
NOT_PART_OF_THE_RUN = frozenset({"workers", "threads", "tensorboard", "precision", "channels_last"})


C = TypeVar("C", bound="RunConfig")


@dataclass(frozen=True)
class RunConfig:
    """What every run is told, whatever the network answers.

    Attributes:
        epochs: passes over the training pictures.
        batch_size: pictures per step over all processes together, so that a recipe means the same on one
            device and on eight. An incomplete last batch is left out of its epoch.
        lr: learning rate at the end of the warm-up.
        optimizer: ``sgd`` or ``adamw`` (Loshchilov & Hutter 2019).
        momentum: of SGD; AdamW uses it as its first beta.
        nesterov: Nesterov's form of SGD's momentum.
        weight_decay: not applied to biases and to the scales of normalisation layers.
        schedule: ``cosine`` to zero (Loshchilov & Hutter 2017, without restarts), ``step`` or ``constant``.
        warmup_epochs: epochs of linear increase from zero, fractions allowed.
        step_size: epochs between the drops of ``step``.
        gamma: factor of each drop of ``step``.
        ema_decay: decay of the exponential moving average of the weights; 0 turns it off. With it on, the
            average is what is validated and kept.
        grad_clip: largest 2-norm of all gradients together; 0 turns clipping off.
        precision: ``auto`` (bf16 or fp16 where the device gains from it, else fp32), ``fp32``, ``bf16``, ``fp16``.
        channels_last: ``auto`` (where the device gains), or True or False.
        seed: of the order, the augmentations and dropout.
        early_stop: stop after so many epochs without a better validation; 0 never stops early.
        workers: threads that read ahead; None for as many as help.
        threads: CPU threads that compute; None leaves torch's own setting (a thread per core).
        tensorboard: also write TensorBoard's event files (needs the ``tensorboard`` package).

    Raises:
        UsageError: a value outside its range; the message names it.
    """

    epochs: int = 30
    batch_size: int = 128
    lr: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    step_size: int = 30
    gamma: float = 0.1
    ema_decay: float = 0.0
    grad_clip: float = 0.0
    precision: str = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    seed: int = 0
    early_stop: int = 0
    workers: int | None = None
    threads: int | None = None
    tensorboard: bool = False

    # name → type, least and greatest value, both allowed
    RANGES: ClassVar[dict[str, tuple[type, float, float]]] = {
        "epochs": (int, 1, math.inf),
        "batch_size": (int, 1, math.inf),
        "lr": (float, 1e-12, 1e6),
        "momentum": (float, 0, 0.9999999),
        "weight_decay": (float, 0, 1e6),
        "warmup_epochs": (float, 0, math.inf),
        "step_size": (int, 1, math.inf),
        "gamma": (float, 1e-12, 1),
        "ema_decay": (float, 0, 0.9999999),
        "grad_clip": (float, 0, 1e12),
        "seed": (int, 0, 2**63 - 1),
        "early_stop": (int, 0, math.inf),
    }
    SWITCHES: ClassVar[tuple[str, ...]] = ("nesterov", "tensorboard")

    def __post_init__(self) -> None:
        for name, (kind, low, high) in self.RANGES.items():
            _check_number(name, getattr(self, name), kind, low, high)
        for name in self.SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} must be true or false; got {getattr(self, name)!r}")
        for name, valid in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in valid:
                raise UsageError(unknown_name(name, str(getattr(self, name)), list(valid)))
        if not (isinstance(self.channels_last, bool) or self.channels_last == "auto"):
            raise UsageError(f"channels_last must be true, false or 'auto'; got {self.channels_last!r}")
        if self.workers is not None:
            _check_number("workers", self.workers, int, 0, 256)
        if self.threads is not None:
            _check_number("threads", self.threads, int, 1, 1024)
        if self.warmup_epochs > self.epochs:
            raise UsageError(f"warmup_epochs ({self.warmup_epochs}) must not exceed epochs ({self.epochs})")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise UsageError("nesterov needs a momentum above 0; set nesterov = false or momentum = 0.9")

    def with_epochs(self: C, epochs: int) -> C:
        """The same settings over another number of epochs; the warm-up keeps at most its share of the run."""
        _check_number("epochs", epochs, int, 1, math.inf)
        return replace(self, epochs=epochs, warmup_epochs=min(self.warmup_epochs, epochs / 5))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """Build from plain values (TOML or JSON); what is not named keeps its default.

        Raises:
            UsageError: an unknown key (the near ones are named) or a wrong value.
        """
        check_keys("training key", values, [field.name for field in fields(cls)])
        return cls(**values)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Settings of a classification run: those of `RunConfig`, and what classifiers see.

    Attributes:
        label_smoothing: probability spread over all classes (Szegedy et al. 2016), 0 to below 1.
        mixup: α of mixup's Beta(α, α) (Zhang et al. 2018); 0 turns it off.
        cutmix: α of CutMix's Beta(α, α) (Yun et al. 2019); 0 turns it off. With mixup on too, each batch
            gets one of the two at random.
        crop_padding: pixels of black border before a random crop back to size; 0 turns it off.
        flip: mirror left to right with probability 1/2.
        erasing: probability of random erasing (Zhong et al. 2020).

    Raises:
        UsageError: a value outside its range; the message names it.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    erasing: float = 0.0

    RANGES: ClassVar[dict[str, tuple[type, float, float]]] = {
        **RunConfig.RANGES,
        "label_smoothing": (float, 0, 0.9999999),
        "mixup": (float, 0, 1e3),
        "cutmix": (float, 0, 1e3),
        "crop_padding": (int, 0, 1e4),
        "erasing": (float, 0, 1),
    }
    SWITCHES: ClassVar[tuple[str, ...]] = (*RunConfig.SWITCHES, "flip")


def _check_number(name: str, value: Any, kind: type, low: float, high: float) -> None:
    wanted = "a whole number" if kind is int else "a number"
    right = isinstance(value, int) or (kind is float and isinstance(value, float))
    if isinstance(value, bool) or not right:
        raise UsageError(f"{name} must be {wanted}; got {value!r}")
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise UsageError(f"{name} must be {bounds}; got {value}")


# what `train` uses when it is given no config; keyed by the kind of data set
RECIPES: dict[str, TrainConfig] = {
    # Strokes that a mirror would turn into other signs. Layers this small gain little from a second thread, and
    # where cores are shared lose tenfold to threads that wait for each other.
    "digits": TrainConfig(
        epochs=12, batch_size=32, lr=0.05, crop_padding=3, label_smoothing=0.05, ema_decay=0.99, threads=1
    ),
    "cifar10": TrainConfig(epochs=60, batch_size=128, lr=0.1, crop_padding=4, flip=True, ema_decay=0.999),
    "photos": TrainConfig(
        epochs=90, batch_size=256, lr=0.2, weight_decay=4e-5, warmup_epochs=3, crop_padding=16, flip=True,
        label_smoothing=0.1, ema_decay=0.9995,
    ),
}  # fmt: skip


def kind_of(data_name: str) -> str:
    """Kind of a data set by its name: ``"npz"`` of ``"npz:data/cifar10"``, ``"digits"`` of ``"digits (train)"``."""
    return data_name.partition(":")[0].split(" ")[0]


def recipe_for(data_name: str, *, input_size: int) -> TrainConfig:
    """The recipe for a data set by its name (``"digits"``, ``"npz:data/cifar10"``) and the network's input size."""
    if kind_of(data_name) == "digits":
        return RECIPES["digits"]
    return RECIPES["cifar10"] if input_size <= 64 else RECIPES["photos"]
