from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.devices import sensors
from edgevision.devices.energy import (
    EnergyMeter,
    counted_joules,
    energy_counters,
    integrated_joules,
    parse_pmic,
    power,
)
from edgevision.devices.sensors import (
    Reading,
    core_list,
    cores_used,
    decode_throttled,
    governor,
    parse_nvpmodel,
    parse_throttled,
    power_mode,
    temperature,
    throttling,
)
from tests.devices.trees import jetson_orin, pc, write, zone

PARSERS = settings(max_examples=200, deadline=None)


@pytest.mark.parametrize(
    ("bits", "now", "occurred"),
    [
        (0x0, [], []),
        (0x50005, ["under-voltage", "throttled"], ["under-voltage", "throttled"]),
        (0x80008, ["soft temperature limit"], ["soft temperature limit"]),
        (0x20000, [], ["frequency capped"]),
    ],
)
def test_bits_of_a_raspberry_pi(bits: int, now: list[str], occurred: list[str]) -> None:
    assert decode_throttled(bits) == {"now": now, "occurred": occurred}


@PARSERS
@given(st.integers(0, 0xFFFFFFFF))
def test_throttled_is_read_as_every_source_writes_it(bits: int) -> None:
    assert parse_throttled(f"throttled={bits:#x}\n") == bits
    assert parse_throttled(f"{bits:x}\n") == bits


@PARSERS
@given(st.text(max_size=60))
def test_parsers_take_any_text(words: str) -> None:
    bits = parse_throttled(words)
    assert bits is None or 0 <= bits <= 0xFFFFFFFF
    mode = parse_nvpmodel(words)
    assert mode is None or mode.strip()
    assert all(watts >= 0 for watts in parse_pmic(words).values())


@PARSERS
@given(st.sets(st.integers(0, 300), min_size=1))
def test_lists_of_cores(cores: set[int]) -> None:
    ordered = sorted(cores)
    runs: list[list[int]] = []
    for core in ordered:
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    words = ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    assert core_list(words) == ordered


@pytest.mark.parametrize(
    ("said", "mode"),
    [
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W\n2\n", "MODE_15W (2)"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n", "MAXN (0)"),
        ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER (2)"),
        ("NV Power Mode: 15W\n", "15W"),
        ("permission denied", None),
        ("NV Power Mode:\n", None),
    ],
)
def test_nvpmodel(said: str, mode: str | None) -> None:
    assert parse_nvpmodel(said) == mode


def program(root: Path, place: str, script: str) -> None:
    write(root, {place: f"#!/bin/sh\n{script}\n"})
    (root / place).chmod(0o755)


def test_programs_are_asked_where_files_do_not_tell(tmp_path: Path) -> None:
    program(tmp_path, "usr/sbin/nvpmodel", "echo 'NV Power Mode: MODE_30W'; echo 3")
    program(tmp_path, "usr/bin/vcgencmd", '[ "$1" = get_throttled ] && echo throttled=0x4')
    assert power_mode(tmp_path) == Reading("MODE_30W (3)")
    assert throttling(tmp_path).value["now"] == ["throttled"]
    # in the middle of a measurement no program is started
    assert not power_mode(tmp_path, commands=False).available
    assert not throttling(tmp_path, commands=False).available


def test_a_program_that_fails_or_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "_COMMAND_TIMEOUT_S", 0.2)
    program(tmp_path, "usr/sbin/nvpmodel", "echo no; exit 1")
    program(tmp_path, "usr/bin/vcgencmd", "exec sleep 20")
    assert not power_mode(tmp_path).available
    assert not throttling(tmp_path).available
    program(tmp_path, "usr/sbin/nvpmodel", "echo something else")
    assert "something else" in power_mode(tmp_path).why


def test_a_mode_that_the_configuration_does_not_name(tmp_path: Path) -> None:
    write(tmp_path, {"var/lib/nvpmodel/status": "pmode:0008 fmode:quiet\n"})
    assert power_mode(tmp_path).value == "mode 8"


