"""A `Checkpoint`: a trained network as a folder of two files, built again without the code that made it.

::

    model.json           schema version, architecture and its arguments, channel counts where they are no longer the
                         architecture's, task, classes, preprocess, a detector's postprocess, what was done to the
                         network, metrics, and name, size and SHA-256 of the weights
    model.safetensors    the state dict

Other files may lie beside them. The module imports without torch; saving, opening and building need it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.dependencies import require
from edgevision.errors import CheckpointError, ModelError, OutputError, UsageError
from edgevision.files import sha256_bytes, write_bytes, write_json
from edgevision.models import create_model
from edgevision.preprocess import Preprocess

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgevision.detection.postprocess import Postprocess

# 2: channel counts of pruned networks
SCHEMA_VERSION = 2
MODEL = "model.json"
WEIGHTS = "model.safetensors"

# new weights wait here until model.json points at them; see `Checkpoint.save`
NEXT_WEIGHTS = "model.safetensors.next"

# entry of ``changes`` of a network whose blocks were fused
REPARAMETERIZED = "reparameterized"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A network with its weights and all that is needed to use it. Make one with `from_model` or `open`.

    Attributes:
        architecture: name in the registry of models.
        arguments: what `create_model` is called with.
        weights: state dict on the CPU, name → tensor.
        preprocess: how pictures become its input.
        classes: names by index; empty where unknown.
        task: ``classification``, ``detection`` or ``tensors`` (raw outputs).
        changes: what was done to the network, in order: ``trained``, ``pruned``, ``reparameterized``, …
        metrics: name → value, e.g. ``{"top1": 0.98, "epoch": 12}``; a value that is not finite becomes None.
        channels: layer → channels in, out and groups, of those that differ from what `create_model` makes.
        postprocess: how a detector's outputs become boxes; None where they need nothing more.

    Raises:
        UsageError: classes or preprocess do not go with the architecture's arguments.
    """

    architecture: str
    arguments: dict[str, Any]
    weights: Mapping[str, Tensor] = field(repr=False)
    preprocess: Preprocess
    classes: tuple[str, ...] = ()
    task: str = "classification"
    changes: tuple[str, ...] = ()
    metrics: dict[str, float | None] = field(default_factory=dict)
    channels: dict[str, list[int]] = field(default_factory=dict, repr=False)
    postprocess: Postprocess | None = None

    def __post_init__(self) -> None:
        num_classes, in_channels = self.arguments.get("num_classes"), self.arguments.get("in_channels")
        if self.classes and len(self.classes) != num_classes:
            raise UsageError(f"{len(self.classes)} class names for a network of {num_classes} classes")
        if self.preprocess.channels != in_channels:
            raise UsageError(
                f"the preprocess gives {self.preprocess.channels} channels ({self.preprocess.color}); the network "
                f"takes {in_channels}"
            )

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        *,
        preprocess: Preprocess,
        classes: tuple[str, ...] = (),
        task: str | None = None,
        changes: tuple[str, ...] = (),
        metrics: Mapping[str, float | None] | None = None,
        postprocess: Postprocess | None = None,
    ) -> Checkpoint:
        """Take a network that `create_model` built (trained, pruned or fused since) with a copy of its weights.

        ``reparameterized`` is added to ``changes`` where the network is fused. Without ``task`` and ``postprocess``
        these are the network's own: a detector's, or classification.

        Raises:
            UsageError: ``model`` did not come from `create_model`, has other layers by now, or see the class.
        """
        from edgevision.models.channels import changed_counts

        architecture = getattr(model, "architecture", None)
        if not isinstance(architecture, dict):
            raise UsageError(
                f"a Checkpoint needs a network from create_model; got {type(model).__name__} without `architecture`. "
                "Give networks of your own straight to convert, or register them (entry-point group edgevision.models)"
            )
        arguments = dict(architecture["arguments"])
        if arguments.get("deploy") and REPARAMETERIZED not in changes:
            changes = (*changes, REPARAMETERIZED)
        try:
            channels = changed_counts(model)
        except ModelError as error:
            raise UsageError(str(error)) from error
        return cls(
            architecture=str(architecture["name"]),
            arguments=arguments,
            # clones: training goes on, and tied tensors are no longer one, as safetensors wants
            weights={name: value.detach().cpu().clone() for name, value in model.state_dict().items()},
            preprocess=preprocess,
            classes=tuple(classes),
            task=task or str(getattr(model, "task", "classification")),
            changes=tuple(changes),
            metrics=_finite(metrics or {}),
            channels=channels,
            postprocess=own_postprocess(model) if postprocess is None else postprocess,
        )

    @property
    def num_classes(self) -> int:
        """Number of outputs."""
        return int(self.arguments["num_classes"])

    def with_metrics(self, metrics: Mapping[str, float | None]) -> Checkpoint:
        """The same checkpoint with ``metrics`` added to those it has."""
        return replace(self, metrics={**self.metrics, **_finite(metrics)})

    def build(self) -> nn.Module:
        """The network in eval mode with the weights loaded; fused if it was saved fused, pruned if it was pruned.

        The state of torch's random numbers is left as it was.

        Raises:
            CheckpointError: the architecture is unknown here, or the channel counts or weights do not fit it, or the
                weights are not finite.
        """
        torch = require("torch", purpose="build models")
        from edgevision.models.channels import resize
        from edgevision.models.weights import apply_weights

        arguments = dict(self.arguments)
        if REPARAMETERIZED in self.changes:
            arguments["deploy"] = True
        try:
            with torch.random.fork_rng(devices=[]):
                model = create_model(self.architecture, **arguments)
            resize(model, self.channels)
        except (UsageError, ModelError, TypeError) as error:
            raise CheckpointError(f"checkpoint of {self.architecture}: cannot be built here: {error}") from error
        apply_weights(model, self.weights, source=f"checkpoint of {self.architecture}")
        return model.eval()

    def save(self, path: str | Path) -> Path:
        """Write the folder ``path``, or replace the checkpoint in it; other files in it stay.

        Two files cannot be replaced at one instant. So the new weights are written beside the old ones, then
        model.json is replaced and names the new ones by their hash, then they take their place; `open` finds them
        in either. Killed at any moment, the folder holds the old checkpoint or the new one.

        Returns:
            ``path``.

        Raises:
            OutputError: the folder cannot be written.
        """
        numbers = require("safetensors.torch", purpose="write checkpoints")
        folder = Path(path)
        data: bytes = numbers.save({name: value.contiguous() for name, value in self.weights.items()})
        write_bytes(folder / NEXT_WEIGHTS, data)
        write_json(folder / MODEL, {**self.to_dict(), "weights": _fingerprint(data)})
        try:
            (folder / NEXT_WEIGHTS).replace(folder / WEIGHTS)
        except OSError as error:
            raise OutputError(f"cannot write {folder / WEIGHTS}: {error.strerror}") from error
        return folder

    def to_dict(self) -> dict[str, Any]:
        """What model.json holds, without the weights' fingerprint."""
        values: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "architecture": {"name": self.architecture, "arguments": self.arguments},
            "task": self.task,
            "classes": list(self.classes),
            "preprocess": self.preprocess.to_dict(),
            "changes": list(self.changes),
            "metrics": self.metrics,
            "channels": self.channels,
        }
        if self.postprocess is not None:
            values["postprocess"] = self.postprocess.to_dict()
        return values

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Read a checkpoint folder and check its weights against their hash.

        Raises:
            CheckpointError: a file is missing, damaged or changed, or was written by a newer version.
            MissingDependencyError: torch or safetensors is not installed.
        """
        require("torch", purpose="open checkpoints")
        from edgevision.models.weights import parse_safetensors

        folder = Path(path)
        values = _read_model_json(folder)
        try:
            fingerprint = dict(values["weights"])
            data = _read_weights(folder, str(fingerprint["sha256"]))
            return cls(
                architecture=str(values["architecture"]["name"]),
                arguments=dict(values["architecture"]["arguments"]),
                weights=parse_safetensors(data, source=str(folder / WEIGHTS)),
                preprocess=Preprocess.from_dict(values["preprocess"]),
                classes=tuple(str(name) for name in values["classes"]),
                task=str(values["task"]),
                changes=tuple(str(change) for change in values["changes"]),
                metrics={str(name): value for name, value in values["metrics"].items()},
                channels=_read_channels(values.get("channels", {})),
                postprocess=_read_postprocess(values.get("postprocess")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder / MODEL}: damaged checkpoint: {type(error).__name__}: {error}") from error


def is_checkpoint(path: str | Path) -> bool:
    """Whether ``path`` is a folder that holds a model.json; it may still be damaged. Needs no torch."""
    return (Path(path) / MODEL).is_file()


def own_postprocess(model: nn.Module) -> Postprocess | None:
    """How the outputs of ``model`` become boxes, if it is a detector."""
    make = getattr(model, "postprocess", None)
    found: Postprocess | None = make() if callable(make) else None
    return found


def _read_postprocess(values: Any) -> Postprocess | None:
    from edgevision.detection.postprocess import Postprocess

    return None if values is None else Postprocess.from_dict(values)


def _fingerprint(data: bytes) -> dict[str, Any]:
    return {"file": WEIGHTS, "size": len(data), "sha256": sha256_bytes(data)}


def _finite(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    # JSON has no NaN; other readers would refuse the file
    return {name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()}


def _read_model_json(folder: Path) -> dict[str, Any]:
    path = folder / MODEL
    if not path.is_file():
        what = "no such folder" if not folder.exists() else f"no {MODEL} in it" if folder.is_dir() else "not a folder"
        if (folder / "quantized.json").is_file():
            what = "a quantized network, whose weights lie in a graph: open it with edgevision.load_checkpoint"
        raise CheckpointError(f"{folder}: {what}; a checkpoint is a folder with {MODEL} and {WEIGHTS}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["schema_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a checkpoint's {MODEL}: {type(error).__name__}: {error}") from error
    if not isinstance(version, int) or version < 1:
        raise CheckpointError(f"{path}: schema_version must be a whole number from 1 up; got {version!r}")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: written by a newer EdgeVision (schema {version}; this one reads up to {SCHEMA_VERSION}): "
            "pip install -U edgevision"
        )
    return dict(values)


def _read_channels(values: Any) -> dict[str, list[int]]:
    channels = {str(name): [int(count) for count in counts] for name, counts in values.items()}
    for name, counts in channels.items():
        if not counts or any(count < 1 for count in counts):
            raise ValueError(f"channels of {name}: {counts}")
    return channels


def _read_weights(folder: Path, sha256: str) -> bytes:
    # a save that was killed in its last step leaves the weights under the second name
    found = [name for name in (WEIGHTS, NEXT_WEIGHTS) if (folder / name).is_file()]
    for name in found:
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder / name}: cannot be read: {error.strerror}") from error
        if sha256_bytes(data) == sha256:
            return data
    if WEIGHTS not in found:
        raise CheckpointError(f"{folder}: {WEIGHTS} is missing; copy the whole folder")
    raise CheckpointError(
        f"{folder / WEIGHTS}: damaged or changed since it was saved (SHA-256 differs from {MODEL}); "
        "copy the folder again or train again"
    )
