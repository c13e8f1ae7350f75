"""Parity: golden tensors through the engine, compared with FP32 and with the plan's own reference. numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.bundle import Bundle, Thresholds
from edgevision.detection.compare import (
    DetectionComparison,
    DetectionLimits,
    boxes_of,
    compare_detections,
    confidence_of,
)
from edgevision.errors import BundleError
from edgevision.runtime.session import Session, load

# a ratio of powers beyond this is rounding noise; keeps JSON free of infinities
MAX_DB = 150.0


def cosine(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> float:
    """Cosine similarity of two tensors of equal shape, −1..1; zero is like zero, NaN and infinity like nothing."""
    a, b = np.asarray(expected, np.float64).ravel(), np.asarray(actual, np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -1.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0.0:
        return 1.0 if not a.any() and not b.any() else 0.0
    return float(np.clip(a @ b / norms, -1.0, 1.0))


def sqnr_db(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> float:
    """Signal-to-quantization-noise ratio ``10·log10(Σx² / Σ(x − y)²)`` in dB, at most `MAX_DB`."""
    a, b = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -MAX_DB
    signal, noise = float(np.square(a).sum()), float(np.square(a - b).sum())
    if noise == 0.0:
        return MAX_DB
    if signal == 0.0:
        return -MAX_DB
    return float(np.clip(10.0 * math.log10(signal / noise), -MAX_DB, MAX_DB))


def top1_agreement(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> float:
    """Share of rows ``[N, …]`` whose greatest value stands in the same place, 0..1."""
    a, b = np.asarray(expected).reshape(len(expected), -1), np.asarray(actual).reshape(len(actual), -1)
    return float((a.argmax(1) == b.argmax(1)).mean())


@dataclass(frozen=True)
class Comparison:
    """How far an engine's outputs are from a reference: the worst output counts.

    Attributes:
        cosine: least cosine similarity over the outputs.
        sqnr_db: least signal-to-noise ratio over the outputs, dB.
        top1_agreement: share of golden inputs with the same answer; None unless the task is classification.
        max_difference: greatest absolute difference of any value; None where one is NaN or infinite.
        passed: whether the thresholds are met; True where there are none.
        thresholds: what was demanded.
    """

    cosine: float
    sqnr_db: float
    top1_agreement: float | None
    max_difference: float | None
    passed: bool
    thresholds: Thresholds | None = None


@dataclass(frozen=True)
class Verification:
    """What ``edgevision verify`` found for one bundle.

    Attributes:
        passed: every threshold of the bundle is met.
        fp32: comparison with the FP32 outputs.
        reference: comparison with the fake-quantized reference of the plan; None for float bundles.
        outputs: output name → cosine with FP32.
        detections: of a detector, comparison of its boxes with those of ``fp32`` and ``reference``.
        n: number of golden inputs.
        engine: engine name and version.
    """

    passed: bool
    fp32: Comparison
    reference: Comparison | None
    outputs: dict[str, float] = field(default_factory=dict)
    detections: dict[str, DetectionComparison] = field(default_factory=dict)
    n: int = 0
    engine: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them; the figures against FP32 stand at the top."""
        return {
            "passed": self.passed,
            "cosine": self.fp32.cosine,
            "sqnr_db": self.fp32.sqnr_db,
            "top1_agreement": self.fp32.top1_agreement,
            "max_difference": self.fp32.max_difference,
            "n": self.n,
            "engine": self.engine,
            "fp32": asdict(self.fp32),
            "reference": None if self.reference is None else asdict(self.reference),
            "outputs": self.outputs,
            **({"detections": {key: found.to_dict() for key, found in self.detections.items()}}
               if self.detections else {}),
        }  # fmt: skip


