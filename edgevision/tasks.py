"""What outputs mean: a task turns arrays into a result a person can use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgevision.errors import EngineError

if TYPE_CHECKING:
    from edgevision.bundle import Manifest
    from edgevision.detection.detections import Detections
    from edgevision.detection.postprocess import Postprocess
    from edgevision.preprocess import Placement


@dataclass(frozen=True)
class Classification:
    """Scores of one picture.

    Attributes:
        probabilities: float32 ``[num_classes]``, summing to 1.
        classes: names by index; empty where unknown.
    """

    probabilities: npt.NDArray[np.float32]
    classes: tuple[str, ...] = ()

    @property
    def label(self) -> int:
        """Index of the most probable class."""
        return int(self.probabilities.argmax())

    @property
    def name(self) -> str:
        """Name of the most probable class, or its index where names are unknown."""
        return self._name(self.label)

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The ``k`` most probable classes with their probabilities, best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self._name(int(index)), float(self.probabilities[index])) for index in order]

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {
            "label": self.label,
            "name": self.name,
            "probability": float(self.probabilities[self.label]),
            "top": [{"name": name, "probability": probability} for name, probability in self.top(k)],
        }

    def _name(self, index: int) -> str:
        return self.classes[index] if index < len(self.classes) else str(index)


@dataclass(frozen=True)
class Tensors:
    """Raw outputs of one picture, without the batch dimension."""

    outputs: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """Shape, range and mean of every output, as JSON takes them: null where empty or not finite."""
        return {"outputs": {name: _summary(value) for name, value in self.outputs.items()}}


TaskResult: TypeAlias = "Classification | Detections | Tensors"


def interpret(
    manifest: Manifest,
    outputs: dict[str, npt.NDArray[Any]],
    placements: Sequence[Placement] | None = None,
    postprocess: Postprocess | None = None,
) -> list[TaskResult]:
    """Turn a batch of outputs into one result per picture, as the manifest's task says.

    Args:
        manifest: of the bundle that answered.
        outputs: output name → array ``[B, …]``.
        placements: where each picture lies in the input. A detector's boxes cannot be told without; its outputs are
            `Tensors` then.
        postprocess: in place of the manifest's, e.g. with another threshold.

    Raises:
        EngineError: outputs that are NaN or infinite, or that a detector's decoder cannot read.
        UsageError: a detector's decoder is somebody's own and was not passed.
    """
    postprocess = postprocess or manifest.postprocess
    if placements is not None and postprocess is not None:
        return list(postprocess(outputs, manifest.preprocess.size, placements, manifest.classes))
    if manifest.task == "classification":
        logits = classification_logits(outputs)
        if not np.isfinite(logits).all():
            raise EngineError(
                f"{manifest.target} answered NaN or infinity among the {logits.shape[1]} class scores of "
                f"{manifest.name}; run edgevision verify on the bundle, or convert to fp32"
            )
        probabilities = softmax(logits)
        return [Classification(row, manifest.classes) for row in probabilities]
    count = len(next(iter(outputs.values())))
    return [Tensors({name: value[index] for name, value in outputs.items()}) for index in range(count)]


def _summary(value: npt.NDArray[Any]) -> dict[str, Any]:
    found = {"min": value.min(), "max": value.max(), "mean": value.mean()} if value.size else {}
    numbers = {key: float(found[key]) if key in found else math.nan for key in ("min", "max", "mean")}
    return {"shape": list(value.shape), **{key: n if math.isfinite(n) else None for key, n in numbers.items()}}


def classification_logits(outputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """Logits ``[B, num_classes]`` of a classifier: its first output, trailing 1×1 dimensions dropped."""
    logits = np.asarray(next(iter(outputs.values())), np.float32)
    return logits.reshape(len(logits), -1)


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Softmax over the last axis; rows that already are probabilities are left as they are."""
    if logits.size and logits.min() >= 0 and np.allclose(logits.sum(-1), 1.0, atol=1e-3):
        return logits
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True), np.float32)
