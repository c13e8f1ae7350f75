"""How a data set is named, recognized and sliced."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevision.data import DATASETS, Dataset, Subset, evenly_spaced, open_dataset
from edgevision.data.spec import parse_slice, parse_spec, recognize
from edgevision.errors import DataError, UsageError

BOUND = st.none() | st.integers(-40, 40)


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (value, 0, 0)).save(path)
    return path


@settings(max_examples=200, deadline=None)
@given(start=BOUND, stop=BOUND, step=BOUND.filter(lambda value: value != 0))
def test_a_slice_takes_what_python_takes(start, stop, step):
    text = ":".join("" if bound is None else str(bound) for bound in (start, stop, step))
    numbers = list(range(25))
    assert numbers[parse_slice(text)] == numbers[start:stop:step]
    without_step = text.rpartition(":")[0]
    assert numbers[parse_slice(without_step)] == numbers[start:stop]


class Indexed:
    def __getitem__(self, key):
        return key


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet="0123456789:+- x.", max_size=12))
def test_a_slice_is_accepted_where_python_accepts_it(text):
    # Python also takes expressions, as 1-2 or -+3, and refuses 007; neither is a slice that anyone needs
    plain = [part.strip().lstrip("+-") for part in text.split(":")]
    if any(len(part) > 1 and part.startswith("0") for part in plain):
        return
    try:
        parsed = parse_slice(text)
    except UsageError:
        parsed = None
    if parsed is not None:
        assert parsed == eval(f"indexed[{text}]", {"indexed": Indexed()})
    elif text.count(":") in {1, 2} and not set(text) & set("+- x.") and plain[2:] != ["0"]:
        pytest.fail(f"[{text}] is refused")


@pytest.mark.parametrize("text", ["", "5", "a:", "1:2:3:4", "1.0:", "::0", ": :x", "--1:"])
def test_a_bad_slice_is_a_usage_error(text, tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="bad slice"):
        open_dataset(f"{tmp_path}[{text}]")


def test_slices_select_samples_and_stand_in_the_name(tmp_path):
    for index in range(7):
        picture(tmp_path / f"{index}.png")
    dataset = open_dataset(f"{tmp_path}[2:]")
    assert [Path(sample.name).name for sample in dataset] == ["2.png", "3.png", "4.png", "5.png", "6.png"]
    assert dataset.name == f"images:{tmp_path}[2:]"
    backwards = open_dataset(f"images:{tmp_path}[::-3]")
    assert [Path(backwards[i].name).name for i in range(len(backwards))] == ["6.png", "3.png", "0.png"]
    with pytest.raises(DataError, match=r"\[7:\]: takes none of the 7 samples"):
        open_dataset(f"{tmp_path}[7:]")


def test_a_path_that_exists_as_written_is_taken_as_written(tmp_path):
    picture(tmp_path / "set[1:2]" / "a.png")
    picture(tmp_path / "set" / "b.png")
    assert len(open_dataset(str(tmp_path / "set[1:2]"))) == 1
    assert len(open_dataset(f"images:{tmp_path}/set[1:2]")) == 1
    assert len(open_dataset(f"images:{tmp_path}/set[1:2][:1]")) == 1
    with pytest.raises(DataError, match="takes none of the 1"):
        open_dataset(f"{tmp_path}/set[1:2][1:]")


def test_a_path_object_is_never_taken_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "digits" / "a.png")
    assert open_dataset(Path("digits")).name == "images:digits"
    assert open_dataset("./digits").name == "images:digits"
    assert open_dataset("digits").name == "digits"
    with pytest.raises(DataError, match="no such file or folder"):
        open_dataset(Path("images:digits"))


def test_home_is_expanded_behind_the_colon(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    picture(tmp_path / "photos" / "a.png")
    assert len(open_dataset("images:~/photos")) == 1
    assert len(open_dataset("~/photos[:1]")) == 1


def test_unknown_kinds_and_splits_name_the_near_ones(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="unknown data set kind 'cifra10': did you mean cifar10"):
        open_dataset(f"cifra10:{tmp_path}")
    with pytest.raises(UsageError, match="unknown split 'tset': did you mean test"):
        open_dataset(tmp_path, split="tset")
    with pytest.raises(UsageError, match="names no path"):
        open_dataset("csv:")
    with pytest.raises(UsageError, match="needs a name"):
        open_dataset("")
    with pytest.raises(UsageError, match="got int"):
        open_dataset(5)


def test_a_missing_path_says_so():
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        open_dataset("nowhere")
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file or folder"):
        open_dataset("csv:nowhere.csv[2:]")


def test_what_is_not_recognized_lists_what_was_looked_for(tmp_path):
    with pytest.raises(DataError, match=r"the folder is empty; looked for: data_batch_1\.bin") as caught:
        open_dataset(tmp_path)
    for what in ("train.npz", "labels.csv", "JPEGImages and Annotations", "instances", "class folders", "images"):
        assert what in str(caught.value)
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="not recognized as a data set"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match=r"notes.txt: not recognized as a data set; looked for: a .npz file \(npz\)"):
        open_dataset(tmp_path / "notes.txt")


def _touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("cifar10", ["data_batch_1.bin", "labels.csv"]),
        ("cifar10", ["cifar-10-batches-bin/data_batch_1.bin"]),
        ("npz", ["train.npz", "a/1.png"]),
        ("npz", ["test.npz"]),
        ("csv", ["labels.csv", "images/1.png"]),
        ("voc", ["JPEGImages/1.jpg", "Annotations/1.xml"]),
        ("coco", ["instances.json", "images/1.jpg"]),
        ("coco", ["annotations/instances_val2017.json", "val2017/1.jpg"]),
        ("folder", ["cat/1.JPG", "dog/2.png", "README.md"]),
        ("folder", ["train/cat/1.jpg", "val/cat/2.jpg"]),
        ("folder", ["train/cat/more/1.jpg", "val/cat/2.jpg"]),
        ("folder", ["train.zip", "test.zip"]),
        ("images", ["1.jpg", "notes.txt"]),
        ("images", ["1.jpg", "thumbnails/1.jpg"]),
    ],
)
def test_recognition_of_folders(kind, names, tmp_path):
    assert recognize(_touch(tmp_path, *names)) == kind


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("npz", "a.npz"),
        ("csv", "a.CSV"),
        ("coco", "a.json"),
        ("folder", "a.zip"),
        ("cifar10", "test_batch.bin"),
        ("images", "a.JPEG"),
    ],
)
def test_recognition_of_files(kind, name, tmp_path):
    assert recognize(_touch(tmp_path, name) / name) == kind


def test_every_kind_of_the_registry_opens_what_it_is_given(tmp_path):
    for kind in DATASETS:
        assert callable(DATASETS.resolve(kind))
        if kind != "digits":
            with pytest.raises(DataError, match="no such file or folder"):
                open_dataset(f"{kind}:{tmp_path}/absent")


def test_parsing_keeps_colons_of_paths():
    assert parse_spec("csv:a:b.csv[::2]", DATASETS).argument == "a:b.csv"
    assert parse_spec("csv:a:b.csv[::2]", DATASETS).taken == slice(None, None, 2)
    assert parse_spec("digits[:9]", DATASETS).kind == "digits"
    assert parse_spec("C:/photos", DATASETS).kind is None


class Counting:
    """A user's own data set, of nothing but what the protocol asks for."""

    name = "counting"
    classes = ("even", "odd")
    labels = np.asarray([0, 1, 0])

    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise AssertionError("not opened here")


