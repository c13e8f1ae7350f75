"""The embedded data set: 1,797 handwritten digits that come with scikit-learn and need no download."""

from __future__ import annotations

import numpy as np

from edgevision.data.base import Dataset, Subset
from edgevision.data.datasets import ArrayDataset
from edgevision.data.layout import check_split
from edgevision.dependencies import require
from edgevision.errors import UsageError

_TEST_EVERY = 5


def open_digits(argument: str = "", split: str | None = None) -> Dataset:
    """The digits of scikit-learn's ``load_digits``: grey ``uint8`` ``[8, 8]``, classes ``"0"`` to ``"9"``.

    The split is deterministic and stratified: of each class, in the set's own order, every fifth picture is for
    testing (355), the others are for training (1,442).

    Raises:
        UsageError: something stands behind ``digits:``, or there is no such split.
        MissingDependencyError: scikit-learn is not installed.
    """
    check_split(split)
    if argument:
        raise UsageError(
            f"digits is embedded and takes no path; got {argument!r}; a folder of that name is ./{argument}"
        )
    datasets = require("sklearn.datasets", purpose="read the embedded digits", extra="train")
    loaded = datasets.load_digits()
    # ink from 0 to 16 becomes grey from 0 to 255
    images = np.rint(np.asarray(loaded.images, np.float64) * (255.0 / 16.0)).astype(np.uint8)
    labels = np.asarray(loaded.target, np.int64)
    whole = ArrayDataset("digits", images, labels, tuple(str(digit) for digit in range(10)), source="digits")
    if split is None:
        return whole
    is_test = np.zeros(len(labels), bool)
    for digit in range(10):
        of_class = np.flatnonzero(labels == digit)
        is_test[of_class[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    part = "train" if split == "train" else "test"
    chosen = np.flatnonzero(is_test if part == "test" else ~is_test)
    return Subset(whole, chosen.tolist(), name=f"digits ({part})")
