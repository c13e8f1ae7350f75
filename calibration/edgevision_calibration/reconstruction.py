"""Block-wise reconstruction: a few layers at a time learn to answer as they did in float.

Sources: Li et al., BRECQ, arXiv 2102.05426, section 3.2 (blocks); Wei et al., QDrop, arXiv 2203.05740, section 3.3
(activations are quantized while weights learn). The rounding is AdaRound's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgevision.errors import CalibrationError, UsageError
from edgevision.graph import Graph, attributes
from edgevision.progress import Progress
from edgevision_calibration.adaround import RoundingGraph
from edgevision_calibration.plan import QuantPlan
from edgevision_calibration.torch_graph import TorchGraph
from edgevision_calibration.torch_graph.fake_quant import is_quantized
from edgevision_calibration.torch_graph.ops import OPS

if TYPE_CHECKING:
    from onnx import NodeProto

# layers of a block: expand, depthwise, project; squeeze and two expands
_LAYERS_PER_BLOCK = 3
# pictures that means are taken over
_BIAS_PICTURES = 64
# ops that compute every pixel the same way, so that a crop of the input gives a crop's output
_LOCAL_OPS = frozenset({
    "Conv", "Relu", "Clip", "LeakyRelu", "PRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Add", "Sub", "Mul",
    "Div", "Concat", "MaxPool", "AveragePool", "Identity", "Split",
})  # fmt: skip


@dataclass(frozen=True)
class ReconstructionConfig:
    """How long and how fast blocks learn.

    Attributes:
        pictures: how many calibration pictures are used; their activations at one place in the graph are held in
            memory.
        steps: optimizer steps per block.
        batch: crops per step.
        crop: height and width of the crops that early blocks learn on, in pixels of their input.
        rounding_rate: learning rate of the rounding logits.
        bias_rate: of biases, in hundredths of about an output's deviation.
        step_rate: of activation steps, relative to them. The ranges that calibration chose are kept by default: on
            MobileNetV2 blocks that learned them as well answered worse as a whole.
        seed: of the order and the crops.
    """

    pictures: int = 100
    steps: int = 100
    batch: int = 8
    crop: int = 14
    rounding_rate: float = 0.02
    bias_rate: float = 0.002
    step_rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pictures", "steps", "batch", "crop"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of the reconstruction must be 1 or more; got {getattr(self, name)}")


@dataclass(frozen=True)
class Block:
    """Neighbouring nodes that learn together.

    Attributes:
        nodes: in topological order.
        inputs: tensors from before the block that it, or something after it, reads.
        outputs: tensors that leave it, or pass it by, and graph outputs it makes.
    """

    nodes: tuple[NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def reconstruct(
    graph: Graph,
    plan: QuantPlan,
    images: Iterable[npt.NDArray[np.float32]],
    *,
    config: ReconstructionConfig | None = None,
) -> tuple[Graph, QuantPlan]:
    """Learn roundings, biases and activation steps block by block; everything else stays as the plan has it.

    The weights of the graph that comes out lie on their grid, so that rounding to nearest gives what was learned on
    every engine. Deterministic for one number of torch threads.

    Args:
        graph: the treated canonical graph.
        plan: its plan.
        images: preprocessed pictures, float32 ``[B, C, H, W]`` each.
        config: see `ReconstructionConfig`.

    Returns:
        graph with rounded weights, and its plan.

    Raises:
        CalibrationError: there are no pictures.
        UnsupportedOpError: an op without gradients.
    """
    config = config or ReconstructionConfig()
    pictures = _take(images, config.pictures)
    # corrected biases belong to weights rounded to nearest; these begin unrounded
    student, teacher = RoundingGraph(graph, replace(plan, biases={})), TorchGraph(graph)
    blocks = split_blocks(graph, plan)
    float_values, values = {graph.input_name: pictures}, {graph.input_name: pictures}
    with torch.random.fork_rng(devices=[]), Progress("reconstruct", len(blocks)) as progress:
        for number, block in enumerate(blocks):
            torch.manual_seed(config.seed + number)
            if any(is_quantized(plan, node) for node in block.nodes):
                _learn(student, teacher, block, values, float_values, config)
            student.decide(block.nodes)
            _correct_biases(student, teacher, block, float_values)
            float_values = _advance(teacher, block, float_values)
            values = _advance(student, block, values)
            progress.advance(status=f"error {_error(values, float_values):.2e}")
    learned, quantized = student.learned()
    method = {"method": "long", "reconstruction": {**vars(config), "pictures": len(pictures)}}
    return learned, replace(quantized, calibration={**plan.calibration, **method})


def _take(images: Iterable[npt.NDArray[np.float32]], count: int) -> Tensor:
    taken: list[npt.NDArray[np.float32]] = []
    for batch in images:
        taken.append(batch)
        if sum(map(len, taken)) >= count:
            break
    if not taken:
        raise CalibrationError("there are no calibration images: give --data a folder or data set that holds some")
    return torch.from_numpy(np.concatenate(taken)[:count])


def split_blocks(graph: Graph, plan: QuantPlan, *, layers: int = _LAYERS_PER_BLOCK) -> list[Block]:
    """Cut the graph where one tensor alone goes on, after every ``layers`` quantized layers."""
    nodes = graph.nodes
    last = {name: position for position, node in enumerate(nodes) for name in node.input}
    outputs = set(graph.output_names)
    blocks: list[Block] = []
    begin, count = 0, 0
    live = [graph.input_name]
    alive = list(live)
    for position, node in enumerate(nodes):
        count += is_quantized(plan, node)
        alive = [name for name in [*alive, *node.output] if last.get(name, -1) > position]
        end = position == len(nodes) - 1
        readers = [reader for name in alive for reader in graph.consumers[name]]
        clipped = all(reader.op_type in {"Relu", "Clip"} for reader in readers)
        if not end and not (count >= layers and len(alive) == 1 and not clipped):
            continue
        chosen = nodes[begin : position + 1]
        made = [name for item in chosen for name in item.output if name in outputs]
        leaving = tuple(dict.fromkeys([*alive, *made]))
        blocks.append(Block(tuple(chosen), tuple(live), leaving))
        begin, count, live = position + 1, 0, list(alive)
    return blocks


def _learn(
    student: RoundingGraph,
    teacher: TorchGraph,
    block: Block,
    values: dict[str, Tensor],
    float_values: dict[str, Tensor],
    config: ReconstructionConfig,
) -> None:
    """Make the student's block answer, on what reaches it, as the teacher's does on what reaches it in float."""
    groups = student.parameters_of(block.nodes)
    rates = {"roundings": config.rounding_rate, "biases": config.bias_rate, "steps": config.step_rate}
    optimizer = torch.optim.Adam([{"params": groups[name], "lr": rates[name]} for name in groups if groups[name]])
    base = [group["lr"] for group in optimizer.param_groups]
    weights = sum(parameter.numel() for parameter in groups["roundings"])
    layers = [node for node in block.nodes if is_quantized(student.plan, node)]
    made = [name for name in block.outputs if name not in block.inputs]
    for step, crop in enumerate(_crops(block, values, config)):
        done = step / config.steps
        for group, rate in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = rate * (1.0 - done)
        with torch.no_grad():
            expected = teacher.execute(crop(float_values), block.nodes, made)
        got = student.execute(crop(values), block.nodes, made)
        loss = torch.stack([_relative_error(got[name], expected[name]) for name in made]).mean()
        # rounding decides in the last four fifths, ever harder (the paper's β from 20 to 2)
        if done > 0.2:
            undecided = torch.stack([student.rounding(node).undecided(2 + 18 * (1 - done)) for node in layers]).sum()
            loss = loss + loss.detach() * undecided / weights
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def _correct_biases(student: RoundingGraph, teacher: TorchGraph, block: Block, float_values: dict[str, Tensor]) -> None:
    """Take off each bias what the decided rounding does to the mean of an output channel, padding included.

    Source: bias correction, Nagel et al., arXiv 1906.04721, section 4.2. Matching the measured means of the quantized
    network instead, clipping of activations and all, was tried on MobileNetV2 and raised the error of its last blocks.
    """
    few = {name: value[:_BIAS_PICTURES] for name, value in float_values.items()}
    for position, node in enumerate(block.nodes):
        if not is_quantized(student.plan, node) or node.op_type not in {"Conv", "Gemm"} or len(node.input) < 3:
            continue
        name = str(node.input[0])
        before = Block(block.nodes[:position], block.inputs, (name,))
        # what goes into the first layer is there already
        reached = few[name] if name in few else _advance(teacher, before, few)[name]
        error = student.weight(node) - student.constant(node.input[1])
        shift = OPS[node.op_type]([reached, error], attributes(node))
        student.shift_bias(node, -shift.mean(tuple(axis for axis in range(shift.ndim) if axis != 1)))


def _crops(block: Block, values: dict[str, Tensor], config: ReconstructionConfig) -> Iterator[_Crop]:
    """One crop per step: some pictures, and where the block's ops allow it a window of them."""
    generator = np.random.default_rng(config.seed)
    count = len(next(iter(values.values())))
    local = len(block.inputs) == 1 and all(node.op_type in _LOCAL_OPS for node in block.nodes)
    shape = values[block.inputs[0]].shape
    for _ in range(config.steps):
        chosen = generator.choice(count, min(config.batch, count), replace=False)
        window = None
        if local and len(shape) == 4 and max(shape[2:]) > config.crop:
            # windows begin at even pixels, so that a stride of 2 falls where it does in the whole picture
            window = tuple(2 * int(generator.integers(0, max(0, size - config.crop) // 2 + 1)) for size in shape[2:])
        yield _Crop(torch.from_numpy(chosen), window, config.crop)


@dataclass(frozen=True)
class _Crop:
    chosen: Tensor
    window: tuple[int, ...] | None
    size: int

    def __call__(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        picked = {name: value[self.chosen] for name, value in values.items()}
        if self.window is None:
            return picked
        top, left = self.window
        return {name: x[:, :, top : top + self.size, left : left + self.size] for name, x in picked.items()}


def _relative_error(got: Tensor, expected: Tensor) -> Tensor:
    return (got - expected).square().mean() / expected.square().mean().clamp(min=1e-12)


@torch.no_grad()
def _advance(network: TorchGraph, block: Block, values: dict[str, Tensor], batch: int = 8) -> dict[str, Tensor]:
    """What leaves a block, a few pictures at a time."""
    count = len(next(iter(values.values())))
    parts: list[dict[str, Tensor]] = []
    for start in range(0, count, batch):
        piece = {name: value[start : start + batch] for name, value in values.items()}
        parts.append(network.execute(piece, block.nodes, block.outputs))
    return {name: torch.cat([part[name] for part in parts]) for name in block.outputs}


def _error(values: dict[str, Tensor], float_values: dict[str, Tensor]) -> float:
    errors: Sequence[float] = [float(_relative_error(values[name], float_values[name])) for name in values]
    return max(errors, default=0.0)
