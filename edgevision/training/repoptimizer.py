"""RepOptimizer: what RepVGG's branches do to training, as constants of the gradients of a plain network.

Ding et al. 2022, "Re-parameterizing Your Optimizers rather than Architectures", arXiv 2205.15242. The plain network
(`edgevision.models.repopt_vgg`) holds the constants itself, so `edgevision.training.train` trains it like any other.
Under SGD with momentum and weight decay it takes exactly the steps of the network with branches (the paper's theorem
of equivalence, section 3.2). AdamW would divide the constants out again and is refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgevision.checkpoint import Checkpoint
from edgevision.data import open_dataset
from edgevision.data.base import Dataset
from edgevision.errors import UsageError
from edgevision.models import create_model
from edgevision.models.repopt_vgg import RepOptBlock, SearchBlock, scaled_blocks
from edgevision.preprocess import Preprocess
from edgevision.training.config import TrainConfig, recipe_for
from edgevision.training.inputs import architecture_of
from edgevision.training.run import train

# share of a run's epochs that the search takes where nothing else is said, and its bounds
_SEARCH_SHARE = 0.1
_LEAST_EPOCHS, _MOST_EPOCHS = 1, 10


def takes_scales(model: nn.Module) -> bool:
    """Whether ``model`` is a plain RepOpt-VGG whose gradients can be given scales."""
    return any(isinstance(block, RepOptBlock) for block in scaled_blocks(model))


def default_search_epochs(epochs: int) -> int:
    """Epochs of the search before a run of ``epochs``: a tenth of them, from 1 to 10."""
    return min(max(round(_SEARCH_SHARE * epochs), _LEAST_EPOCHS), _MOST_EPOCHS)


def search_scales(
    model: nn.Module,
    data: str | Path | Dataset,
    *,
    out: str | Path,
    epochs: int | None = None,
    config: TrainConfig | None = None,
    preprocess: Preprocess | None = None,
    val_data: str | Path | Dataset | None = None,
    resume: bool = True,
    device: str | None = None,
) -> Checkpoint:
    """Hyper-Search: learn the scales of the branches on data; give them and the first weights to ``model``.

    The network with branches and trainable scales is trained for some epochs in ``out``, a run folder of its own:
    a search that was interrupted goes on, one that is finished is read. Afterwards ``model`` begins at the sum of
    newly drawn branches and has the squares of the scales as constant factors of its gradients. All follows from
    the seed, so a run that is repeated or resumed gets the same constants.

    Args:
        model: a ``repoptvgg_*`` of `create_model`, not fused; changed in place.
        data: as for `train`; also other data than the final run's, where picture size and classes are the same.
        out: the search's run folder.
        epochs: of the search; by default a tenth of the config's, from 1 to 10.
        config: settings of the final run; by default the recipe for the data.
        preprocess: as for `train`.
        val_data: as for `train`.
        resume: False starts over.
        device: as for `train`.

    Returns:
        the searched network, with its scales.

    Raises:
        UsageError: another network, fewer than 1 epoch, or an optimizer other than SGD.
        EdgeVisionError: whatever `train` raises.
    """
    if not takes_scales(model):
        raise UsageError("RepOptimizer trains a plain RepOpt-VGG: create_model('repoptvgg_a0'), not fused")
    arguments = architecture_of(model)["arguments"]
    if config is None:
        config = recipe_for(open_dataset(data, split="train").name, input_size=int(arguments["input_size"]))
    check_optimizer(config)
    epochs = default_search_epochs(config.epochs) if epochs is None else epochs
    if epochs < 1:
        raise UsageError(f"the search needs 1 epoch or more; got {epochs}")
    searching = _seeded_search_net(model, config.seed)
    checkpoint = train(
        searching,
        data,
        out=out,
        # a search is a short run: it ends where it is told, and what it shows in TensorBoard is of no use
        config=replace(config.with_epochs(epochs), early_stop=0, tensorboard=False),
        preprocess=preprocess,
        val_data=val_data,
        resume=resume,
        device=device,
    )
    adopt_scales(model, searching, seed=config.seed)
    return checkpoint


def check_optimizer(config: TrainConfig) -> None:
    """Refuse optimizers that would undo what RepOptimizer does.

    Raises:
        UsageError: an optimizer other than SGD.
    """
    if config.optimizer != "sgd":
        raise UsageError(
            f"RepOptimizer multiplies gradients, which {config.optimizer} divides out again: use optimizer sgd"
        )


def adopt_scales(model: nn.Module, searched: nn.Module, *, seed: int) -> None:
    """Give a plain network the scales of a searched one and new weights by the paper's rule.

    Args:
        model: a plain RepOpt-VGG; changed in place.
        searched: the same network in its search form.
        seed: of the new weights; torch's own random numbers go on as if nothing had been drawn.

    Raises:
        UsageError: the two do not have the same blocks.
    """
    targets, sources = list(scaled_blocks(model)), list(scaled_blocks(searched))
    shapes = [[block.rbr_dense.conv.weight.shape for block in blocks] for blocks in (targets, sources)]
    fit = all(isinstance(block, RepOptBlock) for block in targets)
    if not (targets and fit and all(isinstance(block, SearchBlock) for block in sources) and shapes[0] == shapes[1]):
        raise UsageError("scales go from the search form of a RepOpt-VGG to the plain form of the same one")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for target, source in zip(targets, sources, strict=True):
            assert isinstance(target, RepOptBlock)
            assert isinstance(source, SearchBlock)
            target.adopt(source)


def _seeded_search_net(model: nn.Module, seed: int) -> nn.Module:
    architecture: dict[str, Any] = architecture_of(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model(architecture["name"], **{**architecture["arguments"], "search": True})
