from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from edgevision.bundle import Bundle, Manifest
from edgevision.errors import BundleError, EngineError, MissingDependencyError, UsageError
from edgevision.preprocess import Preprocess
from edgevision.runtime.backend import EngineOptions
from edgevision.runtime.session import Session, load
from edgevision.runtime.tensors import TensorSpec

ncnn = pytest.importorskip("ncnn")

TAG_FLOAT16, TAG_INT8 = 0x01306B47, 0x000D4B38
C, H, W = 3, 5, 7  # 35 values a channel: not a multiple of the 4 that ncnn aligns channels to


def tagged(values, tag=0):
    dtype = {0: "<f4", TAG_FLOAT16: "<f2", TAG_INT8: "i1"}[tag]
    data = np.asarray(values, dtype).tobytes()
    return tag.to_bytes(4, "little") + data + bytes(-len(data) % 4)


def raw(*values):
    return np.float32(values).tobytes()


def bundle_of(lines, data, outputs, *, shape=(C, H, W), tensor_names=None, precision="fp32", **options):
    """A bundle with one input ``images`` → ``in0`` and ``outputs``: name → (blob, shape without batch)."""
    blobs = {top for line in lines for top in line.split()[4:]}
    param = "\n".join(["7767517", f"{len(lines)} {len(blobs)}", *lines]) + "\n"
    manifest = Manifest(
        name="tiny",
        task="tensors",
        target="ncnn",
        precision=precision,
        inputs=(TensorSpec("images", "float32", (None, *shape)),),
        outputs=tuple(TensorSpec(name, "float32", (None, *rest)) for name, (_, rest) in outputs.items()),
        preprocess=Preprocess(size=(H, W)),
        engine_files={"param": "engine/model.param", "bin": "engine/model.bin"},
        engine_options={
            "input_blobs": {"images": "in0"},
            "output_blobs": {name: blob for name, (blob, _) in outputs.items()},
            "output_shapes": {name: list(rest) for name, (_, rest) in outputs.items()},
            "fp16": precision == "fp16",
            "int8": precision == "int8",
            **options,
        },
        tensor_names=tensor_names or {},
    )
    return Bundle(manifest, {"engine/model.param": param.encode(), "engine/model.bin": data})


WEIGHT = np.random.default_rng(0).normal(0, 1, (4, C)).astype(np.float32)
BIAS = np.float32([0.5, -0.5, 1.0, 0.0])
IMAGES = np.random.default_rng(1).normal(0, 1, (3, C, H, W)).astype(np.float32)


def pointwise(tag=0, precision="fp32"):
    """1×1 convolution of 4 channels, then ReLU, then the mean over the picture."""
    lines = [
        "Input in0 0 1 in0",
        f"Convolution conv 1 1 in0 a 0=4 1=1 5=1 6={WEIGHT.size}",
        "Split split 1 2 a a0 a1",
        "ReLU relu 1 1 a0 out0",
        "Pooling pool 1 1 a1 out1 0=1 4=1",
    ]
    outputs = {"positive": ("out0", (4, H, W)), "mean": ("out1", (4, 1, 1))}
    return bundle_of(lines, tagged(WEIGHT, tag) + raw(*BIAS), outputs, tensor_names={"sums": "a"}, precision=precision)


def expected_sums(images=IMAGES, weight=WEIGHT):
    return np.einsum("oc,bchw->bohw", weight.astype(np.float64), images) + BIAS[:, None, None]


# float32 sums of three products: 1e-6 of values around 1
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.mark.parametrize("batch", [1, 3])
def test_infer_loops_over_the_batch_and_restores_shapes(batch):
    with Session(pointwise()) as session:
        got = session.infer({"images": IMAGES[:batch]})
    sums = expected_sums()[:batch]
    assert got["positive"].shape == (batch, 4, H, W)
    assert got["mean"].shape == (batch, 4, 1, 1)
    np.testing.assert_allclose(got["positive"], np.maximum(sums, 0), **CLOSE)
    np.testing.assert_allclose(got["mean"], sums.mean((2, 3), keepdims=True), **CLOSE)


def test_results_stay_valid_after_later_calls_and_after_close():
    session = Session(pointwise())
    first = session.infer({"images": IMAGES[:1]})["positive"]
    kept = first.copy()
    for _ in range(20):
        session.infer({"images": IMAGES[1:2] * 100})
    session.close()
    np.testing.assert_array_equal(first, kept)


