from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgevision.bundle import Bundle, Manifest
from edgevision.errors import BundleError, EngineError, MissingDependencyError, UsageError
from edgevision.graph import Graph
from edgevision.preprocess import Preprocess
from edgevision.runtime import EngineOptions, Session, TensorSpec, cuda, load
from edgevision.runtime import tensorrt as backend
from edgevision.runtime.cache import CompiledCache
from edgevision_converters.tensorrt import convert, engine_options
from tests.fakes.models import CLASSES, SIZE, pictures, quantized_net, session, small_net

VERSIONS = ["8.5.2.2", "8.6.2", "10.3.0", "11.4.0"]


def make_bundle(precision="fp32", batch=None, options=None, model=None, outputs=None):
    net = small_net(batch=batch or "N")
    data = model or convert(Graph(net), quantized_net() if precision == "int8" else None, precision)
    manifest = Manifest(
        name="small",
        task="classification",
        target="tensorrt",
        precision=precision,
        inputs=(TensorSpec("images", "float32", (batch, 3, SIZE, SIZE)),),
        outputs=outputs or (TensorSpec("logits", "float32", (batch, CLASSES)),),
        preprocess=Preprocess(size=(SIZE, SIZE)),
        engine_files={"model": "engine/model.onnx"},
        engine_options=options or engine_options(precision),
    )
    return Bundle(manifest, {"engine/model.onnx": data})


def expected(bundle, images):
    return session(bundle.engine_file("model")).run(None, {"images": images})[0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_saved_bundle_answers_as_its_onnx_does(fake_tensorrt, tmp_path, version, precision):
    faults = fake_tensorrt(version)
    path = make_bundle(precision).save(tmp_path / "small.evb")
    with load(path) as net:
        assert net.engine_version == version
        for batch in (1, 3, 8, 2):
            images = pictures(batch)
            answer = net.infer({"images": images})
            # the imaginary TensorRT computes by the same unfused ONNX Runtime, piece by piece: the same numbers
            np.testing.assert_array_equal(answer["logits"], expected(net.bundle, images))
            assert answer["logits"].flags.owndata
            assert answer["logits"].dtype == np.float32
        result = net(np.zeros((20, 30, 3), np.uint8))
        assert len(result.probabilities) == CLASSES
    assert faults.builds == 1


@pytest.mark.parametrize(
    ("version", "precision", "network", "flags", "cleared"),
    [
        ("8.5.2.2", "fp32", {"EXPLICIT_BATCH"}, set(), {"TF32"}),
        ("8.6.2", "int8", {"EXPLICIT_BATCH"}, {"FP16", "INT8"}, set()),
        ("10.3.0", "fp32", {"EXPLICIT_BATCH", "STRONGLY_TYPED"}, set(), {"TF32"}),
        ("10.3.0", "fp16", {"EXPLICIT_BATCH"}, {"FP16"}, set()),
        ("10.3.0", "int8", {"EXPLICIT_BATCH"}, {"FP16", "INT8"}, set()),
        ("11.4.0", "fp16", {"STRONGLY_TYPED"}, set(), set()),
        ("11.4.0", "int8", {"STRONGLY_TYPED"}, set(), set()),
    ],
)
def test_each_version_is_told_the_types_in_its_own_way(fake_tensorrt, version, precision, network, flags, cleared):
    faults = fake_tensorrt(version)
    Session(make_bundle(precision)).close()
    assert (faults.network_flags, faults.flags, faults.cleared) == (network, flags, cleared)
    assert faults.workspace == 32 << 20  # half of the imaginary GPU's 64 MiB


@pytest.mark.parametrize("version", VERSIONS)
def test_zeros_that_kernels_can_skip_are_told_to_the_builder(fake_tensorrt, version):
    faults = fake_tensorrt(version)
    Session(make_bundle("fp16", options=engine_options("fp16", sparse=True))).close()
    assert "SPARSE_WEIGHTS" in faults.flags


def test_batches_beyond_the_compiled_one_run_in_pieces(fake_tensorrt):
    fake_tensorrt()
    bundle = make_bundle(options=engine_options("fp32", max_batch=3))
    with Session(bundle) as net:
        images = pictures(8)
        np.testing.assert_array_equal(net.infer({"images": images})["logits"], expected(bundle, images))


def test_a_fixed_batch_needs_no_profile(fake_tensorrt):
    faults = fake_tensorrt()
    bundle = make_bundle(batch=2)
    with Session(bundle) as net:
        images = pictures(2)
        np.testing.assert_array_equal(net.infer({"images": images})["logits"], expected(bundle, images))
        with pytest.raises(UsageError):
            net.infer({"images": pictures(3)})
        # padded to the engine's batch by the session
        np.testing.assert_array_equal(net.run(pictures(3))["logits"][:2], expected(bundle, pictures(3)[:2]))
    assert faults.builds == 1


def test_results_stay_valid_and_inputs_need_not_be_contiguous(fake_tensorrt):
    fake_tensorrt()
    bundle = make_bundle()
    with Session(bundle) as net:
        images = pictures(4)
        first = net.infer({"images": images})["logits"]
        kept = first.copy()
        net.infer({"images": pictures(4, seed=9)})
        np.testing.assert_array_equal(first, kept)
        strided = np.repeat(images, 2, axis=0)[::2]
        np.testing.assert_array_equal(net.infer({"images": strided})["logits"], kept)


def test_threads_take_turns_and_get_their_own_answers(fake_tensorrt):
    fake_tensorrt()
    bundle = make_bundle()
    wrong: list[int] = []
    with Session(bundle) as net:

        def work(seed):
            images = pictures(1 + seed % 3, seed)
            wanted = expected(bundle, images)
            answers = [net.infer({"images": images})["logits"] for _ in range(5)]
            wrong.extend(seed for answer in answers if not np.array_equal(answer, wanted))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_gpu_time_is_measured_by_events_for_every_piece(fake_tensorrt):
    fake_tensorrt()
    engine = backend.open_engine(make_bundle(options=engine_options("fp32", max_batch=2)), EngineOptions())
    outputs, milliseconds = engine.infer_timed({"images": pictures(5)})
    assert outputs["logits"].shape == (5, CLASSES)
    assert milliseconds == 4.5  # 1.5 of each of three pieces
    engine.close()


def test_integer_outputs_of_old_versions_come_in_the_manifests_type(fake_tensorrt):
    net = small_net()
    net.graph.node.append(helper.make_node("ArgMax", ["logits"], ["best"], "best", axis=1, keepdims=0))
    net.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["N"]))
    outputs = (TensorSpec("logits", "float32", (None, CLASSES)), TensorSpec("best", "int64", (None,)))
    for version in ("8.5.2.2", "10.3.0"):
        fake_tensorrt(version)
        bundle = make_bundle(model=convert(Graph(net), None, "fp32"), outputs=outputs)
        with Session(bundle) as opened:
            answer = opened.infer({"images": pictures(3)})
            assert answer["best"].dtype == np.int64
            np.testing.assert_array_equal(answer["best"], answer["logits"].argmax(1))


