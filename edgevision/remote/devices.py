"""`bench_devices`: one job on several devices at once; who drops out is reported and the others go on."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgevision.errors import DeviceError, EdgeVisionError, UsageError
from edgevision.files import ensure_writable, write_json
from edgevision.remote.board import Board
from edgevision.remote.conversation import Conversation
from edgevision.remote.device_url import Device, parse_device
from edgevision.remote.job import BenchJob
from edgevision.remote.transport import Transport, open_transport

# in the report's folder: what each finished device answered
KEPT_FOLDER = "devices"
_KEPT_VERSION = 1


@dataclass
class DeviceResult:
    """What came of one device.

    Attributes:
        device: the device.
        document: its report (see `edgevision_benchmarks.report.Report`) as plain values; None where it failed.
        error: what went wrong; None where it did not.
        notes: what the user should know beside the results.
        kept: the result is from an earlier call of the same job.
    """

    device: Device
    document: dict[str, Any] | None = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    kept: bool = False


def bench_devices(
    job: BenchJob,
    devices: Sequence[str | Device],
    *,
    out: str | Path | None = None,
    open_way: Callable[[Device], Transport] = open_transport,
) -> list[DeviceResult]:
    """Do a job on several devices at once.

    A finished device's answer is kept in ``out/devices`` under the key of the job; the same call again asks only the
    devices that are missing.

    Args:
        job: from `edgevision.remote.job.prepare`.
        devices: URLs (see `edgevision.remote.device_url`), or devices.
        out: folder of the report; None keeps nothing.
        open_way: how a device becomes a transport.

    Returns:
        One result for each device, in order; failures among them.

    Raises:
        UsageError: a device's URL is wrong, or one is named twice.
        OutputError: ``out`` cannot be written.
        KeyboardInterrupt: Ctrl-C; the devices have been told and have cleaned up.
    """
    listed = [device if isinstance(device, Device) else parse_device(device) for device in devices]
    names = [device.name for device in listed]
    if len(set(names)) < len(names):
        raise UsageError(f"a device is named twice: {', '.join(names)}; two jobs on one board would disturb each other")
    folder = None if out is None else ensure_writable(Path(out) / KEPT_FOLDER)
    results = [DeviceResult(device) for device in listed]
    with Board(names) as board:
        attempts = [_Attempt(result, job, folder, board, open_way) for result in results]
        _at_once(attempts)
    return results


def _at_once(attempts: Sequence[_Attempt]) -> None:
    threads = [threading.Thread(target=attempt.run, name=attempt.result.device.name) for attempt in attempts]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            # a join without a limit would not see Ctrl-C on every system
            while thread.is_alive():
                thread.join(0.2)
    except KeyboardInterrupt:
        for attempt in attempts:
            attempt.stop()
        for thread in threads:
            thread.join()
        raise


class _Attempt:
    """The job on one device, in a thread."""

    def __init__(
        self,
        result: DeviceResult,
        job: BenchJob,
        folder: Path | None,
        board: Board,
        open_way: Callable[[Device], Transport],
    ) -> None:
        self.result = result
        self._job, self._folder, self._board, self._open_way = job, folder, board, open_way
        self._conversation: Conversation | None = None
        self._stopped = False

    def run(self) -> None:
        """Fill in the result; an error is one."""
        name = self.result.device.name
        try:
            self._run()
            self._board.tell(name, "kept from before" if self.result.kept else "done", 1.0, "")
        except EdgeVisionError as error:
            self.result.error = str(error)
            self._board.tell(name, "failed", 0.0, "")
        except Exception as error:  # one device's surprise must not cost the others their results
            self.result.error = f"{name}: {type(error).__name__}: {error}"
            self._board.tell(name, "failed", 0.0, "")

    def stop(self) -> None:
        """End it from another thread."""
        self._stopped = True
        if self._conversation is not None:
            self._conversation.stop()

    def _run(self) -> None:
        device = self.result.device
        self._board.tell(device.name, "preparing", None, "")
        transport = self._open_way(device)
        key = self._job.key(device, transport.identity)
        path = None if self._folder is None else self._folder / f"{device.slug}-{key[:12]}.json"
        if path is not None and (kept := read_kept(path, key)) is not None:
            self.result.document, self.result.notes, self.result.kept = kept["document"], kept["notes"], True
            return
        self._conversation = Conversation(transport, lambda *told: self._board.tell(device.name, *told))
        if self._stopped:
            raise DeviceError(f"{device.name}: interrupted")
        document = self._conversation.hold(self._job)
        document["provenance"]["device"] = device.name
        self.result.document, self.result.notes = document, self._conversation.notes
        # a device that lacked an engine is asked again: the user was told how to install it
        if path is not None and not self._conversation.left_out:
            write_kept(path, key, document, self.result.notes)


def write_kept(path: Path, key: str, document: dict[str, Any], notes: Sequence[str] = ()) -> None:
    """Keep an answer under the key of its job. Raises `OutputError` where that is not possible."""
    write_json(path, {"version": _KEPT_VERSION, "key": key, "notes": list(notes), "document": document})


def read_kept(path: Path, key: str) -> dict[str, Any] | None:
    """A kept answer; None where there is none of this key, or what is there is damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["version"] == _KEPT_VERSION and kept["key"] == key and isinstance(kept["document"]["results"], list):
            return {"document": dict(kept["document"]), "notes": [str(note) for note in kept["notes"]]}
    return None


def merged(results: Sequence[DeviceResult], *, title: str | None = None) -> Any:
    """One `Report` of all devices that answered; a damaged answer becomes that device's error.

    Raises:
        DeviceError: no device answered.
    """
    from edgevision.errors import DataError
    from edgevision_benchmarks.report import Report

    reports = []
    for result in results:
        if result.document is None:
            continue
        try:
            reports.append(Report.from_dict(result.document))
        except DataError as error:
            result.error = f"{result.device.name}: {error}"
    if not reports:
        raise DeviceError("; ".join(result.error or "" for result in results))
    return Report.merged(reports, title=title)
