"""`bench_cluster`: the same jobs on a Dask cluster, whose workers stand on boards and name their kind as a resource.

A worker on a board is started as ``dask worker tcp://desk:8786 --nthreads 1 --no-nanny --resources "pi5=1"``. The
resource is the kind of the device, and 1 of it lets one job run at a time: two would disturb each other's times.

Dask carries functions and results by pickle, between machines of one owner; nothing else in this project is pickled.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from edgevision.dependencies import require
from edgevision.errors import DeviceError, EdgeVisionError, UsageError
from edgevision.files import ensure_writable, sha256_bytes
from edgevision.progress import Progress
from edgevision.remote.device_side import NoDesk, make_folder, take_in, work
from edgevision.remote.device_url import Device
from edgevision.remote.devices import KEPT_FOLDER, DeviceResult, read_kept, write_kept
from edgevision.remote.job import BenchJob

# without a worker of its kind for so long, a job is given up
PATIENCE_S = 60.0
# to find the scheduler
CONNECT_S = 10
# workers that may die under a job before it is blamed and given up
_RETRIES = 2
_POLL_S = 0.2


@dataclass(frozen=True)
class FleetJob:
    """One job for one kind of device: all bundles of one model, so that they are compared on one board.

    Attributes:
        kind: resource of the workers that may do it.
        job: what to do.
        key: of content and kind: the same job is done once.
    """

    kind: str
    job: BenchJob
    key: str

    @property
    def name(self) -> str:
        """``pi5: mobilenet_v2``."""
        return f"{self.kind}: {self.job.bundles[0].model}"


def bench_cluster(
    job: BenchJob,
    cluster: Any,
    *,
    kinds: Sequence[str] = (),
    out: str | Path | None = None,
    patience_s: float = PATIENCE_S,
) -> list[DeviceResult]:
    """Do a job on every kind of device of a cluster, a part per model; every part is done once or reported.

    A worker that is lost in the middle costs its part so far; another worker of the same kind does it again. What is
    done is kept in ``out/devices`` as `edgevision.remote.devices.bench_devices` keeps it.

    Args:
        job: from `edgevision.remote.job.prepare`.
        cluster: address of a scheduler (``tcp://desk:8786``), or a `distributed.Client`.
        kinds: resources to use; by default every resource that a worker names now.
        out: folder of the report; None keeps nothing.
        patience_s: how long a part waits for a worker of its kind to appear, seconds.

    Returns:
        One result for each kind and model; failures among them.

    Raises:
        MissingDependencyError: Dask is not installed.
        DeviceError: the scheduler cannot be reached, or no worker names a kind.
        UsageError: a kind that no worker has, and no patience.
    """
    distributed = require("distributed", purpose="measure on a cluster")
    folder = None if out is None else ensure_writable(Path(out) / KEPT_FOLDER)
    with _client(distributed, cluster) as client:
        chosen = list(dict.fromkeys(kinds)) or sorted(_kinds(client))
        if not chosen:
            raise DeviceError(
                "no worker of the cluster names its kind; start them with: "
                'dask worker … --nthreads 1 --no-nanny --resources "pi5=1"'
            )
        parts = [FleetJob(kind, part, _key(kind, part)) for kind in chosen for part in _by_model(job)]
        return list(_run(client, parts, folder, patience_s))


@contextmanager
def _client(distributed: Any, cluster: Any) -> Iterator[Any]:
    if not isinstance(cluster, str):
        yield cluster
        return
    if "://" not in cluster:
        raise UsageError(f"--cluster {cluster}: expected the scheduler's address, as tcp://desk:8786")
    try:
        client = distributed.Client(cluster, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise DeviceError(f"the scheduler at {cluster} cannot be reached: {error}; is it running?") from error
    with client:
        yield client


def _kinds(client: Any) -> set[str]:
    try:
        # newer versions describe the first five only, unless they are asked for all; older ones cannot be asked
        accepts = "n_workers" in signature(client.scheduler_info).parameters
        workers = client.scheduler_info(**({"n_workers": -1} if accepts else {}))["workers"].values()
    except OSError:  # the scheduler is away; the futures will say so
        return set()
    return {kind for worker in workers for kind, amount in worker["resources"].items() if amount >= 1}


def _by_model(job: BenchJob) -> list[BenchJob]:
    models = dict.fromkeys(bundle.model for bundle in job.bundles)
    return [replace(job, bundles=tuple(b for b in job.bundles if b.model == model)) for model in models]


def _key(kind: str, job: BenchJob) -> str:
    return job.key(Device("local"), f"cluster {kind}")


def _run(client: Any, parts: Sequence[FleetJob], folder: Path | None, patience_s: float) -> Iterator[DeviceResult]:
    waiting: dict[str, Any] = {}
    results = {part.key: DeviceResult(Device("cluster", part.kind)) for part in parts}
    for part in parts:
        path = None if folder is None else _path(folder, part)
        if path is not None and (kept := read_kept(path, part.key)) is not None:
            results[part.key].document, results[part.key].kept = kept["document"], True
        else:
            waiting[part.key] = _submit(client, part)
    named = {part.key: part for part in parts}
    try:
        with Progress("measuring on the cluster", len(parts)) as progress:
            progress.advance(len(parts) - len(waiting))
            for key in _finished(client, waiting, named, results, patience_s):
                _take(named[key], waiting[key], results[key], folder)
                progress.advance(1, named[key].name)
    finally:
        # what is still there when Ctrl-C comes must not go on measuring for nobody
        client.cancel([future for future in waiting.values() if not future.done()])
    yield from results.values()


def _submit(client: Any, part: FleetJob) -> Any:
    blobs = {file.path: b"".join(file.pieces()) for file in part.job.files}
    order = part.job.order(Device("local"))
    with warnings.catch_warnings():
        # bundles are what is sent, some megabytes of them; Dask recommends against it for graphs of many small tasks
        warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
        return client.submit(
            do_job, order, blobs, key=f"edgevision-{part.key}", pure=True, resources={part.kind: 1}, retries=_RETRIES
        )


def do_job(order: dict[str, Any], blobs: dict[str, bytes]) -> dict[str, Any]:
    """Do a job where this runs: on a worker.

    Returns:
        ``stdout`` of the command, its ``sha256``, ``code`` and ``tail``; or ``error``.
    """
    folder = ""
    try:
        folder = make_folder(tempfile.gettempdir())
        for name, size, digest in order["files"]:
            stream = memoryview(blobs[name])
            take_in(folder, [[name, size, digest]], _reader(stream))
        done = work(NoDesk(), folder, order)
        return {**done, "sha256": sha256_bytes(done["stdout"])}
    except OSError as error:  # a full disk; raised, it would be taken for a worker's failure and tried again
        return {"error": str(error)}
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _reader(stream: memoryview) -> Callable[[int], bytes]:
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        piece = bytes(stream[position : position + size])
        position += len(piece)
        return piece

    return read


def _finished(
    client: Any,
    waiting: dict[str, Any],
    named: dict[str, FleetJob],
    results: dict[str, DeviceResult],
    patience_s: float,
) -> Iterator[str]:
    """Keys of parts as they end; parts for which no worker is left are given up and reported."""
    open_keys = set(waiting)
    alone_since: dict[str, float] = {}
    while open_keys:
        for key in sorted(key for key in open_keys if waiting[key].done()):
            open_keys.discard(key)
            yield key
        present = _kinds(client) if open_keys else set()
        for key in sorted(open_keys):
            kind = named[key].kind
            if kind in present:
                alone_since.pop(key, None)
            elif time.monotonic() - alone_since.setdefault(key, time.monotonic()) > patience_s:
                open_keys.discard(key)
                waiting[key].cancel()
                results[key].error = f"{named[key].name}: no worker of kind {kind} is on the cluster; not measured"
        time.sleep(_POLL_S)


def _take(part: FleetJob, future: Any, result: DeviceResult, folder: Path | None) -> None:
    try:
        answer = future.result()
    except EdgeVisionError as error:
        result.error = f"{part.name}: {error}"
        return
    except Exception as error:  # KilledWorker, or whatever the worker's Python raised
        result.error = f"{part.name}: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
        return
    try:
        document = _document(part, answer)
    except DeviceError as error:
        result.error = str(error)
        return
    document["provenance"]["device"] = f"cluster {part.kind}"
    result.document = document
    if folder is not None:
        write_kept(_path(folder, part), part.key, document)


def _document(part: FleetJob, answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise DeviceError(f"{part.name}: {answer['error']}")
    if sha256_bytes(answer["stdout"]) != answer["sha256"]:
        raise DeviceError(f"{part.name}: its results were damaged on the way")
    try:
        document = json.loads(answer["stdout"])
        return part.job.at_the_desk(document)
    except (ValueError, KeyError, TypeError) as error:
        words = " | ".join(answer["tail"][-3:])
        raise DeviceError(f"{part.name}: the job there ended with exit code {answer['code']}: {words}") from error


def _path(folder: Path, part: FleetJob) -> Path:
    return folder / f"cluster-{part.kind}-{part.key[:12]}.json"
