from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevision.checkpoint import Checkpoint
from edgevision.errors import CheckpointError, ModelError, UsageError
from edgevision.graph import Graph
from edgevision.models import create_model
from edgevision.preprocess import PRESETS
from edgevision_converters.canonical import canonicalize
from edgevision_converters.export import export_module, open_source, task_of
from edgevision_converters.passes.numerics import relative_difference, run

# Float32 sums in another order, through nets of at most sixty layers
CLOSE = 1e-4


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fresh weights and running statistics that a training would leave: a batch norm that changes something."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.normal_(part.weight, 1, 0.2, generator=generator)
            nn.init.normal_(part.bias, generator=generator)
        elif isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(part.weight, generator=generator)
    return module


def conv_norm(inside: int, outside: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outside)
    )


class Everything(nn.Module):
    """What light networks are made of: residual, depthwise, squeeze-and-excitation with hard-swish, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 16, stride=2)
        self.depthwise = conv_norm(16, 16, groups=16)
        self.reduce = nn.Conv2d(16, 4, 1)
        self.expand = nn.Conv2d(4, 16, 1)
        self.project = conv_norm(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.stem(x))
        y = functional.relu6(self.depthwise(x))
        gate = functional.hardsigmoid(self.expand(functional.relu(self.reduce(functional.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(y * gate)
        return self.head(functional.dropout(x.mean([2, 3]), 0.2, self.training))


class RepBlock(nn.Module):
    """RepVGG's block, with a mistake on request."""

    def __init__(self, channels: int, error: float = 0.0) -> None:
        super().__init__()
        self.dense, self.point = conv_norm(channels, channels), conv_norm(channels, channels, 1)
        self.identity = nn.BatchNorm2d(channels)
        self.fused: nn.Conv2d | None = None
        self.error = error

    @property
    def is_fused(self) -> bool:
        return self.fused is not None

    def forward(self, x: Tensor) -> Tensor:
        if self.fused is not None:
            return functional.relu(self.fused(x))
        return functional.relu(self.dense(x) + self.point(x) + self.identity(x))

    @torch.no_grad()
    def fuse(self) -> None:
        channels = self.identity.num_features
        kernel, bias = torch.zeros(channels, channels, 3, 3), torch.zeros(channels)
        one = torch.eye(channels)[:, :, None, None]
        for norm, weight in (
            (self.dense[1], self.dense[0].weight),
            (self.point[1], functional.pad(self.point[0].weight, [1] * 4)),
            (self.identity, functional.pad(one, [1] * 4)),
        ):
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            kernel += weight * scale[:, None, None, None]
            bias += norm.bias - norm.running_mean * scale
        self.fused = nn.Conv2d(channels, channels, 3, padding=1)
        self.fused.weight.copy_(kernel * (1 + self.error))
        self.fused.bias.copy_(bias)
        del self.dense, self.point, self.identity


class RepNet(nn.Module):
    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(RepBlock(8), RepBlock(8, error))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x)).mean([2, 3])


