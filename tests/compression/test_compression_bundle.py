"""Compressed bundles: what is opened is what was saved, whatever has been done to the file is noticed."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from edgevision import bundle as module
from edgevision.bundle import GOLDEN, MANIFEST, Bundle, Manifest, _manifest_digest, golden_bytes
from edgevision.compression.codec import DEFLATE, STORED, STREAMS, encode
from edgevision.compression.packing import pack
from edgevision.errors import BundleError
from edgevision.files import sha256_bytes
from edgevision.preprocess import Preprocess
from edgevision.runtime.tensors import TensorSpec
from tests.compression.test_compression_codec import deflated

CONTENT = {"engine/model.bin": bytes(range(256)) * 40, GOLDEN: b""}


def bundle(packed: bool = True, **provenance) -> Bundle:
    manifest = Manifest(
        name="small",
        task="classification",
        target="ncnn",
        precision="fp32",
        inputs=(TensorSpec("images", "float32", (None, 3, 4, 4)),),
        outputs=(TensorSpec("logits", "float32", (None, 2)),),
        preprocess=Preprocess((4, 4)),
        engine_files={"bin": "engine/model.bin"},
        provenance=provenance,
    )
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    golden = golden_bytes(
        {"pixels": {"images": pixels}, "outputs": {"logits": np.zeros((2, 2), np.float32)}}, compress=not packed
    )
    files = {**CONTENT, GOLDEN: golden}
    return Bundle(manifest, files, packed={name: pack(data) for name, data in files.items()} if packed else None)


def rewritten(folder, change, *, seal: bool = True) -> None:
    """Change a bundle folder's manifest, and make its own hash right again."""
    values = json.loads((folder / MANIFEST).read_bytes())
    change(values)
    if seal:
        values["sha256"] = _manifest_digest(values)
    (folder / MANIFEST).write_text(json.dumps(values))


def replaced(folder, data: bytes, size: int) -> None:
    """Another packed form in the place of the engine's file, the manifest's stored hash made right."""
    (folder / "engine/model.bin").write_bytes(data)

    def change(values):
        entry = values["files"]["engine/model.bin"]
        entry["stored"] |= {"bytes": len(data), "sha256": sha256_bytes(data)}
        entry["bytes"] = size

    rewritten(folder, change)


@pytest.mark.parametrize("name", ["small.evb", "small"])
def test_what_is_saved_is_what_is_opened(tmp_path, name):
    saved = bundle()
    path = saved.save(tmp_path / name)
    opened = Bundle.open(path)
    assert {file: opened.read(file) for file in opened.files} == {file: saved.read(file) for file in saved.files}
    assert opened.manifest == saved.manifest
    assert opened.digest == saved.digest == bundle(packed=False).digest
    assert opened.engine_bytes == 10240
    assert opened.stored_engine_bytes == saved.stored_engine_bytes == len(pack(CONTENT["engine/model.bin"])) < 1000
    assert len(opened.golden()["inputs"]["images"]) == 2
    # saved again it is the same, compressed as it was
    again = opened.save(tmp_path / f"again-{name}")
    assert Bundle.open(again).stored_engine_bytes == opened.stored_engine_bytes
    if path.is_file():
        assert again.read_bytes() == path.read_bytes()


def test_how_it_is_compressed(tmp_path):
    assert bundle(packed=False).compression is None
    assert bundle().compression == "lossless"
    path = bundle(compression={"bits": 6}).save(tmp_path / "b.evb")
    assert Bundle.open(path).compression == "6 bits"


