"""ImageFolder (trees and zips), CSV lists and plain pictures."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevision.data import open_dataset
from edgevision.data.image_folder import ZipReader, decode
from edgevision.errors import DataError
from edgevision.images import read_image


def encoded(value: int = 0, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (value, 0, 0)).save(stream, form)
    return stream.getvalue()


def tree(root: Path, *names: str) -> Path:
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(value) if Path(name).suffix != ".txt" else b"text")
    return root


def packed(path: Path, *names: str, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for value, name in enumerate(names):
            archive.writestr(name, encoded(value) if not name.endswith((".txt", "/")) else b"")
    return path


def test_image_folder(tmp_path):
    tree(
        tmp_path, "dog/b.png", "dog/a.png", "cat/old/z.png", "cat/a.png", "README.txt", "cat/notes.txt",
        ".cache/a.png", "dog/._a.png", "__MACOSX/a.png",
    )  # fmt: skip
    (tmp_path / "bird").mkdir()  # a class folder without a picture is no class
    dataset = open_dataset(tmp_path, split="test")
    assert dataset.classes == ("cat", "dog")
    assert [Path(file).relative_to(tmp_path).as_posix() for file in dataset.files] == [
        "cat/a.png", "cat/old/z.png", "dog/a.png", "dog/b.png",
    ]  # fmt: skip
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    sample = dataset[3]
    assert (sample.label, sample.image, sample.name) == (1, tmp_path / "dog/b.png", str(tmp_path / "dog/b.png"))
    assert dataset.name == f"folder:{tmp_path}"


def test_image_folder_splits_number_classes_alike(tmp_path):
    tree(tmp_path, "train/ant/1.png", "train/bee/1.png", "train/cow/1.png", "val/cow/2.png", "val/ant/2.png")
    val = open_dataset(tmp_path, split="test")
    assert (val.classes, val.labels.tolist()) == (("ant", "bee", "cow"), [0, 2])
    assert val.name == f"folder:{tmp_path} (val)"
    assert len(open_dataset(tmp_path, split="train")) == 3
    assert open_dataset(tmp_path).labels.tolist() == [0, 1, 2, 0, 2]
    tree(tmp_path, "test/bee/3.png")
    assert open_dataset(tmp_path, split="test").labels.tolist() == [1]
    assert open_dataset(tmp_path, split="val").labels.tolist() == [0, 2]


def test_a_class_may_be_called_train(tmp_path):
    tree(tmp_path, "bus/1.png", "train/1.png")
    assert open_dataset(tmp_path, split="train").classes == ("bus", "train")


def test_a_missing_split_is_an_error(tmp_path):
    tree(tmp_path, "train/ant/1.png")
    with pytest.raises(DataError, match="has no 'test' split, only train"):
        open_dataset(tmp_path, split="test")


def test_links_are_followed_but_not_for_ever(tmp_path):
    tree(tmp_path / "elsewhere", "1.png")
    tree(tmp_path / "set", "ant/1.png")
    (tmp_path / "set" / "bee").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "ant" / "round").symlink_to(tmp_path / "set")
    assert open_dataset(tmp_path / "set").labels.tolist() == [0, 1]


def test_a_folder_without_classes_says_what_it_could_be(tmp_path):
    tree(tmp_path, "1.png")
    with pytest.raises(DataError, match=r"no class folder with an image in it.* images:"):
        open_dataset(f"folder:{tmp_path}")


@pytest.mark.parametrize("prefix", ["", "train/", "data/v2/train/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_of_an_image_folder(tmp_path, prefix, compression):
    names = ("dog/", "dog/1.png", "cat/2.png", "cat/notes.txt", "cat/._2.png")
    path = packed(tmp_path / "a.zip", *(prefix + name for name in names), compression=compression)
    dataset = open_dataset(path)
    assert (dataset.classes, dataset.labels.tolist()) == (("cat", "dog"), [0, 1])
    assert dataset[1].name == f"{path}:{prefix}dog/1.png"
    assert dataset[1].image.getpixel((0, 0)) == (1, 0, 0)
    assert [sample.label for sample in dataset] == [0, 1]


def test_zip_with_splits_inside(tmp_path):
    path = packed(tmp_path / "a.zip", "set/train/b/1.png", "set/train/a/1.png", "set/test/b/2.png")
    assert open_dataset(path, split="test").labels.tolist() == [1]
    assert open_dataset(path, split="train").labels.tolist() == [0, 1]


def test_folder_of_split_zips(tmp_path):
    packed(tmp_path / "train.zip", "train/b/1.png", "train/a/1.png")
    packed(tmp_path / "test.zip", "test/b/2.png")
    assert open_dataset(tmp_path, split="test").labels.tolist() == [1]
    assert open_dataset(f"folder:{tmp_path}").labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("name", ["../../x/1.png", "/etc/1.png"])
def test_zip_that_points_outside_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="names a path outside the archive"):
        open_dataset(packed(tmp_path / "a.zip", "a/1.png", name))


def test_damaged_zips_name_file_and_member(tmp_path):
    path = packed(tmp_path / "a.zip", "a/1.png", "b/2.png")
    whole = path.read_bytes()
    start = whole.index(b"\x89PNG")
    path.write_bytes(whole[: start + 40] + b"\x00\x01\x02\x03" + whole[start + 44 :])
    dataset = open_dataset(path)
    with pytest.raises(DataError, match=r"a\.zip:a/1\.png: cannot be read from the zip: Bad CRC-32"):
        dataset[0]
    assert dataset[1].label == 1
    path.write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"a\.zip: cannot be read as a zip"):
        open_dataset(path)
    packed(path, "1.png")
    with pytest.raises(DataError, match="no class folder"):
        open_dataset(path)


def test_a_picture_in_a_zip_that_is_none_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/1.png", b"")
        archive.writestr("a/2.png", b"not an image")
        archive.writestr("a/3.jpg", encoded(9, "JPEG")[:-200])
    dataset = open_dataset(tmp_path / "a.zip")
    for index, message in enumerate((r"a/1\.png: the image is empty", r"a/2\.png: cannot", r"a/3\.jpg: cannot")):
        with pytest.raises(DataError, match=message):
            dataset[index]


def test_decoding_bytes_and_files_is_the_same(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    from_bytes = decode((tmp_path / "a.jpg").read_bytes(), "a")
    assert from_bytes.size == (8, 12)
    assert np.array_equal(np.asarray(from_bytes), np.asarray(read_image(tmp_path / "a.jpg")))


def _read_all(dataset, queue):
    queue.put([int(np.asarray(sample.image)[0, 0, 0]) for sample in dataset])


def test_zip_reads_from_threads_and_processes(tmp_path):
    path = packed(tmp_path / "a.zip", *(f"c{index % 3}/{index:03}.png" for index in range(60)))
    dataset = open_dataset(path)
    expected = [int(np.asarray(sample.image)[0, 0, 0]) for sample in dataset]
    assert sorted(expected) == list(range(60))
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: [int(np.asarray(s.image)[0, 0, 0]) for s in dataset], range(16)):
            assert found == expected
    again = pickle.loads(pickle.dumps(dataset))
    assert int(np.asarray(again[7].image)[0, 0, 0]) == expected[7]
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=_read_all, args=(dataset, queue))
    process.start()
    assert queue.get() == expected
    process.join()


def test_a_forked_process_opens_the_zip_for_itself(tmp_path, monkeypatch):
    path = packed(tmp_path / "a.zip", "c/1.png")
    reader = ZipReader(path)
    reader.read("c/1.png")
    parents = reader._archive
    monkeypatch.setattr("edgevision.data.image_folder.os.getpid", lambda: -1)
    reader.read("c/1.png")
    assert reader._archive is not parents


def write_csv(folder: Path, text: str, images: int = 4) -> Path:
    tree(folder, *(f"images/{index}.png" for index in range(images)))
    (folder / "labels.csv").write_bytes(text.encode())
    return folder / "labels.csv"


def test_csv_with_class_names(tmp_path):
    path = write_csv(tmp_path, "file,label,note\n2.png,dog,x\n\n0.png, cat ,y\n1.png,dog,z\n")
    for spec in (path, tmp_path, f"csv:{tmp_path}"):
        dataset = open_dataset(spec, split="train")
        assert (dataset.classes, dataset.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    assert dataset.name == f"csv:{path}"
    assert dataset[0].image == tmp_path / "images/2.png"


def test_csv_with_integers_with_and_without_classes(tmp_path):
    path = write_csv(tmp_path, "\ufefflabel,file\r\n2,0.png\r\n0,1.png\r\n")
    dataset = open_dataset(path)
    assert (dataset.classes, dataset.labels.tolist()) == ((), [2, 0])
    (tmp_path / "classes.csv").write_text('label,name\n1,bee\n0,ant\n2,"cow, brown"\n')
    dataset = open_dataset(path)
    assert (dataset.classes, dataset.labels.tolist()) == (("ant", "bee", "cow, brown"), [2, 0])
    path.write_text('file,label\n0.png,"cow, brown"\n1.png,ant\n')
    assert open_dataset(path).labels.tolist() == [2, 0]
    (tmp_path / "classes.csv").write_text("name\nant\nbee\ncow\n")
    path.write_text("file,label\n0.png,cow\n")
    assert open_dataset(path).labels.tolist() == [2]


def test_csv_files_beside_it_and_in_subfolders(tmp_path):
    tree(tmp_path, "images/a.png", "a.png", "b.png", "images/deep/c.png")
    (tmp_path / "list.csv").write_text("file,label\na.png,0\nb.png,0\ndeep/c.png,1\n")
    files = [Path(file).relative_to(tmp_path).as_posix() for file in open_dataset(tmp_path / "list.csv").files]
    assert files == ["images/a.png", "b.png", "images/deep/c.png"]


def test_csv_column_split(tmp_path):
    path = write_csv(tmp_path, "file,label,split\n0.png,b,train\n1.png,a,val\n2.png,c,train\n")
    assert open_dataset(path, split="train").labels.tolist() == [1, 2]
    assert open_dataset(path, split="test").labels.tolist() == [0]
    assert open_dataset(path).labels.tolist() == [1, 0, 2]
    assert open_dataset(path, split="test").name.endswith("(test)")
    path.write_text("file,label,split\n0.png,b,train\n1.png,a,trian\n")
    with pytest.raises(DataError, match=r"labels\.csv, line 3: bad split 'trian'"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"labels\.csv: is empty"),
        ("file,label\n", r"labels\.csv: lists no pictures"),
        ("file;label\n0.png;1\n", r"labels\.csv, line 1: the header has no column 'file'; it has file;label"),
        ("file,class\n0.png,1\n", r"labels\.csv, line 1: the header has no column 'label'"),
        ("file,label\n0.png,1\n1.png\n", r"labels\.csv, line 3: has 1 cells, expected 2"),
        ("file,label\n0.png,1\n1.png,\n", r"labels\.csv, line 3: bad label ''"),
        ("file,label\n0.png,1\n1.png,-1\n", r"labels\.csv, line 3: bad label -1: expected 0 or more"),
        ("file,label\n0.png,99999999999999999999\n", r"labels\.csv, line 2: bad label 9999"),
        ("file,label\n0.png,1.0\n1.png,2.0\n", r"labels\.csv, line 2: bad label '1.0'"),
        ("file,label\n0.png,cat\n1.png,nan\n", r"labels\.csv, line 3: bad label 'nan'"),
        ("file,label\n0.png,cat\n\n1.png,7\n", r"labels\.csv, line 4: label '7' mixes integers with class names"),
        ("file,label\n0.png,1\n9.png,1\n", r"labels\.csv, line 3: no file '9.png' in .*images nor in"),
        ("file,label\n,1\n", r"labels\.csv, line 2: file '' must be a path inside"),
        ("file,label\n../secret.png,1\n", r"labels\.csv, line 2: file '../secret.png' must be a path inside"),
        ("file,label\n/etc/passwd,1\n", r"labels\.csv, line 2: file '/etc/passwd' must be a path inside"),
        ('file,label\n0.png,1\n"1.png,1\n', r"labels\.csv, line 3: not CSV: unexpected end of data"),
        ('file,label\n"0.png"x,1\n', r"labels\.csv, line 2: not CSV"),
    ],
)
def test_csv_damage_names_file_and_line(tmp_path, text, message):
    tree(tmp_path.parent, "secret.png")
    with pytest.raises(DataError, match=message):
        open_dataset(write_csv(tmp_path, text))


def test_csv_that_is_not_utf8_names_the_line(tmp_path):
    path = write_csv(tmp_path, "")
    path.write_bytes(b"file,label\n0.png,cat\n1.png,\xe9l\xe9phant\n")
    with pytest.raises(DataError, match=r"labels\.csv, line 3: not UTF-8"):
        open_dataset(path)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ("0.png,3", "label,name\n0,a\n1,b\n", r"labels\.csv, line 2: bad label 3: expected 0 to 1, as classes\.csv"),
        ("0.png,dog", "label,name\n0,a\n1,b\n", r"labels\.csv, line 2: bad label 'dog': no such name"),
        ("0.png,a", "label,name\n0,a\n1,a\n", r"labels\.csv, line 2: label 'a' is the name of several classes"),
        ("0.png,0", "label,name\n0,a\n0,b\n", r"classes\.csv, line 3: label 0 stands here a second time"),
        ("0.png,0", "label,name\n0,a\n2,b\n", r"classes\.csv, line 3: bad label '2': expected 0 to 1"),
        ("0.png,0", "label,name\nx,a\n", r"classes\.csv, line 2: bad label 'x'"),
        ("0.png,0", "label,wnid\n0,a\n", r"classes\.csv, line 1: the header has no column 'name'"),
        ("0.png,0", "label,name\n", r"classes\.csv: names no classes"),
    ],
)
def test_inconsistent_classes_are_named(tmp_path, labels, classes, message):
    path = write_csv(tmp_path, f"file,label\n{labels}\n")
    (tmp_path / "classes.csv").write_text(classes)
    with pytest.raises(DataError, match=message):
        open_dataset(path)


def test_plain_pictures(tmp_path):
    tree(tmp_path, "b.png", "a.png", "more/c.PNG", "notes.txt")
    dataset = open_dataset(tmp_path, split="train")
    assert [Path(file).name for file in dataset.files] == ["a.png", "b.png", "c.PNG"]
    assert (dataset.labels, dataset.classes, dataset[0].label) == (None, (), None)
    assert len(open_dataset(str(tmp_path / "a.png"))) == 1
    with pytest.raises(DataError, match=r"notes\.txt: is not called like an image; looked for \.bmp, \.jpeg"):
        open_dataset(f"images:{tmp_path / 'notes.txt'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in this folder"):
        open_dataset(f"images:{tmp_path / 'empty'}")


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    tree(tmp_path, "a.png", "locked/b.png")

    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match="locked: the folder cannot be read: Permission denied"):
        open_dataset(f"images:{tmp_path}")
