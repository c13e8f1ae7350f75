from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
from PIL import Image

from edgevision.bundle import Bundle, Manifest
from edgevision.errors import DataError, EngineError, UsageError
from edgevision.preprocess import Preprocess
from edgevision.runtime.backend import BACKENDS, EngineOptions
from edgevision.runtime.session import Session, load
from edgevision.runtime.tensors import TensorSpec
from edgevision.tasks import Classification, Tensors


class Echo:
    """An engine that answers the mean of every channel, and remembers what it was given."""

    version = "7"

    def __init__(self, bundle, options):
        self.options = options
        self.fed = []
        self.closed = 0

    def infer(self, feed):
        self.fed.append(feed)
        return {"logits": feed["images"].mean((2, 3))}

    def close(self):
        self.closed += 1


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    monkeypatch.setitem(sys.modules, "echo_backend", sys.modules[Echo.__module__])
    monkeypatch.setitem(BACKENDS._entries, "echo", "echo_backend:Echo")


def bundle(batch=None, task="classification", inputs=None, **changes) -> Bundle:
    values = {
        "name": "small",
        "task": task,
        "target": "echo",
        "precision": "fp32",
        "inputs": inputs or (TensorSpec("images", "float32", (batch, 3, 4, 6)),),
        "outputs": (TensorSpec("logits", "float32", (batch, 3)),),
        "preprocess": Preprocess((4, 6)),
        "engine_files": {},
        "classes": ("red", "green", "blue"),
    }
    return Bundle(Manifest(**{**values, **changes}), {})


def feed(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).normal(size=(batch, 3, 4, 6)).astype(np.float32)


def test_contiguous_arrays_are_handed_on_without_a_copy():
    session = Session(bundle())
    array = feed(2)
    given = {"images": array}
    session.infer(given)
    assert session._engine.fed[-1] is given
    assert session._engine.fed[-1]["images"] is array


def test_only_what_is_not_contiguous_is_copied_and_the_callers_feed_stays_his():
    specs = (TensorSpec("images", "float32", (None, 3, 4, 6)), TensorSpec("more", "float32", (None, 2)))
    session = Session(bundle(inputs=specs))
    strided, plain = feed(4)[::2], np.zeros((2, 2), np.float32)
    given = {"images": strided, "more": plain}
    session.infer(given)
    seen = session._engine.fed[-1]
    assert seen["images"].flags.c_contiguous
    np.testing.assert_array_equal(seen["images"], strided)
    assert seen["more"] is plain
    assert given["images"] is strided


def test_several_inputs_are_checked_each():
    specs = (TensorSpec("images", "float32", (None, 3, 4, 6)), TensorSpec("size", "int64", (1, 2)))
    session = Session(bundle(inputs=specs))
    images, size = feed(1), np.zeros((1, 2), np.int64)
    session.infer({"size": size, "images": images})
    for wrong in ({"images": images}, {"images": images, "size": size.astype(np.int32)}):
        with pytest.raises(
            UsageError, match=r"images: float32\[batch, 3, 4, 6\], size: int64\[1, 2\]; got images: float32"
        ):
            session.infer(wrong)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("fixed", [1, 2, 4])
def test_a_fixed_batch_is_filled_up_and_cut_off(count, fixed):
    session = Session(bundle(batch=fixed))
    batch = feed(count)
    np.testing.assert_array_equal(session.run(batch)["logits"], batch.mean((2, 3)))
    assert all(len(seen["images"]) == fixed for seen in session._engine.fed)
    assert len(session._engine.fed) == -(-count // fixed)
    if count != fixed:
        with pytest.raises(UsageError, match=rf"float32\[{fixed}, 3, 4, 6\]"):
            session.infer({"images": batch})


def test_a_free_batch_goes_through_in_one_call():
    session = Session(bundle())
    session.run(feed(5))
    assert len(session._engine.fed) == 1


def test_pictures_go_through_the_bundles_own_preprocess():
    session = Session(bundle())
    red = np.zeros((9, 9, 3), np.uint8)
    red[..., 0] = 255
    result = session(red)
    assert isinstance(result, Classification)
    assert result.name == "red"
    np.testing.assert_array_equal(
        session._engine.fed[-1]["images"], session.bundle.manifest.preprocess.batch([Image.fromarray(red)])
    )
    results = session([red, red[..., ::-1]])
    assert [one.name for one in results] == ["red", "blue"]
    assert [one.name for one in session(np.stack([red, red[..., ::-1]]))] == ["red", "blue"]


def test_other_tasks_give_tensors():
    result = Session(bundle(task="tensors"))(np.zeros((4, 6, 3), np.uint8))
    assert isinstance(result, Tensors)
    assert result.outputs["logits"].shape == (3,)


def test_no_pictures_no_results():
    session = Session(bundle())
    assert session([]) == []
    assert session.predict(()) == []
    assert session._engine.fed == []


def test_something_else_is_no_picture():
    session = Session(bundle())
    for wrong in (None, 3, {"images": 1}, np.zeros((4, 6, 3))):
        with pytest.raises(DataError):
            session(wrong)


def test_the_engine_is_closed_once_and_on_errors_too():
    with Session(bundle()) as session:
        engine = session._engine
    session.close()
    assert engine.closed == 1
    session = Session(bundle())
    engine = session._engine

    def fail() -> None:
        with session:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert engine.closed == 1
    for call in (lambda: session.infer({"images": feed(1)}), lambda: session.run(feed(1)), lambda: session([None])):
        with pytest.raises((EngineError, DataError)):
            call()


def test_two_threads_may_close_and_run():
    session = Session(bundle())
    failures = []

    def run() -> None:
        for _ in range(200):
            try:
                session.infer({"images": feed(1)})
            except EngineError:
                return
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    session.close()
    for thread in threads:
        thread.join()
    assert not failures


def test_options_reach_the_engine(tmp_path):
    path = bundle().save(tmp_path / "small.evb")
    with load(path, threads=3, cache_dir=tmp_path) as session:
        assert session._engine.options == EngineOptions(3, str(tmp_path))
        assert session.engine_version == "7"
    with load(str(path)) as session:
        assert session._engine.options == EngineOptions(1, None)


def test_an_unknown_target_is_named():
    with pytest.raises(UsageError, match=r"unknown target 'onnxruntim': did you mean onnxruntime\?"):
        load(bundle(target="onnxruntim"))


def test_a_spec_reads_as_what_a_feed_must_be():
    assert str(TensorSpec("images", "float32", (None, 3, 224, 224))) == "images: float32[batch, 3, 224, 224]"
