from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from edgevision.devices import cpu as cpu_module
from edgevision.devices import gpu as gpu_module
from edgevision.devices.cpu import CpuInfo, cgroup_quota, cpu_info, parse_cpuinfo, usable_cores
from edgevision.devices.gpu import Gpu, nvidia_gpus

XEON_VNNI = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz
cpu MHz\t\t: 2899.998
flags\t\t: fpu sse4_1 sse4_2 avx f16c fma avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz
cpu MHz\t\t: 2899.998
flags\t\t: fpu sse4_1 sse4_2 avx f16c fma avx2 avx512f avx512dq avx512bw avx512vl avx512_vnni
"""

HASWELL = """\
processor\t: 0
model name\t: Intel(R) Core(TM) i5-4590 CPU @ 3.30GHz
flags\t\t: fpu sse4_1 sse4_2 avx f16c fma avx2
"""

A53 = """\
processor\t: 0
BogoMIPS\t: 38.40
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd03
CPU revision\t: 4
"""

A76 = """\
processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs
CPU implementer\t: 0x41
CPU part\t: 0xd0b

processor\t: 1
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs
CPU implementer\t: 0x41
CPU part\t: 0xd0b

Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""


@pytest.mark.parametrize(
    ("text", "name", "features"),
    [
        (
            XEON_VNNI,
            "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz",
            ("sse4_1", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni"),
        ),
        (HASWELL, "Intel(R) Core(TM) i5-4590 CPU @ 3.30GHz", ("sse4_1", "avx", "f16c", "fma", "avx2")),
        (A53, "Cortex-A53", ("neon",)),
        (A76, "Cortex-A76", ("neon", "dotprod", "fp16")),
        ("", "", None),
        (
            "processor: 0\nCPU implementer: 0x51\nCPU part: 0x802\nFeatures: fp asimd\n",
            "Arm core 0x51/0x802",
            ("neon",),
        ),
        ("CPU implementer: ?\nCPU part: what\n", "Arm core 0x00/0x000", None),
    ],
)
def test_cpuinfo_of_known_processors(text: str, name: str, features: tuple[str, ...] | None) -> None:
    assert parse_cpuinfo(text) == (name, features)


def test_only_what_every_core_can_do_counts() -> None:
    mixed = "\n".join(
        f"processor: {n}\nFeatures: fp asimd {extra}\nCPU implementer: 0x41\nCPU part: {part}\n"
        for n, (extra, part) in enumerate([("asimddp i8mm", "0xd4e"), ("asimddp", "0xd46"), ("asimddp", "0xd46")])
    )
    assert parse_cpuinfo(mixed) == ("2× Cortex-A510 + 1× Cortex-X3", ("neon", "dotprod"))


def test_cpu_info_of_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(A76)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    found = cpu_info(tmp_path)
    assert (found.name, found.architecture, found.is_arm, found.is_x86) == ("Cortex-A76", "aarch64", True, False)
    assert found.has("i8mm", "dotprod")
    assert not found.has("i8mm")
    assert found.to_dict()["features"] == ["neon", "dotprod", "fp16"]


def test_without_cpuinfo_the_features_are_unknown_and_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    found = cpu_info(tmp_path)
    assert found.features is None
    assert "cannot be read" in found.why
    assert not found.has("avx2")


def test_macos_is_asked_by_sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "machdep.cpu.brand_string": "Apple M1",
        "hw.optional.AdvSIMD": "1",
        "hw.optional.arm.FEAT_DotProd": "1",
        "hw.optional.arm.FEAT_I8MM": "0",
    }
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    monkeypatch.setattr(cpu_module, "_sysctl", lambda key: answers.get(key, ""))
    found = cpu_info(tmp_path)
    assert (found.name, found.features) == ("Apple M1", ("neon", "dotprod"))
    intel = {
        "machdep.cpu.brand_string": "Intel(R) Core(TM) i7-1068NG7",
        "machdep.cpu.features": "FPU SSE4.1 AVX1.0 FMA F16C",
        "machdep.cpu.leaf7_features": "AVX2 AVX512F AVX512BW AVX512VNNI",
    }
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(cpu_module, "_sysctl", lambda key: intel.get(key, ""))
    assert cpu_info(tmp_path).features == (
        "sse4_1", "avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni",
    )  # fmt: skip


