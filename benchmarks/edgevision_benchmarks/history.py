"""`History`: results kept over time, in an SQLite file or, by its URL, in a database a team shares.

Two tables and a version: ``edgevision_runs`` (one call of `bench` on one device, with its environment and provenance)
and ``edgevision_results`` (its rows; what is asked for often in columns of its own, the whole row as JSON beside it).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from edgevision.dependencies import require
from edgevision.errors import DataError, MissingDependencyError, OutputError, UsageError
from edgevision.files import sha256_bytes
from edgevision_benchmarks.report.report import Report, Run
from edgevision_benchmarks.result import Result

# of the tables; the rows' own version is that of results.json
HISTORY_VERSION = 1

# looks at a database whose tables others are making; there are three tables to be surprised by
_ATTEMPTS = 5


class History:
    """An open history. A context manager; `History.open` makes one.

    Every `add` is one transaction: a run is there with all its rows, or not at all.
    """

    def __init__(self, engine: Any, tables: dict[str, Any], shown: str) -> None:
        self._engine = engine
        self._tables = tables
        self._shown = shown

    @classmethod
    def open(cls, address: str | Path, *, create: bool = True) -> History:
        """Open ``FILE.sqlite``, or a database by SQLAlchemy's URL, e.g. ``postgresql+psycopg://user@host/name``.

        Args:
            address: path or URL.
            create: make the file and the tables where they are missing.

        Raises:
            MissingDependencyError: SQLAlchemy or the database's driver is not installed.
            UsageError: no such kind of database.
            DataError: missing or damaged, or written by a newer version.
            OutputError: it cannot be reached or written.
        """
        sa = require("sqlalchemy", purpose="keep a history of results")
        url, shown = _url(sa, str(address), create)
        try:
            engine = sa.create_engine(url)
        except sa.exc.NoSuchModuleError as error:
            raise UsageError(f"{shown}: no such kind of database: {error}") from error
        except ImportError as error:
            raise MissingDependencyError(
                f"{shown}: the database's driver is not installed ({error}); for PostgreSQL: "
                'pip install "psycopg[binary]"'
            ) from error
        history = cls(engine, _tables(sa), shown)
        try:
            with history._errors(writing=create):
                for attempt in range(_ATTEMPTS):
                    try:
                        history._prepare(create)
                        break
                    except (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.OperationalError) as error:
                        # somebody else makes the tables at this moment: look again
                        if attempt == _ATTEMPTS - 1 or not _exists_already(sa, error):
                            raise
        except BaseException:
            history.close()
            raise
        return history

    def add(self, report: Report) -> int:
        """Keep a report's runs; those that are there already (by the hash of all they say) are passed over.

        Returns:
            How many runs were new.

        Raises:
            OutputError: the database cannot be written.
        """
        added = 0
        for index, run in enumerate(report.runs):
            rows = [replace(row, run=0) for row in report.results if row.run == index]
            with self._errors(writing=True):
                added += self._add_run(run, rows, report.title)
        return added

    def load(self) -> Report:
        """Everything as one report, the oldest run first.

        Raises:
            DataError: the database cannot be read, or holds a row that is no result.
        """
        sa = require("sqlalchemy", purpose="read a history of results")
        runs, results = self._tables["runs"], self._tables["results"]
        with self._errors(writing=False), self._engine.connect() as connection:
            kept = connection.execute(sa.select(runs).order_by(runs.c.date, runs.c.id)).mappings().all()
            rows = connection.execute(sa.select(results).order_by(results.c.run_id, results.c.id)).mappings().all()
        by_run: dict[int, list[str]] = {}
        for row in rows:
            by_run.setdefault(row["run_id"], []).append(row["row"])
        if not kept:
            raise DataError(f"{self._shown}: the history is empty; edgevision bench --history fills it")
        found: list[Result] = []
        made: list[Run] = []
        for number, run in enumerate(kept):
            made.append(Run(self._json(run["environment"]), self._json(run["provenance"])))
            found += [replace(Result.from_dict(self._json(row)), run=number) for row in by_run.get(run["id"], [])]
        models = list(dict.fromkeys(row.model for row in found))
        title = f"History of {', '.join(models)}" if 0 < len(models) <= 3 else f"History of {len(models)} models"
        return Report(tuple(found), tuple(made), title)

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, create: bool) -> None:
        sa = require("sqlalchemy", purpose="keep a history of results")
        version = self._tables["version"]
        with self._engine.begin() as connection:
            if not create and not sa.inspect(connection).has_table(version.name):
                raise DataError(f"{self._shown}: holds no history of results; edgevision bench --history makes one")
            if create:
                version.metadata.create_all(connection)
            found = connection.execute(sa.select(version.c.version)).scalar()
            if found is None and create:
                connection.execute(sa.insert(version).values(version=HISTORY_VERSION))
                found = HISTORY_VERSION
        if found is None or found > HISTORY_VERSION:
            raise DataError(
                f"{self._shown}: a history of version {found} is newer than this edgevision reads ({HISTORY_VERSION}): "
                "pip install --upgrade edgevision"
            )

    def _add_run(self, run: Run, rows: Sequence[Result], title: str) -> bool:
        sa = require("sqlalchemy", purpose="keep a history of results")
        content = {"run": vars(run), "rows": [row.to_dict() for row in rows]}
        digest = sha256_bytes(json.dumps(content, sort_keys=True).encode())
        try:
            with self._engine.begin() as connection:
                if self._kept(connection, digest):
                    return False
                values = {
                    "sha256": digest,
                    "date": str(run.provenance.get("date", "")),
                    "device": run.device,
                    "title": title,
                    "environment": json.dumps(run.environment),
                    "provenance": json.dumps(run.provenance),
                }
                self._insert(connection, values, [_columns(row) for row in rows])
        except sa.exc.IntegrityError:
            # somebody else may have kept the same run between our look and our insert; then all of it is there
            with self._engine.connect() as connection:
                if not self._kept(connection, digest):
                    raise
            return False
        return True

    def _kept(self, connection: Any, digest: str) -> bool:
        sa = require("sqlalchemy", purpose="keep a history of results")
        runs = self._tables["runs"]
        return connection.execute(sa.select(runs.c.id).where(runs.c.sha256 == digest)).first() is not None

    def _insert(self, connection: Any, run: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        sa = require("sqlalchemy", purpose="keep a history of results")
        key = connection.execute(sa.insert(self._tables["runs"]).values(**run)).inserted_primary_key[0]
        if rows:
            connection.execute(sa.insert(self._tables["results"]), [{"run_id": key, **row} for row in rows])

    def _json(self, text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise DataError(f"{self._shown}: the history holds a row that is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{self._shown}: the history holds a row that is no result")
        return value

    @contextmanager
    def _errors(self, *, writing: bool) -> Iterator[None]:
        """The database's errors as ours; its first line alone, without the statement and its values."""
        sa = require("sqlalchemy", purpose="keep a history of results")
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            told = str(getattr(error, "orig", None) or error).strip().splitlines()
            kind = OutputError if writing else DataError
            verb = "written" if writing else "read"
            raise kind(f"{self._shown}: the history cannot be {verb}: {told[0] if told else error}") from error


