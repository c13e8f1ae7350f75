"""Boards and modules; a literal table, each figure with its source. `edgevision.devices.registry` reads it.

Peak rates of GPUs and NPUs are dense: a vendor's "sparse" rate is halved, since the networks made here are not pruned
2:4. GPU rates follow from CUDA cores and clock: 2 operations per core and cycle in FP32, 16 and 32 in FP16 and INT8 on
the tensor cores of Ampere, which agrees with the 171 sparse TOPS that NVIDIA gives for AGX Orin 64GB and the 20 dense
TOPS of Orin Nano 8GB.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgevision.devices.figures import Figure


@dataclass(frozen=True)
class Cluster:
    """Cores of one kind: how many, which (a key of `edgevision.devices.cores.CORES`), and their highest clock."""

    count: int
    core: str
    mhz: Figure

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {"count": self.count, "core": self.core, "mhz": self.mhz.to_dict()}


@dataclass(frozen=True)
class Device:
    """A board or module.

    Attributes:
        title: its name as people write it.
        clusters: kinds of cores, the fastest first.
        memory: of the board, GB; a board sold with several sizes has the greatest.
        bandwidth: of its memory, GB/s.
        accelerators: ``gpu``, ``dla`` or ``npu`` → precision → peak rate, TOPS or TFLOPS, dense.
        compute_capability: of an NVIDIA GPU.
        jetpack: last JetPack release for it.
        tensorrt: TensorRT of that release.
        power: configurable power, W.
        model: how ``/proc/device-tree/model`` begins or what it contains, in lower case; the longest match wins.
        compatible: entries of ``/proc/device-tree/compatible`` that name it, or their ends.
        note: what else there is to know.
    """

    title: str
    clusters: tuple[Cluster, ...]
    memory: Figure | None = None
    bandwidth: Figure | None = None
    accelerators: dict[str, dict[str, Figure]] = field(default_factory=dict)
    compute_capability: tuple[int, int] | None = None
    jetpack: Figure | None = None
    tensorrt: Figure | None = None
    power: Figure | None = None
    model: tuple[str, ...] = ()
    compatible: tuple[str, ...] = ()
    note: str = ""


_RPI = "Raspberry Pi documentation, Processors ({}), and the product brief"
_ORIN = "NVIDIA Jetson Orin Series Modules data sheet ({})"
_XAVIER = "NVIDIA Jetson {} Series System-on-Module data sheet"
_NVIDIA_TABLE = "NVIDIA, Jetson modules: technical specifications (developer.nvidia.com/embedded/jetson-modules)"
_THOR = "NVIDIA Jetson Thor Series Modules data sheet"
_RK3588 = "Rockchip RK3588 Datasheet"
_RK3566 = "Rockchip RK3566 Datasheet"
_SUPER = "NVIDIA, Jetson Orin Nano Developer Kit Gets a Super Boost (December 2024), and the data sheet"
_DLA = "github.com/NVIDIA/Deep-Learning-Accelerator-SW, README: GPU and DLA of AGX Orin 64GB by power mode"
_JETPACK_ARCHIVE = "NVIDIA, JetPack archive"


def _ampere(cuda_cores: int, mhz: float, source: str, verified: bool = False) -> dict[str, Figure]:
    """Dense rates of an Orin's GPU from its CUDA cores and clock."""
    tera = cuda_cores * mhz * 1e6 / 1e12
    said = f"{source}: {cuda_cores} CUDA cores at {mhz:g} MHz"
    return {
        "fp32": Figure(round(2 * tera, 2), "TFLOPS", said, verified),
        "fp16": Figure(round(16 * tera, 1), "TFLOPS", said, verified),
        "int8": Figure(round(32 * tera, 1), "TOPS", said, verified),
    }


def _a78ae(count: int, mhz: float, source: str, verified: bool = False) -> tuple[Cluster, ...]:
    return (Cluster(count, "cortex-a78ae", Figure(mhz, "MHz", source, verified)),)


