"""Made-up /proc and /sys trees of boards and of a PC, with the files that the kernel would show there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

A72 = "Features\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"
A76 = "Features\t: fp asimd asimdhp asimddp crc32\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n"
A55 = "Features\t: fp asimd asimdhp asimddp crc32\nCPU implementer\t: 0x41\nCPU part\t: 0xd05\n"
A78AE = "Features\t: fp asimd asimdhp asimddp crc32\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n"

STAT = "cpu  {user} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu0 1 2 3 4\n"
# name of the process with a blank and a bracket in it, as prctl(PR_SET_NAME) allows
SELF_STAT = "77 (py thon) 3) R 1 77 77 0 -1 4194304 9 0 0 0 {user} {system} 0 0 20 0 1 0 100 0 0\n"


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Write these files under ``root``."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def cpuinfo(*cores: str) -> str:
    return "\n".join(f"processor\t: {number}\n{core}" for number, core in enumerate(cores))


def cpufreq(cores: int, *, now: int, highest: int, governor: str = "ondemand", first: int = 0) -> dict[str, str]:
    """cpufreq of some cores, MHz."""
    files = {}
    for core in range(first, first + cores):
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        files |= {
            f"{folder}/scaling_cur_freq": f"{now * 1000}\n",
            f"{folder}/scaling_max_freq": f"{highest * 1000}\n",
            f"{folder}/cpuinfo_max_freq": f"{highest * 1000}\n",
            f"{folder}/scaling_governor": f"{governor}\n",
        }
    return files


def zone(number: int, name: str, celsius: float, **trips: float) -> dict[str, str]:
    """A thermal zone with its trip points."""
    folder = f"sys/class/thermal/thermal_zone{number}"
    files = {f"{folder}/type": f"{name}\n", f"{folder}/temp": f"{round(celsius * 1000)}\n"}
    for index, (kind, degrees) in enumerate(trips.items()):
        files[f"{folder}/trip_point_{index}_type"] = f"{kind}\n"
        files[f"{folder}/trip_point_{index}_temp"] = f"{round(degrees * 1000)}\n"
    return files


def times(*, user: int, idle: int, steal: int = 0, own: int = 0) -> dict[str, str]:
    """Processor time, in ticks of 10 ms, and the load average."""
    return {
        "proc/stat": STAT.format(user=user, idle=idle, steal=steal),
        "proc/self/stat": SELF_STAT.format(user=own, system=0),
        "proc/loadavg": "0.10 0.20 0.30 1/100 77\n",
        "proc/self/status": "Name:\tpython\nCpus_allowed_list:\t0-3\n",
        "proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 3000000 kB\n",
    }


def raspberry_pi(root: Path, generation: int = 4, throttled: str = "0") -> Path:
    """A Raspberry Pi 4 or 5 with the kernel of Raspberry Pi OS."""
    core, highest = (A72, 1800) if generation == 4 else (A76, 2400)
    return write(
        root,
        {
            "proc/device-tree/model": f"Raspberry Pi {generation} Model B Rev 1.1\0",
            "proc/device-tree/compatible": f"raspberrypi,{generation}-model-b\0brcm,bcm2711\0",
            "proc/cpuinfo": cpuinfo(core, core, core, core),
            "sys/devices/platform/soc/soc:firmware/get_throttled": f"{throttled}\n",
            **cpufreq(4, now=highest, highest=highest),
            **zone(0, "cpu-thermal", 61.3, critical=110),
            **times(user=0, idle=0),
        },
    )


def jetson_orin(root: Path) -> Path:
    """A Jetson Orin Nano developer kit with JetPack 6."""
    hwmon = "sys/bus/i2c/devices/1-0040/hwmon/hwmon1"
    return write(
        root,
        {
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0",
            "proc/cpuinfo": cpuinfo(*[A78AE] * 6),
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n",
            "var/lib/nvpmodel/status": "pmode:0001 fmode:fanNull\n",
            **cpufreq(6, now=1510, highest=1510, governor="schedutil"),
            **zone(0, "cpu-thermal", 52.0, active=50, passive=99, critical=104.5),
            **zone(1, "PMIC-Die", -256.0),
            "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
            "sys/class/thermal/cooling_device0/cur_state": "3\n",
            "sys/class/thermal/cooling_device1/type": "cpufreq-cpu0\n",
            "sys/class/thermal/cooling_device1/cur_state": "0\n",
            "sys/class/hwmon/hwmon5/name": "soctherm_oc\n",
            "sys/class/hwmon/hwmon5/oc1_event_cnt": "0\n",
            f"{hwmon}/name": "ina3221\n",
            f"{hwmon}/in1_label": "VDD_IN\n",
            f"{hwmon}/in1_input": "5000\n",
            f"{hwmon}/curr1_input": "1200\n",
            f"{hwmon}/in2_label": "VDD_CPU_GPU_CV\n",
            f"{hwmon}/in2_input": "5000\n",
            f"{hwmon}/curr2_input": "300\n",
            f"{hwmon}/in3_label": "NC\n",
            f"{hwmon}/in3_input": "8\n",
            f"{hwmon}/curr3_input": "0\n",
            f"{hwmon}/in7_label": "sum of shunt voltages\n",
            f"{hwmon}/in7_input": "2\n",
            f"{hwmon}/curr7_input": "9\n",
            **times(user=0, idle=0),
        },
    )


def rk3588(root: Path) -> Path:
    """A board with an RK3588 and a mainline kernel."""
    return write(
        root,
        {
            "proc/device-tree/model": "Radxa ROCK 5B\0",
            "proc/device-tree/compatible": "radxa,rock-5b\0rockchip,rk3588\0",
            "proc/cpuinfo": cpuinfo(A55, A55, A55, A55, A76, A76, A76, A76),
            **cpufreq(4, now=1800, highest=1800, governor="performance"),
            **cpufreq(4, now=2400, highest=2400, governor="performance", first=4),
            **zone(0, "soc-thermal", 84.0, passive=85, critical=115),
            "sys/class/thermal/cooling_device0/type": "thermal-cpufreq-0\n",
            "sys/class/thermal/cooling_device0/cur_state": "2\n",
            **times(user=0, idle=0),
        },
    )


def pc(root: Path, *, package_uj: int = 1_000_000, dram_uj: int = 500_000, throttles: int = 0) -> Path:
    """An x86 PC with RAPL, whose counters wrap at 10 J."""
    core = "model name\t: Intel(R) Xeon(R) W-2295\nflags\t\t: sse4_1 avx f16c fma avx2 avx512f avx512bw avx512_vnni\n"
    rapl = "sys/class/powercap"
    thermal = "sys/devices/system/cpu/cpu{}/thermal_throttle"
    return write(
        root,
        {
            "proc/cpuinfo": cpuinfo(core, core),
            **cpufreq(2, now=3000, highest=4600, governor="powersave"),
            f"{rapl}/intel-rapl:0/name": "package-0\n",
            f"{rapl}/intel-rapl:0/energy_uj": f"{package_uj}\n",
            f"{rapl}/intel-rapl:0/max_energy_range_uj": "10000000\n",
            f"{rapl}/intel-rapl:0:0/name": "core\n",
            f"{rapl}/intel-rapl:0:0/energy_uj": "400000\n",
            f"{rapl}/intel-rapl:0:0/max_energy_range_uj": "10000000\n",
            f"{rapl}/intel-rapl:0:1/name": "dram\n",
            f"{rapl}/intel-rapl:0:1/energy_uj": f"{dram_uj}\n",
            f"{rapl}/intel-rapl:0:1/max_energy_range_uj": "10000000\n",
            "sys/class/hwmon/hwmon2/name": "coretemp\n",
            "sys/class/hwmon/hwmon2/temp1_label": "Package id 0\n",
            "sys/class/hwmon/hwmon2/temp1_input": "55000\n",
            "sys/class/hwmon/hwmon2/temp1_max": "94000\n",
            "sys/firmware/acpi/platform_profile": "balanced\n",
            **{f"{thermal.format(core)}/core_throttle_count": f"{throttles}\n" for core in range(2)},
            **{f"{thermal.format(core)}/package_throttle_count": f"{throttles}\n" for core in range(2)},
            **times(user=0, idle=0),
        },
    )
