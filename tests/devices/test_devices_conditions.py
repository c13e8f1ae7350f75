from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgevision.devices import conditions as conditions_module
from edgevision.devices.conditions import Conditions, flags, read_conditions
from edgevision.devices.sensors import Reading
from tests.devices.trees import cpufreq, jetson_orin, pc, raspberry_pi, rk3588, times, write, zone

TREES = {"pi4": raspberry_pi, "orin": jetson_orin, "rk3588": rk3588, "pc": pc}


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch):
    """Move the monotonic clock of `read_conditions`."""
    now = [100.0]
    monkeypatch.setattr(conditions_module.time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


@pytest.mark.parametrize("name", TREES)
def test_conditions_survive_json(name: str, tmp_path: Path) -> None:
    read = read_conditions(TREES[name](tmp_path))
    assert Conditions.from_dict(json.loads(json.dumps(read.to_dict()))) == read


def test_conditions_of_a_raspberry_pi(tmp_path: Path) -> None:
    read = read_conditions(raspberry_pi(tmp_path, throttled="50005"))
    assert read.cpu.value == "Cortex-A72"
    assert read.cores.value == [0, 1, 2, 3]
    assert read.features.value == ["neon"]
    assert read.frequency_mhz == Reading({"0": 1800, "1": 1800, "2": 1800, "3": 1800}, "MHz")
    assert read.governor.value == "ondemand"
    assert read.temperature_c == Reading({"cpu-thermal": 61.3}, "°C")
    assert read.trip_c.value == {"cpu-thermal": 110.0}
    assert read.throttling.value["now"] == ["under-voltage", "throttled"]
    assert read.throttling.value["occurred"] == ["under-voltage", "throttled"]
    assert read.memory_available_bytes == Reading(3_000_000 * 1024, "bytes")
    assert "no power sensor" in read.power_w.why
    assert "RAPL" in read.energy_j.why


def test_conditions_of_a_jetson(tmp_path: Path) -> None:
    read = read_conditions(jetson_orin(tmp_path))
    assert read.power_mode.value == "7W (1)"
    # the rail that feeds the module, not the sum of it and its part
    assert read.power_w == Reading({"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 1.5, "total": 6.0}, "W")
    # the sleeping sensor is left out, and the fan's trip point slows nothing
    assert read.temperature_c.value == {"cpu-thermal": 52.0}
    assert read.trip_c.value == {"cpu-thermal": 99.0}
    assert read.throttling.value == {"now": [], "occurred": [], "counters": {"over-current oc1": 0}}


def test_conditions_of_an_rk3588(tmp_path: Path) -> None:
    read = read_conditions(rk3588(tmp_path))
    assert read.cpu.value == "4× Cortex-A55 + 4× Cortex-A76"
    assert read.throttling.value["now"] == ["thermal-cpufreq-0 at step 2"]
    assert read.frequency_mhz.value["7"] == 2400


def test_conditions_of_a_pc(tmp_path: Path) -> None:
    read = read_conditions(pc(tmp_path))
    assert set(read.energy_j.value) == {"package-0", "package-0 core", "package-0 dram"}
    assert read.energy_j.value["package-0"] == {"joules": 1.0, "range_joules": 10.0}
    assert read.temperature_c.value == {"Package id 0": 55.0}
    assert read.trip_c.value == {"Package id 0": 94.0}
    assert read.power_mode.value == "balanced"
    assert "avx512_vnni" in read.features.value


def test_nothing_there_is_said_of_every_reading(tmp_path: Path) -> None:
    read = read_conditions(tmp_path)
    for name, value in read.to_dict().items():
        # the architecture is known without any file
        if isinstance(value, dict) and name != "cpu":
            assert value["value"] is None, name
            assert value["why"].startswith("not available: "), name
            assert len(value["why"]) > len("not available: "), name


def test_a_driver_that_fails_costs_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path) -> Reading:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(conditions_module.sensors, "temperature", fail)
    read = read_conditions(raspberry_pi(tmp_path))
    assert "Input/output error" in read.temperature_c.why
    assert read.governor.value == "ondemand"


def test_this_machine_is_read_in_a_moment() -> None:
    begun = time.process_time()
    read = read_conditions()
    # a few hundred small files at most; a machine with 256 cores stays under this, too
    assert time.process_time() - begun < 2
    assert read.cpu.available
    assert flags(read, None, read_conditions(quick=True)) is not None


def test_a_quiet_run_raises_no_flag(tmp_path: Path, later) -> None:
    root = rk3588(tmp_path)
    write(root, {**zone(0, "soc-thermal", 50, passive=85), "sys/class/thermal/cooling_device0/cur_state": "0\n"})
    before = read_conditions(root)
    later(10)
    # ten seconds on 8 cores; this process took 9.9 s of them
    write(root, times(user=1000, idle=7000, own=990))
    assert flags(before, [], read_conditions(root)) == []


@pytest.mark.parametrize(
    ("changed", "topic"),
    [
        ({"sys/class/thermal/cooling_device0/cur_state": "1\n"}, "throttled: thermal-cpufreq-0 at step 1"),
        (times(user=3000, idle=5000, own=1000), "busy neighbour: other processes used 25%"),
        (times(user=1000, idle=6800, steal=200, own=1000), "busy neighbour: the hypervisor took 2%"),
        (cpufreq(8, now=1200, highest=2400, governor="performance"), "frequency fell: from 2400 to 1200 MHz"),
        (zone(0, "soc-thermal", 80.5, passive=85), "temperature: soc-thermal reached 80.5"),
    ],
)
def test_flags(changed: dict[str, str], topic: str, tmp_path: Path, later) -> None:
    root = rk3588(tmp_path)
    write(root, {**zone(0, "soc-thermal", 50, passive=85), "sys/class/thermal/cooling_device0/cur_state": "0\n"})
    # allowed on the first four cores alone
    before = read_conditions(root)
    assert before.cores.value == [0, 1, 2, 3]
    before = replace(before, cores=Reading([4, 5, 6, 7]))
    later(10)
    write(root, {**times(user=1000, idle=7000, own=1000), **changed})
    after = replace(read_conditions(root), cores=Reading([4, 5, 6, 7]))
    found = flags(before, None, after)
    assert len(found) == 1
    assert found[0].startswith(topic)


def test_a_governor_that_follows_the_load_is_flagged(tmp_path: Path) -> None:
    read = read_conditions(raspberry_pi(tmp_path))
    assert any(flag.startswith("governor: ondemand") for flag in flags(read, None, read))


def test_throttling_that_began_in_between_is_flagged(tmp_path: Path) -> None:
    before = read_conditions(raspberry_pi(tmp_path, throttled="10000"))
    during = read_conditions(raspberry_pi(tmp_path, throttled="20002"))
    after = read_conditions(raspberry_pi(tmp_path, throttled="30000"))
    found = [flag for flag in flags(before, during, after) if flag.startswith("throttled")]
    # under-voltage was there before the run and is not the run's
    assert found == ["throttled: frequency capped, frequency capped (in between)"]


def test_thermal_counters_of_x86_are_compared(tmp_path: Path) -> None:
    before, after = read_conditions(pc(tmp_path)), read_conditions(pc(tmp_path, throttles=3))
    found = [flag for flag in flags(before, None, after) if flag.startswith("throttled")]
    assert found == ["throttled: core_throttle_count rose by 6, package_throttle_count rose by 3"]


def test_a_clock_that_falls_only_while_idle_is_no_fall(tmp_path: Path) -> None:
    busy = read_conditions(raspberry_pi(tmp_path))
    idle = read_conditions(write(tmp_path, cpufreq(4, now=600, highest=1800)))
    # ondemand: what counts is the clock under load
    assert not any("frequency fell" in flag for flag in flags(idle, [busy, busy], idle))
    assert any("frequency fell" in flag for flag in flags(idle, [busy, idle], idle))


def test_the_quota_of_a_container_is_throttling(tmp_path: Path, later) -> None:
    group = {"proc/self/cgroup": "0::/box\n", "sys/fs/cgroup/box/cpu.max": "150000 100000\n"}
    root = write(tmp_path, {**group, "sys/fs/cgroup/box/cpu.stat": "nr_throttled 1\nthrottled_usec 1000000\n"})
    before = read_conditions(root)
    later(10)
    write(root, {"sys/fs/cgroup/box/cpu.stat": "nr_throttled 9\nthrottled_usec 3500000\n"})
    assert flags(before, None, read_conditions(root)) == ["throttled: cgroup quota stopped it for 2.50 of 10.00 s"]


def test_without_processor_times_the_load_before_tells(tmp_path: Path) -> None:
    read = read_conditions(write(tmp_path, {"proc/loadavg": "3.5 1 1 1/1 1\n"}))
    read = replace(read, cores=Reading([0, 1]))
    assert flags(read, None, read) == ["busy neighbour: the load average was 3.5 on 2 cores before it began"]
    assert flags(replace(read, load_average=Reading(0.2)), None, read) == []
