"""What one network brings to the table: source, pictures, and its judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt

from edgevision.data.base import Dataset
from edgevision.preprocess import Preprocess

# output name → values of all judged pictures [N, ...], in their order
Outputs: TypeAlias = "dict[str, npt.NDArray[Any]]"


@dataclass(frozen=True)
class Figure:
    """One measured quantity, FP32 beside INT8.

    Attributes:
        measured_on: which pictures.
        count: how many of them, or pairs of them.
        metric: what, with its unit.
        fp32: of the float network.
        int8: of the quantized one.
        agreement: how far the two answer alike, 0..1.
        agreement_of: what that is the share of.
        lost: how many are right in FP32 alone; None where that is not what is counted.
        gained: how many are right in INT8 alone, likewise. Near `lost`, the loss is chance.
    """

    measured_on: str
    count: int
    metric: str
    fp32: float
    int8: float
    agreement: float
    agreement_of: str
    lost: int | None = None
    gained: int | None = None

    @property
    def loss(self) -> float:
        """What INT8 loses, in the metric's unit."""
        return self.fp32 - self.int8


# outputs of FP32, outputs of INT8 → figures
Judge: TypeAlias = Callable[[Outputs, Outputs], Sequence[Figure]]


@dataclass(frozen=True)
class Case:
    """A network with all that is needed to convert and to judge it.

    Attributes:
        name: of the network and its bundles.
        source: what `edgevision.convert` takes.
        preprocess: how pictures become its input.
        calibration: pictures the ranges are taken from.
        calibrated_on: the same in words.
        judged: pictures it is judged on.
        judge: turns the outputs on ``judged`` into figures.
        arguments: further arguments of `edgevision.convert`.
    """

    name: str
    source: Any
    preprocess: Preprocess
    calibration: Dataset
    calibrated_on: str
    judged: Dataset
    judge: Judge
    arguments: dict[str, Any] = field(default_factory=dict)


# folder of EDGEVISION_DATA → case
OpenCase: TypeAlias = Callable[[Path], Case]
