"""A `Bundle`: everything a device needs to run one model on one engine, in a folder or one ``.evb`` zip.

::

    manifest.json        schema version, task, classes, preprocess, target, precision, thresholds, provenance,
                         size and SHA-256 of every other file, and its own SHA-256
    engine/…             the engine's own files, untouched, or packed (see `edgevision.compression`)
    golden.npz           golden inputs, FP32 outputs, and (INT8) the outputs of the plan's fake-quantized reference
    plan.json            (INT8) the quantization plan

Only files the manifest lists are ever read, by name, into memory: no path out of a bundle is followed. Of a packed
file the manifest has the size and hash both as it is stored and as it is unpacked, and both are checked.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevision.compression.codec import NAME as CODING
from edgevision.compression.codec import unpack
from edgevision.detection.postprocess import Postprocess
from edgevision.errors import BundleError, OutputError, UsageError
from edgevision.files import atomic_path, sha256_bytes, write_bytes
from edgevision.preprocess import Preprocess
from edgevision.runtime.tensors import TensorSpec

# A bundle is written as the oldest version that says all it holds: 3 tells how outputs become boxes, which older
# readers would hand out as bare tensors, 2 has packed files, 1 neither.
SCHEMA_VERSION = 3
_PACKED_VERSION = 2
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
PLAN = "plan.json"
SUFFIX = ".evb"

# a zip that claims to unpack to more than this is refused before anything is read, and so is one that claims more
# than `MAX_RATIO` times its own size: weights never shrink so far, a small file that fills a board's memory does
MAX_BYTES = 4 << 30
MAX_RATIO = 100
ALWAYS_ALLOWED = 64 << 20
MAX_MANIFEST_BYTES = 16 << 20

# what Python's zip and npz readers raise for damaged files, encrypted ones and unknown compression included
_UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, OverflowError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Thresholds:
    """What `edgevision verify` demands of an engine's outputs.

    Attributes:
        cosine: least cosine similarity with the reference, 0..1.
        sqnr_db: least signal-to-quantization-noise ratio, dB.
        top1_agreement: least share of golden inputs with the same top-1 answer, 0..1 (classification).
        matched: least share of boxes that have a partner on the other side, 0..1 (detection).
        mean_iou: least mean overlap of partners, 0..1 (detection).
    """

    cosine: float
    sqnr_db: float
    top1_agreement: float | None = None
    matched: float | None = None
    mean_iou: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them; what boxes must keep only where it is demanded, for older readers' sake."""
        boxes = {"matched": self.matched, "mean_iou": self.mean_iou}
        demanded = {name: value for name, value in boxes.items() if value is not None}
        return {"cosine": self.cosine, "sqnr_db": self.sqnr_db, "top1_agreement": self.top1_agreement, **demanded}


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` holds; see the attributes' names in the file itself.

    Attributes:
        name: model name.
        task: ``classification``, ``detection`` or ``tensors`` (raw outputs).
        target: engine: ``onnxruntime``, ``openvino``, ``ncnn``, ``tensorrt``.
        precision: ``fp32``, ``fp16`` or ``int8``.
        inputs: names, dtypes and shapes a feed must have; a batch dimension is None.
        outputs: likewise for results.
        preprocess: how pictures become the first input.
        engine_files: role → path inside the bundle, e.g. ``{"model": "engine/model.onnx"}``.
        classes: names by index; empty where unknown.
        engine_options: what the backend must be told, plain values.
        tensor_names: name in the canonical graph → name inside the engine, where they differ.
        thresholds: what ``verify`` demands against FP32 (``fp32``) and against the plan (``reference``).
        provenance: what it was made from and with.
        postprocess: how outputs become boxes, for ``detection``; None for other tasks.

    Raises:
        UsageError: a detector without a postprocess, or a postprocess for another task.
    """

    name: str
    task: str
    target: str
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: Preprocess
    engine_files: dict[str, str]
    classes: tuple[str, ...] = ()
    engine_options: dict[str, Any] = field(default_factory=dict)
    tensor_names: dict[str, str] = field(default_factory=dict)
    thresholds: dict[str, Thresholds] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    postprocess: Postprocess | None = None

    def __post_init__(self) -> None:
        if (self.task == "detection") != (self.postprocess is not None):
            given = "has none" if self.postprocess is None else f"says one for {self.task}"
            raise UsageError(f"a manifest says how outputs become boxes for task detection alone; this one {given}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        boxes = {} if self.postprocess is None else {"postprocess": self.postprocess.to_dict()}
        return {
            "schema_version": SCHEMA_VERSION if boxes else 1,
            "name": self.name,
            "task": self.task,
            "target": self.target,
            "precision": self.precision,
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
            "preprocess": self.preprocess.to_dict(),
            "classes": list(self.classes),
            "engine_files": self.engine_files,
            "engine_options": self.engine_options,
            "tensor_names": self.tensor_names,
            "thresholds": {key: value.to_dict() for key, value in self.thresholds.items()},
            "provenance": self.provenance,
            **boxes,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Build from plain values.

        Raises:
            BundleError: a key is missing or has a wrong type.
        """
        try:
            return cls(
                name=str(values["name"]),
                task=str(values["task"]),
                target=str(values["target"]),
                precision=str(values["precision"]),
                inputs=tuple(TensorSpec.from_dict(spec) for spec in values["inputs"]),
                outputs=tuple(TensorSpec.from_dict(spec) for spec in values["outputs"]),
                preprocess=Preprocess.from_dict(values["preprocess"]),
                classes=tuple(str(name) for name in values["classes"]),
                engine_files={str(role): str(path) for role, path in values["engine_files"].items()},
                engine_options=dict(values["engine_options"]),
                tensor_names=dict(values["tensor_names"]),
                thresholds={key: Thresholds(**value) for key, value in values["thresholds"].items()},
                provenance=dict(values["provenance"]),
                postprocess=Postprocess.from_dict(values["postprocess"]) if "postprocess" in values else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise BundleError(f"manifest.json is damaged: {type(error).__name__}: {error}") from error


class Bundle:
    """A bundle read into memory, every file checked against its hash. Open one with `Bundle.open`.

    Args:
        manifest: what it is.
        files: name → content.
        path: where it lies.
        packed: name → packed form (`edgevision.compression.packing.pack`) of the files to be stored so.
    """

    def __init__(
        self,
        manifest: Manifest,
        files: Mapping[str, bytes],
        path: Path | None = None,
        packed: Mapping[str, bytes] | None = None,
    ) -> None:
        self.manifest = manifest
        self.path = path
        self._files = dict(files)
        self._packed = dict(packed or {})
        self._stored: dict[str, int] = {}

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read a ``.evb`` file or a bundle folder.

        Raises:
            BundleError: missing, not a bundle, of a newer version, changed after it was made, or naming a path
                outside itself.
        """
        path = Path(path)
        if not path.exists():
            raise BundleError(f"{path}: no such bundle")
        try:
            read = _read_folder(path) if path.is_dir() else _read_zip(path)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error.__cause__
        except _UNREADABLE as error:
            raise BundleError(f"{path}: not a readable bundle: {error}") from error
        bundle = cls(read.manifest, read.files, path, read.packed)
        bundle._stored = read.stored
        return bundle

    @property
    def files(self) -> list[str]:
        """Names of the files besides the manifest."""
        return sorted(self._files)

    def read(self, name: str) -> bytes:
        """Bytes of one file of the bundle.

        Raises:
            BundleError: the bundle has no such file.
        """
        if name not in self._files:
            raise BundleError(f"{self.path or self.manifest.name}: the bundle has no file {name!r}")
        return self._files[name]

    def engine_file(self, role: str) -> bytes:
        """Bytes of the engine file with this role, e.g. ``"model"``.

        Raises:
            BundleError: the manifest names no such role.
        """
        if role not in self.manifest.engine_files:
            raise BundleError(f"{self.path or self.manifest.name}: manifest.json names no engine file {role!r}")
        return self.read(self.manifest.engine_files[role])

    def golden(self) -> dict[str, dict[str, npt.NDArray[Any]]]:
        """Golden tensors: ``{"inputs": …, "outputs": …, "reference": …}``, each name → array ``[N, …]``.

        Inputs are stored as the pixels behind them, a quarter of the size, and go through the preprocess here.

        Raises:
            BundleError: the bundle was made without golden tensors, or they are damaged.
        """
        groups: dict[str, dict[str, npt.NDArray[Any]]] = {"inputs": {}, "outputs": {}, "reference": {}}
        try:
            with np.load(io.BytesIO(self.read(GOLDEN)), allow_pickle=False) as arrays:
                for key in arrays.files:
                    group, _, name = key.partition("/")
                    if group == "pixels":
                        normalize = self.manifest.preprocess.normalize
                        groups["inputs"][name] = np.stack([normalize(pixels) for pixels in arrays[key]])
                    else:
                        groups[group][name] = arrays[key]
        except (*_UNREADABLE, KeyError, IndexError) as error:
            raise BundleError(f"{self.path or self.manifest.name}: golden tensors are damaged: {error}") from error
        return groups

    @property
    def digest(self) -> str:
        """SHA-256 over the engine files: equal digests run equally."""
        names = sorted(self.manifest.engine_files.values())
        return sha256_bytes("".join(sha256_bytes(self.read(name)) for name in names).encode())

    @property
    def engine_bytes(self) -> int:
        """Size of the engine's own files, in bytes."""
        return sum(len(self.read(name)) for name in self.manifest.engine_files.values())

    @property
    def stored_engine_bytes(self) -> int | None:
        """Bytes the engine's files take where the bundle lies; None for one that lies nowhere."""
        if not self._stored:
            return None
        return sum(self._stored[name] for name in self.manifest.engine_files.values())

    @property
    def compression(self) -> str | None:
        """How the bundle is compressed: ``lossless``, or ``6 bits`` of shared weights; None where it is not."""
        if not self._packed:
            return None
        bits = dict(self.manifest.provenance.get("compression", {})).get("bits")
        return f"{bits} bits" if bits else "lossless"

    def save(self, path: str | Path) -> Path:
        """Write a ``.evb`` zip, or a folder where ``path`` does not end in ``.evb``; atomic.

        Raises:
            OutputError: the folder is read-only or the disk is full.
        """
        path = Path(path)
        files = {MANIFEST: self._manifest_bytes(), **self._files, **self._packed}
        if path.suffix == SUFFIX:
            with atomic_path(path) as temporary:
                self._stored = _write_zip(temporary, files, set(self._packed))
        else:
            if path.exists() and not path.is_dir():
                raise OutputError(f"cannot write {path}: a file is in the way; name the bundle *{SUFFIX}")
            # the manifest last: a folder without one is no bundle
            for name in [*self.files, MANIFEST]:
                write_bytes(path / name, files[name])
            self._stored = {name: len(data) for name, data in files.items()}
        self.path = path
        return path

    def _manifest_bytes(self) -> bytes:
        values = self.manifest.to_dict()
        values["files"] = {name: self._listing(name) for name in sorted(self._files)}
        if self._packed:
            values["schema_version"] = max(values["schema_version"], _PACKED_VERSION)
        values["sha256"] = _manifest_digest(values)
        return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()

    def _listing(self, name: str) -> dict[str, Any]:
        """What the manifest says of a file."""
        data = self._files[name]
        said: dict[str, Any] = {"bytes": len(data), "sha256": sha256_bytes(data)}
        if (packed := self._packed.get(name)) is not None:
            said["stored"] = {"coding": CODING, "bytes": len(packed), "sha256": sha256_bytes(packed)}
        return said


def golden_bytes(groups: Mapping[str, Mapping[str, npt.NDArray[Any]]], *, compress: bool = True) -> bytes:
    """Encode golden tensors as ``golden.npz``.

    Args:
        groups: ``outputs`` and ``reference`` as `Bundle.golden` returns them, with ``inputs`` or, for pictures,
            ``pixels``: input name → ``uint8`` ``[N, H, W]`` or ``[N, H, W, 3]`` as `Preprocess.geometry` gives them.
        compress: deflate them; not for a file that is to be packed, which is smaller for being plain.
    """
    stream = io.BytesIO()
    arrays = {f"{group}/{name}": value for group, named in groups.items() for name, value in named.items()}
    (np.savez_compressed if compress else np.savez)(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _write_zip(path: Path, files: Mapping[str, bytes], packed: Collection[str]) -> dict[str, int]:
    """Write a zip; returns the bytes that each file takes in it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            # a fixed date makes equal content equal bytes; npz and packed files are compressed already
            info = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            plain = name.endswith(".npz") or name in packed
            method = zipfile.ZIP_STORED if plain else zipfile.ZIP_DEFLATED
            archive.writestr(info, data, compress_type=method, compresslevel=6)
        return {info.filename: info.compress_size for info in archive.infolist()}


@dataclass(frozen=True)
class _Listed:
    """What a manifest says of one file; ``stored_sha256`` and no other coding where it is packed."""

    bytes: int
    sha256: str
    stored_sha256: str | None = None


@dataclass(frozen=True)
class _Read:
    """A bundle as it was read."""

    manifest: Manifest
    files: dict[str, bytes]
    packed: dict[str, bytes]
    stored: dict[str, int]


def _read_zip(path: Path) -> _Read:
    if not zipfile.is_zipfile(path):
        raise BundleError("not a bundle: neither a folder nor a .evb zip")
    with zipfile.ZipFile(path) as archive:
        sizes: dict[str, int] = {}
        for info in archive.infolist():
            _check_name(info.filename)
            if info.filename in sizes:
                raise BundleError(f"{info.filename!r} is in the zip twice; make the bundle again")
            sizes[info.filename] = info.file_size
        limit = _limit(path.stat().st_size)
        if sum(sizes.values()) > limit:
            raise BundleError(f"claims {sum(sizes.values())} bytes unpacked; the limit is {limit}")
        if MANIFEST not in sizes:
            raise BundleError("not a bundle: it has no manifest.json")
        _check_manifest_size(sizes[MANIFEST])
        manifest, listed = _parse_manifest(archive.read(MANIFEST))
        if extra := set(sizes) - set(listed) - {MANIFEST}:
            raise BundleError(f"holds files its manifest does not list: {', '.join(sorted(extra))}")
        if missing := set(listed) - set(sizes):
            raise BundleError(f"incomplete: {', '.join(sorted(missing))} is missing; make the bundle again")
        stored = {info.filename: info.compress_size for info in archive.infolist()}
        return _open_files(manifest, listed, {name: archive.read(name) for name in listed}, stored, limit)


def _read_folder(path: Path) -> _Read:
    if not (path / MANIFEST).is_file():
        raise BundleError("not a bundle: it has no manifest.json")
    manifest_file = _inside(path, MANIFEST)
    _check_manifest_size(manifest_file.stat().st_size)
    manifest, listed = _parse_manifest(manifest_file.read_bytes())
    found = {name: _inside(path, name).read_bytes() for name in listed}
    stored = {name: len(data) for name, data in found.items()}
    return _open_files(manifest, listed, found, stored, _limit(sum(stored.values())))


def _limit(size: int) -> int:
    """Bytes that a bundle of ``size`` bytes may unpack to."""
    return min(MAX_BYTES, max(ALWAYS_ALLOWED, MAX_RATIO * size))


def _open_files(
    manifest: Manifest, listed: Mapping[str, _Listed], found: dict[str, bytes], stored: dict[str, int], limit: int
) -> _Read:
    """Check every file against its hash, and unpack those that are packed."""
    claimed = sum(entry.bytes for entry in listed.values() if entry.stored_sha256 is not None)
    if claimed > limit:
        raise BundleError(f"claims {claimed} bytes unpacked; the limit is {limit}")
    files, packed = {}, {}
    for name, entry in listed.items():
        data = found.pop(name)
        if entry.stored_sha256 is not None:
            packed[name] = _checked(name, data, entry.stored_sha256)
            try:
                data = unpack(data, entry.bytes)
            except BundleError as error:
                raise BundleError(f"{name}: {error}") from error
        files[name] = _checked(name, data, entry.sha256)
    return _Read(manifest, files, packed, stored)


def _inside(folder: Path, name: str) -> Path:
    """A file of a bundle folder; links may not lead out of it."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{name!r} leads out of the bundle; refused")
    if not file.is_file():
        raise BundleError(f"incomplete: {name} is missing; make the bundle again")
    return file


def _check_manifest_size(size: int) -> None:
    if size > MAX_MANIFEST_BYTES:
        raise BundleError(f"manifest.json has {size} bytes; the limit is {MAX_MANIFEST_BYTES}")


def _parse_manifest(data: bytes) -> tuple[Manifest, dict[str, _Listed]]:
    try:
        values = json.loads(data)
        version = int(values["schema_version"])
        entries = dict(values["files"].items()) if version <= SCHEMA_VERSION else {}
        listed = {str(name): _listed(name, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError(f"manifest.json is damaged: {error}") from error
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"bundle version {version} is newer than this edgevision reads ({SCHEMA_VERSION}): "
            "pip install --upgrade edgevision"
        )
    for name in listed:
        _check_name(name)
    if values.get("sha256") != _manifest_digest(values):
        raise BundleError(f"{MANIFEST} has been changed since the bundle was made (SHA-256 differs); make it again")
    manifest = Manifest.from_dict(values)
    if unlisted := set(manifest.engine_files.values()) - set(listed):
        raise BundleError(f"manifest.json names engine files it does not list: {', '.join(sorted(unlisted))}")
    return manifest, listed


def _listed(name: str, entry: Mapping[str, Any]) -> _Listed:
    """One file of the manifest; a size counts only where something is to be unpacked to it."""
    if "stored" not in entry:
        return _Listed(0, str(entry["sha256"]))
    if entry["stored"]["coding"] != CODING:
        raise BundleError(
            f"{name} is packed by {entry['stored']['coding']!r}, which this edgevision does not know: "
            "pip install --upgrade edgevision"
        )
    size = int(entry["bytes"])
    if size < 0:
        raise ValueError(f"{name} has {size} bytes")
    return _Listed(size, str(entry["sha256"]), str(entry["stored"]["sha256"]))


def _manifest_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, however its JSON is laid out."""
    said = {key: value for key, value in values.items() if key != "sha256"}
    # once through JSON: keys become strings before they are sorted
    return sha256_bytes(json.dumps(json.loads(json.dumps(said)), sort_keys=True).encode())


def _check_name(name: str) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or name != str(pure):
        raise BundleError(f"names the path {name!r}, which leads out of the bundle; refused")


def _checked(name: str, data: bytes, sha256: str) -> bytes:
    if sha256_bytes(data) != sha256:
        raise BundleError(f"{name} has been changed since the bundle was made (SHA-256 differs); make it again")
    return data