def _exists_already(sa: Any, error: Exception) -> bool:
    # SQLite calls a table that is there an operational error, PostgreSQL a broken constraint of its catalogue
    return isinstance(error, sa.exc.IntegrityError) or "already exists" in str(error)


def _url(sa: Any, address: str, create: bool) -> tuple[Any, str]:
    """SQLAlchemy's URL, and the address as it may be shown: without a password."""
    if "://" not in address:
        path = Path(address)
        if not create and not path.is_file():
            raise DataError(f"{address}: no such history")
        if create:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot write {address}: {error.strerror}") from error
        return sa.URL.create("sqlite", database=str(path)), address
    try:
        url = sa.make_url(address)
    except (sa.exc.ArgumentError, ValueError) as error:
        kind = address.partition("://")[0]
        raise UsageError(
            f"the history's address ({kind}://…) is no URL of a database: {type(error).__name__}"
        ) from error
    return url, url.render_as_string(hide_password=True)


def _tables(sa: Any) -> dict[str, Any]:
    metadata = sa.MetaData()
    version = sa.Table("edgevision_version", metadata, sa.Column("version", sa.Integer, nullable=False))
    runs = sa.Table(
        "edgevision_runs",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("date", sa.String(40), nullable=False, index=True),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("environment", sa.Text, nullable=False),
        sa.Column("provenance", sa.Text, nullable=False),
    )
    results = sa.Table(
        "edgevision_results",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.ForeignKey("edgevision_runs.id"), nullable=False, index=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("model", "target", "precision")),
        sa.Column("compression", sa.Text),
        sa.Column("threads", sa.Integer, nullable=False),
        sa.Column("batch", sa.Integer, nullable=False),
        sa.Column("p50_ms", sa.Float),
        sa.Column("accuracy", sa.Float),
        sa.Column("error", sa.Text),
        sa.Column("row", sa.Text, nullable=False),
    )
    return {"version": version, "runs": runs, "results": results}


def _columns(row: Result) -> dict[str, Any]:
    names = ("model", "target", "precision", "compression", "threads", "batch", "accuracy", "error")
    return {**{name: getattr(row, name) for name in names}, "p50_ms": row.p50, "row": json.dumps(row.to_dict())}
