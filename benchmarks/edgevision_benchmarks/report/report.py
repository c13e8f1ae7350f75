"""The noun itself: rows, the machines and dates they were measured on, and reading and writing them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevision.errors import DataError, UsageError
from edgevision.files import write_text
from edgevision_benchmarks.result import Result
from edgevision_benchmarks.schema import complaint

# 2: tails that there were too few runs for are null; files of version 1 are read as before
SCHEMA_VERSION = 2

# a list of numbers that json wrote a line each; strings hold no line breaks, so none of them is touched
_NUMBERS = re.compile(r"\[\n\s*([-+\d.eE,\s]+?)\n\s*\]")


@dataclass(frozen=True)
class Run:
    """One call of `edgevision_benchmarks.bench.bench`.

    Attributes:
        environment: the machine (see `edgevision.devices.environment.environment`).
        provenance: ``date``, ``command``, ``data``, ``end_to_end_input``, ``options``, ``timing``.
    """

    environment: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def machine(self) -> str:
        """What to call the machine: its board's name, else its processor's."""
        board = self.environment.get("board", {}).get("value")
        return str(board or self.environment.get("cpu", {}).get("name", "unknown machine"))

    @property
    def device(self) -> str:
        """What tells devices apart: the machine, and the address it was reached by where it was a remote one."""
        address = self.provenance.get("device")
        return f"{self.machine} ({address})" if address else self.machine

    @property
    def label(self) -> str:
        """Machine and date."""
        date = str(self.provenance.get("date", ""))[:10]
        return f"{self.machine}, {date}" if date else self.machine


@dataclass(frozen=True)
class Report:
    """Rows and where they come from.

    Attributes:
        results: one row per bundle and number of threads.
        runs: machines and dates; ``Result.run`` is an index into it.
        title: what the pages are headed.
    """

    results: tuple[Result, ...]
    runs: tuple[Run, ...]
    title: str

    @classmethod
    def single(
        cls,
        results: Iterable[Result],
        environment: dict[str, Any],
        provenance: dict[str, Any],
        *,
        title: str | None = None,
    ) -> Report:
        """A report of one run."""
        rows = tuple(results)
        return cls(rows, (Run(environment, provenance),), title or _title(rows))

    @classmethod
    def merged(cls, reports: Sequence[Report], *, title: str | None = None) -> Report:
        """Several reports as one. Rows keep their runs: times of different machines are set side by side, not mixed.

        Raises:
            UsageError: no reports.
        """
        if not reports:
            raise UsageError("there are no reports to merge")
        rows: list[Result] = []
        runs: list[Run] = []
        for report in reports:
            rows += [replace(row, run=row.run + len(runs)) for row in report.results]
            runs += report.runs
        return cls(tuple(rows), tuple(runs), title or _title(rows))

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a ``results.json``, or the folder that holds one.

        Raises:
            DataError: missing, damaged, or written by a newer version.
        """
        path = Path(path)
        if path.is_dir():
            path = path / "results.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DataError(f"{path}: cannot read the results: {error.strerror}") from error
        except ValueError as error:
            raise DataError(f"{path}: not a results file: {error}") from error
        try:
            return cls.from_dict(values)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """Build from plain values.

        Raises:
            DataError: a key is missing or of another type, or the schema is newer.
        """
        try:
            if values["schema_version"] > SCHEMA_VERSION:
                raise DataError(
                    f"results of version {values['schema_version']} are newer than this edgevision reads "
                    f"({SCHEMA_VERSION}): pip install --upgrade edgevision"
                )
            runs = [Run(values["environment"], values["provenance"])]
            runs += [Run(run["environment"], run["provenance"]) for run in values["further_runs"]]
            rows = tuple(Result.from_dict(row) for row in values["results"])
            title = str(values["title"])
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not a results file: {type(error).__name__}: {error}") from error
        if (wrong := complaint(values)) is not None:
            raise DataError(f"not a results file: {wrong}")
        if any(not 0 <= row.run < len(runs) for row in rows):
            raise DataError("not a results file: a row belongs to no run")
        return cls(rows, tuple(runs), title)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them; a merged report's first run is ``environment`` and ``provenance``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "title": self.title,
            "results": [row.to_dict() for row in self.results],
            "errors": self.errors,
            "environment": self.runs[0].environment,
            "provenance": self.runs[0].provenance,
            "further_runs": [vars(run) for run in self.runs[1:]],
        }

    @property
    def errors(self) -> list[dict[str, Any]]:
        """Rows that failed: ``bundle``, ``threads``, ``error``."""
        return [
            {"bundle": row.bundle, "threads": row.threads, "error": row.error}
            for row in self.results
            if row.error is not None
        ]

    def save(self, folder: str | Path) -> Path:
        """Write ``index.html``, ``results.md``, ``results.csv`` and ``results.json``.

        Returns:
            Path of ``index.html``.

        Raises:
            OutputError: the folder cannot be written.
            MissingDependencyError: Jinja2, which writes the page, is not installed; the other three are written.
        """
        from edgevision_benchmarks.report.page import html
        from edgevision_benchmarks.report.text import csv_text, markdown

        folder = Path(folder)
        write_text(folder / "results.json", _json_text(self.to_dict()))
        write_text(folder / "results.csv", csv_text(self))
        write_text(folder / "results.md", markdown(self))
        write_text(folder / "index.html", html(self))
        return folder / "index.html"

    def table(self) -> str:
        """The rows as a table for a terminal."""
        from edgevision_benchmarks.report.text import terminal_table

        return terminal_table(self)


def _json_text(values: dict[str, Any]) -> str:
    """Indented JSON with each list of numbers on one line: samples would take a hundred lines a round."""
    text = json.dumps(values, indent=2)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def _title(rows: Sequence[Result]) -> str:
    models = list(dict.fromkeys(row.model for row in rows))
    return f"Benchmark of {', '.join(models)}" if 0 < len(models) <= 3 else f"Benchmark of {len(models)} models"
