"""The run folder: whose run it is, the state to resume from, and whether it is done.

::

    model.json, model.safetensors    the best network so far: the folder is itself a `Checkpoint`
    config.json                      what the run is: config, architecture, data, preprocess
    metrics.csv, metrics.jsonl       one row per epoch
    state/last.safetensors           what the last finished epoch left, to resume from
    state/finished.json              there once the run is done
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgevision.checkpoint import MODEL, is_checkpoint
from edgevision.errors import OutputError, TrainingError
from edgevision.files import write_json

FORMAT = 1
_ABSENT = "nothing"


class RunFolder:
    """Paths and checks of one run folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.state = self.path / "state" / "last.safetensors"
        self.finished = self.path / "state" / "finished.json"

    def claim(self, identity: Mapping[str, Any], *, resume: bool) -> None:
        """Make the folder this run's, or make sure that it is.

        Args:
            identity: plain values that say what the run is.
            resume: go on with what is there; False removes an earlier run's state and checkpoint.

        Raises:
            TrainingError: it is another run's, and what differs; or holds a checkpoint that no run made.
            OutputError: it cannot be written.
        """
        if self.config.exists() and resume:
            self._compare(identity)
            return
        if resume and is_checkpoint(self.path):
            raise TrainingError(f"{self.path} holds a checkpoint that no training run made; {self._ways_out()}")
        self._clear()
        write_json(self.config, {"format": FORMAT, **identity})

    def _clear(self) -> None:
        # what an earlier run left must not be taken for this one's
        try:
            for path in (self.finished, self.state, self.path / MODEL):
                if path.exists():
                    path.unlink()
        except OSError as error:
            raise OutputError(f"cannot start over in {self.path}: {error.strerror}: {error.filename}") from error

    def read_state(self) -> bytes:
        """The last state; empty where no epoch has been finished.

        Raises:
            TrainingError: it cannot be read.
        """
        try:
            return self.state.read_bytes() if self.state.exists() else b""
        except OSError as error:
            raise TrainingError(f"{self.state} cannot be read: {error.strerror}") from error

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run as done."""
        write_json(self.finished, dict(summary))

    def _compare(self, identity: Mapping[str, Any]) -> None:
        try:
            earlier = json.loads(self.config.read_text(encoding="utf-8"))
            differences = list(describe_differences(earlier, {"format": FORMAT, **identity}))
        except (OSError, ValueError, AttributeError) as error:
            raise TrainingError(f"{self.config} cannot be read ({error}); {self._ways_out()}") from error
        if differences:
            listed = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
            raise TrainingError(f"{self.path} is another run's: {listed}; {self._ways_out()}")

    def _ways_out(self) -> str:
        return f"choose another folder with -o, or remove {self.path} to start over"


def describe_differences(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """One line per plain value that differs: ``config.lr is 0.1 there and 0.05 here``."""
    for key in sorted({*earlier, *now}):
        there, here = earlier.get(key, _ABSENT), now.get(key, _ABSENT)
        if isinstance(there, dict) and isinstance(here, dict):
            yield from describe_differences(there, here, f"{prefix}{key}.")
        elif there != here:
            yield f"{prefix}{key} is {there} there and {here} here"
