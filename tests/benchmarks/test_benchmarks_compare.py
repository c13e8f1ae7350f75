"""Comparison of two reports: what noise explains is no regression, and what it does not is one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from report_samples import PROVENANCE, result

from edgevision.errors import DataError, UsageError
from edgevision_benchmarks.bench import bench
from edgevision_benchmarks.compare import compare, text
from edgevision_benchmarks.ratio import (
    Rounds,
    median_interval,
    paired_difference,
    ratio_of_medians,
    unpaired_difference,
)
from edgevision_benchmarks.report import Report
from edgevision_benchmarks.result import Result
from edgevision_benchmarks.statistics import sketch, wilson

MACHINE = {"cpu": {"name": "Cortex-A76"}}


def measured(
    rng: np.random.Generator, level_ms: float, *, rounds: int = 3, between: float = 0.015, **changes: object
) -> Result:
    """A row of a noisy machine: rounds differ by ``between``, runs within a round have a long tail."""
    samples = []
    for _ in range(rounds):
        middle = level_ms * np.exp(rng.normal(0.0, between))
        runs = middle * np.exp(rng.gamma(1.0, 0.03, 60))
        samples.append({"n": 60, "ms": sketch((runs * 1e6).astype(int).tolist()), "peak_memory_bytes": 100_000_000})
    return replace(result("onnxruntime", "int8", level_ms, 411), samples=tuple(samples), **changes)  # type: ignore[arg-type]


def report(*rows: Result) -> Report:
    return Report.single(rows, MACHINE, PROVENANCE)


def several(rng: np.random.Generator, factor: float = 1.0) -> Report:
    # five rounds, as a gate is advised to take
    return report(*(measured(rng, level * factor, rounds=5, model=f"m{level}") for level in (4, 9, 23)))


def test_a_planted_slow_down_of_a_tenth_is_caught_and_equals_raise_no_alarm() -> None:
    rng = np.random.default_rng(1)
    first = several(rng)
    for _ in range(5):
        assert compare(first, several(rng)).regressions == []
    found = compare(first, several(rng, 1.10))
    assert len(found.regressions) == 3
    assert all("latency" in line for line in found.regressions)
    assert found.to_dict()["regression"] is True
    # and the other way round it is a gain
    back = compare(several(rng, 1.10), first)
    assert back.regressions == []
    assert [pair.changes[0].verdict for pair in back.pairs] == ["better"] * 3


@pytest.mark.parametrize(("rounds", "between"), [(2, 0.02), (3, 0.003), (3, 0.05), (5, 0.02)])
def test_false_alarms_stay_under_the_stated_bound(rounds: int, between: float) -> None:
    # without a threshold, so that the intervals alone must hold: 2.5% of comparisons of single rows
    trials = 200
    rng = np.random.default_rng(rounds)
    alarms = 0
    for _ in range(trials):
        pair = [
            Rounds.of([each["ms"] for each in row.samples], [each["n"] for each in row.samples])
            for row in (measured(rng, 10.0, rounds=rounds, between=between) for _ in range(2))
        ]
        found = ratio_of_medians(*pair, confidence=0.95, rng=rng, resamples=200)
        assert found.low is not None
        alarms += found.low > 1.0
    # three standard errors of 200 trials above 2.5%
    assert alarms / trials <= 0.025 + 3 * (0.025 * 0.975 / trials) ** 0.5


def test_many_rows_raise_no_more_alarms_than_one() -> None:
    rng = np.random.default_rng(8)
    alarms = sum(bool(compare(several(rng), several(rng), threshold=0.0, seed=n).regressions) for n in range(40))
    # 2.5% of 40 comparisons of three rows are 1; three standard errors are 3
    assert alarms <= 4


def test_a_tenth_is_caught_nearly_always() -> None:
    rng = np.random.default_rng(5)
    caught = [bool(compare(report(measured(rng, 10.0)), report(measured(rng, 11.0))).regressions) for _ in range(60)]
    # rounds that scatter by 1.5% leave a tenth five standard errors away
    assert np.mean(caught) >= 0.9


def test_the_same_seed_gives_the_same_answer() -> None:
    rng = np.random.default_rng(2)
    first, second = several(rng), several(rng)
    assert compare(first, second, seed=3) == compare(first, second, seed=3)
    assert compare(first, second, seed=3) != compare(first, second, seed=4)


def test_the_bootstrap_of_medians_is_the_one_by_drawing() -> None:
    rng = np.random.default_rng(6)
    values = np.sort(rng.lognormal(0.0, 0.3, 61))
    from edgevision_benchmarks.ratio import _bootstrap_medians

    quick = np.log(_bootstrap_medians(values, 61, 20_000, rng)).std()
    drawn = np.log(np.median(rng.choice(values, (20_000, 61)), axis=1)).std()
    # between neighbouring ranks the quick one interpolates, which smooths a little
    assert quick == pytest.approx(drawn, rel=0.15)


def test_noise_that_would_hide_a_regression_is_told() -> None:
    rng = np.random.default_rng(2)
    found = compare(report(measured(rng, 10.0, between=0.2)), report(measured(rng, 10.0, between=0.2)))
    change = found.pairs[0].changes[0]
    assert change.verdict == "unclear"
    assert "noise hides changes below" in text(found)
    assert found.regressions == []


def test_one_round_cannot_be_judged() -> None:
    rng = np.random.default_rng(2)
    found = compare(report(measured(rng, 10.0, rounds=1)), report(measured(rng, 20.0, rounds=3)))
    change = found.pairs[0].changes[0]
    assert (change.verdict, change.low) == ("unknown", None)
    assert "two on each side" in text(found)


def test_files_of_earlier_versions_are_compared_by_their_rounds() -> None:
    before = replace(result("ncnn", "fp32", 10.0, None), round_p50_ms=(10.0, 10.1, 9.9))
    after = replace(result("ncnn", "fp32", 12.0, None), round_p50_ms=(12.0, 12.1, 11.9))
    assert len(compare(report(before), report(after)).regressions) == 1


def test_slow_rows_of_other_devices_are_others() -> None:
    rng = np.random.default_rng(2)
    row = measured(rng, 10.0)
    other = Report.single([row], {"cpu": {"name": "Cortex-A53"}}, PROVENANCE)
    with pytest.raises(DataError, match=r"share no configuration.*Cortex-A76.*Cortex-A53"):
        compare(report(row), other)
    reached = Report.single([row], MACHINE, {**PROVENANCE, "device": "ssh://pi"})
    with pytest.raises(DataError, match="ssh://pi"):
        compare(report(row), reached)


def test_what_failed_vanished_or_came_is_told() -> None:
    rng = np.random.default_rng(2)
    a, b, c = (measured(rng, 10.0, model=name) for name in "abc")
    broken = result("onnxruntime", "int8", None, None, model="b", error="it crashed")
    found = compare(report(a, b), report(a, broken, c))
    assert [key.model for key, _ in found.failed] == ["b"]
    assert found.regressions == ["b onnxruntime int8, 1 thread on Cortex-A76: ran before and fails now: it crashed"]
    assert [key.model for key in found.added] == ["c"]
    assert [key.model for key in compare(report(a, c), report(a)).missing] == ["c"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_memory_and_throughput_are_gates_too() -> None:
    rng = np.random.default_rng(2)

    def row(memory: float, rate: float) -> Result:
        made = measured(rng, 10.0, between=0.003)
        samples = tuple(
            {**each, "peak_memory_bytes": int(memory * (1 + 0.001 * n))} for n, each in enumerate(made.samples)
        )
        offline = {"samples_per_second": rate, "rounds": [rate, rate * 1.01, rate * 0.99], "batch": 8}
        return replace(made, samples=samples, offline=offline)

    found = compare(report(row(1e8, 400.0)), report(row(1.3e8, 300.0)))
    assert {change.measure: change.verdict for change in found.pairs[0].changes} == {
        "latency": "same", "throughput": "worse", "memory": "worse", "accuracy": "same",
    }  # fmt: skip
    assert compare(report(row(1e8, 400.0)), report(row(1.05e8, 395.0))).regressions == []


def judged(right: np.ndarray, pictures: str | None = "one set") -> Result:
    n, correct = len(right), int(right.sum())
    return replace(
        measured(np.random.default_rng(0), 10.0),
        accuracy=correct / n,
        accuracy_ci95=wilson(correct, n),
        n=n,
        correct=np.packbits(right).tobytes().hex(),
        pictures_sha256=pictures,
    )


def test_accuracy_is_compared_picture_by_picture_where_they_are_the_same() -> None:
    before = np.ones(500, bool)
    before[:80] = False
    after = before.copy()
    after[100:112] = False  # 12 pictures of 500 lost, none gained: 2.4 points
    found = compare(report(judged(before)), report(judged(after)))
    change = found.pairs[0].changes[-1]
    assert (change.measure, change.verdict) == ("accuracy", "worse")
    assert change.change == pytest.approx(-0.024)
    assert "the same 500 pictures" in change.why
    # of unknown pictures the same figures say nothing: their intervals are 3 points wide
    apart = compare(report(judged(before, "one set")), report(judged(after, "another")))
    assert apart.pairs[0].changes[-1].verdict == "same"
    assert compare(report(judged(before)), report(judged(before))).regressions == []
    damaged = replace(judged(before), correct="zz")
    with pytest.raises(DataError, match="one bit for each"):
        compare(report(damaged), report(damaged))


def test_a_mean_average_precision_is_shown_and_not_judged() -> None:
    row = replace(measured(np.random.default_rng(0), 10.0), accuracy=0.4, accuracy_ci95=None, metric="mAP")
    found = compare(report(row), report(replace(row, accuracy=0.3)))
    change = found.pairs[0].changes[-1]
    assert (change.measure, change.verdict) == ("accuracy", "unknown")
    assert change.change == pytest.approx(-0.1)
    assert found.regressions == []
    assert "mAP is no share of pictures" in text(found)


def detector(draws: np.ndarray, pictures: str | None = "one set") -> Result:
    value = float(draws.mean())
    return replace(
        measured(np.random.default_rng(0), 10.0),
        accuracy=value,
        accuracy_ci95=(value - 0.06, value + 0.06),
        accuracy_resamples=tuple(draws.tolist()),
        metric="mAP",
        n=87,
        pictures_sha256=pictures,
    )


def test_a_mean_average_precision_is_compared_draw_by_draw_where_the_pictures_are_the_same() -> None:
    rng = np.random.default_rng(8)
    before = rng.normal(0.40, 0.03, 200)
    # three points lost on every draw, while one network's own figure scatters by as much
    after = before - 0.03 + rng.normal(0, 0.004, 200)
    found = compare(report(detector(before)), report(detector(after)))
    change = found.pairs[0].changes[-1]
    assert (change.measure, change.verdict) == ("accuracy", "worse")
    assert change.change == pytest.approx(-0.03, abs=0.002)
    assert "the same 87 pictures, drawn anew" in change.why
    assert compare(report(detector(after)), report(detector(before))).pairs[0].changes[-1].verdict == "better"
    # of other pictures the same figures say nothing
    for other in ("another", None):
        apart = compare(report(detector(before)), report(detector(after, other))).pairs[0].changes[-1]
        assert apart.verdict == "same"
        assert "not known to be the same" in apart.why


def test_detectors_that_differ_by_noise_alone_raise_no_alarm() -> None:
    rng = np.random.default_rng(9)
    alarms = 0
    for _ in range(40):
        # what the network is worth on all pictures is the same; on these it is a little more, or less
        luck = rng.normal(0, 0.01)
        before = rng.normal(0.40, 0.03, 200)
        after = before + luck + rng.normal(0, 0.01, 200)
        alarms += bool(compare(report(detector(before)), report(detector(after))).regressions)
    # the accuracy's share of the allowed error is a quarter of a percent here; five percent would be far beyond it
    assert alarms <= 2
    same = rng.normal(0.40, 0.03, 200)
    assert compare(report(detector(same)), report(detector(same))).pairs[0].changes[-1].verdict == "same"


def test_intervals_of_differences_are_the_published_ones() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), p. 873, table II, method 10: 56/70 − 48/80
    found = unpaired_difference((48, 80), (56, 70), z=1.959963984540054)
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5.1e-5)


def test_paired_intervals_cover_the_true_difference() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(500):
        kind = rng.choice(4, 200, p=[0.75, 0.06, 0.03, 0.16])
        found = paired_difference(np.isin(kind, [0, 1]), np.isin(kind, [0, 2]), z=1.959963984540054)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= -0.03 <= found.high
    # 95%; three standard errors of 500 trials are 3 points
    assert covered / 500 >= 0.92


@pytest.mark.parametrize("between", [0.0, 0.02])
def test_intervals_of_a_median_cover_it_however_far_rounds_lie_apart(between: float) -> None:
    rng = np.random.default_rng(6)
    # the median of the long tail that `measured` gives its runs
    true = 10.0 * np.exp(0.03 * np.log(2))
    covered = overlap = 0
    last = (0.0, np.inf)
    for _ in range(100):
        rounds = Rounds.of([each["ms"] for each in measured(rng, 10.0, rounds=5, between=between).samples])
        low, high = median_interval(rounds) or (1.0, 1.0)
        assert low < 1 < high
        interval = (low * rounds.center, high * rounds.center)
        covered += interval[0] <= true <= interval[1]
        overlap += max(interval[0], last[0]) <= min(interval[1], last[1])
        last = interval
    # 95%; three standard errors of 100 trials are 7 points. Two such intervals of equals nearly always meet.
    assert covered / 100 >= 0.88
    assert overlap / 100 >= 0.96


def test_a_single_round_tells_nothing_of_how_far_rounds_lie_apart() -> None:
    assert median_interval(Rounds.of([[1.0, 2.0, 3.0]])) is None
    assert median_interval(Rounds.of([[2.0], [2.0], [2.0]])) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("wrong", [{"threshold": -0.1}, {"memory_threshold": -1.0}, {"confidence": 1.0}])
def test_impossible_thresholds_are_refused(wrong: dict[str, float]) -> None:
    row = report(measured(np.random.default_rng(0), 1.0))
    with pytest.raises(UsageError):
        compare(row, row, **wrong)


def test_real_benches_of_equals_agree_and_a_slower_engine_is_caught(make_bundle, tmp_path) -> None:
    def run(name: str, seconds: float) -> Report:
        made = bench(
            make_bundle(name, seconds=seconds), rounds=3, seconds=0.0, min_runs=12, min_queries=0, end_to_end=False
        )
        made.save(tmp_path / name)
        return Report.load(tmp_path / name)

    # asleep, and far apart: other users of the machine must not decide; the tenth is planted in the simulations
    first, second, slower = run("first", 0.01), run("second", 0.01), run("slower", 0.03)
    assert compare(first, second).regressions == []
    found = compare(first, slower).regressions
    assert len(found) == 1
    assert "latency" in found[0]
