from __future__ import annotations

import dataclasses
import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevision.bundle import (
    GOLDEN,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SCHEMA_VERSION,
    Bundle,
    Manifest,
    Thresholds,
    _manifest_digest,
    golden_bytes,
)
from edgevision.errors import BundleError, OutputError
from edgevision.files import sha256_bytes
from edgevision.preprocess import Preprocess
from edgevision.runtime.tensors import DTYPES, TensorSpec

PIXELS = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


def manifest(**changes) -> Manifest:
    values = {
        "name": "small",
        "task": "classification",
        "target": "ncnn",
        "precision": "int8",
        "inputs": (TensorSpec("images", "float32", (None, 3, 4, 4)),),
        "outputs": (TensorSpec("logits", "float32", (None, 2)),),
        "preprocess": Preprocess((4, 4), mean=(0.5, 0.25, 0.125)),
        "engine_files": {"param": "engine/model.param", "bin": "engine/model.bin"},
        "classes": ("cat", "dög"),
        "engine_options": {"blobs": {"images": "in0"}, "fp16": False},
        "tensor_names": {"a": "b"},
        "thresholds": {"fp32": Thresholds(0.99, 20.0, 0.5)},
        "provenance": {"recipe": "1234", "versions": {"onnx": "1.0"}},
    }
    return Manifest(**{**values, **changes})


def bundle(**changes) -> Bundle:
    golden = golden_bytes({"pixels": {"images": PIXELS}, "outputs": {"logits": np.float32([[1, 2], [3, 4]])}})
    files = {"engine/model.param": b"7767517\n" * 20, "engine/model.bin": bytes(range(256)), GOLDEN: golden}
    return Bundle(manifest(**changes), files)


def content(opened: Bundle) -> tuple[Manifest, dict[str, bytes]]:
    return opened.manifest, {name: opened.read(name) for name in opened.files}


def refusal(path) -> str | None:
    """Why a bundle is refused; None where it opens."""
    try:
        Bundle.open(path)
    except BundleError as error:
        return str(error)
    return None