def test_arrays_that_are_not_contiguous_are_read_right():
    turned = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not turned.flags.c_contiguous
    with Session(pointwise()) as session:
        np.testing.assert_array_equal(
            session.infer({"images": turned})["positive"], session.infer({"images": IMAGES})["positive"]
        )


def test_layers_that_work_in_place_leave_the_callers_array_alone():
    lines = ["Input in0 0 1 in0", "ReLU relu 1 1 in0 out0"]
    images = IMAGES.copy()
    with Session(bundle_of(lines, b"", {"positive": ("out0", (C, H, W))})) as session:
        got = session.infer({"images": images})
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(got["positive"], np.maximum(IMAGES, 0))


def test_inner_tensors_are_returned_when_asked_for():
    session = Session(pointwise(), EngineOptions(layers=("sums",)))
    got = session.infer({"images": IMAGES})
    np.testing.assert_allclose(got["sums"], expected_sums(), **CLOSE)
    np.testing.assert_allclose(got["positive"], np.maximum(expected_sums(), 0), **CLOSE)


def test_inner_tensors_that_are_in_no_blob_are_refused():
    with pytest.raises(UsageError, match="'fused' is in no blob of the ncnn model"):
        Session(pointwise(), EngineOptions(layers=("fused",)))


def test_int8_layers_compute_and_their_integers_come_back_as_reals():
    step, wide = 0.02, 0.05
    scale = 127 / np.abs(WEIGHT).max(1)
    integers = np.rint(WEIGHT * scale[:, None]).astype(np.int8)
    second = np.int8([[100, -20, 30, 40]])
    lines = [
        "Input in0 0 1 in0",
        f"Convolution first 1 1 in0 a 0=4 1=1 5=1 6={WEIGHT.size} 8=102 9=1",
        "Convolution second 1 1 a out0 0=1 1=1 6=4 8=2",
    ]
    data = tagged(integers, TAG_INT8) + raw(*BIAS) + raw(*scale) + raw(1 / step) + raw(1 / wide)
    data += tagged(second, TAG_INT8) + raw(100) + raw(1 / wide)
    outputs = {"out": ("out0", (1, H, W))}
    bundle = bundle_of(lines, data, outputs, tensor_names={"hidden": "a"}, precision="int8", integer_blobs={"a": wide})
    got = Session(bundle, EngineOptions(layers=("hidden",))).infer({"images": IMAGES})

    def quantize(values, by):
        # half away from zero, as ncnn rounds
        return np.clip(np.trunc(values / by + np.copysign(0.5, values)), -127, 127)

    hidden = np.einsum("oc,bchw->bohw", integers.astype(np.int64), quantize(IMAGES.astype(np.float64), step))
    hidden = np.maximum(hidden * step / scale[:, None, None] + BIAS[:, None, None], 0)
    integers_out = quantize(hidden, wide)
    # a value within float32's error of a boundary may go the other way: one step, and rarely
    np.testing.assert_allclose(got["hidden"], integers_out * wide, atol=wide * 1.001)
    assert np.mean(np.abs(got["hidden"] - integers_out * wide) > wide / 2) < 0.02
    expected = np.einsum("oc,bchw->bohw", second.astype(np.int64), got["hidden"] / wide) * wide / 100
    np.testing.assert_allclose(got["out"], expected, rtol=1e-4, atol=1e-4)


def test_fp16_weights_are_read():
    with Session(pointwise(TAG_FLOAT16, "fp16")) as session:
        got = session.infer({"images": IMAGES})
    # float16 keeps 11 bits: 5e-4 of each weight and, where the processor computes in it, of each value
    np.testing.assert_allclose(got["positive"], np.maximum(expected_sums(), 0), rtol=1e-2, atol=1e-2)


def test_fp32_and_int8_bundles_do_not_compute_in_float16():
    for precision in ("fp32", "int8"):
        engine = Session(pointwise(precision=precision))._engine
        assert not engine._net.opt.use_fp16_storage
        assert not engine._net.opt.use_fp16_arithmetic
        assert not engine._net.opt.use_bf16_storage