def test_the_second_load_compiles_nothing(fake_tensorrt):
    faults = fake_tensorrt()
    Session(make_bundle()).close()
    Session(make_bundle()).close()
    assert (faults.builds, faults.deserialized) == (1, 2)


def test_another_version_model_option_or_folder_compiles_again(fake_tensorrt, tmp_path):
    fake_tensorrt("8.6.2")
    Session(make_bundle()).close()
    faults = fake_tensorrt("10.3.0")
    Session(make_bundle()).close()
    assert faults.builds == 1
    Session(make_bundle("fp16")).close()
    assert faults.builds == 2
    Session(make_bundle(options=engine_options("fp32", max_batch=4))).close()
    assert faults.builds == 3
    Session(make_bundle(), EngineOptions(cache_dir=str(tmp_path / "other"))).close()
    assert faults.builds == 4
    Session(make_bundle()).close()
    assert faults.builds == 4


def test_another_board_of_the_same_kind_compiles_again(fake_tensorrt, monkeypatch):
    faults = fake_tensorrt()
    Session(make_bundle()).close()
    original = cuda.device_info
    monkeypatch.setattr(cuda, "device_info", lambda index=0: replace(original(index), uuid="ff" * 16))
    Session(make_bundle()).close()
    assert faults.builds == 2


