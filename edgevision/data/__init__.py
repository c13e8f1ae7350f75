"""Data sets: one function opens them all.

::

    open_dataset("digits", split="train")               embedded, needs no download
    open_dataset("cifar10:data/cifar-10-batches-bin")   kind and path
    open_dataset("photos/")                             recognized from the path
    open_dataset("csv:photos/labels.csv[200:]")         without the first 200 samples

======== ==========================================================================================
kind     what it reads
======== ==========================================================================================
digits   the embedded handwritten digits of scikit-learn
cifar10  CIFAR-10's original binary layout: a folder with data_batch_1.bin …, or one .bin file
npz      a .npz file with images and labels, or a folder with train.npz and test.npz
csv      a .csv file with columns file and label, or a folder with labels.csv
coco     a COCO .json file, or a folder with instances*.json
voc      a folder with JPEGImages and Annotations
folder   a folder or .zip with one folder of images per class, or with train and val or test of them
images   a folder of images, or one image
======== ==========================================================================================

A path is recognized by `FILE_RULES` and `FOLDER_RULES` of `edgevision.data.spec`, tried in their order.
"""

from __future__ import annotations

from pathlib import Path

from edgevision.data.base import Boxes, Dataset, Sample, Subset, evenly_spaced
from edgevision.data.batches import batches
from edgevision.data.layout import check_split
from edgevision.data.spec import Spec, parse_spec, recognize
from edgevision.errors import DataError, UsageError
from edgevision.registry import Registry

__all__ = ["DATASETS", "Boxes", "Dataset", "Sample", "Subset", "batches", "evenly_spaced", "open_dataset"]

# kind → a function (text behind the colon, split or None) → Dataset
DATASETS = Registry(
    "data set kind",
    "edgevision.datasets",
    {
        "digits": "edgevision.data.digits:open_digits",
        "cifar10": "edgevision.data.cifar10:open_cifar10",
        "npz": "edgevision.data.arrays:open_npz",
        "csv": "edgevision.data.csv_list:open_csv",
        "coco": "edgevision.data.coco:open_coco",
        "voc": "edgevision.data.voc:open_voc",
        "folder": "edgevision.data.image_folder:open_image_folder",
        "images": "edgevision.data.images:open_images",
    },
)


def open_dataset(spec: str | Path | Dataset, *, split: str | None = None, images: str | Path | None = None) -> Dataset:
    """Open a data set by its name.

    Args:
        spec: ``"kind:path"``, a path whose kind is recognized, or ``"digits"``; any of them may end in a Python
            slice that takes some of its samples, as ``"photos/[:300]"``, applied after the split. A `Path` is a path
            and nothing else: no kind, no slice. A data set is returned as it is.
        split: ``"train"``, ``"test"`` (what many layouts call ``val``; ``"val"`` and ``"validation"`` are taken too) or
            None for all there is. A data set that is not divided is returned whole for any split.
        images: folder of the pictures of a COCO file, where it is none of those that `open_coco` looks into.

    Raises:
        UsageError: an unknown kind or split, a bad slice, or ``images`` for another kind than COCO's.
        DataError: missing or damaged files; the message names the file, and the line where there is one.
        MissingDependencyError: ``digits`` without scikit-learn.
    """
    check_split(split)
    if isinstance(spec, Path):
        named = Spec(None, str(spec))
    elif isinstance(spec, str):
        named = parse_spec(spec, DATASETS)
    elif isinstance(spec, Dataset):
        return spec
    else:
        raise UsageError(f"a data set is a string, a path or a Dataset; got {type(spec).__name__}")
    kind = named.kind or recognize(Path(named.argument).expanduser())
    if images is not None and kind != "coco":
        raise UsageError(f"images (--images) names the pictures' folder of a COCO file; {spec} is of kind {kind}")
    where = {} if images is None else {"images": images}
    dataset: Dataset = DATASETS.resolve(kind)(named.argument, split, **where)
    return dataset if named.taken is None else _take(dataset, named.taken, named.suffix)


def _take(dataset: Dataset, taken: slice, suffix: str) -> Subset:
    chosen = range(len(dataset))[taken]
    if not chosen:
        raise DataError(f"{dataset.name}{suffix}: takes none of the {len(dataset)} samples")
    return Subset(dataset, chosen, name=f"{dataset.name}{suffix}")
