"""Golden tensors: what an engine must answer, made once on the host and carried in the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.data.base import Dataset, evenly_spaced
from edgevision.images import to_image
from edgevision.parity import cosine, sqnr_db
from edgevision.preprocess import Preprocess

if TYPE_CHECKING:
    from edgevision.bundle import Thresholds
    from edgevision.detection.postprocess import Postprocess

COUNT = 8
# what a quantized net must at least keep, whatever its plan promises: below, answers are noise
_LEAST_SQNR_DB = 6.0
# an engine may round otherwise than the reference at every layer; more than this is another computation
_MARGIN_DB = 3.0


def golden_pixels(dataset: Dataset | None, preprocess: Preprocess, count: int = COUNT) -> npt.NDArray[np.uint8]:
    """``uint8`` ``[N, H, W(, 3)]`` after resizing: pictures of the data set, or seeded noise where there is none.

    At most ``count`` of them.
    """
    if dataset is not None and len(dataset):
        images = [sample.image for sample in evenly_spaced(dataset, min(count, len(dataset)))]
        return np.stack([np.asarray(preprocess.geometry(to_image(image))) for image in images])
    generator = np.random.default_rng(0)
    height, width = preprocess.size
    # blocks of noise at several scales: closer to a picture's spectrum than white noise is
    total = np.zeros((count, height, width, preprocess.channels))
    for cells in (2, 4, 8, 16, 32):
        noise = generator.uniform(0.0, 1.0, (count, cells, cells, preprocess.channels))
        rows, columns = np.arange(height) * cells // height, np.arange(width) * cells // width
        total += noise[:, rows][:, :, columns] / 5.0
    pixels = (total * 255.0).round().astype(np.uint8)
    return pixels[..., 0] if preprocess.channels == 1 else pixels


def run_graph(model: bytes, feed: npt.NDArray[np.float32], *, exact: bool) -> dict[str, npt.NDArray[Any]]:
    """Run a serialized model in ONNX Runtime, picture by picture; ``exact`` keeps every Q/DQ node in float."""
    from edgevision_calibration.observe import open_session

    session = open_session(model, optimize=not exact)
    name = session.get_inputs()[0].name
    outputs = [output.name for output in session.get_outputs()]
    runs = [session.run(outputs, {name: feed[i : i + 1]}) for i in range(len(feed))]
    return {output: np.concatenate([run[i] for run in runs]) for i, output in enumerate(outputs)}


def float_thresholds(precision: str) -> Thresholds:
    """What a float engine must keep: FP32 differs by the order of additions alone, FP16 by its 11 bits."""
    from edgevision.bundle import Thresholds

    return Thresholds(cosine=0.9999, sqnr_db=40.0) if precision == "fp32" else Thresholds(cosine=0.999, sqnr_db=25.0)


def quantized_thresholds(
    outputs: dict[str, npt.NDArray[Any]], reference: dict[str, npt.NDArray[Any]]
) -> dict[str, Thresholds]:
    """What an INT8 engine must keep: what the plan's own reference keeps against FP32, less a margin.

    Against the reference the engine's noise (another rounding at every layer) may be as large as the quantization
    noise itself, no larger.
    """
    from edgevision.bundle import Thresholds

    ratio = min(sqnr_db(outputs[name], reference[name]) for name in outputs)
    similarity = min(cosine(outputs[name], reference[name]) for name in outputs)
    floor = max(_LEAST_SQNR_DB, ratio - _MARGIN_DB)
    # twice the angle's squared error is 3 dB
    least = max(0.0, 1.0 - 2.0 * (1.0 - similarity) - 1e-3)
    thresholds = Thresholds(cosine=least, sqnr_db=floor)
    return {"fp32": thresholds, "reference": thresholds}


def box_thresholds(
    thresholds: Mapping[str, Thresholds],
    postprocess: Postprocess,
    preprocess: Preprocess,
    groups: Mapping[str, Mapping[str, npt.NDArray[Any]]],
    precision: str,
) -> dict[str, Thresholds]:
    """The same with what a detector's boxes must keep: of FP32's, what the bundle's own reference keeps, less a margin.

    Args:
        thresholds: what the outputs must keep, under ``fp32`` and ``reference``.
        postprocess: how outputs become boxes.
        preprocess: of the bundle.
        groups: golden ``outputs``, and ``reference`` where there is one.
        precision: of the bundle.
    """
    from edgevision.detection.compare import (
        boxes_of,
        compare_detections,
        confidence_of,
        float_limits,
        quantized_limits,
    )

    expected = boxes_of(postprocess, preprocess, groups["outputs"])
    if expected is None:
        return dict(thresholds)
    reference = groups.get("reference")
    found = boxes_of(postprocess, preprocess, reference) if reference else expected
    assert found is not None
    kept = compare_detections(expected, found, confidence=confidence_of(postprocess))
    changed = quantized_limits(kept)
    alike = float_limits(precision, kept.expected + kept.actual)
    limits = {
        "fp32": changed if reference else alike,
        # shared weights in float: the engine computes just what the reference does
        "reference": changed if precision == "int8" else alike,
    }
    return {
        key: value
        if (limit := limits.get(key)) is None
        else replace(value, matched=limit.matched, mean_iou=limit.mean_iou)
        for key, value in thresholds.items()
    }
