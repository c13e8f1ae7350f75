"""`judge`: one bundle on this machine: can it run, do its INT8 layers gain, and does a measurement bear that out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevision.bundle import Bundle
from edgevision.devices.cpu import CpuInfo, cpu_info
from edgevision.devices.gpu import Gpu, nvidia_gpus
from edgevision.devices.layers import LayerCost, depthwise_share, integer_share, layer_costs, least_memory_bytes
from edgevision.devices.registry import Match, recognize
from edgevision.devices.roofline import roofline
from edgevision.devices.runtimes import RUNTIMES, doubt_lines, parse_version, runtime
from edgevision.devices.sensors import guarded, memory_available
from edgevision.devices.verdicts import Verdict, verdicts
from edgevision.errors import EdgeVisionError, UsageError

# share of the free memory that the bundle alone may take: the engine's own working memory comes on top
_MEMORY_SHARE = 0.5
# less of the work than this in INT8 gains too little to foretell a gain
_LEAST_INTEGER_SHARE = 0.3
# INT8 is quicker or slower only beyond this; the clocks of a shared machine waver by as much
_SAME = 0.03

# bundle path, seconds → run times in nanoseconds, in a process of their own
Timer = Callable[[str, float], Sequence[int]]


@dataclass(frozen=True)
class Proof:
    """What the measurement says.

    Attributes:
        int8_ms: median of each turn of the INT8 bundle.
        fp32_ms: of its float sibling.
        ratio: INT8's time over the float one's, median over turns.
        low: least of the turns' ratios.
        high: greatest.
        faster: whether INT8 is faster: by more than 3% in every turn; None where turns disagree or it is about equal.
    """

    int8_ms: tuple[float, ...]
    fp32_ms: tuple[float, ...]
    ratio: float
    low: float
    high: float
    faster: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON takes them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}


def judge(
    path: str | Path,
    sibling: str | Path | None = None,
    *,
    root: Path = Path("/"),
    timer: Timer | None = None,
    seconds: float = 10.0,
    turns: int = 3,
) -> dict[str, Any]:
    """Judge a bundle on this machine.

    Args:
        path: the bundle.
        sibling: the float bundle of the same model for the same engine, to compare an INT8 one with; by default it is
            looked for beside the bundle.
        root: where ``proc``, ``sys`` and ``etc`` lie.
        timer: measures a bundle; None measures nothing.
        seconds: of measuring, in all.
        turns: the bundles are measured alternately so many times.

    Returns:
        Plain values: ``bundle``, ``model``, ``target``, ``precision``; ``runtime`` (see
        `edgevision.devices.runtimes.runtime`); ``doubts``: what speaks against it, each ``what`` and ``mend``;
        ``prediction``: ``int8_expected_to_help`` and ``why``, None for a float bundle; ``layers``: shares and sizes, or
        ``why`` they cannot be told; ``sibling``: path of the float bundle, or None; ``proof``: see `Proof`, or ``why``
        there is none; ``verdict``: one sentence.

    Raises:
        BundleError: a bundle cannot be opened.
        UsageError: ``sibling`` is no float bundle of the same model and engine.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    cpu = cpu_info(root)
    gpus, why_no_gpu = nvidia_gpus()
    other = _sibling(bundle, sibling)
    layers, why = _layers(bundle)
    state = _runtime_of(manifest.target, root, cpu, gpus, why_no_gpu)
    doubts = [*_runtime_doubts(state, bundle), *_memory_doubts(layers, root)]
    prediction = None
    if manifest.precision == "int8" and manifest.target in RUNTIMES:
        expected = verdicts(cpu, gpus, why_no_gpu)[manifest.target]
        prediction = _prediction(expected, layers, recognize(root), manifest.target)
    proof, why_no_proof = None, "nothing was measured"
    if timer is not None and state["installed"]:
        proof, why_no_proof = _prove(bundle, other, timer, seconds, turns)
    elif not state["installed"]:
        why_no_proof = f"{manifest.target} is not installed: {state['install']}"
    return {
        "bundle": str(bundle.path or manifest.name),
        "model": manifest.name,
        "target": manifest.target,
        "precision": manifest.precision,
        "runtime": state,
        "doubts": doubts,
        "prediction": None if prediction is None else vars(prediction),
        "layers": _layer_report(layers) if layers else {"why": why},
        "sibling": None if other is None else str(other.path),
        "proof": proof.to_dict() if proof is not None else {"why": why_no_proof},
        "verdict": _verdict(manifest.precision, prediction, proof, why_no_proof),
    }


