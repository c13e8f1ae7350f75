"""Data care: what is doubtful about the calibration pictures or their preprocess, told from the run itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.graph import Graph
from edgevision.preprocess import Preprocess
from edgevision_calibration.table import CalibrationTable

# below this many pictures no statistic of them is to be trusted, whatever it says
LEAST_PICTURES = 16
# with MobileNetV2 on photos a quarter of the pictures adds 3 to 6% to the range at 4 and 8 pictures, 1.5% from 32 on
GREATEST_GROWTH = 0.03
# thumbnails are kept of so many pictures, so that memory does not grow with their number
MOST_THUMBNAILS = 1024
_THUMBNAIL = 8
# thumbnails that differ by less of their contrast show the same picture (another JPEG of it differs by about 1%)
_SAME_PICTURE = 0.05
_ALIKE_SHARE = 0.5
# outputs that move by less of their own size from picture to picture carry no answer
_CONSTANT_OUTPUT = 0.02
# pictures an alternative preprocess is judged on, and how sure the judgement must be (Student's t, one-sided)
PREPROCESS_PICTURES = 32
# an alternative that does no better on so many of them is not looked at any longer
_FIRST_LOOK = 4
_LEAST_T = 2.5
_LEAST_ENTROPY_GAIN = 0.1
_LEAST_INFORMATION_GAIN = 0.5

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Finding:
    """Something the user should know about the calibration.

    Attributes:
        severity: ``warning`` (accuracy may suffer) or ``note``.
        kind: what it is, as a short name: ``too_few``, ``still_growing``, ``alike``, ``constant_input``,
            ``grey_input``, ``constant_output``, ``preprocess``, ``color_order``.
        message: what was seen, what was expected and what to do.
    """

    severity: str
    kind: str
    message: str

    def to_dict(self) -> dict[str, str]:
        """Plain values, as JSON takes them."""
        return asdict(self)


class PictureWatch:
    """Looks at the preprocessed pictures on their way into the calibration; costs next to nothing."""

    def __init__(self) -> None:
        self._thumbnails: list[Array] = []
        self._grey = True
        self.pictures = 0
        self.low: npt.NDArray[np.float64] | None = None
        self.high: npt.NDArray[np.float64] | None = None

    def watch(self, batches: Iterable[Array]) -> Iterator[Array]:
        """Hand float32 batches ``[B, C, H, W]`` on."""
        for batch in batches:
            self._take(batch)
            yield batch

    @property
    def thumbnails(self) -> Array:
        """Block means of the first pictures, float32 ``[N, C · 8 · 8]``."""
        return np.concatenate(self._thumbnails) if self._thumbnails else np.zeros((0, 1), np.float32)

    @property
    def grey(self) -> bool:
        """Whether all channels of all pictures were alike up to a factor and an offset, as with grey pictures."""
        return self._grey and self.pictures > 0

    def _take(self, batch: Array) -> None:
        self.pictures += len(batch)
        small = _thumbnails(batch)
        if sum(len(seen) for seen in self._thumbnails) < MOST_THUMBNAILS:
            self._thumbnails.append(small.reshape(len(batch), -1))
        low, high = small.min(axis=(0, 2)).astype(np.float64), small.max(axis=(0, 2)).astype(np.float64)
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        if self._grey:
            self._grey = all(_same_shape(picture) for picture in small)


def _thumbnails(batch: Array) -> Array:
    """Block means, float32 ``[B, C, cells]``."""
    _, _, height, width = batch.shape
    rows = np.arange(min(_THUMBNAIL, height)) * height // min(_THUMBNAIL, height)
    columns = np.arange(min(_THUMBNAIL, width)) * width // min(_THUMBNAIL, width)
    sums = np.add.reduceat(np.add.reduceat(batch, rows, axis=2), columns, axis=3)
    sizes = np.diff([*rows, height])[:, None] * np.diff([*columns, width])[None, :]
    return np.asarray(sums / sizes, np.float32).reshape(*batch.shape[:2], -1)


def _same_shape(channels: Array) -> bool:
    """Whether the rows of ``[C, cells]`` differ by a factor and an offset alone."""
    if len(channels) == 1:
        return False
    centered = channels - channels.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centered, axis=1)
    if norms.min() <= 1e-6 * max(float(np.abs(channels).max()), 1e-30):
        return True
    return bool(np.abs(centered / norms[:, None] @ (centered[0] / norms[0]) - 1.0).max() < 1e-4)


def diagnose(table: CalibrationTable, graph: Graph, watch: PictureWatch) -> list[Finding]:
    """What the run itself says about its pictures: too few, all alike, constant, grey, or without effect."""
    found = [*_amount(table), *_likeness(watch), *_input(watch), *_outputs(table, graph)]
    return [finding for finding in found if finding is not None]


def _amount(table: CalibrationTable) -> list[Finding]:
    if table.images < LEAST_PICTURES:
        return [
            Finding(
                "warning",
                "too_few",
                f"{table.images} calibration pictures are too few to tell the ranges of the activations: give at "
                f"least {LEAST_PICTURES}, better 100 to 300, of what the network will see",
            )
        ]
    growths = [seen.growth for seen in table.tensors.values() if seen.high > seen.low]
    growth = float(np.mean(growths)) if growths else 0.0
    if growth > GREATEST_GROWTH:
        return [
            Finding(
                "warning",
                "still_growing",
                f"the activations' ranges still grow: a quarter of the {table.images} calibration pictures adds "
                f"{growth:.1%} to what the others saw (at most {GREATEST_GROWTH:.0%} is expected); give more pictures, "
                "as varied as what the network will see",
            )
        ]
    return []


def _likeness(watch: PictureWatch) -> list[Finding]:
    small = watch.thumbnails.astype(np.float64)
    if len(small) < 2:
        return []
    # distances through one matrix product; a picture's own contrast is the yardstick
    squares = np.square(small).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2.0 * small @ small.T, 0.0))
    np.fill_diagonal(distances, np.inf)
    contrast = np.linalg.norm(small - small.mean(axis=1, keepdims=True), axis=1)
    same = distances.min(axis=1) <= np.maximum(_SAME_PICTURE * contrast, 1e-6)
    if same.mean() < _ALIKE_SHARE:
        return []
    return [
        Finding(
            "warning",
            "alike",
            f"{int(same.sum())} of {len(same)} calibration pictures look like another one of them (copies, or frames "
            "of one scene): the ranges hold for these alone; give pictures as varied as what the network will see",
        )
    ]


def _input(watch: PictureWatch) -> list[Finding]:
    if watch.low is None or watch.high is None:
        return []
    constant = [str(channel) for channel in np.flatnonzero(watch.high - watch.low <= 1e-6)]
    if constant:
        return [
            Finding(
                "warning",
                "constant_input",
                f"input channel {', '.join(constant)} has one and the same value in every calibration picture: check "
                "the pictures and the preprocess",
            )
        ]
    if watch.grey:
        return [
            Finding(
                "note",
                "grey_input",
                f"all {watch.pictures} calibration pictures are grey, and the network takes {len(watch.low)} channels: "
                "give colour pictures if it will see colour",
            )
        ]
    return []


def _outputs(table: CalibrationTable, graph: Graph) -> list[Finding]:
    if table.images < 2:
        return []
    constant = []
    for name in graph.output_names:
        seen = table.tensors.get(name)
        # with pixels of its own an output varies within one picture already
        if seen is None or len(graph.shapes.get(name, ())) != 2:
            continue
        size = max(abs(seen.low), abs(seen.high))
        moves = float(np.max(seen.channel_high - seen.channel_low))
        if size > 0 and moves <= _CONSTANT_OUTPUT * size:
            constant.append(f"{name} (moves by {moves / size:.2%} of its size)")
    if not constant:
        return []
    return [
        Finding(
            "warning",
            "constant_output",
            f"the network answers all {table.images} calibration pictures alike: output {', '.join(constant)}; check "
            "the preprocess, the weights, and whether the pictures are what the network was made for",
        )
    ]


def alternatives(preprocess: Preprocess) -> dict[str, Preprocess]:
    """What users take by mistake in the place of the right preprocess: what to call it → how it would be."""
    plain, unit = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if preprocess.channels == 1:
        plain, unit = (0.0,), (1.0,)  # type: ignore[assignment]
    variants = {
        "pixels in 0..255": replace(preprocess, scale=1.0, mean=plain, std=unit),
        "pixels in 0..1": replace(preprocess, scale=1 / 255, mean=plain, std=unit),
        "pixels in -1..1": replace(
            preprocess, scale=1 / 255, mean=tuple(0.5 for _ in plain), std=tuple(0.5 for _ in plain)
        ),
    }
    if preprocess.channels == 3:
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        if preprocess.color == "BGR":
            mean, std = mean[::-1], std[::-1]
        variants["ImageNet's mean and std"] = replace(preprocess, scale=1 / 255, mean=mean, std=std)
    return {label: other for label, other in variants.items() if not _equal(other, preprocess)}


def swapped(preprocess: Preprocess) -> Preprocess | None:
    """The same preprocess with red and blue in the other order; None for grey networks.

    Mean and std stay with their place: the mistake is that the colours reach the network in the wrong one.
    """
    other = {"RGB": "BGR", "BGR": "RGB"}.get(preprocess.color)
    return None if other is None else replace(preprocess, color=other)


def _equal(one: Preprocess, other: Preprocess) -> bool:
    """Whether two preprocesses make nearly the same input of every pixel value."""
    pixels = np.asarray([0.0, 255.0])
    for channel in range(one.channels):
        a = (pixels * one.scale - one.mean[channel]) / one.std[channel]
        b = (pixels * other.scale - other.mean[channel]) / other.std[channel]
        if np.abs(a - b).max() > 0.2 * abs(b[1] - b[0]):
            return False
    return True


def check_preprocess(
    run: Callable[[Array], npt.NDArray[Any]], pixels: Iterable[npt.NDArray[np.uint8]], preprocess: Preprocess
) -> list[Finding]:
    """Whether a classifier would answer more surely under another preprocess.

    A network fed as it was trained gives answers that are sure and differ from picture to picture: their mutual
    information with the pictures, ``H(E[p]) − E[H(p)]``, is high (it is the logarithm of the Inception score). One
    fed with values far too large is sure too, but says the same of everything, so sureness alone would not do.
    A network without much bias answers an input of twice the contrast with twice the logits, which says nothing
    either, so logits are brought to one spread first. The preprocess is doubted where another one raises that
    information much, or keeps it and makes the answers clearly surer, picture by picture (paired t-test). One that does
    neither on the first few pictures is asked about no more.

    Source: T. Salimans et al., Improved Techniques for Training GANs, arXiv 1606.03498, section 4.

    Args:
        run: the network in float: float32 ``[1, C, H, W]`` → scores ``[1, classes]`` (logits or probabilities).
        pixels: resized pictures, uint8 ``[H, W, 3]`` or ``[H, W]`` as `Preprocess.geometry` makes them, of which no
            more are taken than it takes; fewer than `LEAST_PICTURES` different ones say nothing.
        preprocess: the one that was given.
    """
    chosen = _Distinct(pixels)
    if len(chosen.first(_FIRST_LOOK)) < _FIRST_LOOK:
        return []
    given = _Answers(run, preprocess, chosen)
    first = given.logits(_FIRST_LOOK)
    if first.shape[1] < 2 or not (np.isfinite(first).all() and first.std() > 0):
        return []

    def gain(how: Preprocess) -> float:
        other = _Answers(run, how, chosen)
        information, surer = _compared(given.logits(_FIRST_LOOK), other.logits(_FIRST_LOOK))
        if information <= 0 and surer.mean() <= 0:
            return 0.0
        if len(chosen.first(PREPROCESS_PICTURES)) < LEAST_PICTURES:
            return 0.0
        return _gain(*_compared(given.logits(PREPROCESS_PICTURES), other.logits(PREPROCESS_PICTURES)))

    better = {label: value for label, how in alternatives(preprocess).items() if (value := gain(how))}
    if better:
        label = max(better, key=lambda name: better[name])
        return [
            Finding(
                "warning",
                "preprocess",
                f"the network's answers to {chosen.taken} pictures are clearly better told apart with {label} than "
                f"with the preprocess given ({_described(preprocess)}): check scale, mean and std",
            )
        ]
    other = swapped(preprocess)
    if other is not None and gain(other):
        return [
            Finding(
                "warning",
                "color_order",
                f"the network answers {chosen.taken} pictures more surely with {other.color} than with the "
                f"{preprocess.color} given: check the channel order",
            )
        ]
    return []


class _Distinct:
    """Pictures that are not alike, taken no sooner than wanted: copies would count as if they had been seen apart."""

    def __init__(self, pictures: Iterable[npt.NDArray[np.uint8]]) -> None:
        self._coming = iter(pictures)
        self._taken: dict[bytes, npt.NDArray[np.uint8]] = {}

    @property
    def taken(self) -> int:
        """How many were taken so far."""
        return len(self._taken)

    def first(self, count: int) -> list[npt.NDArray[np.uint8]]:
        """So many of them, or as many as there are."""
        while len(self._taken) < count and (picture := next(self._coming, None)) is not None:
            self._taken[picture.tobytes()] = picture
        return list(self._taken.values())[:count]


class _Answers:
    """What the network says to some pictures under a preprocess, asked no sooner than wanted."""

    def __init__(
        self,
        run: Callable[[Array], npt.NDArray[Any]],
        how: Preprocess,
        pictures: _Distinct,
    ) -> None:
        self._run, self._how, self._pictures = run, how, pictures
        self._scores: list[npt.NDArray[Any]] = []

    def logits(self, count: int) -> npt.NDArray[np.float64]:
        """Logits of the first ``count`` pictures, ``[count, classes]``."""
        for picture in self._pictures.first(count)[len(self._scores) :]:
            self._scores.append(self._run(self._how.normalize(picture)[None]))
        return _logits(np.concatenate(self._scores[:count]))


def _described(preprocess: Preprocess) -> str:
    mean, std = ([round(value, 3) for value in values] for values in (preprocess.mean, preprocess.std))
    return f"scale {preprocess.scale:.4g}, mean {mean}, std {std}"


def _logits(scores: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Scores ``[N, classes]`` as logits of mean 0; probabilities become their logarithms."""
    values = np.asarray(scores, np.float64).reshape(len(scores), -1)
    if values.min() >= 0 and np.allclose(values.sum(axis=1), 1.0, atol=1e-3):
        values = np.log(values + 1e-12)
    return np.asarray(values - values.mean(axis=1, keepdims=True), np.float64)


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True), np.float64)


def _entropy(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(-(probabilities * np.log(probabilities + 1e-12)).sum(axis=-1), np.float64)


def _compared(given: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
    """What the logits ``other`` gain on ``given`` in information, and in sureness for each picture, in nats."""
    if not (np.isfinite(given).all() and np.isfinite(other).all() and given.std() > 0 and other.std() > 0):
        return 0.0, np.zeros(len(given))
    before, after = _softmax(given), _softmax(other * (given.std() / other.std()))
    surer = _entropy(before) - _entropy(after)
    return float(_entropy(after.mean(axis=0)) - _entropy(before.mean(axis=0)) + surer.mean()), surer


def _gain(information: float, surer: npt.NDArray[np.float64]) -> float:
    """How much better the pictures are told apart, in nats; 0 where that is not certain."""
    if information > _LEAST_INFORMATION_GAIN:
        return information
    error = float(surer.std(ddof=1)) / np.sqrt(len(surer))
    certain = surer.mean() > max(_LEAST_ENTROPY_GAIN, _LEAST_T * error)
    return float(surer.mean()) if information >= 0 and certain else 0.0
