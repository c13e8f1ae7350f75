"""The desk's end of a job: send it, follow it, bring its results back whole or say what went wrong."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, BinaryIO, TypeAlias

from edgevision import __version__
from edgevision.errors import DeviceError
from edgevision.files import sha256_bytes
from edgevision.remote.device_side import PREFIX
from edgevision.remote.job import MODULES, BenchJob
from edgevision.remote.transport import Transport

# phase, share done of it (0..1) or None, a remark
Told: TypeAlias = Callable[[str, "float | None", str], None]

# until Python answers: a board that is busy, or an emulated one, takes its time
_GREETING_S = 90.0
# the device says "alive" every 2 s while it works
_SILENCE_S = 60.0
# what lies in the buffers of a slow line when all is sent
_COPIED_S = 300.0
_HEARTBEAT_S = 10.0
_FAREWELL_S = 15.0
_OLDEST_PYTHON = (3, 10)
_LONGEST_LINE = 1 << 20
_MEGABYTE = 1 << 20


class Conversation:
    """One job on one device, over the pipes of a transport.

    Args:
        transport: the way there.
        told: is called with phase, share and remark as the job goes on; from this thread and no other.
    """

    def __init__(self, transport: Transport, told: Told) -> None:
        self.transport = transport
        self.name = transport.device.name
        self.notes: list[str] = []
        # rows of bundles that the device has no engine for
        self.left_out: list[dict[str, Any]] = []
        self._told = told
        self._said: deque[str] = deque(maxlen=40)
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: threading.Thread | None = None
        self._stopped = threading.Event()
        self._over = threading.Event()

    def hold(self, job: BenchJob) -> dict[str, Any]:
        """Do the job.

        Returns:
            The device's report, with the desk's paths.

        Raises:
            DeviceError: the device cannot be reached, lacks something, or dropped out. Its folder is removed there
                in every case, by the device itself.
        """
        self._told("connecting", None, "")
        self._process = self.transport.start()
        readers = [
            threading.Thread(target=self._read_errors, args=(self._process.stderr,), daemon=True),
            threading.Thread(target=self._read_events, args=(self._process.stdout,), daemon=True),
        ]
        self._errors = readers[0]
        for reader in readers:
            reader.start()
        try:
            return self._talk(job)
        finally:
            self._close(readers)

    def stop(self) -> None:
        """End the job from another thread; the device cleans up."""
        self._stopped.set()
        self._events.put(None)
        if (process := self._process) is not None:
            # a line that takes no more bytes would hold the copying thread
            timer = threading.Timer(_FAREWELL_S, process.kill)
            timer.daemon = True
            timer.start()

    def _talk(self, job: BenchJob) -> dict[str, Any]:
        request = {"needs": job.needs, "directory": self.transport.device.directory}
        self._send(json.dumps(request).encode() + b"\n")
        hello = self._expect("hello", _GREETING_S)
        job = self._judge(hello, job)
        self._send(json.dumps(job.order(self.transport.device)).encode() + b"\n")
        sent = 0
        for file in job.files:
            for piece in file.pieces():
                self._send(piece)
                sent += len(piece)
                self._told("copying", sent / max(1, job.size), "")
        self._expect("received", _COPIED_S)
        threading.Thread(target=self._beat, daemon=True).start()
        results = self._follow()
        with contextlib.suppress(DeviceError):
            # the results are here; whether the farewell is, too, changes nothing
            self._expect("bye", _FAREWELL_S)
        document = job.at_the_desk(self._document(results))
        document["results"] += self.left_out
        return document

    def _judge(self, hello: dict[str, Any], job: BenchJob) -> BenchJob:
        """The job as far as this device can do it."""
        python = hello["executable"] or self.transport.device.python
        if tuple(int(part) for part in hello["python"].split(".")[:2]) < _OLDEST_PYTHON:
            raise DeviceError(
                f"{self.name} has Python {hello['python']} at {python}; edgevision needs "
                f"{'.'.join(map(str, _OLDEST_PYTHON))} or newer: name another one with ?python=/path/to/python"
            )
        missing = [name for name in job.needs if not hello["modules"].get(name)]
        extras = f"[{','.join(missing)}]" if missing else ""
        remedy = self.transport.remedy(python, f"edgevision{extras}")
        if hello["edgevision"] is None:
            raise DeviceError(f"{self.name}: edgevision is not installed for {python}: {remedy}")
        if hello["edgevision"] not in (__version__, "unknown"):
            self.notes.append(f"{self.name} has edgevision {hello['edgevision']}, this desk {__version__}")
        if missing:
            rest = job.without(missing)
            if not rest.bundles:
                raise DeviceError(f"{self.name} has no {' and no '.join(missing)}, which the bundles need: {remedy}")
            for bundle in (bundle for bundle in job.bundles if bundle not in rest.bundles):
                why = f"{self.name} has no {MODULES[bundle.target]}: {remedy}"
                self.left_out.append(bundle.failed(why))
            job = rest
        if hello.get("directory_error"):
            raise DeviceError(
                f"{self.name}: {hello['directory']}: {hello['directory_error']}; choose another: ?dir=PATH"
            )
        if hello["free_bytes"] < job.size:
            raise DeviceError(
                f"{self.name}: {hello['directory']} has {hello['free_bytes'] / _MEGABYTE:.1f} MiB free and the job "
                f"needs {job.size / _MEGABYTE:.1f}: free some, copy fewer pictures (--limit), or ?dir=PATH"
            )
        return job

    def _follow(self) -> dict[str, Any]:
        remark = ""
        while True:
            event = self._next(_SILENCE_S)
            if event["event"] == "line":
                remark = event["text"]
            elif event["event"] == "alive":
                self._told("running", None, f"{event['seconds']} s{', ' + remark if remark else ''}")
            elif event["event"] == "results":
                return event

    def _document(self, results: dict[str, Any]) -> dict[str, Any]:
        data: bytes = results["payload"]
        if len(data) != results["size"] or sha256_bytes(data) != results["sha256"]:
            raise DeviceError(
                f"{self.name}: its results were cut: {len(data)} of {results['size']} bytes came; run the same command "
                "again, finished devices are kept"
            )
        words = " | ".join(results["tail"][-3:]) or "it said nothing"
        try:
            document = json.loads(data)
            if not isinstance(document["results"], list) or not isinstance(document["provenance"], dict):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            full = any("No space left on device" in line for line in results["tail"])
            what = "its disk is full" if full else f"the job there ended with exit code {results['code']}"
            raise DeviceError(f"{self.name}: {what}: {words}") from error
        return dict(document)

    def _expect(self, name: str, timeout_s: float) -> dict[str, Any]:
        while True:
            event = self._next(timeout_s)
            if event["event"] == name:
                return event

    def _next(self, timeout_s: float) -> dict[str, Any]:
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            raise DeviceError(f"{self.name} dropped out: nothing came from it for {timeout_s:g} s") from None
        if self._stopped.is_set():
            raise DeviceError(f"{self.name}: interrupted")
        if event is None:
            raise self._dropped()
        if event["event"] == "failed":
            raise self._failed(event)
        return event

    def _failed(self, event: dict[str, Any]) -> DeviceError:
        if event["reason"] == "disk":
            return DeviceError(
                f"{self.name}: the disk of {event['directory']} is full ({event['message']}): free some, copy fewer "
                "pictures (--limit), or ?dir=PATH"
            )
        return DeviceError(f"{self.name}: {event['message']}")

    def _dropped(self) -> DeviceError:
        assert self._process is not None
        try:
            code = self._process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            return DeviceError(f"{self.name} dropped out: it closed the connection")
        if self._errors is not None:
            self._errors.join(5)  # its last words may still be in the pipe
        return self.transport.explain(code, list(self._said))

    def _send(self, data: bytes) -> None:
        """Write all of it; a device that has stopped reading has said why, or its end says so."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except (OSError, ValueError):
            while True:  # whatever it said before it left; the end of that is an error of its own
                self._next(_FAREWELL_S)
        if self._stopped.is_set():
            raise DeviceError(f"{self.name}: interrupted")

    def _beat(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        while not self._over.wait(_HEARTBEAT_S):
            try:
                self._process.stdin.write(b"\n")
                self._process.stdin.flush()
            except (OSError, ValueError):
                return

    def _read_events(self, stream: BinaryIO) -> None:
        """Put the device's events into the queue, and None at its end; what a login shell prints is passed over."""
        try:
            while line := stream.readline(_LONGEST_LINE):
                if not line.startswith(PREFIX.encode()):
                    continue
                try:
                    event = json.loads(line[len(PREFIX) :])
                except ValueError:
                    continue  # the connection was cut inside a line; the end follows
                if event["event"] == "results":
                    event["payload"] = stream.read(event["size"])
                self._events.put(event)
        except (OSError, ValueError):
            pass
        self._events.put(None)

    def _read_errors(self, stream: BinaryIO) -> None:
        for raw in stream:
            if text := raw.decode(errors="replace").rstrip():
                self._said.append(text)

    def _close(self, readers: list[threading.Thread]) -> None:
        """Let the device clean up: it does when its input ends."""
        self._over.set()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_FAREWELL_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for reader in readers:
            reader.join(5)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
