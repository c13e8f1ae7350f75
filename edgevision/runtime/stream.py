"""A pipelined stream: decoding, preprocessing, inference and post-processing of successive pictures side by side.

::

    frames ─► read ─► prepare × n ─► infer × requests ─► finish ─► results, in the frames' order

Every stage has its own threads (Pillow, numpy and the engines let others run while they work). An engine that can
prepare itself for several requests at once (OpenVINO) is opened anew for them. At most ``depth`` pictures are on their
way, so memory does not grow with the stream, and a slow reader of the results holds up the reading of frames.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgevision.errors import EdgeVisionError, UsageError
from edgevision.images import ImageLike
from edgevision.runtime.backend import Engine
from edgevision.runtime.frames import Frame
from edgevision.tasks import TaskResult, interpret

if TYPE_CHECKING:
    from edgevision.preprocess import Placement
    from edgevision.runtime.session import Session

STAGES = ("read", "prepare", "infer", "finish")
# how long `close` waits for a thread that hangs in a camera or a decoder of somebody's own, seconds
_PATIENCE = 5.0


@dataclass(frozen=True)
class StreamStatistics:
    """What a stream did so far.

    Attributes:
        frames: results handed out.
        seconds: from the first frame asked for to the last result.
        frames_per_second: throughput; None before the second result.
        latency_ms: picture at hand → result ready: ``p50 p90 p99 mean max``, milliseconds; empty without results.
        stage_ms: mean time of each stage (``read prepare infer finish``) of one picture, milliseconds. Where their sum
            is greater than a picture's share of the time, stages ran side by side.
        requests: inferences that may run at once.
    """

    frames: int
    seconds: float
    frames_per_second: float | None
    latency_ms: dict[str, float]
    stage_ms: dict[str, float]
    requests: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return asdict(self)


@dataclass(frozen=True)
class StreamResult:
    """One picture of a stream.

    Attributes:
        frame: what was given.
        result: what the network says of it; None where it failed.
        error: what went wrong, for ``errors="return"``.
        latency_ms: picture at hand → result ready.
    """

    frame: ImageLike | Frame
    result: TaskResult | None
    error: EdgeVisionError | None
    latency_ms: float


@dataclass
class _Job:
    """A picture on its way."""

    index: int
    frame: Any
    began: float
    batch: npt.NDArray[np.float32] | None = None
    placements: list[Placement] | None = None
    outputs: dict[str, npt.NDArray[Any]] | None = None
    result: TaskResult | None = None
    error: BaseException | None = None
    ended: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


class Stream:
    """Results of a session over a sequence of pictures; iterate over it once, or over `results`.

    Leaving the loop early, an error, and `close` all stop the threads. An error of a picture, of the sequence itself or
    of the engine is raised where its result would have come, after the results before it.

    Args:
        session: what runs; not to be closed meanwhile.
        frames: paths, PIL images, ``uint8`` arrays ``[H, W, 3]`` RGB, or `Frame`; read as far as needed.
        requests: inferences at once; by default as many as fit the processor with the session's threads.
        workers: threads that decode and preprocess.
        depth: pictures on their way at most; by default as many as keep all threads busy.
        errors: ``raise``, or ``return``: what EdgeVision raises for one picture (a damaged file) becomes its
            `StreamResult`'s ``error`` and the stream goes on; to be used with `results`.

    Raises:
        UsageError: a number below 1, or an unknown way with errors.
    """

    def __init__(
        self,
        session: Session,
        frames: Iterable[ImageLike | Frame],
        *,
        requests: int | None = None,
        workers: int = 2,
        depth: int | None = None,
        errors: str = "raise",
    ) -> None:
        self._requests = _default_requests(session) if requests is None else requests
        self._depth = self._requests + workers + 2 if depth is None else depth
        if min(self._requests, workers, self._depth) < 1:
            raise UsageError(f"requests, workers and depth must be 1 or more; got {requests}, {workers} and {depth}")
        if errors not in ("raise", "return"):
            raise UsageError(f"errors are to 'raise' or to 'return'; got {errors!r}")
        self._session, self._frames, self._workers, self._errors = session, frames, workers, errors
        self._stop = threading.Event()
        self._room = threading.Semaphore(self._depth)
        self._queues: dict[str, queue.Queue[_Job | None]] = {name: queue.Queue() for name in STAGES[1:]}
        self._ready = threading.Condition()
        self._done: dict[int, _Job] = {}
        self._count: int | None = None
        self._threads: list[threading.Thread] = []
        self._engine: Engine | None = None
        self._began = self._ended = 0.0
        self._latencies: list[float] = []
        self._spent = dict.fromkeys(STAGES, 0.0)

    def __iter__(self) -> Iterator[TaskResult]:
        for item in self.results():
            if item.error is not None:
                raise item.error
            assert item.result is not None
            yield item.result

    def results(self) -> Iterator[StreamResult]:
        """The same with the frame and the latency of each result.

        Raises:
            UsageError: the stream was read before.
        """
        if self._threads:
            raise UsageError("a stream is read once; open another with session.stream(frames)")
        self._start()
        try:
            index = 0
            while (job := self._next(index)) is not None:
                yield self._handed_out(job)
                index += 1
        finally:
            self.close()

    @property
    def statistics(self) -> StreamStatistics:
        """What was done so far."""
        latencies = np.asarray(self._latencies)
        count, seconds = len(latencies), self._ended - self._began
        found = {}
        if count:
            found = {f"p{share}": float(np.percentile(latencies, share)) for share in (50, 90, 99)}
            found |= {"mean": float(latencies.mean()), "max": float(latencies.max())}
        return StreamStatistics(
            frames=count,
            seconds=seconds,
            frames_per_second=count / seconds if count > 1 and seconds > 0 else None,
            latency_ms=found,
            stage_ms={name: 1e3 * spent / count for name, spent in self._spent.items()} if count else {},
            requests=self._requests,
        )

    def close(self) -> None:
        """Stop reading frames and end the threads; pictures on their way are dropped."""
        self._stop.set()
        self._room.release()
        for name in self._queues:
            self._queues[name].put(None)
        with self._ready:
            self._ready.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_PATIENCE)
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> None:
        if self._requests > 1:
            self._engine = self._session.parallel_engine(self._requests)
        stages: list[tuple[Callable[[], None], int]] = [
            (self._read, 1),
            (lambda: self._work("prepare", self._prepare, "infer"), self._workers),
            (lambda: self._work("infer", self._infer, "finish"), self._requests),
            (lambda: self._work("finish", self._finish, None), 1),
        ]
        self._threads = [
            # a reader that hangs in a camera must not keep the interpreter from ending
            threading.Thread(target=target, name=f"edgevision-stream-{name}-{number}", daemon=True)
            for name, (target, count) in zip(STAGES, stages, strict=True)
            for number in range(count)
        ]
        self._began = self._ended = time.perf_counter()
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        """Take frames as there is room for them."""
        index = 0
        iterator: Iterator[Any] | None = None
        try:
            iterator = iter(self._frames)
            while True:
                self._room.acquire()
                start = time.perf_counter()
                if self._stop.is_set():
                    return
                try:
                    frame = next(iterator)
                except StopIteration:
                    break
                now = time.perf_counter()
                self._queues["prepare"].put(_Job(index, frame, now, stages={"read": now - start}))
                index += 1
        except BaseException as error:
            # of the sequence itself: it comes after the results of the frames before
            now = time.perf_counter()
            self._put_done(_Job(index, None, now, error=error, ended=now, stages={"source": 0.0}))
            index += 1
        finally:
            with self._ready:
                self._count = index
                self._ready.notify_all()
            if (end := getattr(iterator, "close", None)) is not None:
                end()

    def _work(self, stage: str, do: Callable[[_Job], None], following: str | None) -> None:
        """Loop of a stage's thread: take, do, hand on; pictures that failed pass by."""
        source = self._queues[stage]
        while (job := source.get()) is not None:
            if self._stop.is_set():
                break
            if job.error is None:
                start = time.perf_counter()
                try:
                    do(job)
                except BaseException as error:  # raised where the result would have come
                    job.error = error
                job.stages[stage] = time.perf_counter() - start
            if following is None:
                job.ended = time.perf_counter()
                self._put_done(job)
            else:
                self._queues[following].put(job)
        # for the other threads of this stage
        source.put(None)

    def _prepare(self, job: _Job) -> None:
        image = job.frame.image if isinstance(job.frame, Frame) else job.frame
        job.batch, job.placements = self._session.place([image])

    def _infer(self, job: _Job) -> None:
        assert job.batch is not None
        if self._engine is None:
            job.outputs = self._session.run(job.batch)
        else:
            job.outputs = self._engine.infer({self._session.inputs[0].name: job.batch})

    def _finish(self, job: _Job) -> None:
        assert job.outputs is not None
        placements = None if self._session.postprocess is None else job.placements
        job.result = interpret(self._session.bundle.manifest, job.outputs, placements, self._session.postprocess)[0]
        # the next pictures' memory
        job.batch = job.outputs = None

    def _put_done(self, job: _Job) -> None:
        with self._ready:
            self._done[job.index] = job
            self._ready.notify_all()

    def _next(self, index: int) -> _Job | None:
        """The picture of this index, when it is done; None after the last."""
        with self._ready:
            while index not in self._done:
                if self._stop.is_set() or (self._count is not None and index >= self._count):
                    return None
                self._ready.wait()
            return self._done.pop(index)

    def _handed_out(self, job: _Job) -> StreamResult:
        self._room.release()
        if job.error is not None:
            recoverable = isinstance(job.error, EdgeVisionError) and "source" not in job.stages
            if self._errors == "raise" or not recoverable:
                raise job.error
        latency = 1e3 * (job.ended - job.began)
        if job.error is None:
            self._latencies.append(latency)
            self._ended = max(self._ended, job.ended)
            for name in STAGES:
                self._spent[name] += job.stages.get(name, 0.0)
        error = job.error if isinstance(job.error, EdgeVisionError) else None
        return StreamResult(job.frame, job.result, error, latency)


def _default_requests(session: Session) -> int:
    """Inferences that the processor's cores can run at once, each with the session's threads."""
    from edgevision.devices.cpu import usable_cores

    threads = session.options.threads
    return max(1, usable_cores() // threads) if threads else 1
