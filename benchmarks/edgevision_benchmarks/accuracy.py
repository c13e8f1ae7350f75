"""Accuracy of a session on a data set, and how far its answers agree with a reference session's."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.bundle import Bundle, Manifest
from edgevision.data.base import Dataset, Sample, Subset, evenly_spaced
from edgevision.errors import DataError, UsageError
from edgevision.progress import Progress
from edgevision.runtime import Session, load
from edgevision.tasks import classification_logits
from edgevision_benchmarks.ratio import resampled_interval
from edgevision_benchmarks.statistics import wilson

if TYPE_CHECKING:
    from edgevision.detection.decoders import Decoder
    from edgevision.detection.detections import Detections
    from edgevision.detection.evaluation import DetectionMetrics

# what a picture counts as whose outputs are not finite: it equals no label
NO_ANSWER = -1


@dataclass(frozen=True)
class Evaluation:
    """How good a session's answers are. Shares are 0..1; None where the data or the task cannot say.

    Attributes:
        n: pictures evaluated.
        top1: share of labelled pictures whose best answer is the label.
        top5: share whose five best answers hold the label.
        top1_ci95: Wilson's 95% interval of ``top1``.
        top5_ci95: Wilson's 95% interval of ``top5``.
        agreement: share of all pictures whose best answer is the reference's; of a detector, share of both sides'
            boxes that have a partner on the other.
        agreement_ci95: Wilson's 95% interval of ``agreement``.
        cosine: cosine similarity with the reference's outputs, of the output where it is least (task ``tensors``).
        sqnr_db: signal-to-quantization-noise ratio in dB, likewise; infinite where nothing differs.
        outputs: output → ``cosine`` and ``sqnr_db``.
        not_finite: pictures for which the network gave NaN or infinity; they count as wrong.
        predictions: int64 ``[n]``: index of each picture's best answer, -1 where not finite; empty for other tasks.
        detection: mAP; None for other tasks, and for pictures without boxes.
        resamples: mAP of draws of the pictures (see `edgevision_benchmarks.map_bootstrap`).
        detections: what a detector found in each picture, as mAP is measured (see
            `edgevision_benchmarks.detection_accuracy`).
        confidence: score from which a detector's boxes count for ``agreement``.
        correct: which pictures a classifier answered right, one bit each, as hexadecimal digits.
        pictures_sha256: of the pictures' file names and labels or boxes, in their order.
    """

    n: int
    top1: float | None = None
    top5: float | None = None
    top1_ci95: tuple[float, float] | None = None
    top5_ci95: tuple[float, float] | None = None
    agreement: float | None = None
    agreement_ci95: tuple[float, float] | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    outputs: dict[str, dict[str, float]] = field(default_factory=dict)
    not_finite: int = 0
    predictions: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    detection: DetectionMetrics | None = None
    resamples: tuple[float, ...] = ()
    detections: tuple[Detections, ...] | None = None
    confidence: float | None = None
    correct: str | None = None
    pictures_sha256: str | None = None

    @property
    def accuracy(self) -> float | None:
        """The one figure by which networks of this task are compared: mAP of a detector, top-1 of a classifier."""
        return self.top1 if self.detection is None else self.detection.map

    @property
    def metric(self) -> str | None:
        """What `accuracy` is: ``mAP`` or ``top-1``; None without one."""
        return None if self.accuracy is None else "top-1" if self.detection is None else "mAP"

    @property
    def accuracy_ci95(self) -> tuple[float, float] | None:
        """95% interval of `accuracy`: Wilson's of a share, of mAP by the bootstrap over pictures."""
        if self.detection is None or self.detection.map is None:
            return self.top1_ci95
        found = resampled_interval(self.detection.map, self.resamples, self.n)
        return None if found.low is None or found.high is None else (max(0.0, found.low), min(1.0, found.high))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them (infinity, which JSON lacks, as None); without the predictions."""
        if self.detections is not None:
            judged: dict[str, Any] = {"n": self.n}
            if self.detection is not None:
                judged = {**self.detection.to_dict(), "map_ci95": _listed(self.accuracy_ci95)}
            return {**judged, "agreement": self.agreement, "not_finite": self.not_finite}
        return {
            "top1": self.top1,
            "top5": self.top5,
            "n": self.n,
            "agreement": self.agreement,
            "top1_ci95": _listed(self.top1_ci95),
            "top5_ci95": _listed(self.top5_ci95),
            "agreement_ci95": _listed(self.agreement_ci95),
            "cosine": self.cosine,
            "sqnr_db": _finite(self.sqnr_db),
            "outputs": {
                name: {key: _finite(value) for key, value in values.items()} for name, values in self.outputs.items()
            },
            "not_finite": self.not_finite,
            "correct": self.correct,
            "pictures_sha256": self.pictures_sha256,
        }


def evaluate(
    session: Session,
    dataset: Dataset,
    *,
    reference: Session | None = None,
    batch_size: int = 32,
    limit: int | None = None,
) -> Evaluation:
    """Run a data set through a session and judge its answers.

    Each session sees the pictures through its own bundle's preprocess. Labels are matched with the network's
    classes by name where both sides have names, else by index. A detector's boxes are made by its own decoder with the
    thresholds of `edgevision.detection.evaluation.evaluation_postprocess`.

    Args:
        session: what to judge.
        dataset: pictures, with labels where there are any.
        reference: session to agree with, usually the FP32 bundle of the same model.
        batch_size: pictures in one call; memory does not grow with the data set.
        limit: evaluate so many pictures, evenly spaced over the data set; None for all.

    Raises:
        UsageError: raw tensors without a reference, or the two sessions cannot be compared.
        DataError: the data set is empty, a picture cannot be read, or a label lies outside the network's classes.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise UsageError(f"batch size and limit must be 1 or more; got {batch_size} and {limit}")
    chosen = evenly_spaced(dataset, limit)
    if not len(chosen):
        raise DataError(f"{dataset.name}: the data set has no pictures to evaluate on")
    _check_comparable(session, reference)
    if session.bundle.manifest.task == "classification":
        return _classify(session, chosen, reference, batch_size)
    if session.bundle.manifest.task == "detection":
        from edgevision_benchmarks.detection_accuracy import evaluate_detector

        return evaluate_detector(session, chosen, reference, batch_size)
    if reference is None:
        raise UsageError(
            f"the outputs of {session.bundle.manifest.name} are raw tensors, for which labels say nothing; "
            "name a reference bundle to compare them with"
        )
    return _compare(session, chosen, reference, batch_size)


