"""`Result`: one bundle at one number of threads, as measured; one row of a report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from edgevision.errors import DataError
from edgevision_benchmarks.statistics import told

# milliseconds by ``p50 p90 p95 p99 mean min std``; a tail that there were too few runs for is None
Times = dict[str, Any]
Interval = tuple[float, float]

# MLPerf Inference's quality target for networks of reduced precision: this share of FP32's accuracy
QUALITY_TARGET = 0.99


@dataclass(frozen=True)
class Result:
    """One row. None stands for what was not or could not be measured; ``error`` says why.

    Attributes:
        bundle: path as it was given.
        model: name of the model.
        target: engine.
        precision: ``fp32``, ``fp16``, ``int8``.
        threads: threads of one inference; 0 let the engine choose.
        batch: pictures in one inference.
        latency_ms: engine alone (`Session.infer` on a ready tensor), one query in flight: with batch 1 MLPerf's
            SingleStream. ``p50 p90 p95 p99 mean min std``, milliseconds; a tail is None where there were too few runs
            to tell it (`edgevision_benchmarks.statistics.least_queries`).
        median_ci95: 95% confidence interval of ``latency_ms``'s p50, milliseconds: from the scatter of the rounds (see
            `edgevision_benchmarks.ratio.median_interval`), of a single round by order statistics.
        tails_ci95: 95% confidence intervals of the tails that are told, by name.
        p90_bound_ms: MLPerf's SingleStream metric as an early stop gives it: p90 lies no higher, with 99% confidence.
        n_runs: measured runs of the engine.
        stable: warm-ups settled and rounds agree (see `edgevision_benchmarks.timing.Timing`).
        round_p50_ms: median of each round.
        images_per_second: ``batch`` over the median.
        cpu_ms: CPU time of the process for one inference, keys as ``latency_ms``.
        end_to_end_ms: picture file → task result, keys as ``latency_ms``; of a detector decoding its boxes and
            suppression are in it.
        postprocess_ms: engine's outputs → task result (of a detector: boxes), keys as ``latency_ms``.
        preprocess_ms: picture file → tensor, likewise.
        offline: MLPerf's Offline scenario: ``samples_per_second``, ``rounds`` (of each round), ``batch``, ``samples``,
            ``seconds``; or ``error``.
        server: MLPerf's Server scenario: ``queries_per_second`` (greatest rate of Poisson arrivals that keeps the
            bound; None where none does, and ``why``), ``bound_ms``, ``percentile``, ``latency_ms``, ``queries``,
            ``seed``, ``trials``; or ``error``.
        load_ms: bundle file → session ready in a fresh process, import of the runtime included; median of rounds.
        first_load_ms: the same, first round: what was compiled for this device and cached is in it.
        first_inference_ms: first inference after loading, median of rounds.
        peak_memory_bytes: greatest resident memory of the process that ran it, interpreter included.
        steady_memory_bytes: resident memory after the measured runs, median of rounds.
        size_bytes: the bundle on disk.
        engine_bytes: the engine's own files, unpacked.
        stored_bytes: the same as they lie in the bundle.
        compression: ``lossless``, or ``6 bits`` of shared weights; None where the bundle is not compressed.
        accuracy: what ``metric`` says, 0..1: top-1, or a detector's mAP (IoU 0.50:0.95).
        accuracy_ci95: 95% interval of it: Wilson's of a top-1, of mAP by the bootstrap over pictures.
        accuracy_resamples: mAP of draws of the pictures, the same draws for all networks (see
            `edgevision_benchmarks.map_bootstrap`); what `edgevision_benchmarks.compare` judges a difference by.
        metric: ``top-1`` or ``mAP``; None without accuracy, and in rows of older versions, where it is top-1.
        map50: a detector's mAP at IoU 0.50, 0..1.
        top5: top-5, 0..1.
        n: pictures evaluated.
        agreement: share of pictures answered as ``reference`` answers them, 0..1; of a detector, share of both sides'
            boxes that have a partner on the other.
        agreement_ci95: Wilson's 95% interval of it.
        cosine: cosine similarity with the reference's outputs (task ``tensors``).
        sqnr_db: signal-to-quantization-noise ratio against them, dB (None with cosine 1: nothing differs).
        reference: path of the bundle compared with.
        reference_accuracy: what the FP32 bundle of the same model reached on the same pictures, in the same measure.
        quality_met: whether accuracy is at least ``QUALITY_TARGET`` of ``reference_accuracy``.
        correct: which pictures were answered right, one bit each, as hexadecimal digits; for paired comparison.
        pictures_sha256: of the pictures' names and labels or boxes: equal ones can be compared picture by picture.
        engine_version: version of the engine's library.
        sha256: of the bundle file; None for a folder.
        engine_sha256: of the engine files: equal ones run equally.
        error: what failed; None where all went well.
        run: index of the report's run (machine and date) it was measured in.
        samples: each round: ``n`` runs, ``ms`` (their times, sorted; of many 101 evenly spaced quantiles), and
            ``peak_memory_bytes``. What `edgevision_benchmarks.compare` resamples.
        conditions: the machine ``before``, ``during`` and ``after`` (see `edgevision.devices.conditions`).
        energy_j: of one inference, what ``energy_source`` drew in all during the measured runs, idle consumption
            included, joules; median of rounds (see `edgevision.devices.energy.EnergyMeter`).
        energy_source: whose energy it is: RAPL's packages and memory, GPUs, a board's rail; None without ``energy_j``.
        why_no_energy: why there is none.
        flags: what casts doubt on the row: it throttled, a neighbour was busy.
        layers: time of each layer as the engine tells it: ``name``, ``op``, ``ms``, the costliest first.
    """

    bundle: str
    model: str
    target: str
    precision: str
    threads: int
    batch: int = 1
    latency_ms: Times | None = None
    median_ci95: Interval | None = None
    tails_ci95: dict[str, Any] | None = None
    p90_bound_ms: float | None = None
    n_runs: int = 0
    stable: bool | None = None
    round_p50_ms: tuple[float, ...] = ()
    images_per_second: float | None = None
    cpu_ms: Times | None = None
    end_to_end_ms: Times | None = None
    preprocess_ms: Times | None = None
    postprocess_ms: Times | None = None
    offline: dict[str, Any] | None = None
    server: dict[str, Any] | None = None
    load_ms: float | None = None
    first_load_ms: float | None = None
    first_inference_ms: float | None = None
    peak_memory_bytes: int | None = None
    steady_memory_bytes: int | None = None
    size_bytes: int | None = None
    engine_bytes: int | None = None
    stored_bytes: int | None = None
    compression: str | None = None
    accuracy: float | None = None
    accuracy_ci95: Interval | None = None
    accuracy_resamples: tuple[float, ...] = ()
    metric: str | None = None
    map50: float | None = None
    top5: float | None = None
    n: int | None = None
    agreement: float | None = None
    agreement_ci95: Interval | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    reference: str | None = None
    reference_accuracy: float | None = None
    quality_met: bool | None = None
    correct: str | None = None
    pictures_sha256: str | None = None
    engine_version: str | None = None
    sha256: str | None = None
    engine_sha256: str | None = None
    error: str | None = None
    run: int = 0
    samples: tuple[dict[str, Any], ...] = ()
    conditions: dict[str, Any] | None = None
    energy_j: float | None = None
    energy_source: str | None = None
    why_no_energy: str | None = None
    flags: tuple[str, ...] = ()
    layers: tuple[dict[str, Any], ...] = ()

    @property
    def p50(self) -> float | None:
        """Median latency of the engine, milliseconds."""
        return None if self.latency_ms is None else float(self.latency_ms["p50"])

    def tail(self, name: str, of: str = "latency_ms") -> float | None:
        """``p90``, ``p95`` or ``p99`` of ``latency_ms`` or another of the times; None where it cannot be told.

        Files of earlier versions hold tails of few runs as well; those stay untold.
        """
        times = getattr(self, of)
        value = None if times is None else times.get(name)
        return None if value is None or not told(name, self.n_runs) else float(value)

    @property
    def exact(self) -> bool:
        """Whether its weights are those of the network: FP32, and none of them shared."""
        return self.precision == "fp32" and self.compression in (None, "lossless")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        """Build from plain values; keys of a newer version are passed over.

        Raises:
            DataError: a key every row must have is missing.
        """
        known = {field.name for field in fields(cls)}
        pairs: dict[str, Any] = {}
        for key, value in values.items():
            pairs[key] = tuple(value) if isinstance(value, list) else value
        try:
            return cls(**{key: value for key, value in pairs.items() if key in known})
        except TypeError as error:
            raise DataError(f"a result row is incomplete: {error}") from error
