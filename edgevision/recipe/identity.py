"""What makes two stages the same work: hashes of what goes into a stage and of what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgevision import __version__
from edgevision.bundle import SUFFIX
from edgevision.data import open_dataset
from edgevision.data.base import Dataset, evenly_spaced
from edgevision.devices.environment import package_version
from edgevision.errors import CheckpointError, DataError
from edgevision.files import sha256_bytes, sha256_file
from edgevision.pipeline.networks import read_anchors
from edgevision.pipeline.preprocessing import load_preprocess
from edgevision.pipeline.workspace import digest_of, digest_of_samples
from edgevision.recipe.schema import BUNDLES, CHECKPOINT, QUANTIZED, ModelSpec, Recipe, StageSpec, plain

# pictures of a data set whose bytes are looked at, evenly spaced; all labels are
DIGEST_PICTURES = 2000
# packages whose version decides what these kinds of stages leave behind, besides EdgeVision's own
_PACKAGES = {
    "convert": ("onnx", "onnxruntime", "openvino", "ncnn", "pnnx"),
    "bench": ("onnxruntime", "openvino", "ncnn"),
    "report": ("onnx", "onnxruntime", "openvino", "ncnn", "pnnx"),
}


class DataDigests:
    """Digests of data sets by name and part, each made once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], dict[str, Any]] = {}

    def of(self, name: str, part: str) -> dict[str, Any]:
        """Number of pictures, and a hash of all labels or boxes and of up to `DIGEST_PICTURES` pictures.

        Raises:
            DataError: the data set cannot be opened, or is empty.
            UsageError: its name is none.
        """
        if (name, part) not in self._known:
            self._known[name, part] = _digest(open_dataset(name, split=part))
        return self._known[name, part]

    def of_stage(self, stage: StageSpec) -> dict[str, Any]:
        """Of all that a stage looks at."""
        names: dict[str, tuple[str | None, str]] = {}
        if stage.kind in {"bench", "report"}:
            names["test"] = (stage.data.test or stage.data.val or stage.data.train, "test")
        if stage.kind != "bench":
            names["train"] = (stage.data.train, "train")
        if stage.kind not in {"bench", "report"}:
            names["val"] = (stage.data.val or stage.data.train, "test")
        return {key: self.of(name, part) for key, (name, part) in names.items() if name is not None}


def _digest(dataset: Dataset) -> dict[str, Any]:
    if not len(dataset):
        raise DataError(f"{dataset.name} holds no pictures")
    known = _known(dataset)
    return {
        "pictures": len(dataset),
        "labels": sha256_bytes(known)[:16] if known else "",
        "digest": digest_of_samples(evenly_spaced(dataset, min(DIGEST_PICTURES, len(dataset))))[:16],
    }


def _known(dataset: Dataset) -> bytes:
    """Labels of all pictures, or the objects in them; nothing where neither is known."""
    if dataset.labels is not None:
        return np.ascontiguousarray(dataset.labels).tobytes()
    found = [boxes for boxes in (dataset[index].boxes for index in range(len(dataset))) if boxes is not None]
    return b"".join(
        np.int64(len(each.labels)).tobytes() + each.xyxy.tobytes() + each.labels.tobytes() for each in found
    )


def stage_identity(recipe: Recipe, stage: StageSpec, results: dict[str, str], data: DataDigests) -> dict[str, Any]:
    """Plain values that a stage's result follows from.

    Args:
        recipe: the stage's.
        stage: whose identity.
        results: hash of what lies in the folder of every stage before it, and of the model.
        data: digests of data sets.
    """
    values: dict[str, Any] = {
        "kind": stage.kind,
        "options": dict(stage.options),
        "files": _files(stage.options),
        "seed": recipe.seed,
        "inputs": {name: results[name] for name in stage.sources},
        "data": data.of_stage(stage),
        "versions": {"edgevision": __version__, **_versions(stage.kind)},
    }
    if stage.kind == "report":
        values["title"] = recipe.name
    if stage.kind == "convert":
        values["label"] = stage.label
    if stage.model is not None:
        values["model"] = model_digest(stage.model)
    if stage.teacher is not None:
        values["teacher"] = results.get(stage.teacher) or checkpoint_digest(stage.teacher)
    return dict(json.loads(json.dumps(values)))


def model_digest(model: ModelSpec) -> str:
    """Hash of a network that stages begin with.

    Raises:
        CheckpointError: its folder cannot be read, or was written by a newer version.
        UsageError: anchors that cannot be read.
    """
    if model.checkpoint is not None:
        return checkpoint_digest(model.checkpoint)
    values = {key: value for key, value in plain(model).items() if key != "label"}
    if model.weights is not None:
        values["weights"] = sha256_file(model.weights)
    if model.anchors is not None:
        values["anchors"] = read_anchors(model.anchors, model.input_size)
    if model.preprocess is not None:
        values["preprocess"] = load_preprocess(model.preprocess).to_dict()
    return digest_of(values)


def checkpoint_digest(folder: str | Path) -> str:
    """Hash of a Checkpoint's network and weights, whatever its metrics are.

    Raises:
        CheckpointError: it is damaged, or was written by a newer version.
    """
    from edgevision.checkpoint import MODEL, Checkpoint

    told = Checkpoint.open(folder).to_dict()
    weights = json.loads((Path(folder) / MODEL).read_text(encoding="utf-8"))["weights"]["sha256"]
    return digest_of({key: value for key, value in told.items() if key != "metrics"}, weights)


def result_digest(stage: StageSpec, folder: Path) -> str:
    """Hash of what a finished stage has left in its folder.

    Raises:
        EdgeVisionError: it is not whole.
    """
    if stage.leaves == CHECKPOINT:
        return checkpoint_digest(folder)
    if stage.leaves == QUANTIZED:
        from edgevision_calibration.qat.model import GRAPH, ORIGINAL, PLAN, TABLE, QuantizedModel

        QuantizedModel.open(folder)
        paths = [folder / GRAPH, folder / ORIGINAL, folder / PLAN, *sorted((folder / TABLE).iterdir())]
    elif stage.leaves == BUNDLES:
        paths = sorted(folder.glob(f"*{SUFFIX}"))
    else:
        paths = [folder / "results.json"]
    try:
        return digest_of([[path.name, sha256_file(path)] for path in paths])
    except OSError as error:
        raise CheckpointError(f"{folder}: {error.strerror}: {error.filename}") from error


def _files(options: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the files that options name: what they hold matters, not what they are called."""
    texts = [text for value in options.values() for text in (value if isinstance(value, list) else [value])]
    paths = [Path(text) for text in texts if isinstance(text, str) and text]
    return {str(path): sha256_file(path)[:16] for path in paths if path.is_file()}


def _versions(kind: str) -> dict[str, str]:
    return {name: package_version(name) or "not installed" for name in _PACKAGES.get(kind, ())}