_JP72 = Figure("7.2", "", "NVIDIA, JetPack 7.2 release notes (Jetson Linux 39)")
_TRT1016 = Figure("10.16", "", "NVIDIA, JetPack 7.2 release notes")
_JP51 = Figure("5.1.6", "", _JETPACK_ARCHIVE)
_TRT85 = Figure("8.5.2", "", "NVIDIA, JetPack 5.1 release notes")
_JP46 = Figure("4.6.6", "", _JETPACK_ARCHIVE)
_TRT82 = Figure("8.2.1", "", "NVIDIA, JetPack 4.6.1 release notes; TensorRT for Jetson release table", verified=True)

BOARDS: dict[str, Device] = {
    "jetson-nano": Device(
        "NVIDIA Jetson Nano 4GB",
        (Cluster(4, "cortex-a57", Figure(1430, "MHz", "NVIDIA Jetson Nano System-on-Module data sheet")),),
        memory=Figure(4, "GB", "NVIDIA Jetson Nano System-on-Module data sheet", verified=True),
        bandwidth=Figure(25.6, "GB/s", "NVIDIA Jetson Nano System-on-Module data sheet: LPDDR4, 64 bit", verified=True),
        accelerators={
            "gpu": {
                "fp32": Figure(0.236, "TFLOPS", "128 Maxwell CUDA cores at 921 MHz, data sheet", verified=True),
                "fp16": Figure(0.472, "TFLOPS", "128 Maxwell CUDA cores at 921 MHz, data sheet", verified=True),
            }
        },
        compute_capability=(5, 3),
        jetpack=_JP46,
        tensorrt=_TRT82,
        power=Figure("5, 10", "W", "NVIDIA Jetson Linux Developer Guide 32.7, Supported Modes and Power Efficiency"),
        model=("jetson nano",),
        compatible=("nvidia,p3450-0000", "nvidia,jetson-nano"),
        note="no INT8 arithmetic on the GPU: use FP16",
    ),
    "jetson-tx2": Device(
        "NVIDIA Jetson TX2",
        (
            Cluster(2, "denver-2", Figure(2000, "MHz", _XAVIER.format("TX2"))),
            Cluster(4, "cortex-a57", Figure(2000, "MHz", _XAVIER.format("TX2"))),
        ),
        memory=Figure(8, "GB", _XAVIER.format("TX2")),
        bandwidth=Figure(59.7, "GB/s", _NVIDIA_TABLE),
        accelerators={
            "gpu": {
                "fp32": Figure(0.67, "TFLOPS", "256 Pascal CUDA cores at 1.3 GHz, data sheet"),
                "fp16": Figure(1.33, "TFLOPS", _NVIDIA_TABLE),
            }
        },
        compute_capability=(6, 2),
        jetpack=_JP46,
        tensorrt=_TRT82,
        power=Figure("7.5, 15", "W", _NVIDIA_TABLE),
        model=("jetson tx2", "quill"),
        compatible=("nvidia,p2771-0000", "nvidia,quill"),
        note="no INT8 arithmetic on the GPU: use FP16",
    ),
    "jetson-xavier-nx": Device(
        "NVIDIA Jetson Xavier NX",
        (Cluster(6, "carmel", Figure(1900, "MHz", _XAVIER.format("Xavier NX"))),),
        memory=Figure(16, "GB", _XAVIER.format("Xavier NX")),
        bandwidth=Figure(59.7, "GB/s", _NVIDIA_TABLE),
        accelerators={
            "gpu": {
                "fp32": Figure(0.84, "TFLOPS", "384 Volta CUDA cores at 1.1 GHz, data sheet"),
                "fp16": Figure(6, "TFLOPS", _NVIDIA_TABLE),
                "int8": Figure(12, "TOPS", f"{_NVIDIA_TABLE}: 21 TOPS less those of two DLA"),
            },
            "dla": {"int8": Figure(9, "TOPS", f"{_NVIDIA_TABLE}: two NVDLA")},
        },
        compute_capability=(7, 2),
        jetpack=_JP51,
        tensorrt=_TRT85,
        power=Figure("10, 15, 20", "W", _NVIDIA_TABLE),
        model=("jetson xavier nx",),
        compatible=("p3668-0000", "p3668-0001", "p3668-0003"),
    ),
    "jetson-agx-xavier": Device(
        "NVIDIA Jetson AGX Xavier",
        (Cluster(8, "carmel", Figure(2265, "MHz", _XAVIER.format("AGX Xavier"))),),
        memory=Figure(64, "GB", _XAVIER.format("AGX Xavier")),
        bandwidth=Figure(136.5, "GB/s", _NVIDIA_TABLE),
        accelerators={
            "gpu": {
                "fp32": Figure(1.41, "TFLOPS", "512 Volta CUDA cores at 1.377 GHz, data sheet"),
                "fp16": Figure(11, "TFLOPS", _NVIDIA_TABLE),
                "int8": Figure(22, "TOPS", f"{_NVIDIA_TABLE}: 32 TOPS less those of two DLA"),
            },
            "dla": {"int8": Figure(10, "TOPS", f"{_NVIDIA_TABLE}: two NVDLA")},
        },
        compute_capability=(7, 2),
        jetpack=_JP51,
        tensorrt=_TRT85,
        power=Figure("10, 15, 30", "W", _NVIDIA_TABLE),
        model=("jetson-agx", "jetson agx xavier"),
        compatible=("nvidia,p2972-0000", "p2888-0001", "p2888-0004"),
    ),
    "jetson-orin-nano-4gb": Device(
        "NVIDIA Jetson Orin Nano 4GB",
        _a78ae(6, 1510, _ORIN.format("Orin Nano")),
        memory=Figure(4, "GB", _ORIN.format("Orin Nano"), verified=True),
        bandwidth=Figure(34, "GB/s", f"{_ORIN.format('Orin Nano')}: LPDDR5, 64 bit"),
        accelerators={"gpu": _ampere(512, 625, _ORIN.format("Orin Nano"), verified=True)},
        compute_capability=(8, 7),
        jetpack=_JP72,
        tensorrt=_TRT1016,
        power=Figure("7, 10", "W", _ORIN.format("Orin Nano")),
        compatible=("p3767-0004",),
        note="MAXN SUPER (JetPack 6.2 on) raises clocks and bandwidth: jetson-orin-nano-4gb-super",
    ),
    "jetson-orin-nano-4gb-super": Device(
        "NVIDIA Jetson Orin Nano 4GB, Super modes",
        _a78ae(6, 1728, _SUPER),
        memory=Figure(4, "GB", _ORIN.format("Orin Nano"), verified=True),
        bandwidth=Figure(51, "GB/s", _SUPER),
        accelerators={"gpu": _ampere(512, 1020, _SUPER)},
        compute_capability=(8, 7),
        jetpack=_JP72,
        tensorrt=_TRT1016,
        power=Figure("7, 10, 25, MAXN SUPER", "W", _SUPER),
    ),
    "jetson-orin-nano": Device(
        "NVIDIA Jetson Orin Nano 8GB",
        _a78ae(6, 1510, _ORIN.format("Orin Nano")),
        memory=Figure(8, "GB", _ORIN.format("Orin Nano"), verified=True),
        bandwidth=Figure(68, "GB/s", f"{_ORIN.format('Orin Nano')}: LPDDR5, 128 bit", verified=True),
        accelerators={"gpu": _ampere(1024, 625, _ORIN.format("Orin Nano"), verified=True)},
        compute_capability=(8, 7),
        jetpack=_JP72,
        tensorrt=_TRT1016,
        power=Figure("7, 15", "W", _ORIN.format("Orin Nano"), verified=True),
        model=("jetson orin nano",),
        compatible=("p3767-0003", "p3767-0005"),
        note="MAXN SUPER (JetPack 6.2 on) raises clocks and bandwidth: jetson-orin-nano-super",
    ),
    "jetson-orin-nano-super": Device(
        "NVIDIA Jetson Orin Nano 8GB, Super modes",
        _a78ae(6, 1700, _SUPER, verified=True),
        memory=Figure(8, "GB", _ORIN.format("Orin Nano"), verified=True),
        bandwidth=Figure(102, "GB/s", _SUPER, verified=True),
        accelerators={"gpu": _ampere(1024, 1020, _SUPER, verified=True)},
        compute_capability=(8, 7),
        jetpack=_JP72,
        tensorrt=_TRT1016,
        power=Figure("7, 15, 25, MAXN SUPER", "W", _SUPER, verified=True),
        model=("jetson orin nano engineering reference developer kit super", "jetson orin nano developer kit super"),
    ),
    "jetson-orin-nx-8gb": Device(
        "NVIDIA Jetson Orin NX 8GB",
        _a78ae(6, 2000, _ORIN.format("Orin NX")),
        memory=Figure(8, "GB", _ORIN.format("Orin NX"), verified=True),
        bandwidth=Figure(102.4, "GB/s", _ORIN.format("Orin NX")),
        accelerators={
            "gpu": _ampere(1024, 765, _ORIN.format("Orin NX")),
            "dla": {"int8": Figure(10, "TOPS", f"{_ORIN.format('Orin NX')}: one NVDLA v2, 20 sparse")},
        },
        compute_capability=(8, 7),
        jetpack=_JP72,
        tensorrt=_TRT1016,
        power=Figure("10, 15, 20 (Super: 40)", "W", _ORIN.format("Orin NX")),
        compatible=("p3767-0001",),
    ),
    "jetson-orin-nx": Device(
        "NVIDIA Jetson Orin NX 16GB",
        _a78ae(8, 2000, _ORIN.format("Orin NX")),
        memory=Figure(16, "GB", _ORIN.format("Orin NX"), verified=True),
        bandwidth=Figure(102.4, "GB/s", _ORIN.format("Orin NX")),
        accelerators={
            "gpu": _ampere(1024, 918, f"{_ORIN.format('Orin NX')}; CUDA deviceQuery of the module", verified=True),
            "dla": {"int8": Figure(20, "TOPS", f"{_ORIN.format('Orin NX')}: two NVDLA v2, 40 sparse")},
        },
        compute_capability=(8, 7),
        jetpack=_JP72,
        tensorrt=_TRT1016,
        power=Figure("10, 15, 25 (Super: 40)", "W", _ORIN.format("Orin NX"), verified=True),
        model=("jetson orin nx",),
        compatible=("p3767-0000",),
    ),
    "jetson-agx-orin-32gb": Device(
        "NVIDIA Jetson AGX Orin 32GB",
        _a78ae(8, 2188, _ORIN.format("AGX Orin")),
        memory=Figure(32, "GB", _ORIN.format("AGX Orin"), verified=True),
        bandwidth=Figure(204.8, "GB/s", _ORIN.format("AGX Orin")),
        accelerators={
            "gpu": _ampere(1792, 930, _ORIN.format("AGX Orin")),
            "dla": {"int8": Figure(46, "TOPS", f"{_ORIN.format('AGX Orin')}: two NVDLA v2, 92 sparse")},
        },
        compute_capability=(8, 7),
        jetpack=_JP72,
        tensorrt=_TRT1016,
        power=Figure("15 to 40", "W", _ORIN.format("AGX Orin")),
        compatible=("p3701-0000", "p3701-0004"),
    ),
    "jetson-agx-orin": Device(
        "NVIDIA Jetson AGX Orin 64GB",
        _a78ae(12, 2202, _ORIN.format("AGX Orin")),
        memory=Figure(64, "GB", _ORIN.format("AGX Orin"), verified=True),
        bandwidth=Figure(204.8, "GB/s", _ORIN.format("AGX Orin")),
        accelerators={
            "gpu": {
                "fp32": Figure(5.3, "TFLOPS", f"{_ORIN.format('AGX Orin')}: 2048 CUDA cores at 1.3 GHz"),
                "fp16": Figure(42.7, "TFLOPS", f"a quarter of the sparse INT8 rate of {_DLA}", verified=True),
                "int8": Figure(85.5, "TOPS", f"half of the 171 sparse TOPS of {_DLA}", verified=True),
            },
            "dla": {"int8": Figure(52.5, "TOPS", f"half of the 105 sparse TOPS of {_DLA}", verified=True)},
        },
        compute_capability=(8, 7),
        jetpack=_JP72,
        tensorrt=_TRT1016,
        power=Figure("15, 30, 50, MAXN", "W", _DLA, verified=True),
        model=("jetson agx orin",),
        compatible=("p3701-0005",),
    ),
    "jetson-agx-thor": Device(
        "NVIDIA Jetson AGX Thor (T5000)",
        (Cluster(14, "neoverse-v3ae", Figure(2601, "MHz", "lscpu of an AGX Thor Developer Kit", verified=True)),),
        memory=Figure(128, "GB", _THOR),
        bandwidth=Figure(273, "GB/s", f"{_THOR}: LPDDR5X, 256 bit"),
        accelerators={
            "gpu": {
                "fp16": Figure(259, "TFLOPS", f"{_THOR}: an eighth of 2070 sparse FP4"),
                "int8": Figure(517, "TOPS", f"{_THOR}: a quarter of 2070 sparse FP4"),
            }
        },
        compute_capability=(11, 0),
        jetpack=_JP72,
        tensorrt=_TRT1016,
        power=Figure("40 to 130", "W", _THOR, verified=True),
        model=("jetson agx thor", "jetson thor"),
        compatible=("p3834-0008",),
    ),
    "raspberry-pi-3b-plus": Device(
        "Raspberry Pi 3 Model B+",
        (Cluster(4, "cortex-a53", Figure(1400, "MHz", _RPI.format("BCM2837B0"))),),
        memory=Figure(1, "GB", _RPI.format("BCM2837B0")),
        bandwidth=Figure(3.6, "GB/s", f"{_RPI.format('BCM2837B0')}: LPDDR2-900, 32 bit"),
        model=("raspberry pi 3 model b plus", "raspberry pi 3 model b"),
        compatible=("raspberrypi,3-model-b-plus",),
    ),
    "raspberry-pi-4": Device(
        "Raspberry Pi 4 Model B",
        (Cluster(4, "cortex-a72", Figure(1800, "MHz", f"{_RPI.format('BCM2711')}: 1.5 GHz in early revisions")),),
        memory=Figure(8, "GB", _RPI.format("BCM2711")),
        bandwidth=Figure(12.8, "GB/s", f"{_RPI.format('BCM2711')}: LPDDR4-3200, 32 bit; programs get much less"),
        model=("raspberry pi 4", "raspberry pi compute module 4", "raspberry pi 400"),
        compatible=("raspberrypi,4-model-b", "raspberrypi,4-compute-module", "raspberrypi,400"),
    ),
    "raspberry-pi-5": Device(
        "Raspberry Pi 5",
        (Cluster(4, "cortex-a76", Figure(2400, "MHz", _RPI.format("BCM2712"), verified=True)),),
        memory=Figure(16, "GB", _RPI.format("BCM2712")),
        bandwidth=Figure(17.1, "GB/s", f"{_RPI.format('BCM2712')}: LPDDR4X-4267, 32 bit", verified=True),
        model=("raspberry pi 5", "raspberry pi compute module 5", "raspberry pi 500"),
        compatible=("raspberrypi,5-model-b", "raspberrypi,5-compute-module", "raspberrypi,500"),
    ),
    "rk3588": Device(
        "Rockchip RK3588",
        (
            Cluster(4, "cortex-a76", Figure(2400, "MHz", f"{_RK3588}, microprocessor", verified=True)),
            Cluster(4, "cortex-a55", Figure(1800, "MHz", f"{_RK3588}, microprocessor", verified=True)),
        ),
        memory=Figure(32, "GB", _RK3588, verified=True),
        bandwidth=Figure(34.1, "GB/s", f"{_RK3588}: LPDDR4X-4266, 64 bit; boards with LPDDR5 have more"),
        accelerators={"npu": {"int8": Figure(6, "TOPS", f"{_RK3588}, NPU", verified=True)}},
        model=("rk3588",),
        compatible=("rockchip,rk3588", "rockchip,rk3588s"),
        note="the engines here run on the processor; the NPU needs Rockchip's RKNN",
    ),
    "rk3566": Device(
        "Rockchip RK3566",
        (Cluster(4, "cortex-a55", Figure(1800, "MHz", f"{_RK3566}, microprocessor", verified=True)),),
        memory=Figure(8, "GB", _RK3566, verified=True),
        bandwidth=Figure(8.5, "GB/s", f"{_RK3566}: LPDDR4-2112, 32 bit"),
        accelerators={"npu": {"int8": Figure(0.8, "TOPS", f"{_RK3566}, NPU", verified=True)}},
        model=("rk3566",),
        compatible=("rockchip,rk3566",),
        note="the engines here run on the processor; the NPU needs Rockchip's RKNN",
    ),
}