def test_this_machine_has_a_processor() -> None:
    found = cpu_info()
    assert found.name
    assert 1 <= found.usable_cores <= found.logical_cores


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_quota_of_cgroup_v2_is_the_least_of_the_chain(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/box/inner\n")
    write(tmp_path / "sys/fs/cgroup/box/inner/cpu.max", "max 100000\n")
    assert cgroup_quota(tmp_path) is None
    write(tmp_path / "sys/fs/cgroup/box/cpu.max", "150000 100000\n")
    assert cgroup_quota(tmp_path) == 1.5
    write(tmp_path / "sys/fs/cgroup/box/inner/cpu.max", "50000 100000\n")
    assert cgroup_quota(tmp_path) == 0.5


def test_quota_of_cgroup_v1(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/box\n")
    assert cgroup_quota(tmp_path) is None
    write(tmp_path / "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "250000\n")
    write(tmp_path / "sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
    assert cgroup_quota(tmp_path) == 2.5
    write(tmp_path / "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "-1\n")
    assert cgroup_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "expected"), [(None, 6), (0.2, 1), (1.5, 2), (4.0, 4), (64.0, 6)])
def test_usable_cores_are_affinity_cut_to_the_quota(
    quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(cpu_module, "cgroup_quota", lambda root: quota)
    assert usable_cores() == expected


@pytest.mark.parametrize(
    ("capability", "int8"),
    [
        ((5, 3), False),
        ((6, 0), False),
        ((6, 1), True),
        ((6, 2), False),
        ((7, 2), True),
        ((8, 7), True),
        ((11, 0), True),
    ],
)
def test_int8_of_gpus(capability: tuple[int, int], int8: bool) -> None:
    assert Gpu("gpu", capability).int8 is int8


class FakeDriver:
    """The five calls of libcuda that are made, for devices given as (name, major, minor)."""

    def __init__(self, devices: list[tuple[str, int, int]], init: int = 0, count: int = 0) -> None:
        self.devices, self.init, self.count = devices, init, count

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's names
        return self.init

    def cuDeviceGetCount(self, out) -> int:  # noqa: N802
        out._obj.value = len(self.devices)
        return self.count

    def cuDeviceGet(self, out, index: int) -> int:  # noqa: N802
        out._obj.value = index
        return 0

    def cuDeviceGetName(self, out, size: int, device) -> int:  # noqa: N802
        out.value = self.devices[device.value][0].encode()
        return 0

    def cuDeviceGetAttribute(self, out, attribute: int, device) -> int:  # noqa: N802
        out._obj.value = self.devices[device.value][{75: 1, 76: 2}[attribute]]
        return 0


def test_gpus_of_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver([("Orin", 8, 7), ("NVIDIA T4", 7, 5)])
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert nvidia_gpus() == ((Gpu("Orin", (8, 7)), Gpu("NVIDIA T4", (7, 5))), "")


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        (FakeDriver([], init=100), "cuInit returned 100"),
        (FakeDriver([], count=3), "cuDeviceGetCount returned 3"),
        (FakeDriver([]), "finds no GPU"),
    ],
)
def test_a_driver_without_gpus_says_why(driver: FakeDriver, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    gpus, reason = nvidia_gpus()
    assert gpus == ()
    assert why in reason


def test_no_driver_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    gpus, reason = gpu_module.nvidia_gpus()
    assert gpus == ()
    assert "no NVIDIA driver here" in reason


def info(architecture: str, *features: str) -> CpuInfo:
    return CpuInfo("cpu", architecture, 4, 4, features)


def test_windows_names_of_architectures_are_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    assert cpu_info(tmp_path).is_x86
    assert not info("riscv64").is_x86
    assert not info("riscv64").is_arm
