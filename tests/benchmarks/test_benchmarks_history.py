"""Results kept over time, in an SQLite file and in a real PostgreSQL server."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from report_samples import PROVENANCE, full_report, result

from edgevision import dependencies
from edgevision.errors import DataError, MissingDependencyError, OutputError, UsageError
from edgevision_benchmarks.history import History
from edgevision_benchmarks.report import Report
from edgevision_benchmarks.report.course import entries, page, save_course

MACHINE = {"board": {"value": "Raspberry Pi 5"}, "cpu": {"name": "Cortex-A76"}}


def day(number: int, p50: float = 10.0, **changes: object) -> Report:
    provenance = {**PROVENANCE, "date": f"2026-03-{number:02}T10:00:00+00:00"}
    rows = [result("ncnn", "fp32", 2 * p50, 418), result("ncnn", "int8", p50, 413, **changes)]
    return Report.single(rows, MACHINE, provenance)


def postgres_folder() -> Path | None:
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server of our own, on a socket in a folder of our own, gone afterwards."""
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = postgres_folder()
    if programs is None:
        pytest.skip("no PostgreSQL server (postgres, initdb, pg_ctl) is installed")
    # short: the path of a socket has 107 characters at most
    home = Path(tempfile.mkdtemp(prefix="ev-pg-", dir="/tmp"))
    as_user: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        runuser = shutil.which("runuser")
        if runuser is None:
            shutil.rmtree(home)
            pytest.skip("PostgreSQL does not run as root, and there is no runuser to be somebody else")
        nobody = pwd.getpwnam("nobody")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        as_user = [runuser, "-u", "nobody", "--"]

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(programs / program), *arguments]
        # a pipe would be held open by the server that pg_ctl leaves behind
        with (home.parent / f"{home.name}.log").open("w") as log:
            code = subprocess.run(command, cwd=home, stdout=log, stderr=log, timeout=120, check=False).returncode
        assert code == 0, (home.parent / f"{home.name}.log").read_text()

    data = str(home / "data")
    try:
        run("initdb", "-D", data, "-A", "trust", "-U", "edgevision", "--no-sync", "-E", "UTF8", "--locale=C")
        settings = f"-c listen_addresses='' -c unix_socket_directories={home} -c fsync=off -c max_connections=10"
        run("pg_ctl", "-D", data, "-w", "-l", str(home / "server.log"), "-o", settings, "start")
        try:
            yield f"postgresql+psycopg://edgevision@/postgres?host={home}"
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)
        (home.parent / f"{home.name}.log").unlink(missing_ok=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    if request.param == "sqlite":
        yield str(tmp_path / "kept" / "history.sqlite")
        return
    import sqlalchemy as sa

    url = request.getfixturevalue("postgres")
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()
    yield url


def scalar(address: str, query: str) -> int:
    import sqlalchemy as sa

    engine = sa.create_engine(address if "://" in address else sa.URL.create("sqlite", database=address))
    with engine.connect() as connection:
        found = int(connection.execute(sa.text(query)).scalar_one())
    engine.dispose()
    return found


def test_what_is_kept_comes_back_oldest_first(address: str) -> None:
    with History.open(address) as history:
        assert history.add(day(3)) == 1
        assert history.add(day(1, 11.0)) == 1
        assert history.add(Report.merged([full_report(), day(2, 12.0)])) == 2
    with History.open(address, create=False) as history:
        found = history.load()
    dates = [str(run.provenance["date"])[:10] for run in found.runs]
    assert dates == ["2026-03-01", "2026-03-01", "2026-03-02", "2026-03-03"]
    quick = [row.p50 for row in found.results if row.precision == "int8" and row.target == "ncnn"]
    assert quick == [11.0, 16.9, 12.0, 10.0]
    # rows are whole
    first = [replace(row, run=0) for row in found.results if row.run == 0]
    assert first == list(day(1, 11.0).results)
    assert found.runs[0] == day(1, 11.0).runs[0]


def test_the_same_run_is_kept_once(address: str) -> None:
    with History.open(address) as history:
        assert history.add(day(1)) == 1
        assert history.add(day(1)) == 0
        # also where it is part of a merged report, where its rows have another run's number
        assert history.add(Report.merged([day(2), day(1)])) == 1
        assert len(history.load().runs) == 2
        assert len(history.load().results) == 4
    assert scalar(address, "SELECT count(*) FROM edgevision_results") == 4


def test_a_run_is_kept_whole_or_not_at_all(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgevision_benchmarks import history as module

    original = module._columns

    def broken(row: object) -> dict[str, object]:
        values = original(row)  # type: ignore[arg-type]
        return {**values, "model": None} if values["precision"] == "int8" else values

    with History.open(address) as history:
        monkeypatch.setattr(module, "_columns", broken)
        # NOT NULL is broken by the second row: an integrity error as a doubled hash is, and no run stays behind
        with pytest.raises(OutputError, match="cannot be written"):
            history.add(day(1))
        monkeypatch.undo()
        assert scalar(address, "SELECT count(*) FROM edgevision_runs") == 0
        assert scalar(address, "SELECT count(*) FROM edgevision_results") == 0
        assert history.add(day(1)) == 1


def test_a_run_that_somebody_else_kept_meanwhile_is_no_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with History.open(address) as one, History.open(address) as other:
        original = one._insert

        def late(*arguments: object) -> None:
            # between our look and our insert
            monkeypatch.undo()
            if "sqlite" not in address:  # SQLite's writers exclude each other from the look on
                assert other.add(day(1)) == 1
            original(*arguments)

        monkeypatch.setattr(one, "_insert", late)
        added = one.add(day(1))
        assert added == (1 if "sqlite" in address else 0)
        assert len(one.load().runs) == 1


def test_a_newer_history_is_told(address: str) -> None:
    import sqlalchemy as sa

    with History.open(address) as history:
        history.add(day(1))
        with history._engine.begin() as connection:
            connection.execute(sa.text("UPDATE edgevision_version SET version = 99"))
    for create in (True, False):
        with pytest.raises(DataError, match=r"version 99 is newer.*pip install --upgrade"):
            History.open(address, create=create)


def test_a_history_that_is_not_there_is_told(address: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such history|holds no history"):
        History.open(address, create=False)
    with History.open(address) as history, pytest.raises(DataError, match="is empty"):
        history.load()


def test_addresses_that_lead_nowhere_are_told(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    (tmp_path / "text.sqlite").write_text("this is no database, and long enough to be read as one" * 9)
    with pytest.raises(OutputError, match=r"text\.sqlite.*not a database"):
        History.open(tmp_path / "text.sqlite")
    with pytest.raises(DataError, match=r"text\.sqlite.*not a database"):
        History.open(tmp_path / "text.sqlite", create=False)
    with pytest.raises(UsageError, match="no such kind of database"):
        History.open("mongodb+nothing://host/name")
    with pytest.raises(UsageError, match="is no URL"):
        History.open("://")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        History.open(tmp_path / "file" / "history.sqlite")


def test_a_server_that_is_not_there_is_told_without_the_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    with pytest.raises(OutputError) as told:
        History.open(f"postgresql+psycopg://somebody:secret@/postgres?host={tmp_path}")
    assert "secret" not in str(told.value)
    assert "postgresql+psycopg://somebody:***@" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_row_that_was_damaged_is_told(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    with History.open(path) as history:
        history.add(day(1))
    for wrong in ('{"model": ', "[]", '{"model": "m"}'):
        with sqlite3.connect(path) as connection:
            connection.execute("UPDATE edgevision_results SET row = ?", (wrong,))
        connection.close()
        with History.open(path, create=False) as history, pytest.raises(DataError):
            history.load()


def test_without_sqlalchemy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "edgevision\[history\]"'):
        History.open(tmp_path / "history.sqlite")


def test_the_course_has_a_line_for_each_configuration(tmp_path: Path) -> None:
    history = Report.merged([day(1, 10.0), day(9, 9.0), day(20, 12.0, flags=("throttled: 3 of 60 s",)), day(20, 12.5)])
    made = entries(history)
    assert list(made) == ["mobilenet_v2"]
    assert len({entry.label for entry in made["mobilenet_v2"]}) == 2
    written = save_course(history, tmp_path / "course", title="Nightly <b>")
    text = written.read_text()
    assert "Nightly &lt;b&gt;" in text
    # two quantities, two widths
    assert text.count('<svg class="scatter') == 4
    assert text.count('class="course"') == 8
    assert "Raspberry Pi 5: ncnn INT8, 1 thread, 2026-03-09 10:00: 9.00 ms" in text
    assert "flagged" in text
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text


def test_a_course_without_dates_or_accuracy_is_a_page() -> None:
    undated = Report.single([result("ncnn", "int8", 5.0, None)], MACHINE, {**PROVENANCE, "date": "yesterday"})
    assert "has a date" in page(undated)
    once = Report.single([result("ncnn", "int8", 5.0, None)], MACHINE, PROVENANCE)
    assert page(once).count('<svg class="scatter') == 2


def test_many_at_once_keep_a_run_once(address: str) -> None:
    with ThreadPoolExecutor(4) as pool:

        def keep(number: int) -> int:
            with History.open(address) as history:
                # each its own run, and all the same one
                return history.add(Report.merged([day(1), day(2 + number)]))

        added = list(pool.map(keep, range(4)))
    assert sum(added) == 5
    with History.open(address, create=False) as history:
        found = history.load()
    assert len(found.runs) == 5
    assert len(found.results) == 10
    assert scalar(address, "SELECT count(*) FROM edgevision_version") >= 1
