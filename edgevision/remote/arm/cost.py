"""Counts of one inference, kept in a file and compared: a gate that finds a change of one percent.

A count is the same on every run and every machine, so a difference is a difference of the code that ran; no
statistics are needed, and no quiet machine. It is a proxy of cost, never a latency: it knows nothing of caches, of
instructions issued together, or of memory's speed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgevision.errors import DataError
from edgevision.files import write_json

# below one percent, so that one percent is found; above nothing at all, so that a changed branch is not
TOLERANCE = 0.005
_VERSION = 1
NOTE = "counted under emulation: a proxy of cost, not a latency"


@dataclass(frozen=True)
class Cost:
    """What one inference of one bundle executes on one emulated core.

    Attributes:
        device: ``emulated cortex-a72``.
        bundle: path as it was given.
        model: name of the model.
        target: engine.
        precision: ``fp32``, ``fp16``, ``int8``.
        counts: ``instructions``, ``loads``, ``stores``, ``bytes_loaded``, ``bytes_stored``, ``branches``, ``simd``,
            ``multiply`` (multiplies and multiply-accumulates), ``dot`` (dot products).
    """

    device: str
    bundle: str
    model: str
    target: str
    precision: str
    counts: dict[str, int]

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What two counts must have in common to be compared."""
        return self.device, self.model, self.target, self.precision

    @property
    def bytes_moved(self) -> int:
        """Bytes loaded and stored."""
        return self.counts["bytes_loaded"] + self.counts["bytes_stored"]


@dataclass(frozen=True)
class CostChange:
    """One measure of one bundle, before and after.

    Attributes:
        cost: what it was found on, as it is now.
        measure: ``instructions`` or ``bytes moved``.
        before: earlier count.
        after: present count.
    """

    cost: Cost
    measure: str
    before: int
    after: int

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before if self.before else float("inf")

    def __str__(self) -> str:
        what = f"{self.cost.model} {self.cost.target} {self.cost.precision} on {self.cost.device}"
        return f"{what}: {self.measure} {self.before:,} → {self.after:,} ({100 * (self.ratio - 1):+.2f}%)"


def costs_of(documents: Iterable[Mapping[str, Any]]) -> list[Cost]:
    """Counts of reports' provenance; those of devices that count nothing are passed over."""
    found = []
    for document in documents:
        provenance = document["provenance"]
        found += [Cost(provenance["device"], *_fields(entry)) for entry in provenance.get("cost_proxy", ())]
    return found


def _fields(entry: Mapping[str, Any]) -> tuple[str, str, str, str, dict[str, int]]:
    return entry["bundle"], entry["model"], entry["target"], entry["precision"], dict(entry["counts"])


def save_costs(path: str | Path, costs: Sequence[Cost]) -> None:
    """Write counts as JSON. Raises `OutputError` where that is not possible."""
    write_json(path, {"version": _VERSION, "note": NOTE, "costs": [asdict(cost) for cost in costs]})


def load_costs(path: str | Path) -> list[Cost]:
    """Read what `save_costs` wrote.

    Raises:
        DataError: missing, damaged, or of a newer version.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if values["version"] > _VERSION:
            raise DataError(f"{path}: counts of version {values['version']} are newer than this edgevision reads")
        return [Cost(entry["device"], *_fields(entry)) for entry in values["costs"]]
    except OSError as error:
        raise DataError(f"{path}: cannot read the counts: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a file of counts: {type(error).__name__}: {error}") from error


def compare_costs(before: Iterable[Cost], after: Iterable[Cost], *, tolerance: float = TOLERANCE) -> list[CostChange]:
    """Regressions: instructions or bytes moved that grew by more than ``tolerance``.

    Bundles that only one side has are passed over: they are new, or gone, and not worse.
    """
    known = {cost.key: cost for cost in before}
    found = []
    for cost in after:
        if (earlier := known.get(cost.key)) is None:
            continue
        pairs = (
            ("instructions", earlier.counts["instructions"], cost.counts["instructions"]),
            ("bytes moved", earlier.bytes_moved, cost.bytes_moved),
        )
        found += [CostChange(cost, name, old, new) for name, old, new in pairs if new > old * (1 + tolerance)]
    return found
