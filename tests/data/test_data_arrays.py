"""digits, CIFAR-10's binary layout and npz."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgevision.data import open_dataset
from edgevision.data.cifar10 import CLASSES, RECORD_BYTES, TRAIN_FILES
from edgevision.data.datasets import ArrayDataset, Concatenation
from edgevision.errors import DataError, MissingDependencyError, UsageError


def test_digits_are_split_once_and_for_all():
    whole, train, test = (open_dataset("digits", split=split) for split in (None, "train", "test"))
    assert (len(whole), len(train), len(test)) == (1797, 1442, 355)
    names = [sample.name for sample in train] + [sample.name for sample in test]
    assert sorted(names) == sorted(sample.name for sample in whole)
    assert len(set(names)) == 1797
    assert [sample.name for sample in open_dataset("digits", split="val")] == [sample.name for sample in test]
    assert (train.name, test.name) == ("digits (train)", "digits (test)")


def test_digits_are_stratified_grey_bytes():
    train, test = open_dataset("digits", split="train"), open_dataset("digits", split="test")
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    # every fifth picture of a class of 174 to 183: rounding down costs at most 4/174 of a fifth's 0.2
    assert (share <= 0.2).all()
    assert (share > 0.2 - 1 / 174).all()
    images = np.stack([sample.image for sample in test])
    assert images.dtype == np.uint8
    assert images.shape == (355, 8, 8)
    assert (images.min(), images.max()) == (0, 255)
    assert test.classes == tuple("0123456789")
    from sklearn.datasets import load_digits

    original = load_digits().images
    assert np.abs(images / (255 / 16) - original[[int(s.name[7:-1]) for s in test]]).max() < 0.5 / (255 / 16) + 1e-9


def test_digits_take_no_path():
    with pytest.raises(UsageError, match="takes no path"):
        open_dataset("digits:somewhere")


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setattr("edgevision.dependencies.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "edgevision\[train\]"'):
        open_dataset("digits")


def test_the_room_imports_with_numpy_and_pillow_alone():
    code = (
        "import sys; import edgevision.data; "
        "heavy = {'torch', 'sklearn', 'scipy', 'onnx', 'rich', 'jinja2', 'psutil', 'pandas'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def records(labels, pixels) -> bytes:
    """CIFAR-10 records from labels [N] and pixels [N, 32, 32, 3]."""
    planes = np.asarray(pixels, np.uint8).transpose(0, 3, 1, 2).reshape(len(labels), -1)
    return np.concatenate([np.asarray(labels, np.uint8)[:, None], planes], axis=1).tobytes()


def write_cifar10(folder, per_file=2):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate((*TRAIN_FILES, "test_batch.bin")):
        pixels = rng.integers(0, 256, (per_file, 32, 32, 3))
        (folder / file).write_bytes(records([number] * per_file, pixels))
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    return folder


@settings(max_examples=40, deadline=None)
@given(pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.just(32), st.just(32), st.just(3))), data=st.data())
def test_cifar10_round_trip(tmp_path_factory, pixels, data):
    labels = data.draw(st.lists(st.integers(0, 9), min_size=len(pixels), max_size=len(pixels)))
    path = tmp_path_factory.mktemp("cifar") / "test_batch.bin"
    path.write_bytes(records(labels, pixels))
    dataset = open_dataset(path)
    assert dataset.labels.tolist() == labels
    assert dataset.classes == CLASSES
    for index, sample in enumerate(dataset):
        assert np.array_equal(sample.image, pixels[index])
        assert (sample.label, sample.name) == (labels[index], f"test_batch.bin[{index}]")


@pytest.mark.parametrize("nested", [False, True])
def test_cifar10_splits(tmp_path, nested):
    write_cifar10(tmp_path / "cifar-10-batches-bin" if nested else tmp_path)
    assert open_dataset(tmp_path, split="train").labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert open_dataset(f"cifar10:{tmp_path}", split="test").labels.tolist() == [5, 5]
    whole = open_dataset(tmp_path)
    assert len(whole) == 12
    assert whole.images.shape == (12, 32, 32, 3)


def test_cifar10_damage_is_named(tmp_path):
    folder = write_cifar10(tmp_path)
    good = (folder / "data_batch_3.bin").read_bytes()
    (folder / "data_batch_3.bin").write_bytes(good + b"1234567")
    with pytest.raises(DataError, match=r"data_batch_3\.bin: 6,153 bytes .* 7 bytes over 2 whole records"):
        open_dataset(folder, split="train")
    (folder / "data_batch_3.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"data_batch_3\.bin: 0 bytes .* empty"):
        open_dataset(folder, split="train")
    assert len(open_dataset(folder, split="test")) == 2  # the other split is not touched by it
    (folder / "data_batch_3.bin").write_bytes(good[:RECORD_BYTES] + b"\x0a" + good[RECORD_BYTES + 1 :])
    with pytest.raises(DataError, match=r"data_batch_3\.bin: record 1 \(byte 3,073\) has label 10, expected 0 to 9"):
        open_dataset(folder, split="train")
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin not found"):
        open_dataset(folder, split="train")
    (folder / "batches.meta.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match=r"batches\.meta\.txt: has 2 class names, expected 10"):
        open_dataset(folder, split="test")


def test_the_pickled_cifar10_is_told_apart(tmp_path):
    (tmp_path / "data_batch_1").touch()
    with pytest.raises(DataError, match="Python version of CIFAR-10, which is pickled"):
        open_dataset(f"cifar10:{tmp_path}")


IMAGES = np.arange(4 * 5 * 6 * 3, dtype=np.uint8).reshape(4, 5, 6, 3)


def write_npz(path, **arrays):
    np.savez(path, **{"images": IMAGES, "labels": np.arange(4, dtype=np.uint8), **arrays})
    return path


def test_npz_file(tmp_path):
    dataset = open_dataset(write_npz(tmp_path / "a.npz", classes=np.array(["w", "x", "y", "z"])), split="test")
    assert isinstance(dataset, ArrayDataset)
    assert (len(dataset), dataset.classes, dataset.labels.tolist()) == (4, ("w", "x", "y", "z"), [0, 1, 2, 3])
    assert np.array_equal(dataset[2].image, IMAGES[2])
    assert dataset[-1].name == "a.npz[3]"
    assert dataset.labels.dtype == np.int64
    dataset[0].image[:] = 7
    assert np.array_equal(dataset[0].image, IMAGES[0])
    with pytest.raises(IndexError):
        dataset[4]


def test_npz_grey_and_unlabelled(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES[:, :, :, :1])
    dataset = open_dataset(tmp_path / "a.npz")
    assert dataset[0].image.shape == (5, 6)
    assert (dataset.labels, dataset[0].label, dataset.classes) == (None, None, ())


def test_npz_folder_splits(tmp_path):
    write_npz(tmp_path / "train.npz")
    write_npz(tmp_path / "test.npz", images=IMAGES[:2], labels=np.array([3, 2]))
    assert len(open_dataset(tmp_path, split="train")) == 4
    assert open_dataset(tmp_path, split="test").labels.tolist() == [3, 2]
    whole = open_dataset(tmp_path)
    assert isinstance(whole, Concatenation)
    assert whole.labels.tolist() == [0, 1, 2, 3, 3, 2]
    assert [sample.name for sample in whole][3:5] == ["train.npz[3]", "test.npz[0]"]
    assert whole[-1].name == "test.npz[1]"
    with pytest.raises(IndexError):
        whole[6]
    (tmp_path / "test.npz").unlink()
    with pytest.raises(DataError, match="has no 'test' split, only train"):
        open_dataset(tmp_path, split="test")
    write_npz(tmp_path / "test.npz", classes=np.array(["a", "b", "c", "d"]))
    with pytest.raises(DataError, match=r"test\.npz: has other classes than .*train\.npz"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES.astype(np.float32)}, "images must be uint8 .* got float32"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"images must be uint8 .* \[4, 3, 5, 6\]"),
        ({"images": IMAGES[:0], "labels": np.arange(0)}, "images is empty"),
        ({"labels": np.arange(3)}, r"labels must be integers of shape \[4\]"),
        ({"labels": np.arange(4.0)}, "labels must be integers"),
        ({"labels": np.array([0, 1, -1, 2])}, r"labels\[2\] is -1"),
        ({"labels": np.array([0, 1, 2, 2**63], np.uint64)}, r"labels\[3\] is 9223372036854775808"),
        ({"classes": np.array(["a", "b", "c"])}, r"labels\[3\] is 3, expected 0 to 2"),
        ({"classes": np.arange(4)}, r"classes must be strings"),
        ({"labels": np.array([0, 1, 2, "x"], object)}, "without pickle"),
    ],
)
def test_npz_mismatches_name_the_file(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(write_npz(tmp_path / "bad.npz", **arrays))
    assert str(caught.value).startswith(str(tmp_path / "bad.npz"))


def test_npz_damage_names_the_file(tmp_path):
    path = write_npz(tmp_path / "bad.npz")
    whole = path.read_bytes()
    for damaged in (b"", b"no zip at all", whole[: len(whole) // 2], whole[:300] + b"\xff" * 40 + whole[340:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"bad\.npz"):
            open_dataset(path)
    np.savez(path, labels=np.arange(4))
    with pytest.raises(DataError, match="has no array 'images'"):
        open_dataset(path)
    with path.open("wb") as stream:
        np.save(stream, IMAGES)
    with pytest.raises(DataError, match="holds a single array"):
        open_dataset(path)
    with pytest.raises(DataError, match=r"neither train\.npz nor test\.npz"):
        open_dataset(f"npz:{tmp_path}")