def evaluate_bundle(
    source: str | Path | Bundle,
    data: str | Path | Dataset,
    *,
    reference: str | Path | None = None,
    split: str | None = "test",
    batch_size: int = 32,
    limit: int | None = None,
    threads: int = 1,
    judge: bool = True,
    images: str | Path | None = None,
    decoder: Decoder | None = None,
) -> Evaluation:
    """Open a bundle, its reference and a data set, and `evaluate`.

    Args:
        source: bundle to judge.
        data: ``kind:path``, a path whose kind can be told, or an open data set.
        reference: bundle to agree with.
        split: part of the data set, where it is divided; None for all of it.
        batch_size: pictures in one call.
        limit: evaluate so many pictures, evenly spaced; None for all.
        threads: threads of one inference; 0 lets the engine choose.
        judge: refuse data without labels (of a detector: boxes) when there is no reference either; False returns the
            predictions alone.
        images: folder of the pictures of a COCO file, where they lie elsewhere than usual.
        decoder: for a detector, a function of your own that reads its outputs and the reference's (see
            `edgevision.load`).

    Raises:
        UsageError: there is nothing to judge by.
        EdgeVisionError: whatever `edgevision.load`, opening the data set and `evaluate` raise.
    """
    dataset = open_data(data, split, images=images)
    bundle = source if isinstance(source, Bundle) else Bundle.open(source)
    if judge and reference is None:
        _check_judgeable(dataset, bundle.manifest.task)
    with ExitStack() as stack:
        session = stack.enter_context(load(bundle, threads=threads, decoder=decoder))
        other = None
        if reference is not None:
            other = stack.enter_context(load(reference, threads=threads, decoder=decoder))
        return evaluate(session, dataset, reference=other, batch_size=batch_size, limit=limit)


