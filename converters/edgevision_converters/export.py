"""A torch module becomes a canonical `Graph`: fused, exported, simplified, and proved against torch at each step."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevision.dependencies import require
from edgevision.errors import EdgeVisionError, ModelError, UnsupportedOpError, UsageError
from edgevision.graph import Graph
from edgevision.preprocess import PRESETS, Preprocess
from edgevision.registry import unknown_name
from edgevision_converters import passes
from edgevision_converters.canonical import canonicalize
from edgevision_converters.passes.numerics import relative_difference, run

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn

    from edgevision.checkpoint import Checkpoint
    from edgevision.detection.postprocess import Postprocess

INPUT_NAME = "images"
OPSET = 18
# Fusing branches reorders float32 sums; what a wrong fusion does is larger than this share of the outputs' range.
FUSION_TOLERANCE = 1e-3
EXPORT_TOLERANCE = 1e-3
# entry of a graph's metadata
_POSTPROCESS = "postprocess"
# torch.export takes a dimension of 1 for a constant
_EXAMPLE_BATCH = 2


def export_module(
    module: nn.Module,
    *,
    input_shape: tuple[int, int, int] | None = None,
    name: str | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """Export any `torch.nn.Module` that takes one picture batch; the module is not changed.

    Blocks that can be fused (`edgevision.models.reparameterize`) are, and the largest difference that makes is
    measured and kept as ``graph.metadata["reparameterization_max_difference"]``. The largest difference between
    the module in torch and the graph in ONNX Runtime is ``graph.metadata["export_max_difference"]``. Both are
    absolute, on standard normal inputs.

    Args:
        module: on any device, in any mode; it is exported in eval mode and float32.
        input_shape: channels, height and width; by default what the module's ``architecture`` says.
        name: of the graph; by default the architecture's, or the class's.
        output_names: one per output tensor, in order (of a tuple or a dictionary, flattened); by default the keys of
            a dictionary, else ``logits`` for a zoo network, ``output`` for one tensor, ``output_0`` and on for many.

    Returns:
        a canonical graph with input ``images`` float32 ``[batch, C, H, W]``.

    Raises:
        UsageError: no ``input_shape`` and none known, or a wrong number of output names.
        ModelError: the module cannot run on such an input, be fused without change, or be exported.
        MissingDependencyError: torch, onnx or onnxscript is not installed.
    """
    torch = require("torch", purpose="export modules")
    require("onnxscript", purpose="export modules to ONNX")
    shape = input_shape or architecture_shape(module)
    label = name or _name(module)
    images = torch.randn(_EXAMPLE_BATCH, *shape, generator=torch.Generator().manual_seed(0))
    plain = _evaluation_copy(module, label)
    expected = _outputs(plain, images, label)
    names = _output_names(module, expected, output_names)
    fused, fusion_difference = _fuse(plain, images, list(expected.values()), label)
    graph = _canonical(fused, images, names, label)
    if graph.input_shape[0] is not None:
        images = images[: graph.input_shape[0]]
        expected = _outputs(plain, images, label)
    difference = _prove(graph, images, list(expected.values()), label)
    metadata = {"export_max_difference": f"{difference:.3e}"}
    if fusion_difference is not None:
        metadata["reparameterization_max_difference"] = f"{fusion_difference:.3e}"
    graph = graph.with_metadata(metadata)
    described = _postprocess(module)
    return graph if described is None else _with_postprocess(graph, described)


def postprocess_of(graph: Graph) -> Postprocess | None:
    """How the outputs of a graph that `export_module` made of one of our detectors become boxes; None for others."""
    from edgevision.detection.postprocess import Postprocess

    described = graph.metadata.get(_POSTPROCESS)
    return None if described is None else Postprocess.from_dict(json.loads(described))


def _with_postprocess(graph: Graph, postprocess: Postprocess) -> Graph:
    return graph.with_metadata({_POSTPROCESS: json.dumps(postprocess.to_dict(), sort_keys=True)})


def _postprocess(module: nn.Module) -> Postprocess | None:
    """What one of our detectors says of its outputs; other people's modules may have anything of that name."""
    from edgevision.detection.postprocess import Postprocess

    if getattr(module, "task", None) != "detection" or not isinstance(getattr(module, "architecture", None), Mapping):
        return None
    describe = getattr(module, "postprocess", None)
    described = describe() if callable(describe) else None
    return described if isinstance(described, Postprocess) else None


