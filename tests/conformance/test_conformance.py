"""What every backend must do, over real bundles of one network. A new backend is added to `CASES`."""

from __future__ import annotations

import importlib
import math
import threading
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from edgevision.bundle import GOLDEN, Bundle, golden_bytes
from edgevision.cli import main
from edgevision.errors import DataError, EngineError, UsageError
from edgevision.parity import sqnr_db, verify, verify_session
from edgevision.runtime.backend import BACKENDS, EngineOptions
from edgevision.runtime.session import Session, load
from edgevision.runtime.tensors import TensorSpec
from edgevision.tasks import Classification
from edgevision_calibration.scheme import SCHEMES
from edgevision_converters.target import CONVERTERS, PRECISIONS_OF
from tests.conformance.nets import CLASSES, NAMES, SIZE, picture, tiny_net

# engines that must load wherever these tests run: a missing one is a failure, so that no skip can hide it
REQUIRED = ("onnxruntime", "openvino", "ncnn")
CASES = [
    ("onnxruntime", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "fp32"),
    ("openvino", "fp16"),
    ("openvino", "int8"),
    ("ncnn", "fp32"),
    ("ncnn", "fp16"),
    ("ncnn", "int8"),
    ("tensorrt", "fp32"),
    ("tensorrt", "fp16"),
    ("tensorrt", "int8"),
]
# how far two ways of running one bundle (another batch, other threads) may lie apart, on logits of about ±2. fp32:
# other orders of addition, of which engines among themselves show 1e-5. fp16 and int8: a value pushed over a rounding
# edge moves a whole step, so up to twice what the precision itself costs on this network, 2e-2 and 0.16.
CLOSE = {
    "fp32": {"rtol": 1e-4, "atol": 1e-4},
    "fp16": {"rtol": 0, "atol": 4e-2},
    "int8": {"rtol": 0, "atol": 0.3},
}
# against FP32 on pictures that nothing was calibrated on; measured 107, 39 and 21 dB on the worst engine
LEAST_DB = {"fp32": 90.0, "fp16": 33.0, "int8": 15.0}


@pytest.fixture(params=CASES, ids="-".join)
def case(request, bundles, runtime) -> Bundle:
    target, _ = request.param
    runtime(target)
    return bundles[request.param]


@pytest.fixture
def net(case):
    with load(case) as session:
        yield session


def images(count: int, seed: int = 1000) -> np.ndarray:
    """float32 ``[count, 3, 32, 32]`` in 0..1, pictures that calibration has not seen."""
    stacked = np.stack([picture(seed + index) for index in range(count)])
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2), np.float32) / np.float32(255.0)


