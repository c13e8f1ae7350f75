from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgevision import progress
from edgevision.cli import main
from tests.conformance.nets import NAMES, save_net, write_pictures

TARGETS = ("onnxruntime", "openvino", "ncnn", "tensorrt")


@dataclass(frozen=True)
class Outcome:
    """What one call of the command line did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as strict JSON: NaN and infinity are no JSON."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def call(*argv: object) -> Outcome:
    """Run the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as stopped:  # argparse
            code = stopped.code if isinstance(stopped.code, int) else 1
        finally:
            progress.set_enabled(True)
    return Outcome(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class House:
    """A model, pictures and its bundles, made once by the command line itself."""

    root: Path
    model: Path
    pictures: Path
    labels: Path
    bundles: Path
    converted: Outcome

    def bundle(self, target: str, precision: str) -> Path:
        return self.bundles / f"tiny-{target}-{precision}.evb"

    def images(self, count: int) -> Sequence[Path]:
        return sorted((self.pictures / "images").iterdir())[:count]


@pytest.fixture(scope="session")
def house(tmp_path_factory) -> House:
    root = tmp_path_factory.mktemp("house")
    model = save_net(root / "tiny.onnx")
    pictures = root / "photos"
    write_pictures(pictures / "images", 24)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    bundles = root / "bundles"
    converted = call(
        "convert", model, "--precision", "fp32,int8", "--data", f"images:{pictures / 'images'}", "--preprocess", "unit",
        "--classes", root / "classes.txt", "-o", bundles, "--json",
    )  # fmt: skip
    assert converted.code == 0, converted.err
    # every picture's label is what the FP32 network says it is
    said = call("predict", bundles / "tiny-onnxruntime-fp32.evb", *sorted((pictures / "images").iterdir()), "--json")
    rows = [json.loads(line) for line in said.out.splitlines()]
    with (pictures / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "label"])
        writer.writerows([Path(row["image"]).name, row["name"]] for row in rows)
    with (pictures / "classes.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["name"], *([name] for name in NAMES)])
    return House(root, model, pictures, pictures / "labels.csv", bundles, converted)