def open_data(data: str | Path | Dataset, split: str | None, *, images: str | Path | None = None) -> Dataset:
    """Open ``kind:path`` or a path; an open data set is returned as it is."""
    # only who evaluates needs the readers
    from edgevision.data import open_dataset

    return open_dataset(data, split=split, images=images)


def _check_judgeable(dataset: Dataset, task: str) -> None:
    if task == "detection":
        from edgevision_benchmarks.detection_accuracy import has_boxes

        if not has_boxes(dataset):
            raise UsageError(
                f"{dataset.name} does not say what objects its pictures hold, so there is nothing to judge a detector "
                "by; give boxes (coco:… or voc:…) or a reference"
            )
    elif dataset.labels is None:
        raise UsageError(
            f"{dataset.name} has no class labels, so there is nothing to judge by; give labelled data or a reference"
        )


def agreement(
    predictions: npt.NDArray[np.int64], reference: npt.NDArray[np.int64]
) -> tuple[float, tuple[float, float]]:
    """Share of pictures ``[N]`` answered as the reference answers them, with its 95% interval."""
    same = int(((predictions == reference) & (predictions != NO_ANSWER)).sum())
    return same / len(predictions), wilson(same, len(predictions))


def _check_comparable(session: Session, reference: Session | None) -> None:
    if reference is None:
        return
    mine, other = session.bundle.manifest, reference.bundle.manifest
    if mine.task != other.task:
        raise UsageError(f"the reference does another task: {other.task}, not {mine.task}")
    if mine.classes and other.classes and mine.classes != other.classes:
        raise UsageError(f"the reference {other.name} has other classes than {mine.name}")


def _classify(session: Session, dataset: Subset, reference: Session | None, batch_size: int) -> Evaluation:
    manifest = session.bundle.manifest
    to_class = class_indices(dataset, manifest)
    answers: list[npt.NDArray[np.int64]] = []
    correct: list[bool] = []
    pictures = hashlib.sha256()
    expected: list[npt.NDArray[np.int64]] = []
    labelled = top1 = top5 = 0
    for samples, outputs, other in _runs(session, dataset, reference, batch_size):
        best = best_classes(classification_logits(outputs))
        answers.append(best[:, 0])
        if other is not None:
            expected.append(best_classes(classification_logits(other))[:, 0])
        classes = int(classification_logits(outputs).shape[1])
        for row, sample in zip(best, samples, strict=True):
            pictures.update(told_of(sample))
            if sample.label is None:
                continue
            label = _label(sample, to_class, classes, manifest)
            labelled += 1
            correct.append(bool(row[0] == label))
            top1 += correct[-1]
            top5 += int(label in row)
    predictions = np.concatenate(answers)
    agreed = agreement(predictions, np.concatenate(expected)) if expected else (None, None)
    return Evaluation(
        n=len(predictions),
        top1=top1 / labelled if labelled else None,
        top5=top5 / labelled if labelled else None,
        top1_ci95=wilson(top1, labelled) if labelled else None,
        top5_ci95=wilson(top5, labelled) if labelled else None,
        agreement=agreed[0],
        agreement_ci95=agreed[1],
        not_finite=int((predictions == NO_ANSWER).sum()),
        predictions=predictions,
        # of pictures without a label nothing can be said one by one
        correct=np.packbits(correct).tobytes().hex() if len(correct) == len(predictions) else None,
        pictures_sha256=pictures.hexdigest(),
    )


def told_of(sample: Sample) -> bytes:
    """File name, and label or boxes: what makes a picture of an evaluation the same as another one's."""
    boxes = "" if sample.boxes is None else f"{sample.boxes.xyxy.tolist()}{sample.boxes.labels.tolist()}\0"
    return f"{sample.name.rpartition('/')[2]}\0{sample.label}\0{boxes}".encode()


def best_classes(logits: npt.NDArray[np.float32], k: int = 5) -> npt.NDArray[np.int64]:
    """Indices of the ``k`` best classes ``[B, min(k, C)]``, best first; -1 where a row is not finite.

    Ties, frequent in quantized outputs, go to the lower index, as in `edgevision.tasks.Classification`.
    """
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k].astype(np.int64)
    best[~np.isfinite(logits).all(axis=1)] = NO_ANSWER
    return best


