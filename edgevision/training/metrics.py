"""The log of a run: one row per epoch as CSV and as JSON lines, and TensorBoard's events when asked for."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevision.dependencies import installed
from edgevision.errors import MissingDependencyError, OutputError
from edgevision.files import write_text

COLUMNS = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "images_per_second",
    "seconds",
)
Row = dict[str, Any]


class MetricsLog:
    """Writes ``metrics.csv`` and ``metrics.jsonl`` in a run folder.

    Rows are appended whole and reach the disk before the next epoch. A run that was killed may have logged an
    epoch that its saved state does not hold; so opening the log writes the rows of ``history`` and no others.

    Args:
        folder: the run folder.
        history: rows of the epochs that are done; keys from ``columns``, None for what is not known.
        columns: names of the figures, in order; the first two are the epoch and the step.
        tensorboard: also write events to ``folder/tensorboard``.

    Raises:
        OutputError: the folder cannot be written.
        MissingDependencyError: TensorBoard is asked for and not installed.
    """

    def __init__(
        self, folder: Path, history: Sequence[Row], *, columns: Sequence[str] = COLUMNS, tensorboard: bool = False
    ) -> None:
        self.columns = tuple(columns)
        self.csv_path = folder / "metrics.csv"
        self.json_path = folder / "metrics.jsonl"
        write_text(self.csv_path, _csv_line(self.columns) + "".join(map(self._csv_row, history)))
        write_text(self.json_path, "".join(map(self._json_row, history)))
        self._events = _event_writer(folder / "tensorboard", len(history)) if tensorboard else None

    def append(self, row: Row) -> None:
        """Add one epoch. Raises `OutputError` where the disk is full or gone."""
        _append(self.csv_path, self._csv_row(row))
        _append(self.json_path, self._json_row(row))
        if self._events is not None:
            for name in self.columns[2:]:
                if row.get(name) is not None:
                    self._events.add_scalar(name, row[name], row["epoch"])
            self._events.flush()

    def close(self) -> None:
        """Close TensorBoard's writer, where there is one."""
        if self._events is not None:
            self._events.close()

    def _csv_row(self, row: Mapping[str, Any]) -> str:
        return _csv_line(["" if row.get(name) is None else row[name] for name in self.columns])

    def _json_row(self, row: Mapping[str, Any]) -> str:
        return json.dumps({name: row.get(name) for name in self.columns}) + "\n"


def _csv_line(values: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()


def _append(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8", newline="") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; free the disk and run again to resume") from error


def _event_writer(folder: Path, epochs_done: int) -> Any:
    if not installed("tensorboard"):
        raise MissingDependencyError("tensorboard is needed to write its event files: pip install tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides events of epochs that a resumed run does again
    return SummaryWriter(str(folder), purge_step=epochs_done + 1)
