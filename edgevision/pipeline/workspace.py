"""What a conversion keeps beside its bundles, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevision.data.base import Sample
from edgevision.errors import CalibrationError, ModelError
from edgevision.files import sha256_file

if TYPE_CHECKING:
    from edgevision.graph import Graph
    from edgevision_calibration.table import CalibrationTable

FOLDER = ".edgevision"


class Workspace:
    """The folder ``.edgevision`` beside the bundles: graphs and calibration tables, named by what they came from.

    Everything in it can be deleted; it is made again when it is needed.
    """

    def __init__(self, out: str | Path) -> None:
        self.root = Path(out) / FOLDER

    def graph_path(self, sha256: str) -> Path:
        """Where the graph with this hash is kept."""
        return self.root / "graphs" / f"{sha256[:16]}.onnx"

    def keep_graph(self, graph: Graph) -> None:
        """Store a graph under its hash, for ``verify --layers``."""
        path = self.graph_path(graph.sha256)
        if not path.exists():
            graph.save(path)

    def find_graph(self, sha256: str) -> Graph | None:
        """A graph stored by `keep_graph`; None where there is none, or where it has been changed."""
        from edgevision.graph import Graph

        path = self.graph_path(sha256)
        if not path.exists():
            return None
        try:
            graph = Graph.open(path)
        except ModelError:
            return None
        return graph if graph.sha256 == sha256 else None

    def keep_calibration(self, key: str, graph: Graph, table: CalibrationTable) -> None:
        """Store a treated graph and the table observed on it."""
        self.keep_graph(graph)
        table.save(self.root / "tables" / key)

    def find_calibration(self, key: str) -> tuple[Graph, CalibrationTable] | None:
        """What `keep_calibration` stored; None where there is nothing or it is damaged."""
        from edgevision_calibration.table import CalibrationTable

        folder = self.root / "tables" / key
        if not (folder / "table.json").exists():
            return None
        try:
            table = CalibrationTable.open(folder)
        except CalibrationError:
            return None
        graph = self.find_graph(table.graph_sha256)
        return None if graph is None else (graph, table)


def digest_of(*parts: Any) -> str:
    """Short hash of plain values: equal parts, equal digest."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def digest_of_samples(samples: Iterable[Sample]) -> str:
    """Hash of the pictures' own bytes, in order."""
    digest = hashlib.sha256()
    for sample in samples:
        image = sample.image
        if isinstance(image, (str, Path)):
            try:
                digest.update(sha256_file(image).encode())
            except OSError:
                # the calibration pass will say what is wrong with it
                digest.update(str(image).encode())
        else:
            digest.update(np.asarray(image).tobytes())
    return digest.hexdigest()


__all__ = ["FOLDER", "Workspace", "digest_of", "digest_of_samples"]