class _Difference:
    """Running sums over one output: cosine and SQNR of everything seen, without keeping it."""

    def __init__(self) -> None:
        self.dot = self.own = self.signal = self.noise = 0.0

    def add(self, output: npt.NDArray[Any], reference: npt.NDArray[Any]) -> None:
        a, b = np.asarray(output, np.float64).ravel(), np.asarray(reference, np.float64).ravel()
        self.dot += float(a @ b)
        self.own += float(a @ a)
        self.signal += float(b @ b)
        self.noise += float((a - b) @ (a - b))

    def to_dict(self) -> dict[str, float]:
        norm = math.sqrt(self.own * self.signal)
        # two outputs of zeros are equal
        cosine = self.dot / norm if norm > 0 else float(self.noise == 0)
        sqnr = math.inf if self.noise == 0 else _decibel(self.signal / self.noise)
        return {"cosine": cosine, "sqnr_db": sqnr}


def _compare(session: Session, dataset: Subset, reference: Session, batch_size: int) -> Evaluation:
    sums: dict[str, _Difference] = {spec.name: _Difference() for spec in reference.outputs}
    not_finite = 0
    for samples, outputs, other in _runs(session, dataset, reference, batch_size):
        assert other is not None
        finite = np.ones(len(samples), bool)
        for name, difference in sums.items():
            if name not in outputs or outputs[name].shape != other[name].shape:
                raise UsageError(f"the reference has an output {name} {list(other[name].shape)} that the other has not")
            finite &= np.isfinite(outputs[name].reshape(len(samples), -1)).all(axis=1)
            difference.add(outputs[name][finite], other[name][finite])
        not_finite += int((~finite).sum())
    by_output = {name: difference.to_dict() for name, difference in sums.items()}
    return Evaluation(
        n=len(dataset),
        cosine=min(values["cosine"] for values in by_output.values()),
        sqnr_db=min(values["sqnr_db"] for values in by_output.values()),
        outputs=by_output,
        not_finite=not_finite,
    )


def _runs(
    session: Session, dataset: Subset, reference: Session | None, batch_size: int
) -> Iterator[tuple[list[Sample], dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]] | None]]:
    preprocess = session.bundle.manifest.preprocess
    same = reference is not None and reference.bundle.manifest.preprocess == preprocess
    with Progress(f"evaluating {session.bundle.manifest.name}", len(dataset)) as progress:
        for start in range(0, len(dataset), batch_size):
            samples = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
            images = [sample.image for sample in samples]
            batch = preprocess.batch(images)
            outputs = session.run(batch)
            other = None
            if reference is not None:
                other = reference.run(batch if same else reference.bundle.manifest.preprocess.batch(images))
            yield samples, outputs, other
            progress.advance(len(samples))


def class_indices(dataset: Subset, manifest: Manifest) -> dict[int, int] | None:
    """Data set's class index → network's; None where they are the same."""
    theirs, ours = dataset.classes, manifest.classes
    if not theirs or not ours or theirs == ours:
        return None
    index = {name: number for number, name in reversed(list(enumerate(ours)))}
    if all(name in index for name in theirs):
        return {label: index[name] for label, name in enumerate(theirs)}
    if all(name.isdecimal() for name in theirs):
        return {label: int(name) for label, name in enumerate(theirs)}
    if len(theirs) == len(ours):
        return None  # the same classes under other names, e.g. WordNet ids
    unknown = next(name for name in theirs if name not in index)
    raise DataError(
        f"{dataset.name}: class {unknown!r} is none of the {len(ours)} classes of {manifest.name}; "
        "name the classes as the network does, or label by the network's class numbers"
    )


def _label(sample: Sample, to_class: dict[int, int] | None, classes: int, manifest: Manifest) -> int:
    assert sample.label is not None
    label = sample.label if to_class is None else to_class[sample.label]
    if not 0 <= label < classes:
        raise DataError(f"{sample.name}: label {label} lies outside the {classes} classes of {manifest.name}")
    return label


def _decibel(ratio: float) -> float:
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf


def _finite(value: float | None) -> float | None:
    return value if value is None or math.isfinite(value) else None


def _listed(pair: tuple[float, float] | None) -> list[float] | None:
    return None if pair is None else list(pair)
