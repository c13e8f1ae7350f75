"""The long method: the whole net is tuned on integers to answer as it does in float, or block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevision import __version__
from edgevision.data import batches
from edgevision.data.base import Subset, evenly_spaced
from edgevision.files import write_text
from edgevision.pipeline.workspace import digest_of, digest_of_samples
from edgevision.preprocess import Preprocess

if TYPE_CHECKING:
    from edgevision.graph import Graph
    from edgevision_calibration.plan import QuantPlan
    from edgevision_calibration.qat.train import Batch, LabelledBatch, QatData

# passes over the pictures, and pictures at a time: half as many passes again gained MobileNetV2 a tenth of a decibel
_EPOCHS, _BATCH = 16, 4
# rates at which MobileNetV2 learned most: weights in units of their steps, steps relative to themselves
_LR, _STEP_LR = 0.0035, 1e-4
# activations that may be held at a time, in values: about 12 bytes for each, with what their gradients need
_MOST_VALUES = 120_000_000
_STATE = "state.safetensors"
# every tenth picture judges; with fewer than this left the net would learn them by heart
_JUDGED_EVERY, _LEAST_PICTURES = 10, 32


def learn_long(
    graph: Graph, plan: QuantPlan, preprocess: Preprocess, samples: Subset, root: Path, *, seed: int = 0
) -> tuple[Graph, QuantPlan]:
    """A graph and plan after the long method, from ``root`` where an earlier call left them; no labels are needed.

    Where the net's outputs are what its last layers give, all weights, biases and steps learn together, by the squared
    error of the outputs (`edgevision_calibration.qat.train`); pictures are mirrored by chance, every tenth only judges,
    and the best state is kept, the one before included. What is decoded behind the last layers, as boxes are, mixes
    units that a squared error cannot weigh, and a few pictures would be learned by heart: then each block learns its
    rounding on its own (`edgevision_calibration.reconstruction`).

    Args:
        graph: the treated canonical graph.
        plan: its plan.
        preprocess: how pictures become its input.
        samples: the calibration pictures.
        root: a folder for work of this kind; an interrupted call goes on where it stopped.
        seed: of the order of pictures, and of what is mirrored or cropped.

    Raises:
        CalibrationError: there are no pictures.
        DataError: a picture cannot be read.
        UnsupportedOpError: an op without gradients.
        OutputError: ``root`` cannot be written.
    """
    from edgevision_calibration import tail

    settings = [_EPOCHS, _BATCH, _LR, _STEP_LR, seed, __version__]
    folder = root / digest_of(graph.sha256, plan.to_json(), preprocess.digest, digest_of_samples(samples), *settings)
    if (done := _kept(folder)) is not None:
        return done
    if len(samples) < _LEAST_PICTURES or tail.is_decoded(graph):
        result = _by_blocks(graph, plan, preprocess, samples, seed)
    else:
        result = _tuned(graph, plan, preprocess, samples, folder / _STATE, seed)
    _keep(folder, *result)
    (folder / _STATE).unlink(missing_ok=True)
    return result


def _by_blocks(
    graph: Graph, plan: QuantPlan, preprocess: Preprocess, samples: Subset, seed: int
) -> tuple[Graph, QuantPlan]:
    """Each block taught what it gives in float."""
    from edgevision_calibration.reconstruction import ReconstructionConfig, reconstruct

    config = ReconstructionConfig(seed=seed)
    few = evenly_spaced(samples, min(config.pictures, len(samples)))
    return reconstruct(graph, plan, (batch for batch, _ in batches(few, preprocess, 1)), config=config)


def _tuned(
    graph: Graph, plan: QuantPlan, preprocess: Preprocess, samples: Subset, state: Path, seed: int
) -> tuple[Graph, QuantPlan]:
    """The whole net taught the answers that it gives in float."""
    from edgevision_calibration.qat.train import QatConfig, train_quantized

    size = max(1, min(_BATCH, _MOST_VALUES // max(_values(graph), 1)))
    config = QatConfig(epochs=_EPOCHS, batch_size=size, lr=_LR, step_lr=_STEP_LR, seed=seed)
    data = _pictures(samples, preprocess, config.batch_size, seed)
    learned = train_quantized(graph, plan, data, config=config, classification=False, state=state, label="tune")
    tuning = {**vars(config), "pictures": len(samples), "kept_epoch": int(learned.metrics["epoch"])}
    calibration = {**plan.calibration, "method": "long", "tuning": tuning}
    return learned.graph, replace(learned.plan, calibration=calibration)


def _values(graph: Graph) -> int:
    """Values of all activations of one picture."""
    names = [name for node in graph.nodes for name in node.output]
    return sum(math.prod(size or 1 for size in graph.shapes.get(name, ())) for name in names)


def _pictures(samples: Subset, preprocess: Preprocess, size: int, seed: int) -> QatData:
    """Batches in an order that follows from the seed and the epoch."""
    from edgevision_calibration.qat.train import QatData

    judged = list(range(_JUDGED_EVERY - 1, len(samples), _JUDGED_EVERY))
    learned = np.setdiff1d(np.arange(len(samples)), judged)

    def read(indices: Any) -> Iterator[LabelledBatch]:
        chosen = Subset(samples, [int(index) for index in indices])
        return ((batch, None) for batch, _ in batches(chosen, preprocess, size))

    def epoch(number: int) -> Iterator[LabelledBatch]:
        generator = np.random.default_rng([seed, number])
        order = generator.permutation(learned)
        # an incomplete batch would weigh its pictures more
        for batch, _ in read(order[: len(order) // size * size]):
            yield _mirrored(batch, generator), None

    return QatData(epoch, len(learned) // size, lambda: read(judged))


def _mirrored(batch: Batch, generator: np.random.Generator) -> Batch:
    """The pictures ``[B, C, H, W]``, every other one by chance mirrored: the teacher says what it then shows."""
    turned = generator.random(len(batch)) < 0.5
    return np.where(turned[:, None, None, None], batch[..., ::-1], batch)


def _kept(folder: Path) -> tuple[Graph, QuantPlan] | None:
    from edgevision.graph import Graph
    from edgevision_calibration.plan import QuantPlan

    if not (folder / "plan.json").exists():
        return None
    graph, plan = Graph.open(folder / "graph.onnx"), QuantPlan.from_json((folder / "plan.json").read_bytes())
    return (graph, plan) if graph.sha256 == plan.graph_sha256 else None


def _keep(folder: Path, graph: Graph, plan: QuantPlan) -> None:
    graph.save(folder / "graph.onnx")
    # the plan comes last: where it is, the graph is whole
    write_text(folder / "plan.json", plan.to_json())