def write_zip(path, entries) -> None:
    """A zip with exactly these (name, bytes) entries, the same name as often as it comes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name  # past ZipInfo's own clean-up of names
            archive.writestr(info, data)


def listing(files: dict[str, bytes], **changes) -> bytes:
    """A manifest with right hashes for whatever files are given."""
    whole = Bundle(manifest(**changes), files)
    return whole._manifest_bytes()


@pytest.mark.parametrize("name", ["small.evb", "small"])
def test_what_is_saved_is_what_is_opened(tmp_path, name):
    saved = bundle()
    path = saved.save(tmp_path / name)
    assert saved.path == path
    opened = Bundle.open(path)
    assert content(opened) == content(saved)
    assert opened.path == path
    assert opened.files == ["engine/model.bin", "engine/model.param", GOLDEN]
    assert opened.engine_file("bin") == bytes(range(256))
    assert opened.engine_bytes == 256 + 160
    assert opened.digest == saved.digest


def test_equal_bundles_are_equal_bytes(tmp_path):
    first, second = bundle().save(tmp_path / "a.evb"), bundle().save(tmp_path / "b.evb")
    assert first.read_bytes() == second.read_bytes()


texts = st.text(st.characters(blacklist_categories=("Cs",)), max_size=12)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
specs = st.builds(
    TensorSpec,
    name=texts,
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.none() | st.integers(1, 2**40), max_size=4).map(tuple),
)
file_names = st.lists(
    st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_- ü", min_size=1, max_size=6).filter(str.strip),
    min_size=1,
    max_size=3,
).map("/".join)


@settings(max_examples=60, deadline=None)
@given(
    specs=st.lists(specs, min_size=1, max_size=3),
    options=st.dictionaries(texts, plain, max_size=3),
    classes=st.lists(texts, max_size=4).map(tuple),
    thresholds=st.dictionaries(texts, st.builds(Thresholds, st.floats(-1, 1), st.floats(-150, 150)), max_size=2),
    name=texts,
    files=st.dictionaries(file_names.map(lambda name: f"engine/{name}"), st.binary(max_size=200), max_size=3),
    folder=st.booleans(),
)
def test_any_content_survives(tmp_path_factory, specs, options, classes, thresholds, name, files, folder):
    # one name may be another's folder, which no file system can hold
    files = {key: data for key, data in files.items() if not any(other.startswith(f"{key}/") for other in files)}
    made = Bundle(
        manifest(
            name=name,
            inputs=tuple(specs),
            engine_options=options,
            provenance=options,
            classes=classes,
            thresholds=thresholds,
            engine_files={key: key for key in files},
        ),
        files,
    )
    path = made.save(tmp_path_factory.mktemp("any") / ("b" if folder else "b.evb"))
    assert content(Bundle.open(path)) == content(made)


@pytest.mark.parametrize("name", [MANIFEST, "engine/model.param", "engine/model.bin", GOLDEN])
def test_one_changed_byte_in_any_file_of_a_folder_is_refused(tmp_path, name):
    path = bundle().save(tmp_path / "small")
    data = (path / name).read_bytes()
    for position in range(0, len(data), max(1, len(data) // 97)):
        for flip in (0x01, 0x20):
            changed = bytearray(data)
            changed[position] ^= flip
            (path / name).write_bytes(changed)
            told = refusal(path)
            if told is None:
                # only white space between two values of the manifest may differ
                assert name == MANIFEST
                assert json.loads(changed) == json.loads(data)
                assert content(Bundle.open(path)) == content(bundle())
            else:
                assert str(path) in told
                assert name.rpartition("/")[2] in told or "leads out" in told
    (path / name).write_bytes(data)
    assert content(Bundle.open(path)) == content(bundle())


def test_one_changed_byte_in_a_zip_is_refused_or_changes_nothing(tmp_path):
    path = bundle().save(tmp_path / "small.evb")
    data = path.read_bytes()
    wanted = content(bundle())
    refused = 0
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= (0x01, 0x80, 0xFF)[position % 3]
        path.write_bytes(changed)
        if refusal(path) is not None:
            refused += 1
        else:
            # dates and permissions in the zip's own headers mean nothing to a bundle
            assert content(Bundle.open(path)) == wanted, f"byte {position}"
    assert refused > len(data) // 2


def test_a_zip_cut_short_anywhere_is_refused(tmp_path):
    path = bundle().save(tmp_path / "small.evb")
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(BundleError, match=r"small\.evb"):
            Bundle.open(path)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("noise") / "noise.evb"
    path.write_bytes(data)
    with pytest.raises(BundleError):
        Bundle.open(path)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "..", "a/../../x", "..\\x", "C:x", "C:\\x", "a\\b", "./x", "a//b", "a/", "", "a/./b"]
)
@pytest.mark.parametrize("where", ["zip", "manifest in a zip", "manifest in a folder"])
def test_a_path_out_of_the_bundle_is_refused(tmp_path, name, where):
    outside = tmp_path / "x"
    outside.write_bytes(b"secret")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    if where == "manifest in a folder":
        path = inner / "bundle"
        path.mkdir()
        (path / MANIFEST).write_bytes(listing({name: b"secret"}, engine_files={"model": name}))
    else:
        path = inner / "bundle.evb"
        listed = {name: b"secret"} if where == "manifest in a zip" else {"engine/m": b"secret"}
        entries = [(MANIFEST, listing(listed, engine_files=dict.fromkeys(["model"], next(iter(listed)))))]
        write_zip(path, [*entries, (name if where == "zip" else "engine/m", b"secret")])
    with pytest.raises(BundleError, match="leads out of the bundle; refused"):
        Bundle.open(path)
    assert outside.read_bytes() == b"secret"


@pytest.mark.parametrize("name", ["engine/model.bin", MANIFEST])
def test_a_link_out_of_a_bundle_folder_is_refused(tmp_path, name):
    path = bundle().save(tmp_path / "small")
    outside = tmp_path / "outside"
    outside.write_bytes((path / name).read_bytes())
    (path / name).unlink()
    (path / name).symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(path)


def test_a_link_of_a_folder_inside_a_bundle_is_refused(tmp_path):
    path = bundle().save(tmp_path / "small")
    (path / "engine").rename(tmp_path / "engine")
    (path / "engine").symlink_to(tmp_path / "engine", target_is_directory=True)
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.open(path)


def test_a_link_inside_a_zip_is_not_followed(tmp_path):
    """A member marked as a symbolic link is bytes like any other, and its bytes have the wrong hash."""
    path = tmp_path / "link.evb"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MANIFEST, listing({"engine/m": b"weights"}, engine_files={"model": "engine/m"}))
        info = zipfile.ZipInfo("engine/m")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, b"/etc/passwd")
    with pytest.raises(BundleError, match="engine/m has been changed"):
        Bundle.open(path)


def test_a_bundle_that_is_itself_a_link_opens(tmp_path):
    bundle().save(tmp_path / "small")
    (tmp_path / "link").symlink_to(tmp_path / "small", target_is_directory=True)
    assert content(Bundle.open(tmp_path / "link")) == content(bundle())


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_name_that_comes_twice_is_refused(tmp_path):
    path = tmp_path / "twice.evb"
    write_zip(path, [(MANIFEST, listing({"engine/m": b"a"})), ("engine/m", b"a"), ("engine/m", b"b")])
    with pytest.raises(BundleError, match="'engine/m' is in the zip twice"):
        Bundle.open(path)


def claim(path, size: int) -> None:
    """Let every entry of a zip's directory claim ``size`` bytes unpacked."""
    data = bytearray(path.read_bytes())
    position = data.find(b"PK\x01\x02")
    while position >= 0:
        data[position + 24 : position + 28] = struct.pack("<I", size)
        position = data.find(b"PK\x01\x02", position + 4)
    path.write_bytes(data)


