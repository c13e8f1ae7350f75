"""The roofline of a network on a board: per layer the greater of what computing and what moving its data would take.

S. Williams, A. Waterman and D. Patterson, Roofline: an insightful visual performance model for multicore
architectures, CACM 52(4), 2009. It knows the peaks of the board and nothing of the engine: what an engine reaches of
them is found by `edgevision.devices.calibration`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgevision.devices.boards import Device
from edgevision.devices.cores import CORES
from edgevision.devices.figures import Figure
from edgevision.devices.layers import LayerCost
from edgevision.devices.registry import cpu_peak, gpu_peak
from edgevision.errors import UsageError

# operations per second of one unit of a peak rate
_UNITS = {"GFLOPS": 1e9, "GOPS": 1e9, "TFLOPS": 1e12, "TOPS": 1e12}


@dataclass(frozen=True)
class LayerTime:
    """Least time of one layer, milliseconds.

    Attributes:
        layer: what it computes and moves.
        compute_ms: its multiplications and additions at the peak rate.
        memory_ms: its bytes at the memory's bandwidth; 0 where that is not known.
    """

    layer: LayerCost
    compute_ms: float
    memory_ms: float

    @property
    def ms(self) -> float:
        """The greater of the two."""
        return max(self.compute_ms, self.memory_ms)


@dataclass(frozen=True)
class Roofline:
    """Least time of a network, milliseconds, with what it rests on.

    Attributes:
        layers: least time of each layer.
        unit: ``cpu`` or ``gpu``.
        threads: cores that work; 0 for a GPU.
        ghz: clock of the cores that work; 1 for a GPU.
        unverified: sources of figures that were not looked up.
        notes: what the figures do not cover.
    """

    layers: tuple[LayerTime, ...]
    unit: str
    threads: int
    ghz: float
    unverified: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ms(self) -> float:
        """Of the whole network: its layers one after another."""
        return sum(layer.ms for layer in self.layers)

    @property
    def memory_share(self) -> float:
        """Share of the time in layers that wait for the memory, 0..1."""
        return sum(layer.ms for layer in self.layers if layer.memory_ms > layer.compute_ms) / self.ms

    @property
    def terms(self) -> dict[str, float]:
        """What an engine's time may be made of, each in milliseconds of this board.

        ``roofline``; ``depthwise``: depthwise layers at the peak rate, of which they reach little; ``moved``: a cycle
        of one core for every byte, since most come from caches, which run with the cores; ``layers``: a million cycles
        for each layer.
        """
        depthwise = sum(time.compute_ms for time in self.layers if time.layer.kind == "depthwise")
        moved = sum(time.layer.moved_bytes for time in self.layers)
        return {
            "roofline": self.ms,
            "depthwise": depthwise,
            "moved": moved / (1e6 * self.ghz * max(1, self.threads)),
            "layers": len(self.layers) / self.ghz,
        }


def roofline(layers: Sequence[LayerCost], device: Device, engine: str, threads: int | None = None) -> Roofline:
    """Least time of a network on a board.

    Args:
        layers: at batch 1.
        device: the board.
        engine: ``tensorrt`` runs on the GPU, the others on the processor.
        threads: cores that work; by default those of the fastest kind.

    Raises:
        UsageError: the board has no such unit, or the registry has no rate of it.
    """
    unit = "gpu" if engine == "tensorrt" else "cpu"
    cores = sum(cluster.count for cluster in device.clusters)
    working = min(cores, threads or (device.clusters[0].count if device.clusters else 1))
    peaks = {layer.precision: _peak(device, unit, layer.precision, working) for layer in layers if layer.macs}
    times = []
    for layer in layers:
        operations = 2 * layer.macs
        compute = operations / _per_second(peaks[layer.precision]) * 1e3 if layer.macs else 0.0
        memory = 0.0 if device.bandwidth is None else layer.moved_bytes / (device.bandwidth.number * 1e9) * 1e3
        times.append(LayerTime(layer, compute, memory))
    used = [*peaks.values(), *([] if device.bandwidth is None else [device.bandwidth])]
    unverified = tuple(dict.fromkeys(figure.source for figure in used if not figure.verified))
    notes = _notes(device, unit, peaks)
    if unit == "gpu":
        return Roofline(tuple(times), unit, 0, 1.0, unverified, notes)
    ghz = device.clusters[0].mhz.number / 1000
    return Roofline(tuple(times), unit, working, ghz, unverified, notes)


def _notes(device: Device, unit: str, precisions: Iterable[str]) -> tuple[str, ...]:
    notes = []
    if device.bandwidth is None:
        notes.append("the bandwidth of its memory is not known: computing alone is reckoned")
    rates = (
        [CORES[cluster.core].rates for cluster in device.clusters] if unit == "cpu" else [device.accelerators["gpu"]]
    )
    missing = [precision for precision in precisions if any(precision not in known for known in rates)]
    notes += [f"no {name.upper()} arithmetic: reckoned at the rate of the next wider type" for name in missing]
    return tuple(notes)


def _peak(device: Device, unit: str, precision: str, threads: int) -> Figure:
    if unit == "gpu":
        figure = gpu_peak(device, precision)
        if figure is None:
            raise UsageError(f"{device.title} has no NVIDIA GPU with a known rate: TensorRT cannot be estimated on it")
        return figure
    figure = cpu_peak(device, precision, threads)
    if figure is None:
        named = ", ".join(CORES[cluster.core].title for cluster in device.clusters)
        raise UsageError(f"{device.title}: the registry has no rates of its cores ({named}), so there is no estimate")
    return figure


def _per_second(figure: Figure) -> float:
    return figure.number * _UNITS[figure.unit]
