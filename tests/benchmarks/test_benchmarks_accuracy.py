from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgevision.data import open_dataset
from edgevision.data.base import Sample
from edgevision.errors import DataError, UsageError
from edgevision.runtime import load
from edgevision_benchmarks.accuracy import best_classes, evaluate, evaluate_bundle


class Labelled:
    """A data set in memory whose classes and labels a test chooses."""

    def __init__(self, labels: list[int | None], classes: tuple[str, ...] = ()) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
        self.name = "memory"
        self.classes = classes
        self._labels = labels

    @property
    def labels(self) -> np.ndarray | None:
        return None if None in self._labels else np.asarray(self._labels, np.int64)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index], f"memory[{index}]", self._labels[index])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("fixed", [None, 3])
def test_accuracy_is_what_was_built_into_the_labels(make_bundle, labelled, batch_size, fixed) -> None:
    path = make_bundle("a", batch=fixed)
    evaluation = evaluate_bundle(path, f"csv:{labelled}", reference=path, batch_size=batch_size)
    assert evaluation.n == 40
    # every fifth of 40 labels is wrong by construction
    assert evaluation.top1 == pytest.approx(32 / 40)
    assert evaluation.agreement == 1.0
    assert evaluation.top1_ci95 is not None
    assert evaluation.top1_ci95[0] < 0.8 < evaluation.top1_ci95[1]
    assert evaluation.top5 is not None
    assert evaluation.top1 <= evaluation.top5 <= 1.0


def test_the_contract_of_the_keys(make_bundle, labelled) -> None:
    values = evaluate_bundle(make_bundle("a"), f"csv:{labelled}").to_dict()
    assert list(values)[:4] == ["top1", "top5", "n", "agreement"]
    assert values["agreement"] is None
    assert json.loads(json.dumps(values)) == values


def test_agreement_counts_equal_answers_not_equal_scores(make_bundle, labelled) -> None:
    plain, noisy = make_bundle("a"), make_bundle("b", noise=0.7)
    with load(plain) as reference, load(noisy) as session:
        dataset = open_dataset(f"csv:{labelled}")
        found = evaluate(session, dataset, reference=reference)
        images = [dataset[index].image for index in range(len(dataset))]
        same = [a.label == b.label for a, b in zip(session.predict(images), reference.predict(images), strict=True)]
    assert found.agreement == pytest.approx(sum(same) / 40)
    # the noise must change some answers and not all, or the test says nothing
    assert 0 < sum(same) < 40


def test_limit_takes_evenly_spaced_pictures(make_bundle, labelled) -> None:
    assert evaluate_bundle(make_bundle("a"), f"csv:{labelled}", limit=9).n == 9


def test_labels_are_matched_by_name_where_classes_have_names(make_bundle) -> None:
    path = make_bundle("a")
    with load(path) as session:
        probe = Labelled([None] * 30)
        answers = [session(image).name for image in probe.images]
        theirs = ("gnu", "fox", "elk", "dog", "cat", "bee", "ant")
        by_name = Labelled([theirs.index(name) for name in answers], theirs)
        assert evaluate(session, by_name).top1 == 1.0
        numbered = ("0", "1", "2", "3", "4", "5", "6")
        ours = session.bundle.manifest.classes
        by_number = Labelled([ours.index(name) for name in answers], numbered)
        assert evaluate(session, by_number).top1 == 1.0
        wnids = tuple(f"n{n}" for n in range(7))
        by_index = Labelled([ours.index(name) for name in answers], wnids)
        assert evaluate(session, by_index).top1 == 1.0


def test_unknown_class_names_are_refused(make_bundle) -> None:
    with load(make_bundle("a")) as session, pytest.raises(DataError, match="'yak' is none of the 7 classes"):
        evaluate(session, Labelled([0, 1], ("ant", "yak")))


def test_a_label_outside_the_network_names_the_picture(make_bundle) -> None:
    with load(make_bundle("a")) as session, pytest.raises(DataError, match=r"memory\[1\]: label 7 lies outside"):
        evaluate(session, Labelled([0, 7]))


def test_pictures_without_labels_count_for_agreement_only(make_bundle) -> None:
    path = make_bundle("a")
    with load(path) as session, load(path) as reference:
        found = evaluate(session, Labelled([None, None, None]), reference=reference)
    assert (found.top1, found.top5, found.agreement, found.n) == (None, None, 1.0, 3)


def test_nothing_to_judge_by_is_said(make_bundle, labelled) -> None:
    with pytest.raises(UsageError, match="nothing to judge by"):
        evaluate_bundle(make_bundle("a"), f"images:{labelled.parent / 'images'}")


def test_nan_is_a_wrong_answer_and_is_counted(make_bundle, labelled) -> None:
    good, bad = make_bundle("a"), make_bundle("b", nan=True)
    found = evaluate_bundle(bad, f"csv:{labelled}", reference=good, batch_size=10)
    assert found.not_finite == 20
    assert found.agreement == 0.5
    # wrong labels stand at 0, 5, 10, …; even pictures are NaN, so of the odd ones 4 are labelled wrongly
    assert found.top1 == pytest.approx(16 / 40)


def test_raw_tensors_are_compared_with_the_reference(make_bundle, labelled) -> None:
    plain = make_bundle("a", task="tensors")
    noisy = make_bundle("b", task="tensors", noise=0.1)
    same = evaluate_bundle(plain, f"csv:{labelled}", reference=plain)
    assert (same.top1, same.agreement) == (None, None)
    assert same.cosine == pytest.approx(1.0)
    assert same.sqnr_db == float("inf")
    assert same.to_dict()["sqnr_db"] is None
    other = evaluate_bundle(noisy, f"csv:{labelled}", reference=plain)
    assert other.sqnr_db is not None
    # weights of variance 1 with noise of variance 0.01: 20 dB; 7 × 40 outputs of one draw scatter by a few dB
    assert other.sqnr_db == pytest.approx(20.0, abs=4.0)
    assert other.outputs["logits"]["sqnr_db"] == other.sqnr_db
    with pytest.raises(UsageError, match="raw tensors"):
        evaluate_bundle(plain, f"csv:{labelled}")


def test_tasks_that_cannot_be_compared_are_refused(make_bundle, labelled) -> None:
    with pytest.raises(UsageError, match="another task"):
        evaluate_bundle(make_bundle("a"), f"csv:{labelled}", reference=make_bundle("b", task="tensors"))


def test_wrong_sizes_and_empty_data_are_refused(make_bundle) -> None:
    with load(make_bundle("a")) as session:
        with pytest.raises(UsageError, match="batch size"):
            evaluate(session, Labelled([0]), batch_size=0)
        with pytest.raises(DataError, match="no pictures"):
            evaluate(session, Labelled([]))


def test_a_damaged_picture_is_named(make_bundle, labelled: Path) -> None:
    (labelled.parent / "images" / "07.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"07\.png.*empty"):
        evaluate_bundle(make_bundle("a"), f"csv:{labelled}")


def test_ties_go_to_the_lower_index() -> None:
    logits = np.array([[1.0, 3.0, 3.0, 0.0], [np.nan, 9.0, 9.0, 9.0]], np.float32)
    assert best_classes(logits, 3).tolist() == [[1, 2, 0], [-1, -1, -1]]
