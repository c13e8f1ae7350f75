"""Expected latency on boards one does not have: the roofline, corrected by what was measured on boards one has.

An estimate is never a measurement, and nothing here writes one where a measurement would stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgevision.bundle import Bundle
from edgevision.devices.calibration import Correction, Measured, fit, load_measured
from edgevision.devices.layers import depthwise_share, layer_costs
from edgevision.devices.registry import board
from edgevision.devices.roofline import Roofline, roofline
from edgevision.errors import UsageError

KIND = "ESTIMATE"

# an interval wider than this, up and down, says nothing useful
_USELESS_FACTOR = 10.0


@dataclass(frozen=True)
class Estimate:
    """Expected latency of a bundle on a board.

    Attributes:
        board: name in the registry.
        title: of the board.
        engine: target of the bundle.
        precision: of the bundle.
        threads: cores that work; 0 for a GPU.
        roofline_ms: what no engine is expected to undercut, save where data stays in caches.
        estimate_ms: expected latency; None where nothing of this engine and precision was measured.
        low_ms: lower end of the 95% interval; None without an error bar.
        high_ms: its upper end.
        efficiency: share of the roofline that the engine is expected to reach.
        basis: what the correction rests on, in words.
        memory_share: share of the roofline in layers that wait for the memory, 0..1.
        unverified: sources of figures that were not looked up.
        notes: what the figures do not cover.
    """

    board: str
    title: str
    engine: str
    precision: str
    threads: int
    roofline_ms: float
    estimate_ms: float | None
    low_ms: float | None
    high_ms: float | None
    efficiency: float | None
    basis: str
    memory_share: float
    unverified: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them, marked as an estimate."""
        return {"kind": KIND, **{key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}}


def estimate(
    bundle: str | Path | Bundle,
    on: Sequence[str],
    *,
    calibrate: Sequence[str | Path] = (),
    threads: int | None = None,
    root: Path = Path("/"),
) -> dict[str, Any]:
    """Estimate the latency of a bundle on boards.

    Args:
        bundle: the bundle.
        on: boards of the registry; ``this`` for the machine at hand.
        calibrate: ``results.json`` files of `edgevision bench`, or their folders.
        threads: cores that work; by default those of the board's fastest kind.
        root: where ``proc`` and ``sys`` lie.

    Returns:
        Plain values: ``kind`` (always ``"ESTIMATE"``), ``bundle``, ``model``, ``macs``, ``depthwise_share``,
        ``estimates`` (see `Estimate`), ``calibration`` (rows used: what was measured, apart from the estimates) and
        ``skipped`` (rows not used, and why).

    Raises:
        UsageError: no boards, an unknown one, or one without the needed rates.
        BundleError: the bundle cannot be opened.
        ModelError: its layers cannot be told.
        DataError: a results file cannot be read.
    """
    if not on:
        raise UsageError("name the boards to estimate on, e.g. --on raspberry-pi-4,jetson-orin-nano")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be 1 or more; got {threads}")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    layers = layer_costs(opened)
    measured, skipped = load_measured(calibrate)
    fitted = fit(measured)
    manifest = opened.manifest
    estimates = []
    for name in on:
        device = board(name, root)
        found = roofline(layers, device, manifest.target, threads)
        reached = fitted.get((manifest.target, manifest.precision))
        estimates.append(_estimate(name, device.title, manifest.target, manifest.precision, found, reached))
    return {
        "kind": KIND,
        "bundle": str(opened.path or manifest.name),
        "model": manifest.name,
        "macs": sum(layer.macs for layer in layers),
        "depthwise_share": depthwise_share(layers),
        "estimates": [item.to_dict() for item in estimates],
        "calibration": [_used(row) for row in measured],
        "skipped": skipped,
    }


def _estimate(
    name: str, title: str, engine: str, precision: str, found: Roofline, reached: Correction | None
) -> Estimate:
    expected = None if reached is None else reached.ms(found.terms)
    factor = None if reached is None or not _covers(reached, title) else reached.factor
    known = expected is not None and factor is not None
    return Estimate(
        board=name,
        title=title,
        engine=engine,
        precision=precision,
        threads=found.threads,
        roofline_ms=found.ms,
        estimate_ms=expected,
        low_ms=expected / factor if known and expected and factor else None,
        high_ms=expected * factor if known and expected and factor else None,
        efficiency=None if expected is None else found.ms / expected,
        basis=_basis(engine, precision, title, reached),
        memory_share=found.memory_share,
        unverified=found.unverified,
        notes=found.notes,
    )


def _covers(reached: Correction, title: str) -> bool:
    """Whether the error bar says anything of this board: boards were left out, or it is the one that was measured."""
    return reached.held_out == "board" or title in reached.boards


def _basis(engine: str, precision: str, title: str, reached: Correction | None) -> str:
    if reached is None:
        return f"not calibrated: no measured result of {engine} {precision}; engines reach a part of the roofline only"
    boards = len(reached.boards)
    text = f"calibrated on {reached.measured} measured results of {boards} board{'s'[: boards > 1]}"
    if not _covers(reached, title):
        return (
            f"{text}, another one than this: what it takes from board to board is not known, so there is no error bar"
        )
    if reached.factor is None:
        return f"{text}; one result gives no error bar"
    if reached.held_out == "row":
        text += "; the error bar covers other networks on this board"
    if reached.factor > _USELESS_FACTOR:
        text += "; they disagree so far that the error bar says little"
    return text


def _used(row: Measured) -> dict[str, Any]:
    return {"kind": "measured", **asdict(row), "terms": dict(row.terms), "efficiency": row.efficiency}