def compare(int8: Sequence[Sequence[int]], fp32: Sequence[Sequence[int]]) -> Proof:
    """Alternate turns of two bundles, run times in nanoseconds.

    Raises:
        ValueError: no turns, or an empty one.
    """
    ours = tuple(statistics.median(turn) / 1e6 for turn in int8)
    theirs = tuple(statistics.median(turn) / 1e6 for turn in fp32)
    ratios = sorted(mine / float_ms for mine, float_ms in zip(ours, theirs, strict=True))
    faster = True if ratios[-1] < 1 - _SAME else False if ratios[0] > 1 + _SAME else None
    return Proof(ours, theirs, statistics.median(ratios), ratios[0], ratios[-1], faster)


def describe(report: dict[str, Any]) -> str:
    """What `judge` found, as text for a terminal."""
    lines = [f"{report['bundle']}: {report['model']}, {report['target']}, {report['precision']}"]
    state = report["runtime"]
    lines.append(f"  runtime       {state['version'] or ('installed' if state['installed'] else 'missing')}")
    layers = report["layers"]
    if "why" in layers:
        lines.append(f"  layers        not available: {layers['why']}")
    else:
        lines.append(
            f"  layers        {layers['macs'] / 1e6:.1f} M multiplications, {layers['integer_share']:.0%} of them in "
            f"INT8, {layers['depthwise_share']:.0%} in depthwise layers; at least "
            f"{layers['least_memory_bytes'] / 1e6:.1f} MB of memory"
        )
    lines += doubt_lines(report["doubts"])
    if (prediction := report["prediction"]) is not None:
        answer = {True: "INT8 should help", False: "INT8 should not help", None: "only a measurement can tell"}
        lines.append(f"  predicted     {answer[prediction['int8_expected_to_help']]}: {prediction['why']}")
    proof = report["proof"]
    if "why" in proof:
        lines.append(f"  measured      {proof['why']}")
    else:
        lines.append(
            f"  measured      INT8 takes {proof['ratio']:.2f} of FP32's time ({proof['low']:.2f} to "
            f"{proof['high']:.2f} in {len(proof['int8_ms'])} turns): {statistics.median(proof['int8_ms']):.2f} ms "
            f"against {statistics.median(proof['fp32_ms']):.2f} ms, one thread"
        )
    lines.append(f"  verdict       {report['verdict']}")
    return "\n".join(lines)


def _runtime_of(target: str, root: Path, cpu: CpuInfo, gpus: tuple[Gpu, ...], why_no_gpu: str) -> dict[str, Any]:
    if target not in RUNTIMES:
        # a third party's engine: nothing is known of it but whether its backend is there
        from edgevision.runtime import BACKENDS

        return {"installed": target in BACKENDS, "version": None, "install": "see its documentation", "doubts": []}
    return runtime(target, cpu, gpus, why_no_gpu, root=root)


def _runtime_doubts(state: dict[str, Any], bundle: Bundle) -> list[dict[str, str]]:
    target = bundle.manifest.target
    if not state["installed"]:
        return [{"what": f"{target} is not installed", "mend": state["install"]}]
    doubts = list(state["doubts"])
    versions = bundle.manifest.provenance.get("versions")
    made = versions.get(target) if isinstance(versions, dict) else None
    if made and state["version"] and parse_version(state["version"]) < parse_version(str(made)):
        doubts.append(
            {
                "what": f"the bundle was made and checked with {target} {made}, and {state['version']} is installed",
                "mend": f'pip install --upgrade "edgevision[{target}]", or see that edgevision verify passes',
            }
        )
    return doubts


def _memory_doubts(layers: Sequence[LayerCost], root: Path) -> list[dict[str, str]]:
    if not layers:
        return []
    available = guarded(lambda: memory_available(root))
    if not available.available:
        return []
    needed = least_memory_bytes(layers)
    if needed <= _MEMORY_SHARE * available.value:
        return []
    what = f"its weights and greatest layer take {needed / 1e6:.0f} MB, and {available.value / 1e6:.0f} MB are free"
    return [{"what": what, "mend": "end other programs, add swap, or take a smaller model"}]


def _layers(bundle: Bundle) -> tuple[list[LayerCost], str]:
    try:
        return layer_costs(bundle), ""
    except EdgeVisionError as error:
        return [], str(error)


def _layer_report(layers: Sequence[LayerCost]) -> dict[str, Any]:
    return {
        "macs": sum(layer.macs for layer in layers),
        "weights": sum(layer.weights for layer in layers),
        "depthwise_share": depthwise_share(layers),
        "integer_share": integer_share(layers),
        "least_memory_bytes": least_memory_bytes(layers),
    }


