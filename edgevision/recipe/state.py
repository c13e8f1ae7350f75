"""``recipe.json``: which stages were begun and finished, from what, and with which result.

It is replaced as a whole after every change, so that a run which is killed at any moment finds what it did.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgevision.errors import CheckpointError, OutputError
from edgevision.files import write_json

FILE = "recipe.json"
SCHEMA_VERSION = 1
# where folders go that are not what the recipe says any more
REPLACED = "replaced"


@dataclass(frozen=True)
class Entry:
    """What is known of one stage.

    Attributes:
        folder: its name in the folder of the run.
        identity: what the stage was begun from, see `edgevision.recipe.identity.stage_identity`.
        result: hash of what it left; None while it is not finished.
        metrics: of its network.
        checks: bundle → whether it keeps to its parity thresholds here.
    """

    folder: str
    identity: dict[str, Any]
    result: str | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    checks: dict[str, bool] = field(default_factory=dict)


class State:
    """The stages of one run folder."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        self.entries = dict(_read(self.out / FILE))

    def begin(self, name: str, folder: str, identity: Mapping[str, Any]) -> None:
        """Note that a stage is at work in ``folder``, before it writes there. Raises `OutputError`."""
        self._keep(name, Entry(folder, dict(identity)))

    def finish(
        self, name: str, result: str, *, metrics: Mapping[str, float | None], checks: Mapping[str, bool]
    ) -> None:
        """Note what a stage has left. Raises `OutputError`."""
        self._keep(name, replace(self.entries[name], result=result, metrics=dict(metrics), checks=dict(checks)))

    def renumber(self, name: str, folder: str) -> None:
        """Give a stage's folder another name, as its place in the recipe has changed.

        Raises:
            OutputError: that is not possible.
        """
        old = self.out / self.entries[name].folder
        if old.exists():
            if (self.out / folder).exists():
                self.set_aside(folder)
            _rename(old, self.out / folder)
        self._keep(name, replace(self.entries[name], folder=folder))

    def set_aside(self, folder: str) -> Path:
        """Move a folder that is not the recipe's any more below ``replaced/``; where it is now.

        Raises:
            OutputError: it cannot be moved.
        """
        place = self.out / REPLACED / folder
        number = 1
        while place.exists():
            number += 1
            place = self.out / REPLACED / f"{folder}-{number}"
        _rename(self.out / folder, place)
        return place

    def _keep(self, name: str, entry: Entry) -> None:
        self.entries[name] = entry
        stages = {key: asdict(value) for key, value in self.entries.items()}
        write_json(self.out / FILE, {"schema_version": SCHEMA_VERSION, "stages": stages})


def _rename(source: Path, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        source.rename(place)
    except OSError as error:
        raise OutputError(f"cannot move {source} to {place}: {error.strerror}") from error


def _read(path: Path) -> Iterator[tuple[str, Entry]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values["schema_version"]
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise CheckpointError(
                f"{path}: written by a newer EdgeVision (schema {version}; this one reads up to {SCHEMA_VERSION}): "
                "pip install -U edgevision"
            )
        entries = [(str(name), Entry(**entry)) for name, entry in values["stages"].items()]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); remove it, and all stages run again"
        ) from error
    yield from entries
