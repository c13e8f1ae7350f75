from __future__ import annotations

import gc
import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevision.bundle import Bundle, Manifest
from edgevision.errors import DataError, EngineError, UsageError
from edgevision.preprocess import Preprocess
from edgevision.runtime.backend import BACKENDS, EngineOptions
from edgevision.runtime.frames import Frame
from edgevision.runtime.session import Session, load
from edgevision.runtime.stream import Stream
from edgevision.runtime.tensors import TensorSpec
from edgevision.tasks import Classification
from tests import squares

SIDE = 4


class Slow:
    """An engine that answers the mean of every channel after a moment, and counts the calls under way."""

    version = "1"

    def __init__(self, bundle, options):
        self.lock = threading.Lock()
        self.under_way = self.most = self.calls = 0
        self.seconds = 0.0
        self.fail_at: float | None = None

    def infer(self, feed):
        with self.lock:
            self.under_way += 1
            self.calls += 1
            self.most = max(self.most, self.under_way)
        x = feed["images"]
        # later pictures are done sooner: order must come from the stream
        time.sleep(self.seconds * (1.0 - float(x[0, 0, 0, 0])))
        with self.lock:
            self.under_way -= 1
        if self.fail_at is not None and float(x[0, 0, 0, 0]) >= self.fail_at:
            raise EngineError("the engine gave up")
        return {"logits": x.mean((2, 3))}

    def close(self):
        pass


@pytest.fixture(autouse=True)
def backend(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "slow_backend", sys.modules[Slow.__module__])
    monkeypatch.setitem(BACKENDS._entries, "slow", "slow_backend:Slow")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    left = [thread.name for thread in set(threading.enumerate()) - before if "stream" in thread.name]
    assert not left


def session(batch: int | None = None, threads: int = 1) -> Session:
    manifest = Manifest(
        name="slow",
        task="classification",
        target="slow",
        precision="fp32",
        inputs=(TensorSpec("images", "float32", (batch, 3, SIDE, SIDE)),),
        outputs=(TensorSpec("logits", "float32", (batch, 3)),),
        preprocess=Preprocess((SIDE, SIDE)),
        engine_files={},
    )
    return Session(Bundle(manifest, {}), EngineOptions(threads))


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    # the first value rises, and tells the engine how long to take
    images[:, 0, 0, 0] = np.linspace(0, 255, count)
    return list(images)


def probabilities(results) -> list[list[float]]:
    return [result.probabilities.tolist() for result in results]


@pytest.mark.parametrize("requests", [1, 3])
@pytest.mark.parametrize("batch", [None, 1, 2])
def test_results_are_those_of_one_picture_after_the_other_in_their_order(requests, batch):
    net = session(batch)
    net._engine.seconds = 0.01
    images = pictures(17)
    expected = [net(image) for image in images]
    found = list(net.stream(images, requests=requests, workers=3))
    assert all(isinstance(result, Classification) for result in found)
    assert probabilities(found) == probabilities(expected)


def test_a_detectors_results_are_in_the_pixels_of_each_picture(tmp_path, monkeypatch):
    squares.register(tmp_path, monkeypatch)
    net = load(squares.make_bundle(tmp_path / "squares.evb"))
    scenes = [squares.scene(squares.random_boxes(seed, width=wide), width=wide) for seed, wide in enumerate((128, 192))]
    net.postprocess = type(net.postprocess)("yolov8", confidence=0.75)
    found = list(net.stream(scenes * 3))
    for result, expected in zip(found, net.predict(scenes) * 3, strict=True):
        assert len(result) == 2  # blue's score is 0.7
        assert result.to_dict() == expected.to_dict()


def test_requests_run_side_by_side_and_no_more_than_asked_for():
    net = session()
    net._engine.seconds = 0.03
    list(net.stream(pictures(12), requests=3))
    assert net._engine.most == 3
    net._engine.most = 0
    list(net.stream(pictures(6), requests=1))
    assert net._engine.most == 1


def test_stages_overlap():
    net = session()
    net._engine.seconds = 0.02

    def slowly():
        for image in pictures(10):
            time.sleep(0.02)
            image[0, 0, 0] = 0
            yield image

    stream = net.stream(slowly(), requests=1)
    list(stream)
    stages = stream.statistics.stage_ms
    # one after the other they would take the sum
    assert 1e3 * stream.statistics.seconds / 10 < 0.8 * sum(stages.values())


def test_no_more_frames_are_read_than_are_on_their_way():
    net = session()
    read = 0

    def counted():
        nonlocal read
        for image in itertools.cycle(pictures(5)):
            read += 1
            yield image

    results = net.stream(counted(), requests=1, workers=1, depth=4).results()
    for number in range(1, 30):
        next(results)
        time.sleep(0.001)
        # those handed out and those on their way
        assert read <= number + 4
    results.close()


def test_an_error_of_a_frame_comes_after_the_results_before_it(tmp_path):
    images: list = pictures(9)
    images[5] = tmp_path / "missing.png"
    found = []
    stream = session().stream(images, requests=2)
    with pytest.raises(DataError, match=r"missing\.png"):
        found.extend(stream)
    assert len(found) == 5


def test_an_error_of_the_engine_comes_in_its_place():
    net = session()
    net._engine.fail_at = 0.45
    images = pictures(11)
    found = []
    with pytest.raises(EngineError, match="gave up"):
        found.extend(net.stream(images, requests=3))
    assert len(found) == 5


def test_an_error_of_the_sequence_itself_comes_last():
    def broken():
        yield from pictures(3)
        raise RuntimeError("the camera was pulled out")

    found = []
    with pytest.raises(RuntimeError, match="pulled out"):
        found.extend(session().stream(broken(), errors="return"))
    assert len(found) == 3


