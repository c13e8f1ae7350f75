"""`prune_checkpoint`: a trained network made smaller, step by step, each step trained again; resumable anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision import __version__
from edgevision.data.base import Dataset
from edgevision.dependencies import require
from edgevision.errors import UsageError
from edgevision.files import write_json
from edgevision.pipeline.prune_expectation import Expectation, expect, with_network
from edgevision.pipeline.prune_scoring import SCORING_PICTURES, tensor_batches
from edgevision.registry import unknown_name

if TYPE_CHECKING:
    from torch import nn

    from edgevision.checkpoint import Checkpoint
    from edgevision.pipeline.prune_latency import LatencyPlanner
    from edgevision.pruning.importance import ScoringData
    from edgevision.pruning.prune import PruningPlan
    from edgevision.training.config import RunConfig

# entry of a Checkpoint's ``changes``
PRUNED, SLIMMED, SPARSE = "pruned", "slimmed", "sparse 2:4"

# a trained network wants a smaller rate than a fresh one: this share of its recipe's
FINE_TUNING_RATE = 0.2

# makes the plan of one step: (network, share of the step that is to stay, data for the scores) → plan
Planner = Callable[["nn.Module", float, "ScoringData"], "PruningPlan"]


@dataclass(frozen=True)
class PruneOptions:
    """How `prune_checkpoint` works. Of ``macs``, ``params``, ``sparsity`` and ``latency`` exactly one says what goes.

    Attributes:
        macs: fraction of the multiply-adds to keep.
        params: fraction of the parameters to keep.
        sparsity: ``2:4`` for TensorRT.
        importance: ``taylor``, ``l1``, ``l2``, ``bn``, ``fpgm`` or ``random``; None for ``taylor``, or without pictures
            ``l2``.
        scope: ``measured``, ``global`` or ``uniform``; None for ``measured``, or without pictures ``global``.
        steps: prune in so many steps with training between them; 1 is one-shot.
        round_to: channels stay multiples of this.
        epochs: of training after pruning, shared by the steps; 0 for none.
        distill: the unpruned network teaches while the pruned one trains.
        slim_epochs: epochs of sparsity training before (Network Slimming); 0 for none.
        slim_strength: λ of its L1 penalty.
        seed: of the random importance and of the training.
        restart: start over, whatever the folder holds.
        latency: fraction of the target's measured latency to keep.
        latency_table: file of its layers' times, see `edgevision.pipeline.layer_timing`; None measures them here.
    """

    macs: float | None = None
    params: float | None = None
    sparsity: str | None = None
    importance: str | None = None
    scope: str | None = None
    steps: int = 1
    round_to: int = 8
    epochs: int = 10
    distill: bool = True
    slim_epochs: int = 0
    slim_strength: float = 1e-4
    seed: int = 0
    restart: bool = False
    latency: float | None = None
    latency_table: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("epochs", 0), ("slim_epochs", 0), ("round_to", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(f"{name} must be a whole number of at least {least}; got {value!r}")
        if self.epochs and self.steps > self.epochs:
            raise UsageError(f"{self.steps} steps need at least an epoch each; got {self.epochs} epochs")
        for name in ("macs", "params", "latency"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < 1):
                raise UsageError(f"the ratio of {name} to keep must be above 0 and below 1; got {value!r}")

    @property
    def share(self) -> float:
        """The fraction to keep of what is counted."""
        value = self.macs if self.macs is not None else self.params
        return 1.0 if value is None else float(value)


def prune_checkpoint(
    source: str | Path | Checkpoint,
    *,
    out: str | Path,
    data: str | Path | Dataset | None = None,
    val_data: str | Path | Dataset | None = None,
    images: str | Path | None = None,
    options: PruneOptions | None = None,
    config: RunConfig | None = None,
    target: str | None = "onnxruntime",
    planner: Planner | None = None,
    planner_identity: Mapping[str, Any] | None = None,
    announce: Callable[[Expectation], None] | None = None,
    device: str | None = None,
) -> Checkpoint:
    """Prune a trained network and train it again; the result is a Checkpoint of its own.

    Each step is kept in ``out/steps``. Interrupted or killed, the same call goes on from the last finished epoch and
    ends, on a CPU, with the same weights as if it had never stopped. A finished folder is returned at once.

    Args:
        source: a Checkpoint or its folder; it is not changed.
        out: folder of the run; when it is done, a Checkpoint.
        data: labelled pictures, or pictures with boxes, to train and score on; not needed for ``epochs=0`` without
            Taylor importance.
        val_data: pictures to choose the best epoch by; see `edgevision.train`.
        images: folder of the pictures of a COCO file, where they are not beside it.
        options: what goes, and how.
        config: settings of the training, `TrainConfig` or `DetectionConfig`; by default the data's recipe with a fifth
            of its learning rate.
        target: engine that the expected latency is measured on, or that ``sparsity`` is for; None measures nothing.
        planner: decides the channels of each step in the place of ``options``' target, importance and scope.
        planner_identity: plain values that tell one planner from another, so that a folder is not resumed with
            another one's.
        announce: called with what to expect before anything is changed; not again where a run is resumed.
        device: where to train.

    Raises:
        UsageError: a ratio outside (0, 1), a target that cannot be reached, an unknown name, missing data.
        CheckpointError: ``source`` cannot be read.
        TrainingError: ``out`` is another run's, or training diverged.
        OutputError: ``out`` cannot be written.
    """
    require("torch", purpose="prune")
    require("torch_pruning", purpose="prune")
    from edgevision.checkpoint import Checkpoint

    options = options or PruneOptions()
    _check(options, data, target, planner)
    if isinstance(source, (str, Path)) and Path(source).resolve() == Path(out).resolve():
        raise UsageError(f"{out} holds the network to prune; write the pruned one into another folder with -o")
    opened = source if isinstance(source, Checkpoint) else Checkpoint.open(source)
    options = replace(
        options,
        importance=options.importance or ("l2" if data is None else "taylor"),
        scope=options.scope or ("global" if data is None else "measured"),
    )
    if options.latency is not None:
        by_latency = _latency_planner(options, opened, out, target)
        planner, planner_identity = by_latency, by_latency.identity
        # what this machine takes says nothing of another
        target = None if by_latency.elsewhere else target
    job = _Job(opened, Path(out), data, val_data, images, options, config, target, planner, announce, device)
    return job.run(planner_identity)


def _check(
    options: PruneOptions, data: str | Path | Dataset | None, target: str | None, planner: Planner | None
) -> None:
    from edgevision.pruning.importance import IMPORTANCES, NEEDS_DATA
    from edgevision.pruning.planning import SCOPES
    from edgevision.pruning.sparsity import check_sparsity

    wanted = [name for name in ("macs", "params", "sparsity", "latency") if getattr(options, name) is not None]
    if len(wanted) + (planner is not None) != 1:
        raise UsageError(
            "say how much to keep with one of --macs, --params, --latency and --sparsity"
            + (f"; got {', '.join(wanted)}" if wanted else "")
        )
    if options.latency_table is not None and options.latency is None:
        raise UsageError("--latency-table goes with --latency R, the fraction of the latency to keep")
    for kind, name, valid in (
        ("importance", options.importance, IMPORTANCES.names()), ("scope", options.scope, SCOPES)
    ):  # fmt: skip
        if name is not None and name not in valid:
            raise UsageError(unknown_name(kind, name, valid))
    if options.sparsity is not None:
        check_sparsity(options.sparsity, target)
    trains = options.epochs or options.slim_epochs
    if data is None and trains:
        raise UsageError("training after pruning needs pictures: give --data KIND:PATH, or --epochs 0 to leave it out")
    if data is None and options.importance in NEEDS_DATA:
        raise UsageError(f"importance {options.importance!r} looks at gradients on pictures: give --data KIND:PATH")
    if data is None and options.scope == "measured":
        raise UsageError("scope 'measured' looks at the loss on pictures: give --data KIND:PATH")
    if options.steps > 1 and not options.epochs:
        raise UsageError("steps are for training between them: give --epochs, or one step")


def _latency_planner(
    options: PruneOptions, source: Checkpoint, out: str | Path, target: str | None
) -> LatencyPlanner:  # fmt: skip
    from edgevision.pipeline.prune_latency import LatencyPlanner

    if target is None:
        raise UsageError("--latency is measured on an engine: name it with --target")
    if options.steps > 1:
        raise UsageError(f"--latency prunes in one step, which is measured before training; got {options.steps} steps")
    assert options.latency is not None
    return LatencyPlanner(
        source, out, ratio=options.latency, target=target, table=options.latency_table, importance=options.importance,
        scope=options.scope, round_to=options.round_to, restart=options.restart,
    )  # fmt: skip


@dataclass
class _Job:
    """One call of `prune_checkpoint`, with its parts resolved."""

    source: Checkpoint
    out: Path
    data: str | Path | Dataset | None
    val_data: str | Path | Dataset | None
    images: str | Path | None
    options: PruneOptions
    config: RunConfig | None
    target: str | None
    planner: Planner | None
    announce: Callable[[Expectation], None] | None
    device: str | None

    def run(self, planner_identity: Mapping[str, Any] | None) -> Checkpoint:
        from edgevision.checkpoint import Checkpoint, is_checkpoint
        from edgevision.training.folder import RunFolder

        folder, identity = RunFolder(self.out), self._identity(planner_identity)
        if folder.finished.exists() and not self.options.restart:
            folder.claim(identity, resume=True)
            return Checkpoint.open(self.out)
        model = self.source.build()
        resumed = is_checkpoint(self._pruned(1)) and not self.options.restart
        # before the folder is claimed: a target out of reach must not make it another run's
        begin = None if self.options.sparsity or resumed else self._plan(model, self.options.share)
        folder.claim(identity, resume=not self.options.restart)
        if self.options.restart:
            shutil.rmtree(self.out / "steps", ignore_errors=True)
        if begin is not None and self.announce is not None:
            self.announce(expect(self.source, model, begin, self.target))
        current = self._slimmed() if self.options.slim_epochs else self.source
        if self.options.sparsity:
            current = self._sparse(current)
        else:
            # what was planned to be told is what a single step on the unchanged network does
            planned = begin if current is self.source and self.options.steps == 1 else None
            for step in range(1, self.options.steps + 1):
                current = self._step(current, step, planned)
        return self._finish(current, folder)

    def _identity(self, planner_identity: Mapping[str, Any] | None) -> dict[str, Any]:
        """What makes two calls the same run; the training's own folders watch over the data."""
        from edgevision.distillation.teacher import weights_digest

        options = {name: value for name, value in asdict(self.options).items() if name != "restart"}
        return {
            "prune": options,
            "planner": dict(planner_identity or {}),
            "network": self.source.architecture,
            "weights": weights_digest(self.source.build()),
            "config": None if self.config is None else self.config.to_dict(),
            "version": __version__,
        }

    def _plan(self, model: nn.Module, share: float) -> PruningPlan:
        from edgevision.pruning.prune import make_plan

        options = self.options
        if self.planner is not None:
            return self.planner(model, share, self._scoring_data())
        return make_plan(
            model,
            **{"macs" if options.macs is not None else "params": share},  # type: ignore[arg-type] # one of the two
            importance=options.importance,
            scope=options.scope,
            round_to=options.round_to,
            data=self._scoring_data(),
        )

    def _scoring_data(self) -> ScoringData:
        from edgevision.pruning.importance import NEEDS_DATA, ScoringData
        from edgevision.pruning.losses import loss_of

        needed = self.options.importance in NEEDS_DATA or self.options.scope == "measured" or self.planner is not None
        if not needed or self.data is None:
            return ScoringData((), self.options.seed)
        batches = tensor_batches(self.data, self.source, SCORING_PICTURES, images=self.images)
        return ScoringData(batches, self.options.seed, loss_of(self.source.build()))

    def _slimmed(self) -> Checkpoint:
        """The network after sparsity training: channels that are not needed have faded."""
        from edgevision.pruning.slimming import l1_on_scales

        model = self.source.build()
        with l1_on_scales(model, self.options.slim_strength):
            return self._train(
                model, self.source, self.out / "steps" / "slim", self.options.slim_epochs, SLIMMED, distill=False
            )

    def _sparse(self, current: Checkpoint) -> Checkpoint:
        from edgevision.checkpoint import REPARAMETERIZED
        from edgevision.models.reparameterize import is_reparameterizable, reparameterize
        from edgevision.pruning.sparsity import apply_masks, kept_zero, two_of_four

        model = current.build()
        if is_reparameterizable(model):
            # branches would be summed into dense kernels later
            model, current = reparameterize(model), replace(current, changes=(*current.changes, REPARAMETERIZED))
        masks = two_of_four(model)
        apply_masks(model, masks)
        if not self.options.epochs:
            return _checkpoint_of(model, current, SPARSE)
        with kept_zero(model, masks):
            return self._train(model, current, self.out / "steps" / "sparse", self.options.epochs, SPARSE)

    def _pruned(self, step: int) -> Path:
        """Where the network of a step is kept before it is trained."""
        return self.out / "steps" / str(step) / "pruned"

    def _step(self, current: Checkpoint, step: int, planned: PruningPlan | None) -> Checkpoint:
        """Prune to this step's share of the whole way, and train."""
        from edgevision.checkpoint import Checkpoint, is_checkpoint

        folder = self._pruned(step)
        if is_checkpoint(folder):
            pruned = Checkpoint.open(folder)
        else:
            model = current.build()
            plan = planned or self._plan(model, self._share_of(step, current))
            pruned = _checkpoint_of(plan.apply(model), current, PRUNED)
            pruned.save(folder)
        epochs = self._epochs_of(step)
        if not epochs:
            return pruned
        return self._train(pruned.build(), pruned, folder.with_name("tuned"), epochs, PRUNED)

    def _share_of(self, step: int, current: Checkpoint) -> float:
        """Share of the present network that is to stay: the steps are equal factors of the whole."""
        from edgevision.pipeline.prune_expectation import costs_of

        if self.options.steps == 1:
            return self.options.share
        index = 0 if self.options.macs is not None else 1
        whole, now = (costs_of(checkpoint.build())[index] for checkpoint in (self.source, current))
        share: float = self.options.share ** (step / self.options.steps)
        return min(share * whole / now, 1 - 1e-9)

    def _epochs_of(self, step: int) -> int:
        """The last step gets what does not divide: it matters most."""
        share, rest = divmod(self.options.epochs, self.options.steps)
        return share + (rest if step == self.options.steps else 0)

    def _train(
        self, model: nn.Module, begun: Checkpoint, out: Path, epochs: int, change: str, *, distill: bool = True
    ) -> Checkpoint:
        from edgevision.training import train

        assert self.data is not None  # `_check` has seen to it
        changes = begun.changes if begun.changes[-1:] == (change,) else (*begun.changes, change)
        return train(
            model,
            self.data,
            out=out,
            config=self._config(epochs),
            preprocess=begun.preprocess,
            val_data=self.val_data,
            images=self.images,
            changes=changes,
            device=self.device,
            teacher=self.source if distill and self.options.distill else None,
        )

    def _config(self, epochs: int) -> RunConfig:
        from edgevision.data import open_dataset
        from edgevision.training.recipes import usual_config

        config = self.config
        if config is None:
            assert self.data is not None
            dataset = open_dataset(self.data, split="train", images=self.images)
            config = usual_config(self.source.task, dataset, input_size=max(self.source.preprocess.size))
            config = replace(config, lr=config.lr * FINE_TUNING_RATE)
        return replace(config.with_epochs(epochs), seed=self.options.seed)

    def _finish(self, result: Checkpoint, folder: Any) -> Checkpoint:
        from edgevision.pipeline.prune_expectation import costs_of

        before, after = costs_of(self.source.build()), costs_of(result.build())
        quality = "map" if self.source.task == "detection" else "top1"
        metrics: dict[str, float | None] = {
            "macs_ratio": after[0] / before[0],
            "parameters_ratio": after[1] / before[1],
            f"unpruned_{quality}": self.source.metrics.get(quality),
        }
        if not self.options.epochs:
            # what was measured before pruning holds no longer
            result = replace(result, metrics={})
        done = result.with_metrics(metrics)
        done.save(self.out)
        write_json(
            self.out / "pruning.json",
            {"macs": [before[0], after[0]], "parameters": [before[1], after[1]], "channels": done.channels},
        )
        folder.finish({"metrics": done.metrics})
        return done


def _checkpoint_of(model: nn.Module, like: Checkpoint, change: str) -> Checkpoint:
    changes = like.changes if like.changes[-1:] == (change,) else (*like.changes, change)
    return with_network(like, model, changes=changes, metrics=like.metrics)