def architecture_shape(module: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width that a network of the zoo was built for.

    Raises:
        UsageError: the module does not come from `create_model`.
    """
    architecture = getattr(module, "architecture", None)
    arguments = architecture.get("arguments", {}) if isinstance(architecture, Mapping) else {}
    if "in_channels" not in arguments or "input_size" not in arguments:
        raise UsageError(
            f"the input shape of {type(module).__name__} is not known; pass input_shape=(channels, height, width)"
        )
    size = int(arguments["input_size"])
    return int(arguments["in_channels"]), size, size


def _name(module: nn.Module) -> str:
    architecture = getattr(module, "architecture", None)
    return str(architecture["name"]) if isinstance(architecture, Mapping) else type(module).__name__


def _evaluation_copy(module: nn.Module, label: str) -> nn.Module:
    try:
        return copy.deepcopy(module).cpu().float().eval()
    except Exception as error:  # a user's module may fail here in any way
        raise ModelError(f"{label}: the module cannot be copied: {_useful_line(error)}") from error


def _outputs(module: nn.Module, images: Tensor, label: str) -> dict[str, Tensor]:
    """Output tensors by name, flattened in order.

    Raises:
        ModelError: the module does not run on the input, or gives something other than tensors.
    """
    import torch

    try:
        with torch.no_grad():
            result = module(images)
    except Exception as error:  # a user's module may fail here in any way
        raise ModelError(
            f"{label}: the module cannot run on float32 pictures {list(images.shape)}: {_useful_line(error)}; check "
            "input_shape=(channels, height, width)"
        ) from error
    flat = dict(_flatten(result, ""))
    if not flat:
        raise ModelError(f"{label}: the module returns no tensor (it returned {type(result).__name__})")
    return flat


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield prefix or "output", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{prefix}_{index}" if prefix else f"output_{index}")


def _output_names(module: nn.Module, outputs: dict[str, Tensor], given: Sequence[str] | None) -> list[str]:
    if given is None:
        zoo = isinstance(getattr(module, "architecture", None), Mapping)
        return ["logits"] if zoo and len(outputs) == 1 else list(outputs)
    if len(given) != len(outputs) or len(set(given)) != len(given):
        raise UsageError(f"the module has {len(outputs)} outputs; got the names {', '.join(given) or 'none'}")
    return list(given)


def _fuse(module: nn.Module, images: Tensor, expected: Sequence[Tensor], label: str) -> tuple[nn.Module, float | None]:
    """The module with its blocks fused, and the largest difference; None where it has none to fuse."""
    from edgevision.models.reparameterize import is_reparameterizable, reparameterize

    if not is_reparameterizable(module):
        return module, None
    fused = reparameterize(module)
    got = list(_outputs(fused, images, label).values())
    relative, absolute = _differences(expected, got)
    if not relative <= FUSION_TOLERANCE:
        raise ModelError(
            f"{label}: the fused network differs from the trained one by {relative:.1e} of its outputs' range (at "
            f"most {FUSION_TOLERANCE:.0e} is expected); check the fuse() of its blocks"
        )
    return fused, absolute


def _differences(expected: Sequence[Tensor], got: Sequence[Any]) -> tuple[float, float]:
    """Largest difference relative to each output's range, and the largest absolute one."""
    first = [np.asarray(value) for value in expected]
    second = [np.asarray(value) for value in got]
    if len(first) != len(second) or any(a.shape != b.shape for a, b in zip(first, second, strict=True)):
        return float("inf"), float("inf")
    absolute = [np.abs(a.astype(np.float64) - b).max() for a, b in zip(first, second, strict=True) if a.size]
    return relative_difference(first, second), float(max(absolute, default=0.0))


def _canonical(module: nn.Module, images: Tensor, names: list[str], label: str) -> Graph:
    """Export with a batch of 1, which canonicalization sets free; with a symbolic one where that does not succeed.

    The first takes half the time of the second. The second keeps the batch of modules that treat 1 as a special
    case, such as ``squeeze()`` without a dimension.
    """
    graph: Graph | None = None
    failure: Exception | None = None
    for dynamic in (False, True):
        try:
            found = canonicalize(_export(module, images, names, label, dynamic=dynamic))
        except UnsupportedOpError:
            raise
        except Exception as error:  # the exporter wraps whatever the module's code raised
            failure = failure or error
            continue
        if found.input_shape[0] is None:
            return found
        graph = graph or found
    if graph is not None:
        return graph
    assert failure is not None
    if isinstance(failure, EdgeVisionError):
        raise failure
    raise ModelError(f"{label}: torch cannot export the module to ONNX: {_useful_line(failure)}") from failure


def _export(module: nn.Module, images: Tensor, names: list[str], label: str, *, dynamic: bool) -> ModelProto:
    import torch

    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            (images if dynamic else images[:1],),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT_NAME],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
            verbose=False,
        )
    if program is None:
        raise ModelError(f"{label}: the exporter returned nothing")
    model: ModelProto = program.model_proto
    model.graph.name = label
    return passes.strip_debug(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own remarks (deprecations inside torch, optimizer notes) off the user's terminal."""
    names = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        # on failure torch prints whole graphs to stderr; what matters of them is in the exception
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _prove(graph: Graph, images: Tensor, expected: Sequence[Tensor], label: str) -> float:
    """Largest absolute difference between torch and the graph in ONNX Runtime.

    Raises:
        ModelError: it is over the tolerance.
    """
    try:
        got = run(graph.model, {graph.input_name: images.numpy()})
    except EdgeVisionError as error:
        raise ModelError(f"{label}: the exported graph does not run: {error}") from error
    relative, absolute = _differences(expected, got)
    if not relative <= EXPORT_TOLERANCE:
        raise ModelError(
            f"{label}: the exported graph differs from the module by {relative:.1e} of its outputs' range (at most "
            f"{EXPORT_TOLERANCE:.0e} is expected); does its forward() depend on random numbers or on the values?"
        )
    return absolute


def _useful_line(error: BaseException) -> str:
    """First line of the innermost cause that says something."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for cause in reversed(chain):
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        if lines:
            return f"{type(cause).__name__}: {lines[0]}"
    return type(error).__name__


@dataclass(frozen=True, eq=False)
class Source:
    """What `open_source` made of whatever it was given.

    Attributes:
        graph: the canonical graph.
        name: a short name, for files: the stem of the ONNX file, the folder of the Checkpoint, the zoo name.
        preprocess: how pictures become its input; None when the source does not say.
        classes: names by index; empty where unknown.
        task: ``classification``, ``detection`` or ``tensors``.
        description: where it came from, in words, for a bundle's manifest.
    """

    graph: Graph
    name: str
    preprocess: Preprocess | None
    classes: tuple[str, ...]
    task: str
    description: str

    @property
    def postprocess(self) -> Postprocess | None:
        """How the outputs of one of our detectors become boxes; None where they need nothing more, or nobody knows."""
        return postprocess_of(self.graph)


def open_source(
    source: str | Path | nn.Module | Graph | ModelProto | Checkpoint,
    *,
    weights: str | Path | None = None,
    input_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    model_arguments: Mapping[str, Any] | None = None,
) -> Source:
    """Take anything that can be converted to a canonical graph.

    Args:
        source: path of an ``.onnx`` file or of a Checkpoint folder, a zoo name, or one of the objects.
        weights: weight file, for a zoo name.
        input_size: height and width in pixels: for ONNX files that leave them open, for modules that do not come
            from the zoo, and for zoo names (by default 224, of detectors what `edgevision models` says).
        num_classes: of a zoo network; by default 1000, of detectors 80.
        in_channels: of a zoo network or a module; by default 3, or what a module's first convolution takes.
        model_arguments: further arguments of `create_model`: ``width``, …

    Raises:
        UsageError: the source is none of these, or an argument does not go with it.
        ModelError: the model cannot be used; see `canonicalize` and `export_module`.
        CheckpointError: a checkpoint or a weight file is damaged or does not fit.
        MissingDependencyError: a library that the source needs is not installed.
    """
    from onnx import ModelProto

    if isinstance(source, (str, Path)):
        return _open_named(source, weights, input_size, num_classes, in_channels, dict(model_arguments or {}))
    _refuse_zoo_arguments(type(source).__name__, weights, num_classes, model_arguments)
    if isinstance(source, Graph):
        return _described(source, source.name or "model", f"canonical graph {source.name}")
    if isinstance(source, ModelProto):
        graph = canonicalize(source, input_size=input_size)
        return _described(graph, graph.name or "model", f"ONNX model {graph.name}")
    from edgevision.checkpoint import Checkpoint

    if isinstance(source, Checkpoint):
        return _open_checkpoint(source, source.architecture, f"checkpoint of {source.architecture}", input_size)
    if callable(getattr(source, "named_modules", None)):
        graph = export_module(source, input_shape=_module_shape(source, input_size, in_channels))
        return _described(graph, graph.name, f"torch module {type(source).__name__}")
    raise UsageError(f"a model must be {_ACCEPTED}; got {type(source).__name__}")


_ACCEPTED = "an .onnx file, a Checkpoint folder, a zoo name with weights, a torch module or a Graph"


def _open_named(
    source: str | Path,
    weights: str | Path | None,
    input_size: tuple[int, int] | None,
    num_classes: int | None,
    in_channels: int | None,
    arguments: dict[str, Any],
) -> Source:
    from edgevision.checkpoint import Checkpoint, is_checkpoint
    from edgevision.models import MODELS

    path = Path(source)
    if str(source) in MODELS and not path.exists():
        return _open_zoo(str(source), weights, input_size, num_classes, in_channels, arguments)
    _refuse_zoo_arguments(str(source), weights, num_classes, arguments)
    if path.suffix.lower() == ".onnx":
        return _described(canonicalize(path, input_size=input_size), path.stem, f"ONNX file {path.name}")
    if is_checkpoint(path):
        name = path.resolve().name
        return _open_checkpoint(Checkpoint.open(path), name, f"checkpoint {name}", input_size)
    if path.is_dir():
        raise UsageError(f"{path}: a folder without model.json is no Checkpoint; a model must be {_ACCEPTED}")
    if path.suffix in (".pt", ".pth", ".safetensors") and path.exists():
        raise UsageError(f"{path}: weights alone are no model; give the zoo name and these as weights (--weights)")
    if path.exists():
        raise UsageError(f"{path}: not a model; a model must be {_ACCEPTED}")
    if path.suffix or len(path.parts) > 1:
        raise UsageError(f"{path}: no such file; a model must be {_ACCEPTED}")
    raise UsageError(unknown_name("model", str(source), MODELS.names()))


def _open_zoo(
    name: str,
    weights: str | Path | None,
    input_size: tuple[int, int] | None,
    num_classes: int | None,
    in_channels: int | None,
    arguments: dict[str, Any],
) -> Source:
    if weights is None:
        raise UsageError(f"{name}: the zoo has no weights of its own; pass weights=FILE (--weights FILE)")
    require("torch", purpose="build models")
    from edgevision.models import create_model
    from edgevision.models.weights import load_weights

    largest = None if input_size is None else max(input_size)
    given = {"num_classes": num_classes, "in_channels": in_channels, "input_size": largest}
    # the arguments of this call win over those in the dictionary
    arguments |= {key: value for key, value in given.items() if value is not None}
    model = create_model(name, **arguments)
    channels, *square = architecture_shape(model)
    height, width = input_size or square
    load_weights(model, weights)
    graph = export_module(model, input_shape=(channels, height, width), name=name)
    description = f"{name} with weights {Path(weights).name}"
    if postprocess_of(graph) is not None:
        return _described(graph, name, description)
    preset = "digits" if channels == 1 else "cifar10" if max(height, width) == 32 else "imagenet"
    preprocess = PRESETS[preset].with_size(height, width) if channels in (1, 3) else None
    return Source(graph, name, preprocess, (), "classification", description)


def _open_checkpoint(checkpoint: Checkpoint, name: str, description: str, input_size: tuple[int, int] | None) -> Source:
    preprocess = checkpoint.preprocess if input_size is None else checkpoint.preprocess.with_size(*input_size)
    shape = (preprocess.channels, *preprocess.size)
    graph = export_module(checkpoint.build(), input_shape=shape, name=checkpoint.architecture)
    if checkpoint.postprocess is not None:  # its thresholds may be others than a fresh network's
        graph = _with_postprocess(graph, checkpoint.postprocess)
    return Source(graph, name, preprocess, checkpoint.classes, checkpoint.task, description)


def _described(graph: Graph, name: str, description: str) -> Source:
    return Source(graph, name, None, (), task_of(graph), description)


def task_of(graph: Graph) -> str:
    """``detection`` for one of our detectors, ``classification`` for one output ``[batch, K]`` or
    ``[batch, K, 1, 1]``, else ``tensors``.
    """
    if postprocess_of(graph) is not None:
        return "detection"
    if len(graph.output_names) != 1:
        return "tensors"
    shape = graph.shapes.get(graph.output_names[0], ())
    flat = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
    return "classification" if flat and shape[0] == graph.input_shape[0] else "tensors"


def _module_shape(
    module: nn.Module, input_size: tuple[int, int] | None, in_channels: int | None
) -> tuple[int, int, int] | None:
    """Channels, height and width for `export_module`; None lets it ask the module's architecture."""
    if input_size is None and in_channels is None:
        return None
    if input_size is None:
        input_size = architecture_shape(module)[1:]
    if in_channels is None:
        found = (getattr(part, "in_channels", None) for part in module.modules())
        in_channels = next((channels for channels in found if isinstance(channels, int)), 3)
    return in_channels, *input_size


def _refuse_zoo_arguments(
    what: str, weights: str | Path | None, num_classes: int | None, arguments: Mapping[str, Any] | None
) -> None:
    given = {"weights": weights, "num_classes": num_classes, **(arguments or {})}
    for key, value in given.items():
        if value is not None:
            raise UsageError(f"{key} goes with the name of a zoo network; {what} brings its own")