def ops(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


def agrees(module: nn.Module, graph: Graph, batch: int = 3) -> None:
    images = torch.randn(batch, *graph.input_shape[1:], generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = copy.deepcopy(module).eval()(images)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    got = run(graph.model, {graph.input_name: images.numpy()})
    assert relative_difference([value.numpy() for value in expected], got) <= CLOSE


def test_a_network_of_everything() -> None:
    module = lively(Everything())
    module.train()
    before = copy.deepcopy(module.state_dict())
    graph = export_module(module, input_shape=(3, 32, 24), name="everything")
    assert (graph.name, graph.input_name, graph.input_shape) == ("everything", "images", (None, 3, 32, 24))
    assert graph.output_names == ["output"]
    assert graph.shapes["output"] == (None, 5)
    assert not {"BatchNormalization", "Dropout", "Constant", "ReduceMean", "Shape"} & set(ops(graph))
    assert ops(graph).count("HardSwish") == 1
    assert float(graph.metadata["export_max_difference"]) < 1e-3
    assert "reparameterization_max_difference" not in graph.metadata
    assert task_of(graph) == "classification"
    agrees(module, graph)
    # the module that was given is as it was, still in training
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_fusion_is_done_and_measured() -> None:
    module = lively(RepNet())
    graph = export_module(module, input_shape=(3, 16, 16))
    assert ops(graph).count("Conv") == 3
    assert "Add" not in ops(graph)
    assert 0 < float(graph.metadata["reparameterization_max_difference"]) < 1e-4
    assert not module.blocks[0].is_fused
    agrees(module, graph)


def test_a_wrong_fusion_is_refused() -> None:
    with pytest.raises(ModelError, match=r"RepNet: the fused network differs .* fuse\(\)"):
        export_module(lively(RepNet(error=0.05)), input_shape=(3, 16, 16))


def test_exports_are_the_same_every_time() -> None:
    module = lively(RepNet())
    first, second = (export_module(module, input_shape=(3, 16, 16)).to_bytes() for _ in range(2))
    assert first == second
    assert str(Path.cwd()).encode() not in first  # no stack traces of this machine


@pytest.mark.parametrize("name", ["mobilenet_v2", "repvgg_tiny"])
def test_a_network_of_the_zoo(name: str) -> None:
    module = lively(create_model(name, num_classes=7, in_channels=1, input_size=32))
    graph = export_module(module)
    assert graph.input_shape == (None, 1, 32, 32)
    assert (graph.name, graph.output_names, graph.shapes["logits"]) == (name, ["logits"], (None, 7))
    assert ("reparameterization_max_difference" in graph.metadata) == (name == "repvgg_tiny")
    agrees(module, graph)


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return {"map": y, "pair": (y.mean([2, 3]), y.flatten(1)), "nothing": None}


class Pair(Many):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y, y.amax([2, 3])


def test_outputs_are_named_in_order() -> None:
    graph = export_module(Many(), input_shape=(3, 8, 8))
    assert graph.output_names == ["map", "pair_0", "pair_1"]
    assert [graph.shapes[name] for name in graph.output_names] == [(None, 4, 6, 6), (None, 4), (None, 144)]
    assert task_of(graph) == "tensors"
    assert export_module(Pair(), input_shape=(3, 8, 8)).output_names == ["output_0", "output_1"]
    named = export_module(Pair(), input_shape=(3, 8, 8), output_names=["map", "peak"])
    assert named.output_names == ["map", "peak"]
    for wrong in (["one"], ["one", "one"]):
        with pytest.raises(UsageError, match="has 2 outputs"):
            export_module(Pair(), input_shape=(3, 8, 8), output_names=wrong)


class Shuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        return x.view(B, 2, C // 2, H, W).transpose(1, 2).reshape(B, C, H, W)


class Squeezing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(x, 1).squeeze()


class BatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(1)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("a kernel of 7 does not fit\nand more")


class Empty(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "nothing"


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def test_the_batch_is_free_where_it_can_be() -> None:
    shuffle = export_module(Shuffle(), input_shape=(4, 6, 6))
    assert shuffle.input_shape[0] is None
    agrees(Shuffle(), shuffle)
    # squeeze() takes a batch of 1 along: found out, and exported with a symbolic batch instead
    squeezing = export_module(Squeezing(), input_shape=(4, 6, 6))
    assert squeezing.shapes["output"] == (None, 4)
    agrees(Squeezing(), squeezing)


def test_modules_that_mix_pictures_keep_a_batch_of_one() -> None:
    graph = export_module(BatchMean(), input_shape=(3, 8, 8))
    assert graph.input_shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Branching(), "Branching: torch cannot export the module to ONNX: "),
        (Random(), r"draws random numbers \(RandomUniformLike at .* eval mode"),
        (Failing(), r"Failing: the module cannot run on float32 pictures \[2, 3, 8, 8\]: RuntimeError: a kernel of 7"),
        (Empty(), r"Empty: the module returns no tensor \(it returned str\)"),
        (TwoInputs(), "TwoInputs: the module cannot run .* missing 1 required positional argument"),
        (nn.Conv2d(4, 8, 3), "Conv2d: the module cannot run .* check input_shape"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_that_cannot_be_exported(module: nn.Module, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        export_module(module, input_shape=(3, 8, 8))
    assert "\n" not in str(caught.value)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_shape_is_needed() -> None:
    with pytest.raises(UsageError, match=r"Everything is not known; pass input_shape=\(channels, height, width\)"):
        export_module(Everything())


def test_half_precision_modules_are_exported_in_float32() -> None:
    graph = export_module(nn.Conv2d(3, 4, 3).half(), input_shape=(3, 8, 8))
    assert {value.dtype for value in graph.initializers.values()} == {np.dtype(np.float32)}


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    return lively(create_model("repvgg_tiny", num_classes=3, in_channels=3, input_size=32))


@pytest.fixture(scope="module")
def tiny_graph(tiny: nn.Module) -> Graph:
    return export_module(tiny)


class TestOpenSource:
    def test_onnx_file(self, tiny_graph: Graph, tmp_path: Path) -> None:
        source = open_source(tiny_graph.save(tmp_path / "mine.onnx"))
        assert (source.name, source.preprocess, source.classes) == ("mine", None, ())
        assert source.task == "classification"
        assert source.description == "ONNX file mine.onnx"
        assert source.graph.metadata["source_sha256"] == tiny_graph.sha256

    def test_graph_and_model(self, tiny_graph: Graph) -> None:
        assert open_source(tiny_graph).graph is tiny_graph
        assert open_source(tiny_graph.model).graph.to_bytes() == canonicalize(tiny_graph.model).to_bytes()
        assert open_source(tiny_graph).name == "repvgg_tiny"

    def test_checkpoint(self, tiny: nn.Module, tiny_graph: Graph, tmp_path: Path) -> None:
        preprocess = PRESETS["cifar10"]
        checkpoint = Checkpoint.from_model(tiny, preprocess=preprocess, classes=("a", "b", "c"))
        source = open_source(checkpoint.save(tmp_path / "run7"))
        assert (source.name, source.preprocess, source.classes) == ("run7", preprocess, ("a", "b", "c"))
        assert (source.task, source.description) == ("classification", "checkpoint run7")
        images = {"images": np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)}
        assert relative_difference(run(tiny_graph.model, images), run(source.graph.model, images)) == 0
        assert open_source(checkpoint).graph.sha256 == source.graph.sha256

    def test_zoo_name_with_weights(self, tiny: nn.Module, tiny_graph: Graph, tmp_path: Path) -> None:
        torch.save(tiny.state_dict(), tmp_path / "tiny.pt")
        source = open_source("repvgg_tiny", weights=tmp_path / "tiny.pt", num_classes=3, input_size=(32, 32))
        assert (source.name, source.preprocess) == ("repvgg_tiny", PRESETS["cifar10"])
        assert source.description == "repvgg_tiny with weights tiny.pt"
        assert source.graph.sha256 == tiny_graph.sha256
        arguments = {"num_classes": 3, "width": 0.5}
        with pytest.raises(CheckpointError, match="do not fit the network"):
            open_source("repvgg_tiny", weights=tmp_path / "tiny.pt", input_size=(32, 32), model_arguments=arguments)

    def test_module(self) -> None:
        source = open_source(nn.Conv2d(4, 2, 3), input_size=(8, 6))
        assert source.graph.input_shape == (None, 4, 8, 6)
        assert (source.name, source.task, source.description) == ("Conv2d", "tensors", "torch module Conv2d")

    def test_what_is_no_source(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "weights.pt").touch()
        (tmp_path / "notes.txt").touch()
        for source, message in (
            ("mobilenet_v9", "did you mean mobilenet_v"),
            ("mobilenet_v2", "pass weights=FILE"),
            (tmp_path / "none.pt", "no such file"),
            (tmp_path / "folder", "folder without model.json"),
            (tmp_path / "weights.pt", "weights alone are no model"),
            (tmp_path / "notes.txt", "not a model"),
            (3, "got int"),
        ):
            with pytest.raises(UsageError, match=message):
                open_source(source)
        with pytest.raises(ModelError, match="no such ONNX file"):
            open_source(tmp_path / "none.onnx")
        with pytest.raises(UsageError, match="weights goes with the name of a zoo network"):
            open_source(tmp_path / "none.onnx", weights="x.pt")
        with pytest.raises(UsageError, match="num_classes goes with"):
            open_source(nn.Conv2d(3, 3, 3), num_classes=4)


@pytest.mark.data
def test_imagenet_weights(data_root: Path) -> None:
    weights = data_root / "weights" / "mobilenet_v2_imagenet.safetensors"
    source = open_source("mobilenet_v2", weights=weights)
    assert source.preprocess == PRESETS["imagenet"]
    assert ops(source.graph).count("Conv") == 52
    assert float(source.graph.metadata["export_max_difference"]) < 1e-3
