"""Which preprocess a model gets, and whether it fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevision.dependencies import require
from edgevision.errors import UsageError
from edgevision.preprocess import PRESETS, Preprocess
from edgevision.registry import unknown_name

if TYPE_CHECKING:
    from edgevision.graph import Graph

_KEYS = "size, resize, resize_to, interpolation, color, scale, mean, std, layout, pad_value"


def load_preprocess(source: str | Path | Preprocess) -> Preprocess:
    """A preset by name, a TOML file, or a `Preprocess` as it is.

    Raises:
        UsageError: no such preset or file, or the file has an unknown key or a wrong value.
    """
    if isinstance(source, Preprocess):
        return source
    if str(source) in PRESETS:
        return PRESETS[str(source)]
    path = Path(source)
    if path.suffix != ".toml":
        raise UsageError(unknown_name("preprocess", str(source), PRESETS) + " Or name a TOML file with: " + _KEYS)
    values = read_toml(path)
    try:
        return Preprocess.from_dict(values.get("preprocess", values))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def fit_preprocess(given: str | Path | Preprocess | None, known: Preprocess | None, graph: Graph) -> Preprocess:
    """The preprocess of a model: the caller's, else the source's; presets are fitted to the graph's input size.

    Raises:
        UsageError: nobody says how pictures become the input, or it does not fit the graph's input.
    """
    _, channels, height, width = graph.input_shape
    assert height is not None
    assert width is not None
    if given is None and known is None:
        raise UsageError(
            f"how do pictures become {graph.input_name} [{channels}, {height}, {width}]? Say it with --preprocess: "
            f"{', '.join(PRESETS)}, or a TOML file with {_KEYS}"
        )
    chosen = known if given is None else load_preprocess(given)
    assert chosen is not None
    is_preset = given is None or str(given) in PRESETS
    if chosen.size != (height, width) and is_preset:
        chosen = chosen.with_size(height, width)
    if chosen.size != (height, width) or chosen.channels != channels:
        raise UsageError(
            f"the preprocess makes [{chosen.channels}, {chosen.size[0]}, {chosen.size[1]}]; "
            f"the network's input {graph.input_name} is [{channels}, {height}, {width}]"
        )
    if chosen.layout != "NCHW":
        raise UsageError("the canonical graph is NCHW: leave layout out of the preprocess, or say NCHW")
    return chosen


def read_toml(path: str | Path) -> dict[str, Any]:
    """A TOML file as plain values.

    Raises:
        UsageError: the file is missing or no TOML.
    """
    try:
        import tomllib as toml
    except ImportError:  # Python 3.10
        toml = require("tomli", purpose="read TOML files")
    try:
        return dict(toml.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such TOML file") from None
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: not a readable TOML file: {error}") from error
