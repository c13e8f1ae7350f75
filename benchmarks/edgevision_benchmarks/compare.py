"""`compare`: is what was measured now slower, larger or less right than before, beyond what noise explains?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.errors import DataError, UsageError
from edgevision_benchmarks.ratio import (
    Interval,
    Rounds,
    paired_difference,
    ratio_of_medians,
    resampled_difference,
    resampled_interval,
    unpaired_difference,
)
from edgevision_benchmarks.report.layout import thread_count
from edgevision_benchmarks.report.report import Report
from edgevision_benchmarks.result import Result

# of all statements of one comparison together
CONFIDENCE = 0.95
THRESHOLD = 0.05
MEMORY_THRESHOLD = 0.10

# of the error that is allowed, this share is for latency: what a gate is for. The other measures divide the rest.
_LATENCY_SHARE = 0.8

# measure → whether more is worse
MEASURES = {"latency": True, "throughput": False, "memory": True, "accuracy": False}


@dataclass(frozen=True)
class Key:
    """What makes two rows the same configuration."""

    device: str
    model: str
    target: str
    precision: str
    compression: str | None
    threads: int
    batch: int

    def __str__(self) -> str:
        packed = f", {self.compression}" if self.compression else ""
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        threads = thread_count(self.threads)
        return f"{self.model} {self.target} {self.precision}{packed}, {threads}{batch} on {self.device}"


@dataclass(frozen=True)
class Change:
    """One measure of one configuration.

    Attributes:
        measure: ``latency`` and ``memory`` (ratio, after over before), ``throughput`` (likewise), ``accuracy``
            (difference of shares, after − before).
        before: milliseconds, bytes, samples per second, or share.
        after: likewise.
        change: ratio or difference.
        low: lower end of its interval; None where it cannot be told.
        high: upper end.
        verdict: ``worse``, ``better``, ``same``, ``unclear`` (no change that could be told, but noise would hide one
            of twice the threshold), or ``unknown``.
        why: how it was judged, or why it could not be.
    """

    measure: str
    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    verdict: str
    why: str


@dataclass(frozen=True)
class Pair:
    """A configuration that is in both reports."""

    key: Key
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two reports set against each other.

    Attributes:
        pairs: configurations in both.
        failed: those that ran before and fail now, with the reason.
        missing: those that are only in the first report.
        added: those that are only in the second.
        threshold: change of latency or throughput that does not count.
        confidence: of all intervals together.
        each_confidence: that of one interval, by measure (C. E. Bonferroni's division of the error).
    """

    pairs: tuple[Pair, ...]
    failed: tuple[tuple[Key, str], ...]
    missing: tuple[Key, ...]
    added: tuple[Key, ...]
    threshold: float
    confidence: float
    each_confidence: dict[str, float]

    @property
    def regressions(self) -> list[str]:
        """What got worse beyond noise, one line each; empty where a gate may pass."""
        found = [
            f"{pair.key}: {described(change)}"
            for pair in self.pairs
            for change in pair.changes
            if change.verdict == "worse"
        ]
        return found + [f"{key}: ran before and fails now: {why}" for key, why in self.failed]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {
            "regression": bool(self.regressions),
            "regressions": self.regressions,
            "threshold": self.threshold,
            "confidence": self.confidence,
            "each_confidence": self.each_confidence,
            "pairs": [
                {**asdict(pair.key), "changes": [asdict(change) for change in pair.changes], "notes": list(pair.notes)}
                for pair in self.pairs
            ],
            "failed": [{**asdict(key), "error": why} for key, why in self.failed],
            "missing": [asdict(key) for key in self.missing],
            "added": [asdict(key) for key in self.added],
        }


