"""Plans tried on their engine: accuracy on the user's validation data and latency, kept so that nothing runs twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.bundle import SUFFIX, Bundle
from edgevision.data.base import Dataset
from edgevision.errors import EdgeVisionError, EngineError, MissingDependencyError, OutputError
from edgevision.files import write_json
from edgevision.pipeline.search import Budget, OutOfTimeError
from edgevision.pipeline.workspace import digest_of
from edgevision.progress import Progress

if TYPE_CHECKING:
    from edgevision_benchmarks.accuracy import Evaluation

# how each plan is timed: short turns in fresh processes, the plans in rotation
_ROUNDS = 3
_SECONDS = 0.3
_MIN_RUNS = 10
# measures that need what the pictures show, and no reference
_ACCURACIES = ("top-1", "mAP")

# layers in float → bundle of that plan for an engine
Build = Callable[[str, frozenset[str]], Bundle]
# bundle of the model in FP32 for an engine
BuildFloat = Callable[[str], Bundle]


class EngineTrials:
    """Builds, evaluates and times plans on one engine; what `edgevision.pipeline.search.search` measures with.

    The loss is in points (0..100): of top-1 where the validation data have labels, of mAP where a detector's have
    boxes, of agreement with FP32 where a classifier's or detector's have none, of cosine similarity with FP32 for other
    networks. Where the target does not run on this
    machine (TensorRT without a GPU), ONNX Runtime runs the target's plan in its place and nothing is timed.

    Args:
        target: engine the plans are for.
        layers: all layers that can be quantized.
        build: makes the bundle of a plan for an engine.
        build_float: makes the FP32 bundle.
        data: validation pictures.
        folder: where bundles and measurements are kept.
        budget: time that may be spent.
    """

    def __init__(
        self,
        target: str,
        layers: Collection[str],
        build: Build,
        build_float: BuildFloat,
        data: Dataset,
        folder: Path,
        budget: Budget,
    ) -> None:
        self._layers = frozenset(layers)
        self._build = build
        self._build_float = build_float
        self._data = data
        self._folder = folder
        self._budget = budget
        self._progress: Progress | None = None
        self.state = self._read()
        self.engine = self._engine(target)
        self._can_time = self.engine == target

    @property
    def measure(self) -> str:
        """What the loss is a loss of: ``top-1``, ``mAP``, ``agreement`` or ``cosine``."""
        return str(self.state["measure"])

    @property
    def pictures(self) -> int:
        """How many pictures the loss was measured on."""
        return int(self.state["pictures"])

    def drop(self, float_nodes: Collection[str]) -> float:
        """Loss against FP32 with these layers in float, in points; 0 with all of them."""
        nodes = frozenset(float_nodes)
        if nodes == self._layers:
            return 0.0
        key = _key(nodes)
        if key not in self.state["drops"]:
            # whatever the budget, one plan is measured: without it there is nothing to answer
            if self.state["drops"]:
                self._budget.check()
            with Progress(f"try {self.engine} with {len(nodes)} of {len(self._layers)} layers in float"):
                self.state["drops"][key] = self._loss(nodes)
            self._write()
        return float(self.state["drops"][key])

    def latencies(self, plans: Sequence[frozenset[str]]) -> list[float | None]:
        """Least milliseconds of one inference on one thread, the plans in rotation; None where nothing can be timed.

        With too little time left for all, the first ones are timed.
        """
        if not self._can_time:
            return [None] * len(plans)
        key = digest_of([_key(plan) for plan in plans])
        known = self.state["latencies"].get(key, [])
        taken = list(plans[: self._affordable()])
        if len(known) < len(taken):
            self._budget.check()
            begun = time.monotonic()
            times = self._time(taken)
            self.state["seconds_per_timing"] = (time.monotonic() - begun) / len(taken)
            self.state["latencies"][key] = times
            self._write()
        times = list(self.state["latencies"].get(key, []))
        if not times:
            raise OutOfTimeError
        return times + [None] * (len(plans) - len(times))

    def _affordable(self) -> int | None:
        """How many plans can be timed in what is left, as far as is known; None for any number."""
        left, each = self._budget.left(), float(self.state.get("seconds_per_timing", 0.0))
        return None if left == float("inf") or each <= 0 else max(0, int(left / each))

    def _loss(self, nodes: frozenset[str]) -> float:
        found = self._evaluate(self._bundle(nodes))
        if self.measure in _ACCURACIES:
            assert found.accuracy is not None
            return 100.0 * (float(self.state["baseline"]) - found.accuracy)
        value = found.agreement if self.measure == "agreement" else found.cosine
        assert value is not None
        return 100.0 * (1.0 - value)

    def _evaluate(self, bundle: Bundle, *, alone: bool = False) -> Evaluation:
        from edgevision.runtime.session import load
        from edgevision_benchmarks.accuracy import evaluate

        with load(bundle, threads=0) as session:
            if alone or self.state.get("measure") in _ACCURACIES:
                return evaluate(session, self._data, batch_size=1)
            with load(self._float_bundle(), threads=0) as reference:
                return evaluate(session, self._data, reference=reference, batch_size=1)

    def _engine(self, target: str) -> str:
        """The target if it runs here, else ONNX Runtime; fills in what the loss is measured against."""
        for engine in dict.fromkeys((target, "onnxruntime")):
            self.engine = engine
            if self.state.get("engine") == engine:
                return engine
            try:
                self._baseline()
            except (MissingDependencyError, EngineError):
                if engine == "onnxruntime":
                    raise
                continue
            self.state["engine"] = engine
            self._write()
            return engine
        raise EngineError(f"neither {target} nor ONNX Runtime runs here")

    def _baseline(self) -> None:
        bundle = self._float_bundle()
        task = bundle.manifest.task
        labelled = self._data.labels is not None and task == "classification"
        if labelled or (task == "detection" and len(self._data) and self._data[0].boxes is not None):
            found = self._evaluate(bundle, alone=True)
            self.state["baseline"] = found.accuracy
            self.state["measure"] = found.metric or "agreement"
        else:
            from edgevision.runtime.session import load

            with load(bundle):  # to learn whether the engine runs here
                self.state["measure"] = "cosine" if task == "tensors" else "agreement"
        self.state["pictures"] = len(self._data)

    def _float_bundle(self) -> Bundle:
        return self._kept(f"{self.engine}-fp32", lambda: self._build_float(self.engine))

    def _bundle(self, nodes: frozenset[str]) -> Bundle:
        if nodes == self._layers:
            return self._float_bundle()
        return self._kept(f"{self.engine}-{_key(nodes)}", lambda: self._build(self.engine, nodes))

    def _kept(self, name: str, make: Callable[[], Bundle]) -> Bundle:
        path = self._folder / f"{name}{SUFFIX}"
        if path.exists():
            try:
                return Bundle.open(path)
            except EdgeVisionError:
                pass  # damaged: made again
        bundle = make()
        bundle.save(path)
        return bundle

    def _time(self, plans: Sequence[frozenset[str]]) -> list[float | None]:
        from edgevision_benchmarks.bench import bench

        bundles = [self._bundle(plan) for plan in plans]
        report = bench(bundles, rounds=_ROUNDS, seconds=_SECONDS, min_runs=_MIN_RUNS, end_to_end=False)
        return [None if row.latency_ms is None else row.latency_ms["min"] for row in report.results]

    def _read(self) -> dict[str, Any]:
        """What an earlier search measured."""
        empty: dict[str, Any] = {"drops": {}, "latencies": {}}
        try:
            return {**empty, **json.loads((self._folder / "state.json").read_text(encoding="utf-8"))}
        except (OSError, ValueError):
            return empty

    def _write(self) -> None:
        try:
            write_json(self._folder / "state.json", self.state)
        except OutputError as error:
            raise OutputError(f"the search cannot keep its measurements: {error}") from error


def _key(nodes: Collection[str]) -> str:
    return digest_of(sorted(nodes))