def test_sizes_that_would_fill_the_memory_are_refused_before_anything_is_read(tmp_path, monkeypatch):
    path = bundle().save(tmp_path / "bomb.evb")
    claim(path, 0xFFFFFFF0)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("the bomb was unpacked"))
    with pytest.raises(BundleError, match=r"claims 17179869120 bytes unpacked; the limit is"):
        Bundle.open(path)


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path):
    files = {"engine/m": bytes(80 << 20)}
    path = Bundle(manifest(engine_files={"model": "engine/m"}), files).save(tmp_path / "zeros.evb")
    assert path.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match=r"claims \d+ bytes unpacked; the limit is 67108864"):
        Bundle.open(path)


@pytest.mark.parametrize("folder", [False, True])
def test_a_manifest_of_unlikely_size_is_refused(tmp_path, folder):
    data = b" " * (MAX_MANIFEST_BYTES + 1)
    path = tmp_path / ("b" if folder else "b.evb")
    if folder:
        path.mkdir()
        (path / MANIFEST).write_bytes(data)
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(MANIFEST, data)
    with pytest.raises(BundleError, match=r"manifest\.json has 16777217 bytes"):
        Bundle.open(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema_version": 1}',
        b'{"schema_version": 1, "files": []}',
        b'{"schema_version": "x", "files": {}}',
        b'{"schema_version": NaN, "files": {}}',
        b'{"schema_version": 1e400, "files": {}}',
        b'{"schema_version": 1, "files": {"a": 1}}',
        b'{"schema_version": 1, "files": {}, "sha256": 7}',
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, data):
    path = tmp_path / "b"
    path.mkdir()
    (path / MANIFEST).write_bytes(data)
    with pytest.raises(BundleError, match=r"manifest\.json (is damaged|has been changed)"):
        Bundle.open(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inputs", [{"name": "images", "dtype": "object", "shape": [1]}]),
        ("inputs", [{"name": "images", "dtype": "float32", "shape": [-1]}]),
        ("inputs", [{"name": "images", "dtype": "float32", "shape": [1.5]}]),
        ("inputs", [{"name": "images", "dtype": "float32", "shape": [True]}]),
        ("inputs", [{"name": "images", "dtype": "float32", "shape": None}]),
        ("inputs", 3),
        ("preprocess", {"size": [4, 4], "no_such_key": 1}),
        ("preprocess", {}),
        ("preprocess", {"size": [0, 4]}),
        ("preprocess", {"size": ["a", "b"]}),
        ("preprocess", {"size": [4, 4], "std": [0, 1, 1]}),
        ("thresholds", {"fp32": {"no_such": 1}}),
        ("engine_files", ["a"]),
        ("classes", None),
    ],
)
def test_values_that_cannot_be_are_refused_even_with_the_right_hash(tmp_path, key, value):
    path = bundle().save(tmp_path / "b")
    values = {**json.loads((path / MANIFEST).read_bytes()), key: value}
    values["sha256"] = _manifest_digest(values)
    (path / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        Bundle.open(path)


def test_a_newer_version_says_what_to_do(tmp_path):
    path = bundle().save(tmp_path / "b")
    values = json.loads((path / MANIFEST).read_bytes())
    values["schema_version"] = SCHEMA_VERSION + 1
    (path / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(BundleError, match=r"newer than this edgevision reads \(3\): pip install --upgrade edgevision"):
        Bundle.open(path)


def test_missing_and_superfluous_files_are_named(tmp_path):
    files = {"engine/m": b"weights"}
    lines = listing(files, engine_files={"model": "engine/m"})
    path = tmp_path / "b.evb"
    write_zip(path, [(MANIFEST, lines)])
    with pytest.raises(BundleError, match=r"incomplete: engine/m is missing"):
        Bundle.open(path)
    write_zip(path, [(MANIFEST, lines), ("engine/m", b"weights"), ("more", b"")])
    with pytest.raises(BundleError, match="does not list: more"):
        Bundle.open(path)
    write_zip(path, [("engine/m", b"weights")])
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        Bundle.open(path)
    folder = Bundle(manifest(engine_files={"model": "engine/m"}), files).save(tmp_path / "folder")
    (folder / "engine" / "m").unlink()
    with pytest.raises(BundleError, match=r"incomplete: engine/m is missing"):
        Bundle.open(folder)


def test_engine_files_must_be_listed(tmp_path):
    path = tmp_path / "b.evb"
    write_zip(path, [(MANIFEST, listing({}, engine_files={"model": "engine/m"}))])
    with pytest.raises(BundleError, match="names engine files it does not list: engine/m"):
        Bundle.open(path)


def test_what_is_no_bundle_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"gone\.evb: no such bundle"):
        Bundle.open(tmp_path / "gone.evb")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        Bundle.open(tmp_path)
    (tmp_path / "text.evb").write_text("hello")
    with pytest.raises(BundleError, match=r"neither a folder nor a \.evb zip"):
        Bundle.open(tmp_path / "text.evb")


def test_files_and_roles_that_are_not_there_are_named():
    made = bundle()
    with pytest.raises(BundleError, match="no file 'nothing'"):
        made.read("nothing")
    with pytest.raises(BundleError, match="no engine file 'weights'"):
        made.engine_file("weights")


def test_golden_inputs_go_through_the_preprocess():
    made = bundle()
    golden = made.golden()
    normalize = made.manifest.preprocess.normalize
    np.testing.assert_array_equal(golden["inputs"]["images"], np.stack([normalize(one) for one in PIXELS]))
    np.testing.assert_array_equal(golden["outputs"]["logits"], np.float32([[1, 2], [3, 4]]))
    assert golden["reference"] == {}


def test_golden_inputs_that_are_no_pictures_are_kept_as_they_are():
    noise = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    files = {GOLDEN: golden_bytes({"inputs": {"images": noise}, "outputs": {}})}
    np.testing.assert_array_equal(Bundle(manifest(), files).golden()["inputs"]["images"], noise)


def _pickled() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{"inputs/images": np.asarray([{"a": 1}], object)})
    return stream.getvalue()


