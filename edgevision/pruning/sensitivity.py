"""What pruning each group alone does to the answers: which groups can be cut deeply and which cannot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevision.errors import DataError, UsageError
from edgevision.files import write_json, write_text
from edgevision.progress import track
from edgevision.pruning.apply import remove_channels
from edgevision.pruning.groups import ChannelGroups
from edgevision.pruning.importance import ScoringData, score_groups
from edgevision.pruning.losses import Labels, loss_of
from edgevision.pruning.macs import CostModel
from edgevision.pruning.planning import check_ratio, choose_channels
from edgevision.pruning.rounding import round_count

DEFAULT_RATIOS = (0.25, 0.5, 0.75)

# one hue per depth of the cut, light to dark, told apart without colour as well
_BARS = ("#a9c4e0", "#6b9bc8", "#3b6ea8", "#24486f", "#142a42")


@dataclass(frozen=True)
class GroupCut:
    """One group pruned alone to one depth, without training after it.

    Attributes:
        group: its name.
        ratio: fraction of its channels that was asked to go.
        channels: before.
        kept: after.
        macs: share of the network's multiply-adds that this saves, 0 to 1.
        error: size of the change of the outputs relative to the outputs, root mean square.
        agreement: share of the pictures whose best class stays, 0 to 1; None for other tasks.
        accuracy: top-1 with this group cut, 0 to 1; None without labels.
    """

    group: str
    ratio: float
    channels: int
    kept: int
    macs: float
    error: float
    agreement: float | None
    accuracy: float | None


@dataclass(frozen=True)
class PruningSensitivity:
    """All groups at all depths.

    Attributes:
        cuts: group by group in the order of the network, each from the least ratio to the greatest.
        importance: the measure that chose the channels.
        pictures: how many were looked at.
        accuracy: top-1 of the whole network on them, 0 to 1; None without labels.
        kept: layers that cannot be pruned → why.
    """

    cuts: tuple[GroupCut, ...]
    importance: str
    pictures: int
    accuracy: float | None
    kept: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {**asdict(self), "cuts": [asdict(cut) for cut in self.cuts]}


def measure_sensitivity(
    model: nn.Module,
    groups: ChannelGroups,
    batches: Sequence[tuple[Tensor, Labels]],
    *,
    importance: str = "l2",
    ratios: Sequence[float] = DEFAULT_RATIOS,
    round_to: int = 1,
    seed: int = 0,
) -> PruningSensitivity:
    """Prune every group alone at every ratio and look at the answers; ``model`` is not changed.

    Args:
        model: the network.
        groups: found in it.
        batches: inputs float32 [B, C, H, W] with class indices int64 [B] or None; of detectors boxes,
            `edgevision.training.detection.targets.Targets`.
        importance: which channels of a group go.
        ratios: fractions of the channels that go.
        round_to: channels stay multiples of this.
        seed: of the random importance.

    Raises:
        UsageError: a ratio outside (0, 1) or that would empty a layer, or an unknown importance.
        DataError: no pictures.
    """
    if not batches:
        raise DataError("sensitivity is measured on pictures: there are none")
    depths = sorted({check_ratio(ratio, "a ratio of the sensitivity") for ratio in ratios})
    if not depths:
        raise UsageError("sensitivity needs at least one ratio")
    scores = score_groups(model, groups, importance, ScoringData(batches, seed, loss_of(model)))
    costs = CostModel.of(model, groups)
    expected = _answers(model, batches)
    indices = [label for _, label in batches if isinstance(label, Tensor)]
    labels = torch.cat(indices) if indices else None
    cuts = []
    for group in track(list(groups), "prune each group alone", len(groups)):
        for ratio in depths:
            kept = round_count(group, group.channels * (1 - ratio), round_to)
            keep = choose_channels(scores, {group.name: kept})
            got = _answers(remove_channels(model, groups, keep), batches)
            cuts.append(
                GroupCut(
                    group=group.name,
                    ratio=ratio,
                    channels=group.channels,
                    kept=kept,
                    macs=1 - costs.macs({group.name: kept}) / costs.macs(),
                    error=_relative_error(expected, got),
                    agreement=_share(expected[0], got[0].argmax(1)) if _classifies(expected) else None,
                    accuracy=_correct(got, labels),
                )
            )
    return PruningSensitivity(
        tuple(cuts),
        importance,
        sum(len(images) for images, _ in batches),
        _correct(expected, labels),
        {layer: kept.reason for kept in groups.kept for layer in kept.layers},
    )


@torch.no_grad()
def _answers(model: nn.Module, batches: Sequence[tuple[Tensor, Labels]]) -> list[Tensor]:
    """Every output over all pictures."""
    training = model.training
    parts = []
    for images, _ in batches:
        result = model.eval()(images)
        if isinstance(result, dict):
            result = list(result.values())
        parts.append([result] if isinstance(result, Tensor) else list(result))
    model.train(training)
    return [torch.cat(list(output)) for output in zip(*parts, strict=True)]


def _classifies(outputs: list[Tensor]) -> bool:
    return len(outputs) == 1 and outputs[0].dim() == 2 and outputs[0].shape[1] > 1


def _correct(outputs: list[Tensor], labels: Tensor | None) -> float | None:
    return _share(outputs[0], labels) if labels is not None and _classifies(outputs) else None


def _share(logits: Tensor, classes: Tensor) -> float:
    return float((logits.argmax(1) == classes).double().mean())


def _relative_error(expected: list[Tensor], got: list[Tensor]) -> float:
    noise = sum(float((a - b).double().square().sum()) for a, b in zip(expected, got, strict=True))
    signal = sum(float(a.double().square().sum()) for a in expected)
    return float((noise / max(signal, 1e-300)) ** 0.5)


def save_sensitivity(result: PruningSensitivity, out: str | Path) -> list[Path]:
    """Write ``pruning_sensitivity.json``, ``.csv`` and ``.svg`` into ``out``.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(out)
    stem = "pruning_sensitivity"
    write_json(folder / f"{stem}.json", json.loads(json.dumps(result.to_dict())))
    fields = list(GroupCut.__dataclass_fields__)
    rows = [",".join(fields)]
    rows += [",".join(_cell(getattr(cut, field)) for field in fields) for cut in result.cuts]
    write_text(folder / f"{stem}.csv", "\n".join(rows) + "\n")
    write_text(folder / f"{stem}.svg", sensitivity_svg(result))
    return [folder / f"{stem}.{kind}" for kind in ("json", "csv", "svg")]


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def sensitivity_svg(result: PruningSensitivity) -> str:
    """For each group a bar for each ratio: the accuracy lost in points, or without labels the outputs' error."""
    by_accuracy = result.accuracy is not None
    ratios = sorted({cut.ratio for cut in result.cuts})
    bar, gap, left, width, top = 9, 7, 260, 420, 62
    losses = [_loss(cut, result.accuracy) for cut in result.cuts]
    longest = max([*losses, 1e-9])
    parts = []
    for index, ratio in enumerate(ratios):
        parts.append(
            f'<rect x="{10 + index * 90}" y="34" width="10" height="10" fill="{_BARS[index % len(_BARS)]}"/>'
            f'<text x="{24 + index * 90}" y="43">−{ratio:.0%}</text>'
        )
    y = top
    names = list(dict.fromkeys(cut.group for cut in result.cuts))
    for name in names:
        cuts = [(cut, loss) for cut, loss in zip(result.cuts, losses, strict=True) if cut.group == name]
        shown = name if len(name) <= 32 else "…" + name[-31:]
        middle = y + bar * len(cuts) / 2 + 4
        parts.append(
            f'<text x="{left - 6}" y="{middle:.0f}" text-anchor="end">{escape(shown)} ({cuts[0][0].channels})</text>'
        )
        for cut, loss in cuts:
            length = width * max(loss, 0.0) / longest
            told = f"{loss:.1f}" if by_accuracy else f"{loss:.2f}"
            parts.append(
                f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{bar - 1}" '
                f'fill="{_BARS[ratios.index(cut.ratio) % len(_BARS)]}"/>'
                f'<text x="{left + length + 4:.1f}" y="{y + bar - 1}" font-size="8">{told}, '
                f"−{cut.macs:.1%} MACs</text>"
            )
            y += bar
        y += gap
    what = "top-1 points lost" if by_accuracy else "relative error of the outputs"
    title = f"Each group pruned alone, not trained after: {what} on {result.pictures} pictures ({result.importance})"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 130} {y + 10}" role="img" '
        f'font-family="sans-serif" font-size="11"><title>{escape(title)}</title>'
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="22" font-size="14">{escape(title)}</text>'
        + "".join(parts)
        + "</svg>\n"
    )


def _loss(cut: GroupCut, whole: float | None) -> float:
    return cut.error if whole is None or cut.accuracy is None else 100 * (whole - cut.accuracy)