def test_a_data_set_is_returned_as_it_is():
    own = Counting()
    assert isinstance(own, Dataset)
    assert open_dataset(own, split="test") is own


def test_what_opens_is_a_data_set(tmp_path):
    picture(tmp_path / "cat" / "a.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "cat" / "a.png", "cat/a.png")
    for spec in ("digits", "digits[:5]", str(tmp_path), f"images:{tmp_path}", str(tmp_path / "a.zip")):
        dataset = open_dataset(spec)
        assert isinstance(dataset, Dataset)
        assert len(list(dataset)) == len(dataset)
        assert dataset[-1].name == dataset[len(dataset) - 1].name
        with pytest.raises(IndexError):
            dataset[len(dataset)]


def test_subsets_and_even_spacing():
    digits = open_dataset("digits")
    chosen = Subset(digits, [5, 3, 5], name="three")
    assert (chosen.name, len(chosen), chosen.dataset) == ("three", 3, digits)
    assert chosen.labels.tolist() == [5, 3, 5]  # the set begins with 0, 1, 2 … 9
    assert [sample.name for sample in chosen] == ["digits[5]", "digits[3]", "digits[5]"]
    spread = evenly_spaced(digits, 3)
    assert [sample.name for sample in spread] == ["digits[0]", "digits[898]", "digits[1796]"]
    assert len(evenly_spaced(digits, None)) == len(evenly_spaced(digits, 5000)) == 1797
    with pytest.raises(UsageError, match="1 or more"):
        evenly_spaced(digits, 0)