@pytest.mark.parametrize("damage", ["noise", "half", "flipped", "pickled", "group", "gone", "flat"])
def test_damaged_golden_tensors_are_a_bundle_error(damage):
    good = bundle().read(GOLDEN)
    data = {
        "noise": b"PK nothing",
        "half": good[: len(good) // 2],
        "flipped": good[:80] + bytes([good[80] ^ 0xFF]) + good[81:],
        "pickled": _pickled(),
        "group": golden_bytes({"strangers": {"images": PIXELS}}),
        "flat": golden_bytes({"pixels": {"images": np.zeros(4, np.uint8)}}),
    }
    with pytest.raises(BundleError, match=r"golden tensors are damaged|no file 'golden\.npz'"):
        Bundle(manifest(), {} if damage == "gone" else {GOLDEN: data[damage]}).golden()


def test_saving_over_a_bundle_replaces_it(tmp_path):
    for name in ("b.evb", "b"):
        bundle(name="old").save(tmp_path / name)
        bundle(name="new").save(tmp_path / name)
        assert Bundle.open(tmp_path / name).manifest.name == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "b.evb"]


def test_what_stands_in_the_way_is_an_output_error(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.evb" / "inside").mkdir(parents=True)
    for path in ("file", "file/b.evb", "folder.evb", f"{'long' * 100}.evb"):
        with pytest.raises(OutputError, match="cannot write"):
            bundle().save(tmp_path / path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.evb"]


def test_the_digest_is_of_the_engine_files_alone():
    made = bundle()
    assert dataclasses.replace(made.manifest, name="other") != made.manifest
    assert bundle(name="other").digest == made.digest
    files = {name: made.read(name) for name in made.files}
    other = Bundle(made.manifest, {**files, "engine/model.bin": b"other"})
    assert other.digest != made.digest
    assert len(made.digest) == len(sha256_bytes(b""))


def test_bundles_are_as_readable_as_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        path = bundle().save(tmp_path / "b.evb")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
