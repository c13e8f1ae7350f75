"""A stand-in engine that child processes find too: a distribution on the path with a backend entry point."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevision.bundle import GOLDEN, Bundle, Manifest, golden_bytes
from edgevision.preprocess import Preprocess
from edgevision.runtime import TensorSpec

ENGINE = """
import io, json, os, sys, time
import numpy as np
from edgevision.errors import EngineError

class Linear:
    version = "7.1"

    def __init__(self, bundle):
        self.behaviour = json.loads(bundle.engine_file("behaviour"))
        arrays = np.load(io.BytesIO(bundle.engine_file("model")), allow_pickle=False)
        self.weight = arrays["weight"]
        self.inputs = bundle.manifest.inputs
        self.output = bundle.manifest.outputs[0].name
        what = self.behaviour.get("load")
        if what == "refuse":
            raise EngineError("the stand-in refuses this model")
        if what == "abort":
            print("about to give up", file=sys.stderr, flush=True)
            os.abort()
        if what == "hang":
            time.sleep(60)
        if what == "exit":
            os._exit(9)
        if what == "bug":
            raise KeyError("weights")
        self.ballast = np.ones(self.behaviour.get("megabytes", 0) << 17)

    def infer(self, feed):
        # native engines write where they like; the answer of the child must survive it
        os.write(1, b"engine chatter\\n")
        time.sleep(self.behaviour.get("seconds", 0.0))
        x = feed[self.inputs[0].name]
        logits = x.reshape(len(x), -1) @ self.weight
        if self.behaviour.get("nan"):
            logits[::2] = np.nan
        return {self.output: logits.astype(np.float32)}

    def close(self):
        pass

def open_engine(bundle, options):
    return Linear(bundle)
"""

SIZE = 8
CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")

MakeBundle = Callable[..., Path]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Register the targets ``alpha``, ``beta`` and ``gamma``, all of the same stand-in engine."""
    site = tmp_path / "site"
    info = site / "stand_in_engine-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "stand_in_engine.py").write_text(ENGINE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stand-in-engine\nVersion: 1.0\n")
    lines = "\n".join(f"{name} = stand_in_engine:open_engine" for name in ("alpha", "beta", "gamma"))
    (info / "entry_points.txt").write_text(f"[edgevision.backends]\n{lines}\n")
    monkeypatch.syspath_prepend(str(site))
    return site


def linear_weight(noise: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((3 * SIZE * SIZE, len(CLASSES)))
    return (weight + noise * rng.standard_normal(weight.shape)).astype(np.float32)


@pytest.fixture
def make_bundle(stand_in: Path, tmp_path: Path) -> MakeBundle:
    def make(
        name: str,
        *,
        target: str = "alpha",
        precision: str = "fp32",
        model: str = "net",
        task: str = "classification",
        noise: float = 0.0,
        batch: int | None = None,
        golden: bool = False,
        **behaviour: Any,
    ) -> Path:
        stream = io.BytesIO()
        np.savez(stream, weight=linear_weight(noise))
        files = {"engine/model.npz": stream.getvalue(), "engine/behaviour.json": json.dumps(behaviour).encode()}
        if golden:
            images = np.random.default_rng(1).random((3, 3, SIZE, SIZE), np.float32)
            files[GOLDEN] = golden_bytes({"inputs": {"images": images}})
        manifest = Manifest(
            name=model,
            task=task,
            target=target,
            precision=precision,
            inputs=(TensorSpec("images", "float32", (batch, 3, SIZE, SIZE)),),
            outputs=(TensorSpec("logits", "float32", (batch, len(CLASSES))),),
            preprocess=Preprocess((SIZE, SIZE), mean=(0.5,) * 3, std=(0.5,) * 3),
            engine_files={"model": "engine/model.npz", "behaviour": "engine/behaviour.json"},
            classes=CLASSES if task == "classification" else (),
        )
        return Bundle(manifest, files).save(tmp_path / f"{name}.evb")

    return make


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """40 pictures labelled with what the noiseless linear net answers, every fifth of them wrongly."""
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(3)
    preprocess = Preprocess((SIZE, SIZE), mean=(0.5,) * 3, std=(0.5,) * 3)
    lines = ["file,label"]
    for index in range(40):
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index:02}.png")
        answer = int((preprocess(pixels).ravel() @ linear_weight()).argmax())
        label = (answer + 1) % len(CLASSES) if index % 5 == 0 else answer
        lines.append(f"{index:02}.png,{label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"
