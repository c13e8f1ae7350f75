"""A pruned network comes back from its folder alone: over the whole zoo, in a process that never pruned anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgevision.checkpoint import MODEL, Checkpoint
from edgevision.errors import CheckpointError, UsageError
from edgevision.models import MODELS, create_model, task_of
from edgevision.models.channels import changed_counts, resize
from edgevision.models.reparameterize import is_reparameterizable, reparameterize
from edgevision.preprocess import PRESETS
from edgevision.pruning import find_groups, prune, remove_channels
from edgevision.pruning.prune import input_shape_of, make_plan
from edgevision_converters.export import open_source
from edgevision_converters.passes.numerics import run

ZOO = sorted(MODELS._entries)
# one of each layout: what the others have, these have
DETECTORS = ["ssdlite_mobilenet_v2", "yolov3_tiny", "yolov6_m", "yolov6lite_s"]

RELOAD = """
import json, sys
import torch
import edgevision as ev
torch.set_num_threads(1)
answers = {}
for folder in sys.argv[1:]:
    checkpoint = ev.load_checkpoint(folder)
    network, size = checkpoint.build(), checkpoint.arguments["input_size"]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        result = network(images)
    answers[folder] = [each.tolist() for each in (result.values() if isinstance(result, dict) else [result])]
assert not any(name.startswith(("torch_pruning", "edgevision.pruning")) for name in sys.modules)
print(json.dumps(answers))
"""


def size_of(name: str) -> int:
    """Of the input: the coarsest cells of detectors are of 64 pixels."""
    return 64 if task_of(name) == "detection" else 32


def answers_of(model: nn.Module) -> list[torch.Tensor]:
    size = model.architecture["arguments"]["input_size"]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        result = model.eval()(images)
    return list(result.values()) if isinstance(result, dict) else [result]


def make(name: str, **arguments) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=3, input_size=size_of(name), **{"width": 0.1, **arguments})


def pruned_at_random(model: nn.Module, seed: int) -> nn.Module:
    groups = find_groups(model, input_shape_of(model))
    random = np.random.default_rng(seed)
    keep = {}
    for group in groups:
        count = int(random.integers(1, group.channels + 1))
        keep[group.name] = sorted(random.choice(group.channels, count, replace=False).tolist())
    return remove_channels(model, groups, keep)


def test_the_whole_zoo_reloads_in_a_fresh_process(tmp_path: Path) -> None:
    expected = {}
    for seed, name in enumerate(ZOO):
        smaller = pruned_at_random(make(name), seed)
        for form, model in (("", smaller), ("-fused", reparameterize(smaller))):
            if form and not is_reparameterizable(smaller):
                continue
            folder = str(tmp_path / f"{name}{form}")
            checkpoint = Checkpoint.from_model(model, preprocess=PRESETS["cifar10"], changes=("pruned",))
            assert checkpoint.channels
            checkpoint.save(folder)
            expected[folder] = answers_of(model)
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, *expected], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for folder, answers in expected.items():
        # JSON carries every digit of a float32: the same machine and code give the same bits
        assert all(map(torch.equal, map(torch.tensor, found[folder]), answers)), folder


@settings(max_examples=4, deadline=None)
@given(name=st.sampled_from(ZOO), seed=st.integers(0, 2**31))
def test_counts_are_all_that_differs_and_all_that_is_needed(name, seed):
    model = make(name)
    assert changed_counts(model) == {}
    smaller = pruned_at_random(model, seed)
    again = make(name)
    resize(again, changed_counts(smaller))
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in smaller.state_dict().items()}
    again.load_state_dict(smaller.state_dict())
    assert all(map(torch.equal, answers_of(again), answers_of(smaller)))
    assert str(again) == str(smaller)  # in_channels, groups, num_features and the like


@pytest.mark.parametrize("name", DETECTORS)
def test_heads_of_detectors_are_kept_and_the_rest_is_pruned(name):
    model = make(name)
    plan = make_plan(model, macs=0.7, round_to=1)
    kept = {layer for group in plan.groups.kept for layer in group.layers}
    outputs = {layer for layer, module in model.named_modules() if layer.startswith("head.") and "outputs." in layer}
    assert outputs <= kept
    # what else is kept: the shuffled stage of YOLOv6-Lite whose six shuffles tie every channel to every other
    assert all(layer.startswith("backbone.stage4.") for layer in kept - outputs)
    smaller = plan.apply(model)
    answers = answers_of(smaller)
    assert [answer.shape for answer in answers] == [answer.shape for answer in answers_of(model)]
    if is_reparameterizable(smaller):
        for mine, fused in zip(answers, answers_of(reparameterize(smaller)), strict=True):
            # float32 sums of the same products in another order, over the depth of a detector
            assert float((mine - fused).abs().max()) < 1e-4 * float(mine.abs().max())


@pytest.mark.parametrize("name", ["mobilenet_v2", "repvgg_tiny", "squeezenet1_1"])
def test_pruned_networks_export_fused_to_a_canonical_graph(name):
    smaller = pruned_at_random(make(name, width=0.5), seed=3).eval()
    checkpoint = Checkpoint.from_model(smaller, preprocess=PRESETS["cifar10"])
    graph = open_source(checkpoint).graph
    assert not any(node.op_type == "BatchNormalization" for node in graph.nodes)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    (logits,) = run(graph.model, {graph.input_name: images.numpy()})
    # float32 with norms folded: sums in another order
    np.testing.assert_allclose(logits, answers_of(smaller)[0].numpy(), rtol=1e-3, atol=1e-4)


def test_pruned_twice_and_fused_after(tmp_path):
    once = prune(make("repvgg_tiny", width=1.0), macs=0.7)
    twice = prune(once, macs=0.6)
    fused = reparameterize(twice)
    Checkpoint.from_model(fused, preprocess=PRESETS["cifar10"], changes=("pruned",)).save(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.changes == ("pruned", "reparameterized")
    assert checkpoint.channels["stage3.0.rbr_reparam"][1] == twice.stage3[0].rbr_dense.conv.out_channels
    assert all(map(torch.equal, answers_of(checkpoint.build()), answers_of(fused)))


def test_unpruned_checkpoints_name_no_channels_and_old_ones_are_read(tmp_path):
    model = make("repvgg_tiny")
    Checkpoint.from_model(model, preprocess=PRESETS["cifar10"]).save(tmp_path)
    values = json.loads((tmp_path / MODEL).read_text())
    assert values["channels"] == {}
    del values["channels"]
    values["schema_version"] = 1
    (tmp_path / MODEL).write_text(json.dumps(values))
    assert all(map(torch.equal, answers_of(Checkpoint.open(tmp_path).build()), answers_of(model)))


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"nowhere": [1, 2, 1]}, "the network has no layer nowhere"),
        ({"linear": [7, 3]}, r"the network has no layer linear that could have the channels \[7, 3\]"),
        ({"stage0.rbr_dense.conv": [3, 7, 2]}, "3 and 7 channels do not divide into 2 groups"),
        ({"stage0.rbr_dense.conv": [3, 7, 1]}, "weights do not fit the network"),
        ({"stage0.rbr_dense.conv": [3, 0, 1]}, "damaged checkpoint"),
        ({"stage0.rbr_dense.conv": []}, "damaged checkpoint"),
        ({"stage0.rbr_dense.conv": "many"}, "damaged checkpoint"),
        ([3], "damaged checkpoint"),
    ],
)
def test_channels_that_do_not_fit_are_named(tmp_path, channels, message):
    Checkpoint.from_model(make("repvgg_tiny"), preprocess=PRESETS["cifar10"]).save(tmp_path)
    values = json.loads((tmp_path / MODEL).read_text())
    (tmp_path / MODEL).write_text(json.dumps({**values, "channels": channels}))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path).build()


def test_networks_with_other_layers_are_not_saved():
    model = make("repvgg_tiny")
    model.stage0 = nn.Sequential(model.stage0)
    with pytest.raises(UsageError, match="has other layers than its builder makes"):
        Checkpoint.from_model(model, preprocess=PRESETS["cifar10"])
