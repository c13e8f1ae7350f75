"""What a device is asked to do: bundles, a slice of the data, arguments; every file with its hash, all of it a key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevision import __version__
from edgevision.bundle import Bundle
from edgevision.data import Dataset, open_dataset
from edgevision.errors import UsageError
from edgevision.files import sha256_bytes
from edgevision.remote.device_url import Device
from edgevision.remote.slice import DataSlice, JobFile, take_slice

# target → the module its engine is; others come from entry points, and only the device knows what they need
MODULES = {name: name for name in ("onnxruntime", "openvino", "ncnn", "tensorrt")}


@dataclass(frozen=True)
class JobBundle:
    """A bundle to copy.

    Attributes:
        source: path at the desk, as it was given.
        path: path below the job's folder.
        files: its one file, or those of its folder.
        model: name of the model.
        target: engine.
        precision: ``fp32``, ``fp16``, ``int8``.
    """

    source: str
    path: str
    files: tuple[JobFile, ...]
    model: str
    target: str
    precision: str

    def failed(self, why: str) -> dict[str, Any]:
        """Its row in a report, where it could not be measured."""
        row = {"bundle": self.source, "model": self.model, "target": self.target, "precision": self.precision}
        return {**row, "threads": 1, "error": why}


@dataclass(frozen=True)
class BenchJob:
    """One call of ``edgevision bench`` on a device.

    Attributes:
        bundles: what to measure.
        data: pictures to measure accuracy on.
        reference: bundle to agree with; it is copied as well, and measured only where it is among ``bundles``.
        arguments: further arguments of the verb, as text: ``("--threads", "1,2")``.
        typed: the command at the desk, for the report: the device's own names folders that are gone by then. It
            decides no result.
    """

    bundles: tuple[JobBundle, ...]
    data: DataSlice | None = None
    reference: JobBundle | None = None
    arguments: tuple[str, ...] = ()
    typed: str = ""

    @property
    def files(self) -> tuple[JobFile, ...]:
        """All files, each once."""
        every = [file for bundle in (*self.bundles, self.reference) if bundle is not None for file in bundle.files]
        every += [] if self.data is None else self.data.files
        return tuple({file.path: file for file in every}.values())

    @property
    def size(self) -> int:
        """Bytes to copy."""
        return sum(file.size for file in self.files)

    @property
    def needs(self) -> list[str]:
        """Modules of the engines."""
        return sorted({MODULES[bundle.target] for bundle in self.bundles if bundle.target in MODULES})

    def key(self, device: Device, identity: str = "") -> str:
        """SHA-256 of all that decides the result: the same job on the same device has the same key."""
        told = {
            "device": [device.scheme, device.host, device.user, device.port, device.python],
            "identity": identity,
            "version": __version__,
            "bundles": [[bundle.source, *(file.sha256 for file in bundle.files)] for bundle in self.bundles],
            "reference": None if self.reference is None else [file.sha256 for file in self.reference.files],
            "data": None if self.data is None else [[file.path, file.sha256] for file in self.data.files],
            "arguments": self.arguments,
        }
        return sha256_bytes(json.dumps(told, sort_keys=True).encode())

    def without(self, modules: Sequence[str]) -> BenchJob:
        """The job without the bundles whose engine is one of these modules."""
        return replace(self, bundles=tuple(b for b in self.bundles if MODULES.get(b.target) not in modules))

    def command(self, device: Device) -> list[str]:
        """What runs on the device; ``{python}`` stands for the interpreter there."""
        paths = [bundle.path for bundle in self.bundles]
        data = None if self.data is None else self.data.spec
        reference = None if self.reference is None else self.reference.path
        if device.scheme == "emulated":
            # there is no time to measure under an emulator: the guest counts instead
            told = {"bundles": paths, "data": data, "reference": reference}
            return ["{python}", "-m", "edgevision.remote.arm.guest", json.dumps(told)]
        words = ["{python}", "-m", "edgevision", "bench", *paths]
        words += [] if data is None else ["--data", data, "--split", "all"]
        words += [] if reference is None else ["--reference", reference]
        return [*words, *self.arguments, "--json"]

    def order(self, device: Device) -> dict[str, Any]:
        """The second message of the desk (see `edgevision.remote.device_side`)."""
        files = [[file.path, file.size, file.sha256] for file in self.files]
        return {"command": self.command(device), "files": files}

    def at_the_desk(self, document: dict[str, Any]) -> dict[str, Any]:
        """The device's report with the desk's paths and command and the data set's own name."""
        sources = {bundle.path: bundle.source for bundle in (*self.bundles, self.reference) if bundle is not None}
        provenance = document["provenance"]
        for row in (*document["results"], *document.get("errors", ()), *provenance.get("cost_proxy", ())):
            for key in ("bundle", "reference"):
                if row.get(key) in sources:
                    row[key] = sources[row[key]]
        if self.typed:
            provenance["command"] = self.typed
        if self.data is not None:
            provenance["data"] = f"{self.data.count} of {self.data.total} pictures of {self.data.name}"
        return document


def prepare(
    bundles: Sequence[str | Path],
    data: str | Path | Dataset | None = None,
    *,
    split: str | None = "test",
    limit: int | None = None,
    reference: str | Path | None = None,
    arguments: Sequence[str] = (),
    typed: str = "",
) -> BenchJob:
    """Open everything at the desk, so that a mistake is told before a device is asked.

    Args:
        bundles: paths of bundle files or folders.
        data: ``kind:path``, a path, or an open data set.
        split: part of the data set, where it is divided; None for all of it.
        limit: so many pictures, evenly spaced (by default 200).
        reference: bundle to agree with.
        arguments: further arguments of ``edgevision bench`` on the device.
        typed: the command at the desk, as the report is to tell it.

    Raises:
        UsageError: no bundles.
        BundleError: one cannot be opened.
        DataError: the data cannot be opened.
    """
    if not bundles:
        raise UsageError("bench needs at least one bundle")
    entries = [_bundle(str(path), index) for index, path in enumerate(dict.fromkeys(map(str, bundles)))]
    known = {entry.source: entry for entry in entries}
    chosen = None
    if reference is not None:
        chosen = known.get(str(reference)) or _bundle(str(reference), len(entries))
    part = None if data is None else take_slice(open_dataset(data, split=split), limit)
    return BenchJob(tuple(entries), part, chosen, tuple(arguments), typed)


def _bundle(source: str, index: int) -> JobBundle:
    manifest = Bundle.open(source).manifest
    path = Path(source)
    place = f"bundles/{index:02}-{path.resolve().name}"
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file())
        files = tuple(JobFile.of(f"{place}/{file.relative_to(path).as_posix()}", file) for file in inside)
    else:
        files = (JobFile.of(place, path),)
    return JobBundle(source, place, files, manifest.name, manifest.target, manifest.precision)
