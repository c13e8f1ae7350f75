from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import EVERYTHING, PREPROCESS, SmallNet, pictures, same_bits, small_net, weights
from torch import nn

from edgevision.checkpoint import Checkpoint
from edgevision.data import Subset
from edgevision.data.datasets import ArrayDataset
from edgevision.errors import DataError, OutputError, TrainingError, UsageError
from edgevision.preprocess import PRESETS
from edgevision.training import TrainConfig, train
from edgevision.training.inputs import default_preprocess, hold_out
from edgevision.training.loop import Trainer, autocast_dtype, global_batch, memory_format
from edgevision.training.run import open_parts

BRIEF = TrainConfig(epochs=3, batch_size=16, lr=0.05, warmup_epochs=0)
FULL = TrainConfig.from_dict(EVERYTHING)


def run(out: Path, config: TrainConfig = BRIEF, model: nn.Module | None = None, **kwargs: Any) -> tuple[Any, nn.Module]:
    model = small_net(dropout=0.2) if model is None else model
    arguments = {"data": pictures(), "val_data": pictures(40, seed=9), "preprocess": PREPROCESS, **kwargs}
    return train(model, out=out, config=config, **arguments), model


def history(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def stop_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the epoch that follows."""
    original = Trainer._step
    calls = {"count": 0}

    def step(self: Trainer, *args: Any) -> Any:
        calls["count"] += 1
        if calls["count"] == epochs * self.steps_per_epoch + 2:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Trainer, "_step", step)


def test_a_run_learns_and_its_folder_is_a_checkpoint(tmp_path: Path) -> None:
    checkpoint, model = run(tmp_path / "run", replace(BRIEF, epochs=12))
    assert checkpoint.metrics["top1"] >= 0.9  # four bright quarters; chance is 0.25
    assert checkpoint.classes == ("nw", "ne", "sw", "se")
    assert checkpoint.changes == ("trained",)
    assert checkpoint.preprocess == PREPROCESS
    assert same_bits(dict(Checkpoint.open(tmp_path / "run").weights), weights(model))
    rows = history(tmp_path / "run")
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert max(row["val_accuracy"] for row in rows) == checkpoint.metrics["top1"]
    best = rows[int(checkpoint.metrics["epoch"]) - 1]
    assert (best["val_accuracy"], best["val_loss"]) == (checkpoint.metrics["top1"], checkpoint.metrics["loss"])


def test_the_kept_accuracy_is_what_the_deployed_preprocess_gives(tmp_path: Path) -> None:
    checkpoint, model = run(tmp_path / "run", FULL)
    data = pictures(40, seed=9)
    inputs = torch.from_numpy(checkpoint.preprocess.batch([data[index].image for index in range(40)]))
    with torch.no_grad():
        answers = model.eval()(inputs).argmax(1).numpy()
    assert float((answers == data.labels).mean()) == checkpoint.metrics["top1"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_same_seed_gives_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    config = replace(FULL, optimizer=optimizer, lr=0.01, epochs=3)
    first, second, other = (
        run(tmp_path / name, replace(config, seed=seed))[1] for name, seed in [("a", 3), ("b", 3), ("c", 4)]
    )
    assert same_bits(weights(first), weights(second))
    assert not same_bits(weights(first), weights(other))


def test_threads_that_read_ahead_change_nothing(tmp_path: Path) -> None:
    models = [run(tmp_path / str(workers), replace(FULL, epochs=2, workers=workers))[1] for workers in (0, 3)]
    assert same_bits(weights(models[0]), weights(models[1]))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_run_ends_as_if_it_had_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    config = replace(FULL, optimizer=optimizer, lr=0.01)
    undisturbed = run(tmp_path / "whole", config)[1]
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt, match="run the same command again to go on"):
            run(tmp_path / "stopped", config)
    assert len(history(tmp_path / "stopped")) == 2
    assert Checkpoint.open(tmp_path / "stopped").metrics["epoch"] <= 2
    # another random start: the weights come from the saved state
    checkpoint, resumed = run(tmp_path / "stopped", config, small_net(seed=77, dropout=0.2))
    assert same_bits(weights(undisturbed), weights(resumed))
    assert checkpoint.metrics == Checkpoint.open(tmp_path / "whole").metrics

    def figures(name: str) -> list[dict[str, Any]]:
        timing = ("seconds", "images_per_second")
        return [{k: v for k, v in row.items() if k not in timing} for row in history(tmp_path / name)]

    assert figures("whole") == figures("stopped")


def test_fp16_scales_its_gradients_and_resumes_the_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # only GPUs are offered fp16; a CPU computes it well enough to try the scaler
    monkeypatch.setattr("edgevision.training.loop.autocast_dtype", lambda *_: torch.float16)
    scales = []
    monkeypatch.setattr(torch.amp.GradScaler, "scale", _spy(torch.amp.GradScaler.scale, scales))
    undisturbed = run(tmp_path / "whole", FULL)[1]
    assert len(scales) == 6 * 6
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", FULL)
    assert same_bits(weights(undisturbed), weights(run(tmp_path / "stopped", FULL)[1]))


def _spy(method: Any, calls: list[float]) -> Any:
    def scale(self: Any, outputs: torch.Tensor) -> torch.Tensor:
        scaled = method(self, outputs)
        calls.append(float(scaled.detach() / outputs.detach()))
        assert calls[-1] > 1
        return scaled

    return scale


def test_a_run_killed_between_state_and_checkpoint_publishes_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, _ = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", lambda self, path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed")
    assert not (tmp_path / "killed" / "model.json").exists()
    checkpoint, _ = run(tmp_path / "killed")
    assert same_bits(dict(checkpoint.weights), dict(undisturbed.weights))


def test_a_finished_run_is_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run(tmp_path / "run")
    monkeypatch.setattr(Trainer, "train_epoch", lambda *_: pytest.fail("trained again"))
    second, model = run(tmp_path / "run", replace(BRIEF, workers=1), small_net(seed=5, dropout=0.2))
    assert second.metrics == first.metrics
    assert same_bits(dict(first.weights), weights(model))


def test_starting_over_replaces_the_run(tmp_path: Path) -> None:
    run(tmp_path / "run")
    run(tmp_path / "run", replace(BRIEF, epochs=1, lr=0.02), resume=False)
    assert len(history(tmp_path / "run")) == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["lr"] == 0.02


def test_another_runs_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"config\.lr is 0\.05 there and 0\.1 here; choose another folder with -o"):
        run(tmp_path / "run", replace(BRIEF, lr=0.1))
    with pytest.raises(TrainingError, match=r"architecture\.arguments\.norm is True there and False here"):
        run(tmp_path / "run", model=small_net(norm=False, dropout=0.2))
    with pytest.raises(TrainingError, match=r"data\.digest"):
        run(tmp_path / "run", data=pictures(seed=2))
    with pytest.raises(TrainingError, match=r"preprocess\.resize is stretch there and letterbox here"):
        run(tmp_path / "run", preprocess=replace(PREPROCESS, resize="letterbox"))


def test_fine_tuning_another_network_is_another_run(tmp_path: Path) -> None:
    _, trained = run(tmp_path / "run")
    with pytest.raises(TrainingError, match="initial_statistics is"):
        run(tmp_path / "run", model=trained)


def test_a_checkpoint_that_no_run_made_is_not_overwritten(tmp_path: Path) -> None:
    Checkpoint.from_model(small_net(), preprocess=PREPROCESS).save(tmp_path / "mine")
    with pytest.raises(TrainingError, match="holds a checkpoint that no training run made"):
        run(tmp_path / "mine")


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    run(tmp_path / "run")
    (tmp_path / "run" / "state" / "finished.json").unlink()
    (tmp_path / "run" / "state" / "last.safetensors").write_bytes(b"torn")
    with pytest.raises(TrainingError, match=r"last\.safetensors is damaged"):
        run(tmp_path / "run")


def test_a_place_that_cannot_be_written_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        run(tmp_path / "file" / "run")


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    config = replace(BRIEF, lr=1e6, momentum=0.99)
    with pytest.raises(
        TrainingError, match=r"the loss became (nan|inf) at step \d+ of epoch \d+ .*use a lower lr than"
    ):
        run(tmp_path / "run", config, small_net(norm=False))


def test_nan_in_the_initial_weights_is_named_at_the_first_step(tmp_path: Path) -> None:
    model = small_net()
    with torch.no_grad():
        model.linear.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="nan at step 1 of epoch 1"):
        run(tmp_path / "run", model=model)


def test_early_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.65, 0.9])
    monkeypatch.setattr("edgevision.training.run.evaluate", lambda *_: (1.0, next(scores)))
    checkpoint, _ = run(tmp_path / "run", replace(BRIEF, epochs=6, early_stop=3))
    assert len(history(tmp_path / "run")) == 5
    assert (checkpoint.metrics["epoch"], checkpoint.metrics["top1"]) == (2, 0.7)
    assert json.loads((tmp_path / "run" / "state" / "finished.json").read_text())["epochs"] == 5


def test_of_equal_accuracies_the_lower_loss_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = iter([(0.5, 0.8), (0.4, 0.8), (0.6, 0.8)])
    monkeypatch.setattr("edgevision.training.run.evaluate", lambda *_: next(results))
    assert run(tmp_path / "run")[0].metrics["epoch"] == 2


@pytest.mark.parametrize("channels_last", [False, True])
def test_bf16_and_channels_last_train(tmp_path: Path, channels_last: bool) -> None:
    config = replace(BRIEF, epochs=12, precision="bf16", channels_last=channels_last, ema_decay=0.9)
    checkpoint, model = run(tmp_path / "run", config)
    assert checkpoint.metrics["top1"] >= 0.9
    assert all(value.dtype is not torch.bfloat16 for value in model.state_dict().values())


def test_bf16_computes_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    forward = SmallNet.forward

    def watch(self: SmallNet, x: torch.Tensor) -> torch.Tensor:
        out = forward(self, x)
        seen.add((self.training, out.dtype))
        return out

    monkeypatch.setattr(SmallNet, "forward", watch)
    run(tmp_path / "run", replace(BRIEF, epochs=1, precision="bf16"))
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}  # validation computes as deployed


def test_precision_and_memory_order_follow_the_device() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("auto", cpu) is torch.float32
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    with pytest.raises(UsageError, match="needs a GPU"):
        autocast_dtype("fp16", cpu)
    assert memory_format("auto", cpu) is torch.contiguous_format
    assert memory_format("auto", torch.device("cuda")) is torch.channels_last
    assert memory_format(True, cpu) is torch.channels_last


def test_the_batch_is_that_of_all_processes() -> None:
    assert global_batch(64, 1000, 4) == 64
    assert global_batch(64, 10, 4) == 8
    with pytest.raises(UsageError, match="does not divide among 3 processes"):
        global_batch(64, 1000, 3)
    with pytest.raises(TrainingError, match="2 pictures are too few"):
        global_batch(64, 2, 4)


def test_training_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(tmp_path / "run", replace(FULL, epochs=1, warmup_epochs=0))
    assert torch.equal(torch.rand(3), expected)


def test_threads_are_set_for_the_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    monkeypatch.setattr("edgevision.training.run.evaluate", lambda *_: seen.add(torch.get_num_threads()) or (1.0, 0.5))
    run(tmp_path / "run", replace(BRIEF, epochs=1, threads=2))
    assert seen == {2}
    assert torch.get_num_threads() == 1


def test_inputs_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    data = pictures()
    nine = ArrayDataset("nine", data.images, data.labels + 5, (), "nine")
    with pytest.raises(TrainingError, match="nine has 9 classes, the model 4 outputs; create it with num_classes=9"):
        run(tmp_path / "run", data=nine)
    with pytest.raises(UsageError, match=r"gives 1 channels \(GRAY\), the model takes 3"):
        run(tmp_path / "run", preprocess=PRESETS["digits"])
    with pytest.raises(UsageError, match="layout 'NCHW'"):
        run(tmp_path / "run", preprocess=replace(PREPROCESS, layout="NHWC"))
    with pytest.raises(
        UsageError, match="Linear has no `architecture` that names in_channels, input_size, num_classes"
    ):
        run(tmp_path / "run", model=nn.Linear(2, 2))
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        run(tmp_path / "run", device="gpu")
    with pytest.raises(UsageError, match="asks for GPU 99"):
        run(tmp_path / "run", device="cuda:99")
    with pytest.raises(DataError):
        run(tmp_path / "run", data=str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_default_preprocess_fits_the_network() -> None:
    assert default_preprocess("digits (train)", input_size=32, in_channels=1) == PRESETS["digits"]
    assert default_preprocess("npz:cifar (train)", input_size=32, in_channels=3) == PRESETS["cifar10"]
    photos = default_preprocess("folder:photos", input_size=112, in_channels=3)
    assert (photos.size, photos.resize, photos.resize_to) == ((112, 112), "shorter_side", 128)
    grey = default_preprocess("folder:photos", input_size=224, in_channels=1)
    assert (grey.color, grey.mean) == ("GRAY", (0.5,))
    assert default_preprocess("digits", input_size=32, in_channels=3).mean == (0.5, 0.5, 0.5)
    with pytest.raises(UsageError, match="1 or 3 channels"):
        default_preprocess("digits", input_size=32, in_channels=4)


def test_undivided_data_holds_a_part_out(tmp_path: Path) -> None:
    data = pictures(100)
    training, validation = hold_out(data)
    assert len(training) + len(validation) == 100
    assert np.bincount(validation.labels).tolist() == [2, 2, 2, 2]
    np.savez(tmp_path / "all.npz", images=data.images, labels=data.labels)
    training, validation = open_parts(f"npz:{tmp_path / 'all.npz'}", None)
    assert (len(training), len(validation)) == (92, 8)
    training, validation = open_parts("digits", None)
    assert len(training) + len(validation) == 1797
    with pytest.raises(TrainingError, match="name validation data"):
        hold_out(Subset(data, range(8)))


def test_a_quarter_of_the_digits_recipe_is_well_on_its_way(tmp_path: Path) -> None:
    from edgevision.models import create_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("repvgg_tiny", num_classes=10, in_channels=1, input_size=32)
    checkpoint = train(model, "digits", out=tmp_path / "run", epochs=3)
    # measured 0.92 here, and 0.99 after the recipe's 12 epochs; other processors round otherwise, chance is 0.1
    assert checkpoint.metrics["top1"] >= 0.8
    assert checkpoint.preprocess == PRESETS["digits"]
    assert checkpoint.classes == tuple("0123456789")