def expected(feed: np.ndarray) -> np.ndarray:
    """What the network as it came from its author answers."""
    session = onnxruntime.InferenceSession(tiny_net().SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": feed})[0]


@pytest.mark.parametrize("module", REQUIRED)
def test_required_runtimes_load(module):
    assert importlib.import_module(module)


def test_every_target_and_precision_is_in_the_suite():
    targets = {target for target, _ in CASES}
    assert targets == set(BACKENDS.names()) == set(CONVERTERS.names()) == set(SCHEMES)
    assert set(CASES) == {(target, precision) for target, kinds in PRECISIONS_OF.items() for precision in kinds}


def test_specs_say_what_is_taken_and_given(net):
    assert net.inputs == (TensorSpec("images", "float32", (None, 3, SIZE, SIZE)),)
    assert net.outputs == (TensorSpec("logits", "float32", (None, CLASSES)),)
    result = net.infer({"images": images(2)})
    assert list(result) == ["logits"]
    assert result["logits"].shape == (2, CLASSES)
    assert result["logits"].dtype == np.float32
    assert net.engine_version


def test_answers_are_the_networks(net):
    feed = images(16)
    answers = net.infer({"images": feed})["logits"]
    ratio = sqnr_db(expected(feed), answers)
    assert ratio >= LEAST_DB[net.bundle.manifest.precision]
    if net.bundle.manifest.precision == "fp32":
        np.testing.assert_allclose(answers, expected(feed), **CLOSE["fp32"])


def test_verify_holds_against_fp32_and_the_plans_reference(net):
    found = verify_session(net)
    manifest = net.bundle.manifest
    assert found.passed
    assert found.n == 8
    assert found.fp32.passed
    # two answers that lie closer than the noise may change places, of eight pictures two at most
    assert found.fp32.top1_agreement >= (1.0 if manifest.precision == "fp32" else 0.75)
    assert found.fp32.thresholds == manifest.thresholds["fp32"]
    assert found.engine == f"{manifest.target} {net.engine_version}"
    if manifest.precision == "int8":
        assert found.reference is not None
        assert found.reference.passed
        assert found.reference.thresholds == manifest.thresholds["reference"]
        # the engine is as near to the plan as the plan is to FP32, or nearer
        assert found.reference.sqnr_db >= found.fp32.sqnr_db - 3.0
    else:
        assert found.reference is None


@pytest.mark.parametrize("group", ["outputs", "reference"])
def test_altered_golden_outputs_do_not_pass(case, group, tmp_path, capsys):
    golden = {name: dict(arrays) for name, arrays in case.golden().items() if arrays}
    if group not in golden:
        group = "outputs"
    golden[group]["logits"] = golden[group]["logits"][:, ::-1].copy()
    files = {name: case.read(name) for name in case.files} | {GOLDEN: golden_bytes(golden)}
    path = Bundle(case.manifest, files).save(tmp_path / "altered.evb")
    assert not verify(path).passed
    assert main(["verify", str(path)]) == 3
    assert "parity FAILS" in capsys.readouterr().out


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_batch_is_its_pictures(net, batch):
    feed = images(batch)
    together = net.infer({"images": feed})["logits"]
    singles = np.concatenate([net.infer({"images": feed[i : i + 1]})["logits"] for i in range(batch)])
    np.testing.assert_allclose(together, singles, **CLOSE[net.bundle.manifest.precision])


def test_results_are_independent_of_later_calls_and_of_the_feed(net):
    feed = images(2)
    given = feed.copy()
    first = net.infer({"images": feed})["logits"]
    kept = first.copy()
    second = net.infer({"images": images(2, seed=2000)})["logits"]
    assert not np.shares_memory(first, second)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(feed, given)
    feed[:] = -1.0
    np.testing.assert_array_equal(first, kept)
    if first.flags.writeable:
        first[:] = 0.0
        np.testing.assert_array_equal(net.infer({"images": given})["logits"], kept)


def test_results_outlive_the_session(case):
    with load(case) as session:
        first = session.infer({"images": images(1)})["logits"]
        kept = first.copy()
    del session
    np.testing.assert_array_equal(first, kept)


def test_threads_get_the_answers_of_serial_calls(net):
    feeds = [images(1 + index % 3, seed=3000 + 10 * index) for index in range(8)]
    serial = [net.infer({"images": feed})["logits"] for feed in feeds]
    start = threading.Barrier(len(feeds))
    failures: list[str] = []

    def work(index: int) -> None:
        start.wait()
        for _ in range(4):
            try:
                answer = net.infer({"images": feeds[index]})["logits"]
            except Exception as error:
                failures.append(repr(error))
                return
            # one engine, one batch size, one thread a call: the same additions in the same order
            if not np.array_equal(answer, serial[index]):
                failures.append(f"thread {index} departs by {np.abs(answer - serial[index]).max()}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(feeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("threads", [0, 2])
def test_any_number_of_threads_gives_the_same_answer(case, threads):
    feed = images(1)
    with load(case, threads=1) as one, load(case, threads=threads) as many:
        np.testing.assert_allclose(
            many.infer({"images": feed})["logits"],
            one.infer({"images": feed})["logits"],
            **CLOSE[case.manifest.precision],
        )
    with pytest.raises(UsageError, match="threads must be 0"):
        load(case, threads=-1)


def test_closing_is_final_and_may_be_repeated(case):
    with load(case) as session:
        session.infer({"images": images(1)})
    with pytest.raises(EngineError, match="closed"):
        session.infer({"images": images(1)})
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session(picture(0))


def test_closing_while_other_threads_run_gives_answers_or_the_closed_error(case):
    session = load(case)
    feed = images(1)
    wanted = session.infer({"images": feed})["logits"]
    started = threading.Barrier(5)
    failures: list[str] = []

    def work() -> None:
        started.wait()
        for _ in range(500):
            try:
                answer = session.infer({"images": feed})["logits"]
            except EngineError:
                return
            except Exception as error:
                failures.append(repr(error))
                return
            if not np.array_equal(answer, wanted):
                failures.append("another answer")
        failures.append("never closed")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    session.close()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_closed_session_leaves_another_of_the_same_bundle_alone(case):
    with load(case) as first:
        wanted = first.infer({"images": images(1)})["logits"]
        load(case).close()
        np.testing.assert_array_equal(first.infer({"images": images(1)})["logits"], wanted)


def _wrong_feeds() -> dict[str, object]:
    good = images(1)
    return {
        "nothing": {},
        "another name": {"image": good},
        "one too many": {"images": good, "mask": good},
        "float64": {"images": good.astype(np.float64)},
        "uint8": {"images": (good * 255).astype(np.uint8)},
        "float16": {"images": good.astype(np.float16)},
        "big-endian": {"images": good.astype(">f4")},
        "one picture without a batch": {"images": good[0]},
        "another size": {"images": np.zeros((1, 3, SIZE, SIZE + 1), np.float32)},
        "channels last": {"images": np.zeros((1, SIZE, SIZE, 3), np.float32)},
        "a dimension too many": {"images": good[None]},
        "an empty batch": {"images": good[:0]},
        "a scalar": {"images": np.float32(1.0)},
        "a list": {"images": good.tolist()},
        "None": {"images": None},
        "a ragged list": {"images": [[1.0], [1.0, 2.0]]},
        "the array itself": good,
        "a batch itself": np.zeros((3, 3, SIZE, SIZE), np.float32),
        "None alone": None,
    }


@pytest.mark.parametrize("what", list(_wrong_feeds()))
def test_a_wrong_feed_is_refused_with_what_came_and_what_was_expected(net, what):
    with pytest.raises(UsageError, match=r"the network takes images: float32\[batch, 3, 32, 32\]; got ") as raised:
        net.infer(_wrong_feeds()[what])
    assert raised.value.exit_code == 2
    # and the session is as good as before
    assert net.infer({"images": images(1)})["logits"].shape == (1, CLASSES)


def test_arrays_need_not_be_contiguous(net):
    feed = images(2)
    wanted = net.infer({"images": feed})["logits"]
    for strided in (
        np.ascontiguousarray(feed.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        np.repeat(feed, 2, axis=3)[..., ::2],
        np.asfortranarray(feed),
        feed[:, :, ::-1][:, :, ::-1],
    ):
        np.testing.assert_array_equal(net.infer({"images": strided})["logits"], wanted)


def test_read_only_arrays_are_taken(net):
    feed = images(1)
    wanted = net.infer({"images": feed})["logits"]
    feed.flags.writeable = False
    np.testing.assert_array_equal(net.infer({"images": feed})["logits"], wanted)


def test_a_picture_in_any_form_gives_one_answer(net, tmp_path):
    array = picture(4000, size=48)
    image = Image.fromarray(array)
    path = tmp_path / "picture.png"
    image.save(path)
    wanted = net(array)
    assert isinstance(wanted, Classification)
    assert wanted.classes == NAMES
    assert wanted.name in NAMES
    assert math.isclose(float(wanted.probabilities.sum()), 1.0, abs_tol=1e-5)
    for form in (image, path, str(path), array[:, ::-1][:, ::-1], image.convert("RGBA")):
        np.testing.assert_array_equal(net(form).probabilities, wanted.probabilities)


def test_several_pictures_give_a_list(net):
    arrays = [picture(5000 + index) for index in range(3)]
    singles = [net(array) for array in arrays]
    together = (net(arrays), net(tuple(arrays)), net.predict(arrays), net(np.stack(arrays)))
    for results in together:
        assert len(results) == 3
        for result, single in zip(results, singles, strict=True):
            # probabilities of at most 1: the logits' tolerance shrinks by the softmax, never grows
            np.testing.assert_allclose(
                result.probabilities, single.probabilities, **CLOSE[net.bundle.manifest.precision]
            )
    assert len(net([arrays[0]])) == 1
    assert net([]) == []


def test_a_bad_picture_is_named(net, tmp_path):
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(DataError, match=r"empty\.png: the image file is empty"):
        net(empty)
    with pytest.raises(DataError, match="uint8 of shape"):
        net(np.zeros((SIZE, SIZE, 3), np.float32))


def test_a_bundle_runs_alike_as_file_folder_and_object(case, tmp_path):
    folder = Bundle(case.manifest, {name: case.read(name) for name in case.files}).save(tmp_path / "folder")
    feed = images(1)
    answers = []
    for source in (case.path, folder, Bundle.open(folder)):
        with load(source) as session:
            answers.append(session.infer({"images": feed})["logits"])
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


@pytest.mark.parametrize("damage", ["empty", "half", "noise"])
@pytest.mark.parametrize("which", [case for case in CASES if case[0] in REQUIRED], ids="-".join)
def test_damaged_engine_files_are_an_engine_error(bundles, which, damage):
    """A bundle whose hashes hold, and whose engine files are rubbish all the same."""
    whole = bundles[which]
    files = {name: whole.read(name) for name in whole.files}
    for name in whole.manifest.engine_files.values():
        data = files[name]
        noise = np.random.default_rng(0).integers(0, 256, len(data), np.uint8).tobytes()
        files[name] = {"empty": b"", "half": data[: len(data) // 2], "noise": noise}[damage]
    with pytest.raises(EngineError) as raised:
        load(Bundle(replace(whole.manifest, name="rubbish"), files))
    assert raised.value.exit_code == 1


@pytest.mark.parametrize("which", [case for case in CASES if case[0] in REQUIRED], ids="-".join)
def test_unknown_layers_are_refused(bundles, which):
    with pytest.raises((EngineError, UsageError), match="no_such_tensor"):
        Session(bundles[which], EngineOptions(layers=("no_such_tensor",)))