def test_threads_reach_the_engine():
    assert Session(pointwise())._engine._net.opt.num_threads == 1
    assert Session(pointwise(), EngineOptions(threads=2))._engine._net.opt.num_threads == 2
    # 0 leaves ncnn's own choice
    assert Session(pointwise(), EngineOptions(threads=0))._engine._net.opt.num_threads == ncnn.Net().opt.num_threads


def test_infer_from_several_threads_at_once():
    session = Session(pointwise())
    images = [IMAGES[index % 3 : index % 3 + 1] * (1 + index) for index in range(6)]
    expected = [session.infer({"images": image})["positive"] for image in images]
    wrong = []

    def work(index):
        same = [
            np.array_equal(session.infer({"images": images[index]})["positive"], expected[index]) for _ in range(100)
        ]
        if not all(same):
            wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(images))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_close_while_another_thread_infers_is_harmless():
    for _ in range(5):
        session = Session(pointwise())
        errors = []

        def work(session=session, errors=errors):
            try:
                while True:
                    session.infer({"images": IMAGES})
            except EngineError as error:
                errors.append(str(error))

        worker = threading.Thread(target=work)
        worker.start()
        time.sleep(0.02)
        session.close()
        worker.join(30)
        assert len(errors) == 1
        assert "closed" in errors[0]


def test_load_from_a_file(tmp_path):
    path = pointwise().save(tmp_path / "tiny.evb")
    with load(path) as session:
        assert session.engine_version == ncnn.__version__
        np.testing.assert_allclose(
            session.infer({"images": IMAGES})["positive"], np.maximum(expected_sums(), 0), **CLOSE
        )


def test_weights_load_where_there_are_no_files_in_memory(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with Session(pointwise()) as session:
        np.testing.assert_allclose(
            session.infer({"images": IMAGES})["positive"], np.maximum(expected_sums(), 0), **CLOSE
        )


def changed(bundle, *, param=None, data=None, **options):
    files = {name: bundle.read(name) for name in bundle.files}
    if param is not None:
        files["engine/model.param"] = param(files["engine/model.param"])
    if data is not None:
        files["engine/model.bin"] = data(files["engine/model.bin"])
    wanted = {**bundle.manifest.engine_options, **options}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    return Bundle(dataclasses.replace(bundle.manifest, engine_options=wanted), files)


def test_a_layer_that_this_ncnn_lacks_is_named():
    bundle = changed(pointwise(), param=lambda text: text.replace(b"ReLU", b"Frobnicate"))
    with pytest.raises(EngineError, match=r"refuses the model's structure \(it has no layer Frobnicate\)"):
        Session(bundle)


def test_a_structure_or_weights_that_are_cut_short_are_refused():
    with pytest.raises(EngineError, match="refuses the model's structure"):
        Session(changed(pointwise(), param=lambda text: b"no param file"))
    with pytest.raises(EngineError, match="refuses the model's weights"):
        Session(changed(pointwise(), data=lambda data: data[:20]))


def test_a_blob_that_the_model_lacks_is_named():
    with pytest.raises(EngineError, match="no blob out9 that engine_options name"):
        Session(changed(pointwise(), output_blobs={"positive": "out9", "mean": "out1"}))


def test_an_output_of_another_size_than_the_bundle_says_is_refused():
    session = Session(changed(pointwise(), output_shapes={"positive": [4, H, W + 1], "mean": [4, 1, 1]}))
    with pytest.raises(EngineError, match=r"ncnn answers 140 values for 'positive'; the bundle says \[4, 5, 8\]"):
        session.infer({"images": IMAGES})


@pytest.mark.parametrize("missing", ["input_blobs", "output_blobs", "output_shapes"])
def test_options_that_are_missing_are_named(missing):
    with pytest.raises(BundleError, match=f"engine_options .*{missing}"):
        Session(changed(pointwise(), **{missing: None}))


def test_a_missing_runtime_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setattr("edgevision.dependencies.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'^ncnn is needed to run ncnn bundles: pip install "edgevision\['):
        Session(pointwise())


def test_idle_threads_do_not_spin():
    # the variable counts only when it is set before ncnn is imported: asked of a fresh interpreter
    code = (
        "import os, sys, edgevision.runtime.ncnn as backend; assert 'ncnn' not in sys.modules\n"
        "try: backend.open_engine(None, None)\n"
        "except AttributeError: pass\n"
        "assert 'ncnn' in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    )
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        clean = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        env = {**clean, **given, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected
