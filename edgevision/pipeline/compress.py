"""`convert --compress`: shared weights before the lowering, packed files after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgevision.bundle import GOLDEN, Bundle
from edgevision.compression.packing import pack
from edgevision.errors import UsageError
from edgevision.progress import track

if TYPE_CHECKING:
    from edgevision.graph import Graph
    from edgevision_calibration.plan import QuantPlan
    from edgevision_calibration.table import CalibrationTable
    from edgevision_calibration.weight_sharing import SharedNet

LOSSLESS = "lossless"
# pictures are most of a small bundle: a compressed one proves itself on fewer
GOLDEN_PICTURES = 2


def parse_compress(given: str | int | None) -> str | int | None:
    """``lossless`` or a number of bits, 1..8; None for no compression.

    Raises:
        UsageError: anything else.
    """
    if given is None or given == LOSSLESS:
        return given
    try:
        bits = int(given)
    except ValueError:
        bits = 0
    if not 1 <= bits <= 8:
        raise UsageError(f"--compress takes a number of bits for each weight, 1 to 8, or {LOSSLESS}; got {given!r}")
    return bits


def shared_bits(compress: str | int | None) -> int | None:
    """Bits that weights are to share; None where they stay as they are."""
    return None if compress in (None, LOSSLESS) else int(compress)


def name_suffix(compress: str | int | None) -> str:
    """What a compressed bundle's name has behind the precision, so that it may lie beside the others."""
    if compress is None:
        return ""
    return f"-{LOSSLESS}" if compress == LOSSLESS else f"-{compress}bit"


def shared_net(
    graph: Graph, plan: QuantPlan | None, table: CalibrationTable | None, compress: str | int | None
) -> SharedNet:
    """The net that is lowered: with shared weights where these are asked for, else as it is."""
    from edgevision_calibration.weight_sharing import SharedNet, share_weights

    if compress is None:
        return SharedNet(graph, plan, ())
    return share_weights(graph, shared_bits(compress), plan=plan, table=table)


def compression_provenance(net: SharedNet, compress: str | int | None) -> dict[str, Any]:
    """What a manifest says of shared weights; nothing where there are none."""
    if not net.layers:
        return {}
    return {"compression": {"bits": shared_bits(compress), "layers": net.layers}}


def packed(bundle: Bundle, net: SharedNet) -> Bundle:
    """The bundle with every file packed."""
    engine = set(bundle.manifest.engine_files.values())
    files = {name: bundle.read(name) for name in bundle.files}
    forms = {
        name: pack(data, net.tensors if name in engine else (), pictures=name == GOLDEN)
        for name, data in track(files.items(), "compress", len(files))
    }
    return Bundle(bundle.manifest, files, packed=forms)