def test_governors_that_differ_are_told_apart(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
    write(tmp_path, {folder.format(0): "performance\n", folder.format(10): "powersave\n"})
    assert governor(tmp_path).value == {"0": "performance", "10": "powersave"}


def test_zones_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    write(tmp_path, {**zone(0, "acpitz", 40), **zone(1, "acpitz", 50)})
    assert temperature(tmp_path).value == {"acpitz": 40.0, "acpitz'": 50.0}


def test_affinity_needs_the_kernel(tmp_path: Path) -> None:
    assert not cores_used(tmp_path).available
    write(tmp_path, {"proc/self/status": "Cpus_allowed_list:\t1,3-4\n"})
    assert cores_used(tmp_path).value == [1, 3, 4]


def test_ina3221_as_jetpack_4_shows_it(tmp_path: Path) -> None:
    folder = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    write(
        tmp_path,
        {
            f"{folder}/rail_name_0": "POM_5V_IN\n",
            f"{folder}/in_power0_input": "2345\n",
            f"{folder}/rail_name_1": "POM_5V_GPU\n",
            f"{folder}/in_power1_input": "120\n",
            f"{folder}/rail_name_2": "NC\n",
            f"{folder}/in_power2_input": "1\n",
        },
    )
    assert power(tmp_path).value == {"POM_5V_IN": 2.345, "POM_5V_GPU": 0.12, "total": 2.345}


def test_a_sensor_linked_from_two_places_counts_once(tmp_path: Path) -> None:
    real = "sys/devices/i2c-1/1-0041/hwmon/hwmon0"
    write(tmp_path, {f"{real}/name": "ina3221x\n", f"{real}/in1_label": "GPU\n", f"{real}/in1_input": "5000\n",
                     f"{real}/curr1_input": "100\n", f"{real}/in2_label": "CPU\n", f"{real}/in2_input": "5000\n",
                     f"{real}/curr2_input": "300\n"})  # fmt: skip
    for link, target in (("sys/class/hwmon/hwmon0", real), ("sys/bus/i2c/devices/1-0041", "sys/devices/i2c-1/1-0041")):
        (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / link).symlink_to(tmp_path / target)
    # no rail carries the whole module: the sum is the total
    assert power(tmp_path).value == {"GPU": 0.5, "CPU": 1.5, "total": 2.0}


def test_power_of_other_hwmon_sensors(tmp_path: Path) -> None:
    write(tmp_path, {"sys/class/hwmon/hwmon3/name": "ina226\n", "sys/class/hwmon/hwmon3/power1_input": "7250000\n"})
    assert power(tmp_path).value == {"ina226 power1": 7.25, "total": 7.25}


def test_power_of_a_raspberry_pi_5(tmp_path: Path) -> None:
    said = (
        "VDD_CORE_A current(7)=1.50000000A\n 3V3_SYS_A current(1)=0.20000000A\n"
        "VDD_CORE_V volt(15)=0.80000000V\n 3V3_SYS_V volt(9)=3.30000000V\n EXT5V_V volt(24)=5.10000000V\n"
    )
    assert parse_pmic(said) == {"VDD_CORE": 1.2, "3V3_SYS": 0.66}


def test_counters_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pc(tmp_path)

    def forbid(self: Path, *args: object, **kwargs: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", forbid)
    assert "root alone" in energy_counters(tmp_path).why


@PARSERS
@given(
    start=st.integers(0, 9_999),
    spent=st.integers(0, 9_999),
)
def test_counters_are_unwrapped(start: int, spent: int) -> None:
    before = {"package-0": {"joules": float(start), "range_joules": 10_000.0}}
    after = {"package-0": {"joules": float((start + spent) % 10_000), "range_joules": 10_000.0}}
    # whole joules below 2^53: floats are exact
    assert counted_joules(before, after) == spent


def test_counters_without_a_range_are_not_guessed() -> None:
    assert counted_joules({"package-0": {"joules": 5.0, "range_joules": 0.0}}, {"package-0": {"joules": 1.0}}) is None
    assert counted_joules({}, {}) is None


@PARSERS
@given(st.lists(st.floats(0, 100), min_size=2, max_size=20), st.floats(0.01, 1))
def test_constant_and_any_power_integrate_within_their_bounds(watts: list[float], step: float) -> None:
    samples = [(index * step, value) for index, value in enumerate(watts)]
    joules = integrated_joules(samples)
    span = step * (len(watts) - 1)
    assert joules is not None
    # 1e-9 relative: rounding of twenty additions
    assert min(watts) * span * (1 - 1e-9) - 1e-9 <= joules <= max(watts) * span * (1 + 1e-9) + 1e-9


def test_energy_by_counters_that_wrapped(tmp_path: Path) -> None:
    pc(tmp_path, package_uj=9_000_000, dram_uj=500_000)
    with EnergyMeter(tmp_path) as meter:
        pc(tmp_path, package_uj=2_000_000, dram_uj=1_500_000)
    # 3 J over the wrap at 10 J, and 1 J of memory; the cores are part of the package
    assert meter.per_inference(8) == Reading(pytest.approx(0.5), "J")
    assert meter.source == "package-0, package-0 dram"


def test_a_counter_that_stands_still_tells_nothing(tmp_path: Path) -> None:
    pc(tmp_path)
    with EnergyMeter(tmp_path) as meter:
        pass
    assert "did not move" in meter.per_inference(3).why


@pytest.mark.parametrize("gone", [0, 1])
def test_counters_that_cannot_be_read_again(gone: int, tmp_path: Path) -> None:
    pc(tmp_path)
    with EnergyMeter(tmp_path) as meter:
        for path in (tmp_path / "sys/class/powercap").glob("*/energy_uj"):
            path.unlink() if gone else path.write_text("soon")
    assert "cannot be compared" in meter.per_inference(3).why


def test_energy_by_a_power_sensor_is_integrated_over_the_block(tmp_path: Path) -> None:
    jetson_orin(tmp_path)
    now = [10.0]
    with EnergyMeter(tmp_path, clock=lambda: now[0]) as meter:
        now[0] += 2.0
    # the rail that feeds the module draws 6 W for two seconds, however often it was looked at meanwhile
    assert meter.per_inference(4) == Reading(pytest.approx(3.0), "J")
    assert meter.source == "VDD_IN"


def test_power_is_sampled_while_the_block_runs(tmp_path: Path) -> None:
    current = tmp_path / "sys/bus/i2c/devices/1-0040/hwmon/hwmon1/curr1_input"
    jetson_orin(tmp_path)
    ticks = itertools.count()
    seen = threading.Event()

    def clock() -> float:
        tick = next(ticks)
        if tick >= 3:
            seen.set()
        return float(tick)

    with EnergyMeter(tmp_path, clock=clock) as meter:
        # 15 W while it runs, and 5 W before and after
        current.write_text("3000")
        assert seen.wait(30)
        current.write_text("1000")
    found = meter.per_inference(1)
    # 6 W at the beginning and at most two samples of less at the end: the rest was drawn by the block
    assert found.value > 6.0 + 15.0


def test_energy_without_a_sensor_says_why(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path) as meter:
        pass
    found = meter.per_inference(3)
    assert "RAPL" in found.why
    assert "INA3221" in found.why
    assert meter.source is None
    assert "no inference" in meter.per_inference(0).why


def test_the_energy_of_a_block_that_failed_costs_nothing(tmp_path: Path) -> None:
    jetson_orin(tmp_path)
    with pytest.raises(KeyError), EnergyMeter(tmp_path):
        raise KeyError("engine")
    assert not [thread for thread in threading.enumerate() if thread.name == "power"]


def test_one_sample_is_no_integral() -> None:
    assert integrated_joules([(0.0, 5.0)]) is None


@PARSERS
@given(st.one_of(st.none(), st.floats(allow_nan=False), st.text()), st.text(max_size=5), st.text(max_size=20))
def test_readings_survive_their_dict(value: object, unit: str, why: str) -> None:
    reading = Reading(value, unit, "" if value is not None else why)
    again = Reading.from_dict(reading.to_dict())
    assert again.value == reading.value
    assert again.unit == reading.unit
    assert again.available == reading.available