def compare(
    before: Report,
    after: Report,
    *,
    threshold: float = THRESHOLD,
    memory_threshold: float = MEMORY_THRESHOLD,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Comparison:
    """Set every configuration that two reports share against itself.

    A regression is a change for the worse whose interval leaves out "no change", and that is not smaller than the
    threshold. All intervals together hold with the confidence asked for, so that a comparison of equals raises a false
    alarm in at most (1 − confidence) / 2 of all cases however many rows it has; what keeps it from being told at all is
    fewer than two rounds. Rows of several runs on one device count as further rounds.

    Args:
        before: the measurement to hold against.
        after: the new one.
        threshold: share by which latency may grow, or throughput fall, before it counts.
        memory_threshold: share by which peak memory may grow.
        confidence: of all intervals together.
        seed: of the resampling.

    Raises:
        UsageError: a threshold below 0, or a confidence outside 0.5..1.
        DataError: the reports share no configuration.
    """
    if threshold < 0 or memory_threshold < 0 or not 0.5 <= confidence < 1:
        raise UsageError("thresholds must be 0 or more and the confidence lie in 0.5..1")
    old, new = _grouped(before), _grouped(after)
    shared = [key for key in old if key in new and _ran(old[key])]
    if not shared:
        raise DataError(
            "the two reports share no configuration that was measured "
            f"(before: {_some(old)}; after: {_some(new)}): model, engine, precision, threads, batch and device must "
            "agree"
        )
    measured = [key for key in shared if _ran(new[key])]
    plans = [(key, _measures(old[key], new[key])) for key in measured]
    each = _confidences([name for _, names in plans for name in names], confidence)
    rng = np.random.default_rng(seed)
    limits = {"latency": threshold, "throughput": threshold, "memory": memory_threshold, "accuracy": 0.0}
    pairs = []
    for key, names in plans:
        changes = tuple(_change(name, old[key], new[key], limits[name], each[name], rng) for name in names)
        pairs.append(Pair(key, changes, _notes(old[key], new[key])))
    return Comparison(
        pairs=tuple(pairs),
        failed=tuple((key, _error(new[key])) for key in shared if not _ran(new[key])),
        missing=tuple(key for key in old if key not in new),
        added=tuple(key for key in new if key not in old),
        threshold=threshold,
        confidence=confidence,
        each_confidence=each,
    )


def _confidences(names: Sequence[str], confidence: float) -> dict[str, float]:
    """Confidence of one interval of each measure, so that all of them together hold with ``confidence``."""
    error = 1 - confidence
    latencies = sum(name == "latency" for name in names)
    others = len(names) - latencies
    share = _LATENCY_SHARE if others else 1.0
    rest = 1 - (1 - share) * error / max(1, others)
    return {name: 1 - share * error / max(1, latencies) if name == "latency" else rest for name in MEASURES}


def _grouped(report: Report) -> dict[Key, list[Result]]:
    found: dict[Key, list[Result]] = {}
    for row in report.results:
        device = report.runs[row.run].device
        key = Key(device, row.model, row.target, row.precision, row.compression, row.threads, row.batch)
        found.setdefault(key, []).append(row)
    return found


def _ran(rows: Sequence[Result]) -> bool:
    return any(row.p50 for row in rows)


def _error(rows: Sequence[Result]) -> str:
    return next((row.error for row in rows if row.error), "it was not measured")


def _some(groups: dict[Key, list[Result]]) -> str:
    names = [str(key) for key in groups]
    return "; ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "nothing"


def _measures(old: Sequence[Result], new: Sequence[Result]) -> list[str]:
    found = ["latency"]
    for name, has in (("throughput", _offline_rounds), ("memory", _memory_rounds), ("accuracy", _accurate)):
        if has(old) and has(new):
            found.append(name)
    return found


def _change(
    name: str, old: Sequence[Result], new: Sequence[Result], limit: float, confidence: float, rng: np.random.Generator
) -> Change:
    if name == "accuracy":
        return _accuracy(old, new, confidence)
    rounds = {"latency": _latency_rounds, "throughput": _offline_rounds, "memory": _memory_rounds}[name]
    first, second = rounds(old), rounds(new)
    assert first is not None
    assert second is not None
    found = ratio_of_medians(first, second, confidence=confidence, rng=rng)
    why = f"{len(first.values)} rounds against {len(second.values)}"
    return _judge(Change(name, first.center, second.center, found.estimate, found.low, found.high, "", why), 1.0, limit)


def _judge(change: Change, neutral: float, limit: float) -> Change:
    """Worse or better where the interval leaves out ``neutral`` and the change is not below the limit."""
    if change.low is None or change.high is None:
        return replace(change, verdict="unknown", why=f"{change.why}: two on each side are the least")
    rises = change.low > neutral and change.change >= neutral * (1 + limit)
    falls = change.high < neutral and change.change <= neutral / (1 + limit)
    if not rises and not falls:
        hidden = max(change.high / change.change, change.change / change.low)
        if limit and hidden > (1 + limit) ** 2:
            return replace(change, verdict="unclear", why=f"{change.why}; noise hides changes below {hidden - 1:.0%}")
        return replace(change, verdict="same")
    return replace(change, verdict="worse" if rises == MEASURES[change.measure] else "better")


def _latency_rounds(rows: Sequence[Result]) -> Rounds:
    values: list[Sequence[float]] = []
    counts: list[int] = []
    for row in rows:
        if row.samples:
            values += [each["ms"] for each in row.samples]
            counts += [each["n"] for each in row.samples]
        elif row.p50 is not None:
            # files of earlier versions hold the rounds' medians alone
            medians = row.round_p50_ms or (row.p50,)
            values += [(median,) for median in medians]
            counts += [1] * len(medians)
    return Rounds.of(values, counts)


def _offline_rounds(rows: Sequence[Result]) -> Rounds | None:
    rates = [rate for row in rows if row.offline for rate in row.offline.get("rounds", []) if rate]
    return Rounds.of([(rate,) for rate in rates]) if rates else None


def _memory_rounds(rows: Sequence[Result]) -> Rounds | None:
    peaks = [each["peak_memory_bytes"] for row in rows for each in row.samples if each.get("peak_memory_bytes")]
    return Rounds.of([(peak,) for peak in peaks]) if peaks else None


def _accurate(rows: Sequence[Result]) -> Result | None:
    """The latest row with an accuracy."""
    found = [row for row in rows if row.accuracy is not None and row.n]
    return found[-1] if found else None


def _accuracy(old: Sequence[Result], new: Sequence[Result], confidence: float) -> Change:
    first, second = _accurate(old), _accurate(new)
    assert first is not None
    assert second is not None
    assert first.n is not None
    assert second.n is not None
    assert first.accuracy is not None
    assert second.accuracy is not None
    if first.accuracy_ci95 is None or second.accuracy_ci95 is None:
        change = second.accuracy - first.accuracy
        why = f"{first.metric or 'accuracy'} is no share of pictures and was kept without its interval"
        return Change("accuracy", first.accuracy, second.accuracy, change, None, None, "unknown", why)
    found, same = (_resampled if first.accuracy_resamples else _shares)(first, second, confidence)
    why = f"{first.n} pictures against {second.n}, not known to be the same"
    if same:
        why = f"the same {first.n} pictures, {'drawn anew' if first.accuracy_resamples else 'one by one'}"
    return _judge_share(Change("accuracy", first.accuracy, second.accuracy, *_ends(found), "", why))


def _shares(first: Result, second: Result, confidence: float) -> tuple[Interval, bool]:
    """Difference of two top-1, and whether it is of the same pictures."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    one, two = _bits(first), _bits(second)
    if one is not None and two is not None and first.pictures_sha256 == second.pictures_sha256:
        return paired_difference(one, two, z=z), True
    shares = [(round((row.accuracy or 0.0) * (row.n or 0)), row.n or 0) for row in (first, second)]
    return unpaired_difference(shares[0], shares[1], z=z), False


def _resampled(first: Result, second: Result, confidence: float) -> tuple[Interval, bool]:
    """Difference of two mAP, and whether it is of the same pictures, and so of the same draws."""
    rows = (first, second)
    one, two = (
        resampled_interval(row.accuracy or 0.0, row.accuracy_resamples, row.n or 0, confidence=confidence)
        for row in rows
    )
    known = first.pictures_sha256 is not None and len(first.accuracy_resamples) == len(second.accuracy_resamples)
    same = known and first.pictures_sha256 == second.pictures_sha256
    draws = np.subtract(second.accuracy_resamples, first.accuracy_resamples).tolist() if same else None
    pictures = min(first.n or 0, second.n or 0)
    return resampled_difference(one, two, draws=draws, pictures=pictures, confidence=confidence), same


def _ends(found: Interval) -> tuple[float, float | None, float | None]:
    return found.estimate, found.low, found.high


def _judge_share(change: Change) -> Change:
    if change.low is None or change.high is None:
        return replace(change, verdict="unknown", why=f"{change.why}: too few for an interval")
    verdict = "worse" if change.high < 0 else "better" if change.low > 0 else "same"
    return replace(change, verdict=verdict)


def _bits(row: Result) -> npt.NDArray[np.bool_] | None:
    """Which pictures were answered right ``[N]``."""
    if row.correct is None or row.pictures_sha256 is None or row.n is None:
        return None
    try:
        packed = np.frombuffer(bytes.fromhex(row.correct), np.uint8)
        return np.unpackbits(packed, count=row.n).astype(bool)
    except ValueError as error:
        raise DataError(f"{row.bundle}: 'correct' does not hold one bit for each of {row.n} pictures") from error


def _notes(old: Sequence[Result], new: Sequence[Result]) -> tuple[str, ...]:
    """What a reader must know who looks for the reason."""
    notes = []
    for what, key in (("engine", "engine_version"), ("engine files", "engine_sha256")):
        first, second = getattr(old[-1], key), getattr(new[-1], key)
        if first and second and first != second:
            shown = f"{first} → {second}" if key == "engine_version" else "not the same"
            notes.append(f"{what}: {shown}")
    for when, rows in (("before", old), ("after", new)):
        flags = dict.fromkeys(flag for row in rows for flag in row.flags)
        notes += [f"{when}: {flag}" for flag in flags]
        if any(row.stable is False for row in rows):
            notes.append(f"{when}: unsteady")
    return tuple(notes)


_UNITS = {"latency": (" ms", 1.0), "throughput": (" samples/s", 1.0), "memory": (" MB", 1e-6)}


def described(change: Change) -> str:
    """A change in words: ``latency 10.1 → 11.2 ms, 1.11 × (1.06 to 1.16)``."""
    if change.measure == "accuracy":
        text = f"accuracy {100 * change.before:.2f}% → {100 * change.after:.2f}%, {100 * change.change:+.2f} points"
        scale, digits = 100.0, "+.2f"
    else:
        unit, factor = _UNITS[change.measure]
        text = f"{change.measure} {change.before * factor:.4g} → {change.after * factor:.4g}{unit}"
        text += f", {change.change:.3f} ×"
        scale, digits = 1.0, ".3f"
    if change.low is None or change.high is None:
        return f"{text} ({change.why})"
    text += f" ({scale * change.low:{digits}} to {scale * change.high:{digits}})"
    return f"{text}: {change.why}" if change.verdict == "unclear" else text


def text(comparison: Comparison) -> str:
    """The comparison for a terminal, regressions last, where they are read."""
    lines = []
    for pair in comparison.pairs:
        lines.append(str(pair.key))
        lines += [f"  {change.verdict:7} {described(change)}" for change in pair.changes]
        lines += [f"          {note}" for note in pair.notes]
    lines += [f"{key}: only in the first report" for key in comparison.missing]
    lines += [f"{key}: only in the second report" for key in comparison.added]
    found = comparison.regressions
    lines.append(
        f"{len(comparison.pairs)} compared, {len(found)} worse beyond noise and threshold "
        f"({100 * comparison.threshold:g}% of latency; all intervals together {100 * comparison.confidence:g}%)"
    )
    return "\n".join([*lines, *(f"regression: {line}" for line in found)])