def test_a_changed_plan_is_never_loaded_but_compiled_again(fake_tensorrt, tmp_path):
    faults = fake_tensorrt()
    Session(make_bundle()).close()
    plans = [path for path in (tmp_path / "cache/tensorrt").glob("*.bin") if b"conv" in path.read_bytes().lower()]
    assert len(plans) == 1
    data = bytearray(plans[0].read_bytes())
    data[len(data) // 2] ^= 1
    plans[0].write_bytes(data)
    with Session(make_bundle()) as net:
        assert np.isfinite(net.infer({"images": pictures(1)})["logits"]).all()
    assert (faults.builds, faults.deserialized) == (2, 2)


def test_a_plan_that_tensorrt_does_not_take_is_compiled_again(fake_tensorrt, tmp_path):
    faults = fake_tensorrt()
    Session(make_bundle()).close()
    key_file = next(
        p for p in (tmp_path / "cache/tensorrt").glob("*.json") if "digest" in json.loads(p.read_text())["key"]
    )
    # rightly signed, and of no use: as after an update that kept its version number
    CompiledCache("tensorrt", tmp_path / "cache").put(json.loads(key_file.read_text())["key"], b'{"version": "?"}\n')
    Session(make_bundle()).close()
    assert faults.builds == 2


def test_timings_of_one_build_shorten_the_next_and_survive_damage(fake_tensorrt, tmp_path):
    faults = fake_tensorrt()
    Session(make_bundle()).close()
    assert faults.timings_seen == [b""]
    Session(make_bundle("fp16")).close()
    assert faults.timings_seen[1:] == [b"timings 10.3.0+"]
    timings = next(
        p for p in (tmp_path / "cache/tensorrt").glob("*.json") if "timings" in json.loads(p.read_text())["key"]
    )
    CompiledCache("tensorrt", tmp_path / "cache").put(json.loads(timings.read_text())["key"], b"of another version")
    Session(make_bundle("int8")).close()
    assert faults.timings_seen[2:] == [b"of another version", b""]


def test_a_read_only_cache_warns_and_the_network_runs(fake_tensorrt, tmp_path):
    faults = fake_tensorrt()
    (tmp_path / "file").write_bytes(b"")
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="compiled again at every load"):
            net = Session(make_bundle(), EngineOptions(cache_dir=str(tmp_path / "file")))
        assert np.isfinite(net.infer({"images": pictures(1)})["logits"]).all()
        net.close()
    assert faults.builds == 2