def test_something_that_is_no_sequence_is_an_error_too():
    with pytest.raises(TypeError):
        list(session().stream(7))  # type: ignore[arg-type]


def test_a_bad_picture_need_not_end_the_stream(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    images: list = pictures(4)
    images.insert(2, Frame(tmp_path / "bad.png", "bad.png"))
    stream = session().stream(images, errors="return")
    items = list(stream.results())
    assert [item.error is None for item in items] == [True, True, False, True, True]
    assert isinstance(items[2].error, DataError)
    assert items[2].result is None
    assert items[2].frame is images[2]
    assert stream.statistics.frames == 4


def test_leaving_the_loop_stops_the_threads_and_the_sequence():
    ended = threading.Event()

    def endless():
        try:
            yield from itertools.cycle(pictures(5))
        finally:
            ended.set()

    for number, _ in enumerate(session().stream(endless())):
        if number == 3:
            break
    gc.collect()
    assert ended.wait(5)


def test_closing_from_outside_ends_the_loop():
    stream = session().stream(itertools.cycle(pictures(5)))
    with stream:
        results = iter(stream)
        next(results)
        stream.close()
        assert len(list(results)) <= 8  # what was done already


def test_a_stream_is_read_once():
    stream = session().stream(pictures(2))
    assert len(list(stream)) == 2
    with pytest.raises(UsageError, match="read once"):
        list(stream)


def test_an_empty_stream_has_empty_statistics():
    stream = session().stream([])
    assert list(stream) == []
    statistics = stream.statistics
    assert (statistics.frames, statistics.frames_per_second, statistics.latency_ms, statistics.stage_ms) == (
        0,
        None,
        {},
        {},
    )


def test_statistics_tell_throughput_and_latency():
    net = session()
    net._engine.seconds = 0.01
    images = pictures(20)
    for image in images:
        image[0, 0, 0] = 0
    stream = net.stream(images, requests=2)
    latencies = [item.latency_ms for item in stream.results()]
    statistics = stream.statistics
    assert statistics.frames == 20
    assert statistics.frames_per_second == pytest.approx(20 / statistics.seconds)
    assert statistics.latency_ms["p50"] == pytest.approx(np.percentile(latencies, 50))
    assert statistics.latency_ms["p50"] <= statistics.latency_ms["p90"] <= statistics.latency_ms["p99"]
    assert statistics.latency_ms["max"] == max(latencies)
    # every picture waits for its inference at least
    assert min(latencies) >= 10
    assert statistics.stage_ms["infer"] >= 10
    assert set(statistics.to_dict()["stage_ms"]) == {"read", "prepare", "infer", "finish"}


def test_options_out_of_range_are_refused():
    for options in ({"requests": 0}, {"workers": 0}, {"depth": 0}, {"errors": "ignore"}):
        with pytest.raises(UsageError):
            Stream(session(), [], **options)


def test_requests_fit_the_processor_by_default(monkeypatch):
    monkeypatch.setattr("edgevision.devices.cpu.usable_cores", lambda: 4)
    for threads, requests in ((1, 4), (2, 2), (8, 1), (0, 1)):
        assert session(threads=threads).stream([]).statistics.requests == requests


@pytest.fixture(scope="module")
def openvino_bundle(tmp_path_factory) -> Bundle:
    pytest.importorskip("openvino", reason="openvino is not installed")
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from edgevision_converters.openvino import save_ir
    from tests.conformance.nets import CLASSES, SIZE, tiny_net

    folder = tmp_path_factory.mktemp("ir")
    onnx.save(tiny_net(), folder / "tiny.onnx")
    save_ir(str(folder / "tiny.onnx"), str(folder / "tiny.xml"), half=False)
    manifest = Manifest(
        name="tiny",
        task="classification",
        target="openvino",
        precision="fp32",
        inputs=(TensorSpec("images", "float32", (None, 3, SIZE, SIZE)),),
        outputs=(TensorSpec("logits", "float32", (None, CLASSES)),),
        preprocess=Preprocess((SIZE, SIZE)),
        engine_files={"model": "engine/model.xml", "weights": "engine/model.bin"},
    )
    files = {f"engine/model.{end}": (folder / f"tiny.{end}").read_bytes() for end in ("xml", "bin")}
    return Bundle(manifest, files)


def test_openvino_answers_the_same_from_asynchronous_requests(openvino_bundle):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 30, 3), dtype=np.uint8) for _ in range(24)]
    with load(openvino_bundle) as net:
        expected = net.predict(images)
        engine = net.parallel_engine(2)
        assert engine is not None
        engine.close()
        found = list(net.stream(images, requests=2))
        for result, other in zip(found, expected, strict=True):
            # another compilation may add in another order: 1e-6 of sums of a few units
            np.testing.assert_allclose(result.probabilities, other.probabilities, atol=1e-5)


def test_openvino_errors_come_out_of_the_stream(openvino_bundle, monkeypatch):
    with load(openvino_bundle) as net:
        monkeypatch.setattr(net, "place", lambda images: (np.zeros((1, 3, 5, 5), np.float32), None))
        with pytest.raises(EngineError, match="OpenVINO failed to run"):
            list(net.stream([Image.new("RGB", (4, 4))] * 3, requests=2))


def test_frames_of_files_are_decoded_in_the_stream(tmp_path: Path):
    paths = []
    for number, image in enumerate(pictures(4)):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(paths[-1])
    net = session()
    assert probabilities(net.stream(paths)) == probabilities(net.predict(pictures(4)))