def test_bundles_that_are_not_compressed_stay_as_they_were(tmp_path):
    path = bundle(packed=False).save(tmp_path / "b")
    values = json.loads((path / MANIFEST).read_bytes())
    assert values["schema_version"] == 1, "older readers take these"
    assert "stored" not in values["files"]["engine/model.bin"]
    assert Bundle.open(path).stored_engine_bytes == 10240
    path = bundle().save(tmp_path / "c")
    assert json.loads((path / MANIFEST).read_bytes())["schema_version"] == 2, "older readers must say so"
    zipped = bundle(packed=False).save(tmp_path / "b.evb")
    assert 0 < (Bundle.open(zipped).stored_engine_bytes or 0) < 10240
    assert bundle().stored_engine_bytes is None


@pytest.mark.parametrize("packed", [True, False])
def test_a_changed_file_is_refused(tmp_path, packed):
    path = bundle(packed).save(tmp_path / "b")
    data = bytearray((path / "engine/model.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "engine/model.bin").write_bytes(data)
    with pytest.raises(BundleError, match="has been changed since the bundle was made"):
        Bundle.open(path)


def test_the_unpacked_file_is_checked_as_well(tmp_path):
    path = bundle().save(tmp_path / "b")
    replaced(path, pack(b"x" * 10240), 10240)
    with pytest.raises(BundleError, match=r"engine/model\.bin has been changed"):
        Bundle.open(path)


@pytest.mark.parametrize("size", [0, 1, 10239, 10241, 1 << 20])
def test_a_wrong_size_is_refused(tmp_path, size):
    path = bundle().save(tmp_path / "b")
    replaced(path, (path / "engine/model.bin").read_bytes(), size)
    with pytest.raises(BundleError, match="a packed file is damaged"):
        Bundle.open(path)


@pytest.mark.parametrize("size", [-1, "many", None, 1e400])
def test_a_size_that_is_none_is_refused(tmp_path, size):
    path = bundle().save(tmp_path / "b")
    replaced(path, (path / "engine/model.bin").read_bytes(), size)
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        Bundle.open(path)


@pytest.mark.parametrize("name", ["b", "b.evb"])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, name, monkeypatch):
    monkeypatch.setattr(module, "ALWAYS_ALLOWED", 1 << 20)
    monkeypatch.setattr(module, "MAX_RATIO", 20)
    bomb = {"rest": (DEFLATE, 0, deflated(bytes(32 << 20)))}
    made = bundle()
    data = encode([], {stream: bomb.get(stream, (STORED, 0, b"")) for stream in STREAMS})
    files = {file: made.read(file) for file in made.files}
    honest = Bundle(made.manifest, {**files, "engine/model.bin": bytes(32 << 20)}, packed={"engine/model.bin": data})
    path = honest.save(tmp_path / name)
    del honest
    tracemalloc.start()
    with pytest.raises(BundleError, match="bytes unpacked; the limit is"):
        Bundle.open(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # zip and JSON readers, and nothing like 32 MB
    assert peak < 4_000_000
    if name == "b":
        # the same with a small size in the manifest: no more than that is unpacked
        replaced(path, data, 1000)
        with pytest.raises(BundleError, match="another length"):
            Bundle.open(path)


def test_an_unknown_coding_says_what_to_do(tmp_path):
    path = bundle().save(tmp_path / "b")
    rewritten(path, lambda values: values["files"]["engine/model.bin"]["stored"].update(coding="evc9"))
    with pytest.raises(BundleError, match=r"packed by 'evc9'.*pip install --upgrade edgevision"):
        Bundle.open(path)


@pytest.mark.parametrize("entry", [[], {"coding": "evc1"}, "evc1", 5])
def test_a_damaged_listing_is_refused(tmp_path, entry):
    path = bundle().save(tmp_path / "b")
    rewritten(path, lambda values: values["files"]["engine/model.bin"].update(stored=entry))
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        Bundle.open(path)


def test_a_manifest_changed_alone_is_refused(tmp_path):
    path = bundle().save(tmp_path / "b")
    rewritten(path, lambda values: values["files"]["engine/model.bin"].pop("stored"), seal=False)
    with pytest.raises(BundleError, match=r"manifest\.json has been changed"):
        Bundle.open(path)