def test_two_loads_at_once_compile_once(fake_tensorrt):
    faults = fake_tensorrt()
    engines: list[Session] = []
    threads = [threading.Thread(target=lambda: engines.append(Session(make_bundle()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(engines), faults.builds) == (4, 1)
    for engine in engines:
        engine.close()


def test_compiling_says_what_takes_so_long(fake_tensorrt, capfd):
    fake_tensorrt()
    Session(make_bundle()).close()
    assert "compiling small for Imaginary Orin with TensorRT 10.3.0, once on this device" in capfd.readouterr().err
    Session(make_bundle()).close()
    assert "compiling" not in capfd.readouterr().err


def test_inner_layers_are_a_usage_error(fake_tensorrt):
    fake_tensorrt()
    with pytest.raises(UsageError, match="onnxruntime"):
        Session(make_bundle(), EngineOptions(layers=("r0",)))


def test_without_the_package_the_extra_and_jetpack_are_named(monkeypatch):
    monkeypatch.setattr(backend, "installed", lambda module: False)
    with pytest.raises(MissingDependencyError, match=r'pip install "edgevision\[tensorrt\]".*JetPack'):
        Session(make_bundle())


def test_without_a_driver_tensorrt_is_not_even_imported(tmp_path):
    """The real one would end the process."""
    (tmp_path / "tensorrt.py").write_text("import os\nos.abort()\n")
    path = make_bundle().save(tmp_path / "small.evb")
    code = """
import sys
import edgevision.runtime
from edgevision.errors import EngineError
from edgevision.runtime import cuda
cuda.LIBRARY = "libcuda-that-is-not-here.so.1"
try:
    edgevision.runtime.load(sys.argv[1])
except EngineError as error:
    print(error)
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no NVIDIA driver here" in done.stdout
    assert "compiled on the device that runs it" in done.stdout


def test_no_gpu_and_no_memory_are_engine_errors(fake_tensorrt, fake_cuda):
    fake_tensorrt()
    fake_cuda.reset(devices=0)
    with pytest.raises(EngineError, match="sees no GPU"):
        Session(make_bundle())
    cuda._load.cache_clear()
    fake_cuda.reset(memory=100)
    with pytest.raises(EngineError, match="out of memory allocating"):
        Session(make_bundle())


def test_a_package_whose_libraries_are_missing_says_so(fake_cuda, monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EngineError, match=r"cannot be imported: libnvinfer\.so\.10"):
        Session(make_bundle())


@pytest.mark.parametrize("version", ["8.2.1.8", "8.4.3", "7.1.3"])
def test_versions_before_the_common_calls_are_refused_by_name(fake_tensorrt, version):
    fake_tensorrt(version)
    with pytest.raises(EngineError, match=rf"TensorRT {version} is too old.*JetPack"):
        Session(make_bundle())


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"builder": True}, "cannot start its builder: CUDA initialization failure with error: 35"),
        ({"build": "no kernel for stem"}, "TensorRT 10.3.0 cannot compile the model: no kernel for stem$"),
        ({"deserialize": True}, "cannot load the engine it compiled: Serialization assertion"),
        ({"context": "out of memory"}, r"cannot set the engine up \(out of GPU memory\?\): out of memory"),
        ({"refuse_batch": 8}, r"refuses 'images' of shape \[8, 3, 12, 12\] \(batches 1 to 8 were compiled\): setInput"),
    ],
)
def test_what_tensorrt_refuses_comes_with_its_own_words(fake_tensorrt, faults, message):
    fake_tensorrt(**faults)
    with pytest.raises(EngineError, match=message):
        Session(make_bundle())


def test_a_failing_launch_leaves_the_engine_usable(fake_tensorrt):
    faults = fake_tensorrt()
    bundle = make_bundle()
    with Session(bundle) as net:
        faults.execute = "illegal memory access"
        with pytest.raises(EngineError, match="failed to run the network: illegal memory access"):
            net.infer({"images": pictures(1)})
        faults.execute = ""
        faults.refuse_batch = 2
        with pytest.raises(EngineError, match=r"refuses 'images' of shape \[2"):
            net.infer({"images": pictures(2)})
        images = pictures(1)
        np.testing.assert_array_equal(net.infer({"images": images})["logits"], expected(bundle, images))


def test_a_model_the_parser_refuses_names_node_and_reason(fake_tensorrt):
    fake_tensorrt()
    model = quantized_net()
    for tensor in model.graph.initializer:
        if tensor.name == "r0_zero":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.int8(3), "r0_zero"))
    with pytest.raises(EngineError, match=r"cannot read the model: .*shiftIsAllZeros\(zeroPoint\) \(node \d+\)"):
        Session(make_bundle("int8", model=model.SerializeToString()))
    with pytest.raises(EngineError, match=r"cannot read the model: ModelImporter\.cpp"):
        Session(make_bundle(model=b"not ONNX"))


def test_an_engine_that_differs_from_the_manifest_is_refused(fake_tensorrt):
    fake_tensorrt()
    with pytest.raises(EngineError, match=r"tensors images, logits; manifest.json names images, scores"):
        Session(make_bundle(outputs=(TensorSpec("scores", "float32", (None, CLASSES)),)))


def test_an_output_whose_shape_depends_on_the_data_is_refused(fake_tensorrt):
    fake_tensorrt()
    net = small_net()
    net.graph.node.append(helper.make_node("NonZero", ["logits"], ["found"], "found"))
    net.graph.output.append(helper.make_tensor_value_info("found", TensorProto.INT64, [2, "many"]))
    outputs = (TensorSpec("logits", "float32", (None, CLASSES)), TensorSpec("found", "int64", (2, None)))
    with pytest.raises(EngineError, match=r"'found' has a shape that depends on the data \(\[2, -1\]\)"):
        Session(make_bundle(model=convert(Graph(net), None, "fp32"), outputs=outputs))


def test_a_free_height_is_refused(fake_tensorrt):
    fake_tensorrt()
    net = small_net()
    net.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    with pytest.raises(EngineError, match="only the batch may be free"):
        Session(make_bundle(model=net.SerializeToString()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fp16": False, "int8": False},
        {"fp16": 1, "int8": False, "batch": {"min": 1, "opt": 1, "max": 8}},
        {"fp16": False, "int8": False, "batch": {"min": 0, "opt": 1, "max": 8}},
        {"fp16": False, "int8": False, "batch": {"min": 1, "opt": 9, "max": 8}},
        {"fp16": False, "int8": False, "batch": {"min": 1, "opt": 1, "max": "8"}},
        {"fp16": False, "int8": False, "batch": 8},
    ],
)
def test_damaged_options_are_a_bundle_error(fake_tensorrt, options):
    fake_tensorrt()
    bundle = make_bundle()
    bundle.manifest.engine_options.clear()
    bundle.manifest.engine_options.update(options)
    with pytest.raises(BundleError, match="engine_options"):
        Session(bundle)


def test_a_closed_engine_says_so_and_closes_twice(fake_tensorrt):
    fake_tensorrt()
    engine = backend.open_engine(make_bundle(), EngineOptions())
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.infer({"images": pictures(1)})
