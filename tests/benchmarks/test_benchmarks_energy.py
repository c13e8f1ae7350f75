"""Joules per inference on their way from a sensor into a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from report_samples import one_row

from edgevision.devices.energy import EnergyMeter
from edgevision_benchmarks import worker
from edgevision_benchmarks.report.page import html
from edgevision_benchmarks.report.text import csv_text, markdown
from edgevision_benchmarks.rows import timed_fields
from edgevision_benchmarks.timing import TimingOptions, measure
from tests.devices.trees import jetson_orin, pc, raspberry_pi

OPTIONS = TimingOptions(min_runs=5, max_runs=5, min_seconds=0.0, max_warmup_runs=3)


@pytest.fixture
def timed(make_bundle, monkeypatch: pytest.MonkeyPatch):
    """The answer to a job of timing, with the sensors of a tree."""

    def do(root: Path) -> dict[str, Any]:
        monkeypatch.setattr(worker, "EnergyMeter", partial(EnergyMeter, root))
        job = {"kind": "time", "bundle": str(make_bundle("net")), "threads": 1, "batch": 1, "pictures": []}
        return worker.do({**job, "options": OPTIONS.to_dict()})

    return do


def test_the_window_is_the_measured_runs_alone() -> None:
    runs = [0]
    seen = []

    @contextmanager
    def window() -> Iterator[None]:
        seen.append(runs[0])
        yield
        seen.append(runs[0])

    def count() -> None:
        runs[0] += 1

    samples = measure(count, OPTIONS, window=window())
    assert seen == [samples.warmup_runs, samples.warmup_runs + 5]


def test_a_rail_of_six_watts_is_in_the_row(timed, tmp_path: Path) -> None:
    rounds = [timed(jetson_orin(tmp_path / "orin")) for _ in range(2)]
    fields = timed_fields(rounds)
    assert fields["energy_source"] == "VDD_IN"
    # it drew 6 W at least as long as the runs took
    spent = [6 * sum(answer["engine"]["wall_ns"]) / 1e9 / 5 for answer in rounds]
    assert fields["energy_j"] >= min(spent)
    assert "why_no_energy" not in fields


def test_a_counter_is_read_around_the_runs(timed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pc(tmp_path / "pc", package_uj=9_500_000)
    before = EnergyMeter.__exit__

    def spend(self: EnergyMeter, *error: object) -> None:
        pc(tmp_path / "pc", package_uj=1_500_000)
        before(self, *error)

    monkeypatch.setattr(EnergyMeter, "__exit__", spend)
    # 2 J over the wrap at 10 J, by five runs
    assert timed_fields([timed(root)])["energy_j"] == pytest.approx(0.4)


def test_without_a_sensor_the_row_says_why(timed, tmp_path: Path) -> None:
    fields = timed_fields([timed(raspberry_pi(tmp_path / "pi"))])
    assert fields.get("energy_j") is None
    assert fields["why_no_energy"].startswith("not available: no powercap energy counter (RAPL)")


def test_reports_tell_the_energy_and_whose_it_is() -> None:
    report = one_row(energy_j=0.0123, energy_source="VDD_IN", why_no_energy=None)
    assert "energy_j,energy_source,why_no_energy" in csv_text(report).splitlines()[0]
    for text in (markdown(report), html(report)):
        assert "mJ, idle included" in text
        assert "12.3" in text
        assert "of VDD_IN while the engine ran; what is drawn when idle is in it" in text


def test_reports_tell_why_there_is_no_energy() -> None:
    report = one_row(energy_j=None, energy_source=None, why_no_energy="not available: no sensor")
    for text in (markdown(report), html(report)):
        assert "mJ, idle included" not in text
        assert "not available: no sensor" in text
