"""`Result`: one bundle at one number of threads, as measured; one row of a report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from edgevision.errors import DataError

Times = dict[str, float]
Interval = tuple[float, float]


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
        latency_ms: engine alone (`Session.infer` on a ready tensor): ``p50 p90 p99 mean min std``, milliseconds.
        median_ci95: 95% confidence interval of ``latency_ms``'s p50, milliseconds.
        n_runs: measured runs of the engine.
        stable: warm-ups settled and rounds agree (see `edgevision_benchmarks.timing.Timing`).
        round_p50_ms: median of each round.
        images_per_second: ``batch`` over the median.
        cpu_ms: CPU time of the process for one inference, keys as ``latency_ms``.
        end_to_end_ms: picture file → task result, keys as ``latency_ms``.
        load_ms: bundle file → session ready in a fresh process, import of the runtime included; median of rounds.
        first_load_ms: the same, first round: what was compiled for this device and cached is in it.
        first_inference_ms: first inference after loading, median of rounds.
        peak_memory_bytes: greatest resident memory of the process that ran it, interpreter included.
        size_bytes: the bundle on disk.
        engine_bytes: the engine's own files, unpacked.
        stored_bytes: the same as they lie in the bundle.
        compression: ``lossless``, or ``6 bits`` of shared weights; None where the bundle is not compressed.
        accuracy: top-1, 0..1.
        accuracy_ci95: Wilson's 95% interval of it.
        top5: top-5, 0..1.
        n: pictures evaluated.
        agreement: share of pictures answered as ``reference`` answers them, 0..1.
        agreement_ci95: Wilson's 95% interval of it.
        cosine: cosine similarity with the reference's outputs (task ``tensors``).
        sqnr_db: signal-to-quantization-noise ratio against them, dB (None with cosine 1: nothing differs).
        reference: path of the bundle compared with.
        engine_version: version of the engine's library.
        sha256: of the bundle file; None for a folder.
        engine_sha256: of the engine files: equal ones run equally.
        error: what failed; None where all went well.
        run: index of the report's run (machine and date) it was measured in.
    """

    bundle: str
    model: str
    target: str
    precision: str
    threads: int
    batch: int = 1
    latency_ms: Times | None = None
    median_ci95: Interval | None = None
    n_runs: int = 0
    stable: bool | None = None
    round_p50_ms: tuple[float, ...] = ()
    images_per_second: float | None = None
    cpu_ms: Times | None = None
    end_to_end_ms: Times | None = None
    load_ms: float | None = None
    first_load_ms: float | None = None
    first_inference_ms: float | None = None
    peak_memory_bytes: int | None = None
    size_bytes: int | None = None
    engine_bytes: int | None = None
    stored_bytes: int | None = None
    compression: str | None = None
    accuracy: float | None = None
    accuracy_ci95: Interval | None = None
    top5: float | None = None
    n: int | None = None
    agreement: float | None = None
    agreement_ci95: Interval | None = None
    cosine: float | None = None
    sqnr_db: float | None = None
    reference: str | None = None
    engine_version: str | None = None
    sha256: str | None = None
    engine_sha256: str | None = None
    error: str | None = None
    run: int = 0

    @property
    def p50(self) -> float | None:
        """Median latency of the engine, milliseconds."""
        return None if self.latency_ms is None else self.latency_ms["p50"]

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
