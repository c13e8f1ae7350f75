"""COCO JSON and VOC XML."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgevision.data import Subset, open_dataset
from edgevision.data.boxes import BoxCheck
from edgevision.data.coco import open_coco
from edgevision.data.datasets import Concatenation, complaints, crowd_regions
from edgevision.errors import DataError, UsageError

DOCUMENT = {
    "images": [
        {"id": 9, "file_name": "b.jpg", "width": 40, "height": 30},
        {"id": 4, "file_name": "a.jpg", "width": 40, "height": 30},
        {"id": 5, "file_name": "none.jpg", "width": 40, "height": 30},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 90, "bbox": [1, 2, 10, 20]},
        {"id": 2, "image_id": 4, "category_id": 3, "bbox": [0.5, 0.25, 4, 4], "iscrowd": 0},
        {"id": 3, "image_id": 9, "category_id": 3, "bbox": [5, 5, 0, 7]},
        {"id": 4, "image_id": 9, "category_id": 3, "bbox": [5, 5, 7, 7], "iscrowd": 1},
        {"id": 5, "image_id": 9, "category_id": 3, "bbox": [5, 6, 7, 8]},
    ],
}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path)


def write_coco(path: Path, document=DOCUMENT, images: Path | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    for record in DOCUMENT["images"]:
        picture((images or path.parent / "images") / record["file_name"])
    return path


def test_coco(tmp_path):
    dataset = open_dataset(write_coco(tmp_path / "instances.json"), split="test")
    assert (dataset.classes, dataset.category_ids) == (("car", "toothbrush"), (3, 90))
    assert [Path(file).name for file in dataset.files] == ["b.jpg", "a.jpg", "none.jpg"]
    assert list(dataset.image_ids) == [9, 4, 5]
    assert (dataset.skipped_boxes, dataset.skipped_crowds) == (1, 1)
    assert dataset.labels is None
    boxes = dataset[1].boxes
    assert boxes.xyxy.tolist() == [[1, 2, 11, 22], [0.5, 0.25, 4.5, 4.25]]
    assert (boxes.xyxy.dtype, boxes.labels.dtype) == (np.float32, np.int64)
    assert boxes.labels.tolist() == [1, 0]
    assert dataset[2].boxes.xyxy.shape == (0, 4)
    assert [len(sample.boxes.labels) for sample in dataset] == [1, 2, 0]
    assert open_dataset(tmp_path).name == f"coco:{tmp_path / 'instances.json'}"


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("instances.json", "images"),
        ("instances.json", "JPEGImages"),
        ("instances.json", "."),
        ("annotations/instances_val2017.json", "val2017"),
        ("annotations/instances_val2017.json", "images/val2017"),
        ("coco/instances.json", "JPEGImages"),
        ("coco/instances.json", "images"),
        ("coco/instances.json", "."),
    ],
)
def test_coco_finds_its_pictures(tmp_path, file, images):
    dataset = open_dataset(write_coco(tmp_path / file, images=tmp_path / images))
    assert Path(dataset.files[0]).samefile(tmp_path / images / "b.jpg")


def test_coco_with_a_folder_of_pictures_named(tmp_path):
    path = write_coco(tmp_path / "one" / "instances.json", images=tmp_path / "two")
    with pytest.raises(DataError, match=r"instances\.json: its first picture 'b\.jpg' is in none of .*images"):
        open_dataset(path)
    assert len(open_coco(str(path), images=tmp_path / "two")) == 3


def test_coco_folder_with_splits(tmp_path):
    write_coco(tmp_path / "instances_train.json")
    small = {**DOCUMENT, "images": DOCUMENT["images"][:2]}
    write_coco(tmp_path / "instances_val2017.json", small)
    assert len(open_dataset(tmp_path, split="train")) == 3
    assert len(open_dataset(tmp_path, split="test")) == 2
    whole = open_dataset(tmp_path)
    assert isinstance(whole, Concatenation)
    assert (len(whole), whole.labels) == (5, None)
    write_coco(tmp_path / "instances_val2014.json")
    with pytest.raises(DataError, match=r"both instances_val2014\.json and instances_val2017\.json"):
        open_dataset(f"coco:{tmp_path}", split="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no instances\*\.json"):
        open_dataset(f"coco:{tmp_path / 'empty'}")


def _changed(section, position, **values):
    document = copy.deepcopy(DOCUMENT)
    document[section][position].update(values)
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([1, 2], "expected a JSON object"),
        ({"images": [], "annotations": []}, "has no list 'categories'"),
        ({**DOCUMENT, "annotations": {}}, "has no list 'annotations'"),
        ({**DOCUMENT, "images": []}, "lists no images"),
        ({**DOCUMENT, "images": [7]}, r"images\[0\] is no JSON object"),
        (_changed("images", 1, id=None), r"images\[1\] has no id"),
        (_changed("images", 1, id=9), r"images\[1\] has the id 9 of an earlier one"),
        (_changed("images", 1, file_name=None), "image 4 has no file_name"),
        (_changed("images", 1, file_name="../../x.jpg"), r"image 4: file_name '../../x\.jpg' must be a path inside"),
        (_changed("images", 1, file_name="zzz.jpg"), r"image 4: no file 'zzz\.jpg' in .*images"),
        (_changed("categories", 0, id="x"), "category id 'x' is no integer"),
        (_changed("categories", 0, name=""), "category 90 has no name"),
        (_changed("annotations", 1, image_id=77), "annotation 2: image_id 77 is none of the 3 images"),
        (_changed("annotations", 1, image_id=[1]), r"annotation 2: image_id \[1\] is none"),
        (_changed("annotations", 1, category_id=4), "annotation 2: category_id 4 is none of the 2 categories"),
        (_changed("annotations", 1, bbox=[1, 2, 3]), r"annotation 2: bbox must be \[left, top, width, height\]"),
        (_changed("annotations", 1, bbox=["1", 2, 3, 4]), "annotation 2: bbox must be"),
        (_changed("annotations", 1, bbox=[1, 2, float("nan"), 4]), "annotation 2: bbox must be numbers of pixels"),
        (_changed("annotations", 1, bbox=[1, 2, 10**400, 4]), "annotation 2: bbox must be numbers of pixels"),
    ],
)
def test_coco_damage_names_the_file_and_the_annotation(tmp_path, document, message):
    path = write_coco(tmp_path / "bad.json", document)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(path)
    assert str(caught.value).startswith(str(path))


def test_damaged_json_names_the_line(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text('{\n "images": [],\n "annotations": [,]\n}')
    with pytest.raises(DataError, match=r"bad\.json, line 3: damaged JSON: Expecting value"):
        open_dataset(path)
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"bad\.json: damaged JSON"):
        open_dataset(path)
    path.write_text('{"images": [' + "9" * 5000 + "]}")
    with pytest.raises(DataError, match=r"bad\.json"):
        open_dataset(path)
    path.write_bytes(b'{"images":\n [{"id": "\xff"}]}')
    with pytest.raises(DataError, match=r"bad\.json, line 2: not UTF-8"):
        open_dataset(path)


def voc_object(name: str, *corners: object) -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"\n   <{tag}>{value}</{tag}>" for tag, value in zip(tags, corners, strict=True))
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f" <object>\n  <name>{name}</name>\n  {part}\n  <bndbox>{box}\n  </bndbox>\n </object>\n"


def write_voc(folder: Path, pictures: dict[str, str], lists: dict[str, str] | None = None) -> Path:
    (folder / "Annotations").mkdir(parents=True)
    for key, objects in pictures.items():
        picture(folder / "JPEGImages" / f"{key}.jpg")
        (folder / "Annotations" / f"{key}.xml").write_text(f"<annotation>\n{objects}</annotation>\n")
    for name, text in (lists or {}).items():
        (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return folder


PICTURES = {
    "p1": voc_object("dog", 1, 2, 10, 20) + voc_object("cat", 3, 3, 3, 9),
    "p2": voc_object("cat", 0.5, 1, 2, 3),
    "p3": "",
}


def test_voc(tmp_path):
    write_voc(tmp_path, PICTURES, {"train": "p2\n\np1  1\n", "val": "p3\n"})
    train, val, whole = (open_dataset(tmp_path, split=split) for split in ("train", "test", None))
    # the only cat of p1 is an empty box, which makes no class
    assert train.classes == val.classes == whole.classes == ("cat", "dog")
    assert [Path(file).stem for file in train.files] == ["p2", "p1"]
    assert [Path(file).stem for file in whole.files] == ["p1", "p2", "p3"]
    assert (train.skipped_boxes, val.skipped_boxes) == (1, 0)
    assert train[1].boxes.xyxy.tolist() == [[1, 2, 10, 20]]
    assert train[1].boxes.labels.tolist() == [1]
    assert val[0].boxes.xyxy.shape == (0, 4)
    assert train.category_ids == (0, 1)
    assert (train.name, val.name) == (f"voc:{tmp_path} (train)", f"voc:{tmp_path} (val)")


def test_voc_without_lists_is_not_divided(tmp_path):
    write_voc(tmp_path, PICTURES)
    assert len(open_dataset(tmp_path, split="train")) == len(open_dataset(tmp_path, split="test")) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>\n<object>\n</annotation>", r"p2\.xml, line 3: malformed XML: mismatched tag"),
        ("<annotation>\n", r"p2\.xml, line 2: malformed XML: no element found"),
        ("", r"p2\.xml, line 1: malformed XML: no element found"),
        ('<?xml version="1.0" encoding="klingon"?>\n<annotation/>', r"p2\.xml.* malformed XML"),
        ("<a>\n</a>", r"p2\.xml, line 1: expected <annotation>; got <a>"),
        ("<annotation>\n\n<object/></annotation>", r"p2\.xml, line 3: <object> has no <name>"),
        (
            "<annotation>\n<object>\n<name>a</name></object></annotation>",
            r"p2\.xml, line 2: <object> has no <bndbox>",
        ),
        (f"<annotation>\n{voc_object('a', 1, 'two', 3, 4)}</annotation>", r"p2\.xml, line 7: <ymin> must be a number"),
        (f"<annotation>\n{voc_object('a', 1, 2, 'nan', 4)}</annotation>", r"p2\.xml, line 8: <xmax> must be a number"),
        (f"<annotation>\n{voc_object('a', 1, 2, 3, '')}</annotation>", r"p2\.xml, line 9: <bndbox> has no <ymax>"),
    ],
)
def test_voc_damage_names_file_and_line(tmp_path, text, message):
    write_voc(tmp_path, PICTURES)
    (tmp_path / "Annotations" / "p2.xml").write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path)


def test_voc_missing_pieces_are_named(tmp_path):
    write_voc(tmp_path, PICTURES, {"train": "p1\n\np9\n", "val": "\n"})
    with pytest.raises(DataError, match=r"train\.txt, line 3: no annotation p9\.xml"):
        open_dataset(tmp_path, split="train")
    with pytest.raises(DataError, match=r"val\.txt: lists no pictures"):
        open_dataset(tmp_path, split="val")
    (tmp_path / "JPEGImages" / "p3.jpg").unlink()
    with pytest.raises(DataError, match=r"p3\.xml: its picture p3\.jpg is not in .*JPEGImages"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="not the VOC layout"):
        open_dataset(f"voc:{tmp_path / 'JPEGImages'}")
    for file in (tmp_path / "Annotations").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"Annotations: holds no \.xml"):
        open_dataset(tmp_path)


def test_coco_boxes_are_cut_to_their_picture_and_bad_ones_counted(tmp_path):
    boxes = {
        "inside": [5, 6, 7, 8],
        "rounding": [-0.5, 0, 40.9, 10],  # within a pixel: cut without a word
        "beyond": [30, 20, 20, 20],
        "outside": [50, 5, 10, 10],
        "touching": [-10, 5, 10, 10],
        "flat": [5, 5, 0, 7],
        "negative": [5, 5, 7, -1],
    }
    annotations = [
        {"id": number, "image_id": 9, "category_id": 3, "bbox": box} for number, box in enumerate(boxes.values())
    ]
    dataset = open_dataset(write_coco(tmp_path / "instances.json", {**DOCUMENT, "annotations": annotations}))
    assert dataset[0].boxes.xyxy.tolist() == [[5, 6, 12, 14], [0, 0, pytest.approx(40), 10], [30, 20, 40, 30]]
    assert (dataset.skipped_boxes, dataset.outside_boxes, dataset.clipped_boxes) == (2, 2, 1)
    assert dataset.complaint == (
        f"coco:{tmp_path / 'instances.json'}: left out boxes: 2 without area, 2 outside their picture; "
        "cut 1 boxes to their picture"
    )
    assert open_dataset(f"coco:{write_coco(tmp_path / 'fine.json', _changed('annotations', 2, bbox=[5, 5, 1, 7]))}")


@pytest.mark.parametrize("size", [{"width": None}, {"width": 0, "height": 0}, {"height": "30"}, {"width": True}])
def test_coco_pictures_of_unknown_size_keep_their_boxes_whole(tmp_path, size):
    document = _changed("images", 0, **size)
    document["annotations"] = [{"id": 1, "image_id": 9, "category_id": 3, "bbox": [30, 20, 20, 20]}]
    dataset = open_dataset(write_coco(tmp_path / "instances.json", document))
    assert dataset[0].boxes.xyxy.tolist() == [[30, 20, 50, 40]]
    assert dataset.complaint == ""


def test_coco_crowds_are_kept_apart(tmp_path):
    dataset = open_dataset(write_coco(tmp_path / "instances.json"))
    assert [len(region.labels) for region in dataset.crowds] == [1, 0, 0]
    assert dataset.crowds[0].xyxy.tolist() == [[5, 5, 12, 12]]
    assert crowd_regions(dataset)[0] is dataset.crowds[0]
    some = Subset(dataset, [2, 0])
    assert [len(region.labels) for region in crowd_regions(some)] == [0, 1]
    both = Concatenation("both", [dataset, some])
    assert [len(region.labels) for region in crowd_regions(both)] == [1, 0, 0, 0, 1]
    assert len(complaints(both)) == 2  # once for each file that was read
    without = open_dataset(write_coco(tmp_path / "none" / "instances.json", {**DOCUMENT, "annotations": []}))
    assert (without.crowds, crowd_regions(without)) == ((), [None] * 3)


def test_pictures_where_images_says(tmp_path):
    path = write_coco(tmp_path / "one" / "instances.json", images=tmp_path / "two")
    assert Path(open_dataset(f"coco:{path}", images=tmp_path / "two").files[0]).parent == tmp_path / "two"
    assert len(open_dataset(str(path) + "[1:]", images=str(tmp_path / "two"))) == 2
    with pytest.raises(DataError, match="no such file or folder"):
        open_dataset(path, images=tmp_path / "three")
    (tmp_path / "two" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"no file 'a\.jpg' in .*two"):
        open_dataset(path, images=tmp_path / "two")
    with pytest.raises(UsageError, match=r"names the pictures' folder of a COCO file; .* is of kind images"):
        open_dataset(f"images:{tmp_path / 'two'}", images=tmp_path / "two")


def test_voc_boxes_are_cut_to_their_picture_and_bad_ones_counted(tmp_path):
    size = " <size><width>40</width><height>30</height><depth>3</depth></size>\n"
    pictures = {
        "p1": size + voc_object("dog", 1, 2, 41, 35) + voc_object("cat", 50, 3, 60, 9) + voc_object("cat", 3, 3, 3, 9),
        "p2": voc_object("cat", 1, 2, 60, 40),
        "p3": " <size><width>0</width><height>0</height></size>\n" + voc_object("cat", 1, 2, 60, 40),
        "p4": " <size><width>wide</width><height>0</height></size>\n" + voc_object("cat", 1, 2, 60, 40),
    }
    dataset = open_dataset(write_voc(tmp_path, pictures))
    assert dataset[0].boxes.xyxy.tolist() == [[1, 2, 40, 30]]
    assert [sample.boxes.xyxy.tolist() for sample in dataset][1:] == [[[1, 2, 60, 40]]] * 3
    assert (dataset.skipped_boxes, dataset.outside_boxes, dataset.clipped_boxes) == (1, 1, 1)
    assert "1 outside their picture" in dataset.complaint


@given(
    st.tuples(*[st.floats(-100, 200)] * 4),
    st.one_of(st.none(), st.tuples(st.floats(1, 150), st.floats(1, 150))),
)
def test_a_box_is_kept_inside_or_counted(box, size):
    check = BoxCheck()
    kept = check.fit(box, size)
    assert (kept is None) == (check.empty + check.outside == 1)
    if kept is not None:
        left, top, right, bottom = kept
        assert left < right
        assert top < bottom
        if size is None:
            assert kept == list(box)
        else:
            assert left >= 0
            assert top >= 0
            assert right <= size[0]
            assert bottom <= size[1]
            assert all(after == before or after in (0, *size) for before, after in zip(box, kept, strict=True))