def _prediction(expected: Verdict, layers: Sequence[LayerCost], match: Match, target: str) -> Verdict:
    """The engine's prospects on this processor, seen through what of this network is in INT8 at all."""
    if not layers:
        return expected
    share, depthwise = integer_share(layers), depthwise_share(layers)
    if share < _LEAST_INTEGER_SHARE:
        return Verdict(False, f"only {share:.0%} of the multiplications are in INT8, so there is little to gain")
    why = expected.why
    if share < 1:
        why += f". {share:.0%} of the multiplications are in INT8"
    if depthwise > 0.02:
        why += f". {depthwise:.0%} are in depthwise layers, which give a dot product little to add up"
    if expected.int8_expected_to_help and (limit := _limit(layers, match, target)) is not None:
        why += f". By the registry's peak rates it takes {limit:.2f} of FP32's time at best"
    return Verdict(expected.int8_expected_to_help, why)


def _limit(layers: Sequence[LayerCost], match: Match, target: str) -> float | None:
    """Least ratio of INT8's time to the float one's by rooflines; None where the registry does not know the board."""
    if match.device is None or match.device.bandwidth is None:
        return None
    wide = [replace(layer, precision="fp32") for layer in layers]
    try:
        return roofline(layers, match.device, target).ms / roofline(wide, match.device, target).ms
    except UsageError:
        return None


def _sibling(bundle: Bundle, given: str | Path | None) -> Bundle | None:
    """The float bundle to compare with: the one given, else one of the same name beside it."""
    manifest = bundle.manifest
    if given is not None:
        other = Bundle.open(given)
        theirs = other.manifest
        if theirs.precision == "int8" or (theirs.name, theirs.target) != (manifest.name, manifest.target):
            raise UsageError(
                f"{given} is {theirs.name} for {theirs.target} in {theirs.precision}; to compare with, give "
                f"{manifest.name} for {manifest.target} in fp32"
            )
        if manifest.precision != "int8":
            raise UsageError(f"{bundle.path} is {manifest.precision}; give the INT8 bundle first, then the float one")
        return other
    if manifest.precision != "int8" or bundle.path is None:
        return None
    for precision in ("fp32", "fp16"):
        place = bundle.path.with_name(bundle.path.name.replace("int8", precision))
        if place == bundle.path or not place.exists():
            continue
        try:
            return _sibling(bundle, place)
        except EdgeVisionError:
            continue
    return None


def _prove(bundle: Bundle, other: Bundle | None, timer: Timer, seconds: float, turns: int) -> tuple[Proof | None, str]:
    if bundle.manifest.precision != "int8":
        return _alone(bundle, timer, seconds, "it is no INT8 bundle, so there is nothing to compare")
    if other is None:
        name = f"{bundle.manifest.name}-{bundle.manifest.target}-fp32.evb"
        return _alone(bundle, timer, seconds, f"no float sibling to compare with: give one, such as {name}")
    ours: list[Sequence[int]] = []
    theirs: list[Sequence[int]] = []
    try:
        for _ in range(turns):
            for opened, times in ((bundle, ours), (other, theirs)):
                times.append(timer(str(opened.path), seconds / (2 * turns)))
    except EdgeVisionError as error:
        return None, f"it could not be measured: {error}"
    return compare(ours, theirs), ""


def _alone(bundle: Bundle, timer: Timer, seconds: float, why: str) -> tuple[None, str]:
    """Without a sibling the measurement says that it runs, and how long it takes."""
    try:
        times = timer(str(bundle.path), seconds)
    except EdgeVisionError as error:
        return None, f"it could not be measured: {error}"
    return None, f"{statistics.median(times) / 1e6:.2f} ms by itself; {why}"


def _verdict(precision: str, prediction: Verdict | None, proof: Proof | None, why_no_proof: str) -> str:
    if prediction is None:
        return f"a {precision} bundle: {why_no_proof}"
    if proof is None:
        return f"the prediction is not proved: {why_no_proof}"
    seen = {True: "INT8 is faster here", False: "INT8 is slower here", None: "INT8 is about as fast as float here"}
    expected = prediction.int8_expected_to_help
    if expected is None:
        return f"{seen[proof.faster]}, as measured"
    borne_out = expected == bool(proof.faster)
    return (
        f"{seen[proof.faster]}: the measurement {'bears the prediction out' if borne_out else 'refutes the prediction'}"
    )