def compare(
    expected: Mapping[str, npt.NDArray[Any]],
    actual: Mapping[str, npt.NDArray[Any]],
    *,
    task: str,
    thresholds: Thresholds | None = None,
) -> Comparison:
    """Compare outputs by name.

    Raises:
        BundleError: an output is missing or has another shape.
    """
    for name, array in expected.items():
        if name not in actual or actual[name].shape != array.shape:
            came = "nothing" if name not in actual else list(actual[name].shape)
            raise BundleError(f"output {name!r}: golden shape {list(array.shape)}, the engine gave {came}")
    similarity = min(cosine(array, actual[name]) for name, array in expected.items())
    ratio = min(sqnr_db(array, actual[name]) for name, array in expected.items())
    first = next(iter(expected))
    agreement = top1_agreement(expected[first], actual[first]) if task == "classification" else None
    passed = all(np.isfinite(array).all() and np.isfinite(actual[name]).all() for name, array in expected.items())
    difference = max(_max_difference(array, actual[name]) for name, array in expected.items()) if passed else None
    if thresholds is not None:
        passed &= similarity >= thresholds.cosine and ratio >= thresholds.sqnr_db
        if thresholds.top1_agreement is not None and agreement is not None:
            passed &= agreement >= thresholds.top1_agreement
    return Comparison(similarity, ratio, agreement, difference, passed, thresholds)


def _max_difference(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> float:
    """In float64: integers do not wrap around."""
    return float(np.abs(np.asarray(expected, np.float64) - np.asarray(actual, np.float64)).max(initial=0.0))


def verify(bundle: str | Path | Bundle, *, threads: int = 1, cache_dir: str | Path | None = None) -> Verification:
    """Run a bundle's golden inputs on its engine and compare the outputs with what they must be.

    Raises:
        BundleError: the bundle is damaged or has no golden tensors.
        MissingDependencyError: the engine's runtime is not installed.
        EngineError: the engine refused the model.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    with load(opened, threads=threads, cache_dir=cache_dir) as session:
        return verify_session(session)


def verify_session(session: Session) -> Verification:
    """`verify` for a session that is open already."""
    manifest = session.bundle.manifest
    golden = session.bundle.golden()
    if not golden["inputs"] or not golden["outputs"]:
        raise BundleError(f"{session.bundle.path or manifest.name}: the bundle has no golden tensors; convert it again")
    name = session.inputs[0].name
    if name not in golden["inputs"] or not len(golden["inputs"][name]):
        raise BundleError(f"{session.bundle.path or manifest.name}: the golden tensors hold no input {name!r}")
    batch = golden["inputs"][name]
    # one by one: what a device runs, and no engine has to be compiled for another batch size
    runs = [session.infer({name: batch[i : i + 1]}) for i in range(len(batch))]
    actual = {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
    fp32 = compare(golden["outputs"], actual, task=manifest.task, thresholds=manifest.thresholds.get("fp32"))
    reference = None
    if golden["reference"]:
        reference = compare(
            golden["reference"], actual, task=manifest.task, thresholds=manifest.thresholds.get("reference")
        )
    detections = _compare_boxes(session, golden, actual)
    boxes_passed = all(found.passed for found in detections.values())
    return Verification(
        passed=fp32.passed and (reference is None or reference.passed) and boxes_passed,
        fp32=fp32,
        reference=reference,
        outputs={name: cosine(array, actual[name]) for name, array in golden["outputs"].items()},
        detections=detections,
        n=len(batch),
        engine=f"{manifest.target} {session.engine_version}",
    )


def _compare_boxes(
    session: Session, golden: Mapping[str, Mapping[str, npt.NDArray[Any]]], actual: Mapping[str, npt.NDArray[Any]]
) -> dict[str, DetectionComparison]:
    """Of a detector, its boxes in the golden inputs against those of FP32 and of the plan's reference."""
    manifest, postprocess = session.bundle.manifest, session.postprocess
    found = None if postprocess is None else boxes_of(postprocess, manifest.preprocess, actual)
    if postprocess is None or found is None:
        return {}
    compared = {}
    for key, group in (("fp32", "outputs"), ("reference", "reference")):
        expected = boxes_of(postprocess, manifest.preprocess, golden[group]) if golden[group] else None
        if expected is None:
            continue
        demanded, limits = manifest.thresholds.get(key), None
        if demanded is not None and demanded.matched is not None and demanded.mean_iou is not None:
            limits = DetectionLimits(demanded.matched, demanded.mean_iou)
        compared[key] = compare_detections(expected, found, confidence=confidence_of(postprocess), limits=limits)
    return compared
