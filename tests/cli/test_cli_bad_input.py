"""Bad input, each kind tried through the command line: one line that names the thing, exit code 1, nothing written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgevision.bundle import Bundle
from tests.cli.conftest import Outcome, call
from tests.conformance.nets import SIZE, save_net, tiny_net, write_pictures
from tests.disks import tmpfs


def refused(outcome: Outcome, code: int = 1) -> str:
    """The one line of a refusal."""
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    lines = [line for line in outcome.err.splitlines() if not line.endswith("…")]
    assert lines
    assert lines[0].startswith("edgevision ")
    return "\n".join(lines)


def convert(
    source: object, out: Path, *more: object, targets: str = "onnxruntime", preprocess: str = "unit"
) -> Outcome:
    return call("convert", source, "--targets", targets, "--preprocess", preprocess, "-o", out, *more)


def written(out: Path) -> list[str]:
    """Files below a folder, what a conversion keeps for its next run left out."""
    return sorted(
        str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and ".edgevision" not in str(path)
    )


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_onnx(tmp_path, share):
    data = tiny_net().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    told = refused(convert(path, tmp_path / "out"))
    assert "cut.onnx" in told
    assert "truncated" in told or "empty" in told
    assert written(tmp_path) == ["cut.onnx"]


def test_a_text_file_called_onnx(tmp_path):
    (tmp_path / "x.onnx").write_text("this is no model\n" * 100)
    assert "x.onnx" in refused(convert(tmp_path / "x.onnx", tmp_path / "out"))


def one_node(kind: str, domain: str = "", outputs: int = 1, **attributes) -> onnx.ModelProto:
    shape = ["N", 3, SIZE, SIZE]
    names = ["out", *(f"extra{index}" for index in range(1, outputs))]
    node = helper.make_node(kind, ["images"], names, "the_node", domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "ncnn", "tensorrt"])
@pytest.mark.parametrize(
    ("kind", "domain"), [("Teleport", ""), ("Teleport", "com.example"), ("MaxRoiPool", "com.microsoft.experimental")]
)
def test_an_op_no_target_has(tmp_path, target, kind, domain):
    path = save_net(tmp_path / "odd.onnx", one_node(kind, domain))
    told = refused(convert(path, tmp_path / "out", targets=target))
    assert "odd.onnx" in told
    assert kind in told
    assert "the_node" in told
    assert written(tmp_path) == ["odd.onnx"]


def test_an_op_that_one_target_has_not(tmp_path):
    """A determinant: ONNX Runtime computes it, ncnn has no layer for it."""
    model = tiny_net()
    weights = numpy_helper.from_array(np.int64([-1, 4, 4]), "square")
    del model.graph.node[-2:]
    model.graph.initializer.append(weights)
    nodes = [
        helper.make_node("Reshape", ["pooled", "square"], ["matrices"], "to_matrices"),
        helper.make_node("Det", ["matrices"], ["determinants"], "determinant"),
        helper.make_node("Reshape", ["determinants", "flat"], ["logits"], "to_rows"),
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.int64([-1, 64]), "flat"))
    del model.graph.node[-3:]
    model.graph.node.extend(nodes)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 64
    path = save_net(tmp_path / "det.onnx", model)
    told = refused(convert(path, tmp_path / "out", targets="ncnn"))
    assert "Det" in told
    assert written(tmp_path) == ["det.onnx"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_the_weights(tmp_path, value):
    model = tiny_net()
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "branch_w")
    array = numpy_helper.to_array(tensor).copy()
    array[3, 2, 1, 0] = value
    tensor.CopyFrom(numpy_helper.from_array(array, "branch_w"))
    told = refused(convert(save_net(tmp_path / "nan.onnx", model), tmp_path / "out"))
    assert "nan.onnx" in told
    assert "'branch_w'" in told
    assert written(tmp_path) == ["nan.onnx"]


@pytest.mark.parametrize("dimensions", [("H", "W"), ("H", SIZE), (SIZE, "W")])
def test_a_dynamic_height(tmp_path, dimensions):
    path = save_net(tmp_path / "dynamic.onnx", tiny_net(height=dimensions[0], width=dimensions[1]))
    told = refused(convert(path, tmp_path / "out"))
    assert "dynamic.onnx" in told
    assert "--input-size" in told
    outcome = convert(path, tmp_path / "out", "--input-size", SIZE)
    assert outcome.code == 0, outcome.err
    assert written(tmp_path / "out") == ["dynamic-onnxruntime-fp32.evb"]


def test_another_size_than_the_model_is_fixed_at(house, tmp_path):
    told = refused(convert(house.model, tmp_path / "out", "--input-size", 64))
    assert "fixed at 32×32" in told


@pytest.mark.parametrize("what", ["model", "weights", "golden.npz", "plan.json", "manifest.json"])
@pytest.mark.parametrize("verb", ["predict", "verify", "eval", "bench"])
def test_one_changed_byte_in_a_bundle(house, tmp_path, what, verb):
    folder = Bundle.open(house.bundle("openvino", "int8")).save(tmp_path / "bundle")
    file = {"model": "engine/model.xml", "weights": "engine/model.bin"}.get(what, what)
    data = bytearray((folder / file).read_bytes())
    # in the manifest: a digit of the preprocess, where a change would go unseen by any schema
    position = data.index(b'"scale": 0.0') + 11 if what == "manifest.json" else len(data) // 2
    data[position] = ord("9") if what == "manifest.json" else data[position] ^ 1
    (folder / file).write_bytes(data)
    more = {"predict": [house.images(1)[0]], "eval": ["--data", f"csv:{house.labels}"]}.get(verb, [])
    told = refused(call(verb, folder, *more))
    assert str(folder) in told
    assert f"{file} has been changed since the bundle was made" in told


def test_a_changed_byte_in_a_bundle_file(house, tmp_path):
    path = tmp_path / "changed.evb"
    data = bytearray(house.bundle("ncnn", "fp32").read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert "changed.evb" in refused(call("predict", path, house.images(1)[0]))


def test_a_bundle_that_names_a_path_outside(house, tmp_path):
    import zipfile

    path = tmp_path / "evil.evb"
    shutil.copy(house.bundle("ncnn", "fp32"), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../led-outside", b"outside")
    told = refused(call("predict", path, house.images(1)[0]))
    assert "evil.evb" in told
    assert "'../../led-outside', which leads out of the bundle; refused" in told
    assert not list(tmp_path.parent.rglob("led-outside"))


def test_what_is_no_bundle(house, tmp_path):
    for path, told in (
        (tmp_path / "gone.evb", "no such bundle"),
        (house.model, "not a bundle"),
        (house.bundles, "not a bundle"),
    ):
        assert told in refused(call("predict", path, house.images(1)[0]))


def test_an_image_of_zero_bytes_does_not_cost_the_others(house, tmp_path):
    (tmp_path / "zero.png").touch()
    good = house.images(2)
    outcome = call("predict", house.bundle("ncnn", "fp32"), good[0], tmp_path / "zero.png", good[1], "--json")
    assert outcome.code == 1
    assert outcome.err == f"edgevision predict: {tmp_path / 'zero.png'}: the image file is empty (0 bytes)\n"
    assert len(outcome.out.splitlines()) == 2


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_a_bad_image_among_the_calibration_pictures(house, tmp_path, content):
    folder = write_pictures(tmp_path / "photos", 12)
    (folder / "007.png").write_bytes(content)
    told = refused(convert(house.model, tmp_path / "out", "--precision", "int8", "--data", folder))
    assert "007.png" in told
    assert written(tmp_path / "out") == []
    # the picture mended, the same command goes through
    shutil.copy(folder / "006.png", folder / "007.png")
    assert convert(house.model, tmp_path / "out", "--precision", "int8", "--data", folder).code == 0


def test_a_bad_image_among_those_evaluated(house, tmp_path):
    shutil.copytree(house.pictures, tmp_path / "photos")
    (tmp_path / "photos" / "images" / "003.png").write_bytes(b"")
    told = refused(call("eval", house.bundle("ncnn", "fp32"), "--data", f"csv:{tmp_path / 'photos' / 'labels.csv'}"))
    assert "003.png" in told


@pytest.mark.parametrize("kind", ["", "images:", "folder:"])
def test_an_empty_calibration_folder(house, tmp_path, kind):
    (tmp_path / "nothing").mkdir()
    told = refused(
        convert(house.model, tmp_path / "out", "--precision", "int8", "--data", f"{kind}{tmp_path / 'nothing'}")
    )
    assert "nothing" in told
    assert written(tmp_path) == []


def test_a_folder_that_is_not_there(house, tmp_path):
    told = refused(convert(house.model, tmp_path / "out", "--precision", "int8", "--data", tmp_path / "gone"))
    assert "gone" in told


def test_int8_without_data(house, tmp_path):
    assert "--data KIND:PATH" in refused(convert(house.model, tmp_path / "out", "--precision", "int8"))


def test_an_unknown_preprocess_and_none(house, tmp_path):
    told = refused(convert(house.model, tmp_path / "out", preprocess="imagenett"), 2)
    assert "unknown preprocess 'imagenett': did you mean imagenet" in told
    told = refused(call("convert", house.model, "--targets", "onnxruntime", "-o", tmp_path / "out"), 2)
    assert "how do pictures become images [3, 32, 32]? Say it with --preprocess" in told


def test_a_preprocess_that_does_not_fit(house, tmp_path):
    told = refused(convert(house.model, tmp_path / "out", preprocess="digits"), 2)
    assert "the preprocess makes [1, 32, 32]; the network's input images is [3, 32, 32]" in told
    (tmp_path / "other.toml").write_text("size = [64, 32]\n")
    told = refused(convert(house.model, tmp_path / "out", preprocess=str(tmp_path / "other.toml")), 2)
    assert "[3, 64, 32]" in told
    (tmp_path / "bad.toml").write_text("size = 32\nmeen = [0.5]\n")
    told = refused(convert(house.model, tmp_path / "out", preprocess=str(tmp_path / "bad.toml")), 2)
    assert "bad.toml: unknown preprocess key 'meen': did you mean mean?" in told


def test_the_wrong_number_of_classes(house, tmp_path):
    (tmp_path / "two.txt").write_text("cat\ndog\n")
    told = refused(convert(house.model, tmp_path / "out", "--classes", tmp_path / "two.txt"), 2)
    assert "the network has 6 classes; 2 names were given" in told
    (tmp_path / "none.txt").write_text("\n")
    assert "none.txt: holds no class names" in refused(
        convert(house.model, tmp_path / "out", "--classes", tmp_path / "none.txt"), 2
    )


@pytest.mark.parametrize(
    ("targets", "precision", "told"),
    [
        ("onnxruntime", "fp16", "onnxruntime runs no fp16 of its own"),
        ("onnxruntim", "fp32", "unknown target 'onnxruntim': did you mean onnxruntime?"),
        ("ncnn", "int4", "unknown precision 'int4': choose from fp32, fp16, int8"),
        (",", "fp32", "name at least one target"),
        ("ncnn", ",", "name at least one target and one precision"),
    ],
)
def test_targets_and_precisions_that_do_not_exist(house, tmp_path, targets, precision, told):
    assert told in refused(convert(house.model, tmp_path / "out", "--precision", precision, targets=targets), 2)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--ranges", "msee", "did you mean mse"),
        ("--calibration-images", "-3", "calibration images must be 1 or more"),
        ("--calibration-images", "0", "calibration images must be 1 or more"),
        ("--timeout", "0", "time limit must be above 0"),
    ],
)
def test_options_without_sense(house, tmp_path, option, value, told):
    data = ["--precision", "int8", "--data", house.pictures / "images"]
    assert told in refused(convert(house.model, tmp_path / "out", *data, option, value), 2)


def test_a_source_that_is_not_there(tmp_path):
    assert "gone.onnx: no such ONNX file" in refused(convert(tmp_path / "gone.onnx", tmp_path / "out"))
    assert "did you mean mobilenet_v2" in refused(convert("mobilnet_v2", tmp_path / "out"), 2)
    (tmp_path / "folder").mkdir()
    assert "folder without model.json is no Checkpoint" in refused(convert(tmp_path / "folder", tmp_path / "out"), 2)


def test_a_file_in_the_way_of_the_output(house, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        assert f"cannot write {tmp_path / 'file'}" in refused(convert(house.model, out))
    assert (tmp_path / "file").read_bytes() == b"mine"
    # a folder where a bundle is to be
    (tmp_path / "out" / "tiny-onnxruntime-fp32.evb" / "inside").mkdir(parents=True)
    assert "tiny-onnxruntime-fp32.evb" in refused(convert(house.model, tmp_path / "out"))


def test_a_name_too_long_for_the_disk(house, tmp_path):
    assert "File name too long" in refused(convert(house.model, tmp_path / "out", "--name", "n" * 300))


def test_a_read_only_output_folder(house, tmp_path):
    with tmpfs(tmp_path / "disk", "ro,size=1m") as disk:
        told = refused(convert(house.model, disk / "out"))
    assert "Read-only file system; choose another folder with -o" in told


def test_a_read_only_output_folder_as_any_user(house, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "touch", refuse)
    told = refused(convert(house.model, tmp_path / "out"))
    assert "Read-only file system; choose another folder with -o" in told


@pytest.mark.parametrize("full_at", ["graph", "table", "bundle"])
def test_a_full_output_disk_and_the_next_run(house, tmp_path, full_at):
    """No half file, and with room the same command does the work."""
    data = ["--precision", "int8", "--data", house.pictures / "images"]
    kept = [path.stat().st_size for path in (house.bundles / ".edgevision").rglob("*") if path.is_file()]
    size = {"graph": 8 << 10, "table": sum(kept) // 2, "bundle": sum(kept) + (16 << 10)}[full_at]
    with tmpfs(tmp_path / "disk", f"size={size}") as disk:
        told = refused(convert(house.model, disk / "out", *data))
        assert "No space left on device" in told
        assert not list(disk.rglob("*.tmp"))
        assert not list(disk.rglob("*.evb"))
        assert bool(list(disk.rglob("table.json"))) == (full_at == "bundle")
        subprocess.run(["mount", "-o", "remount,size=2m", str(disk)], check=True)
        assert convert(house.model, disk / "out", *data).code == 0
        assert written(disk / "out") == ["tiny-onnxruntime-int8.evb"]


@pytest.mark.parametrize("target", ["openvino", "ncnn"])
def test_a_full_disk_for_working_files(house, tmp_path, target, monkeypatch):
    import tempfile

    with tmpfs(tmp_path / "disk", "size=8k") as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        told = refused(convert(house.model, tmp_path / "out", targets=target))
        assert "No space left on device" in told
        assert not list(disk.iterdir())
    assert written(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("verb", "target"), [("predict", "ncnn"), ("verify", "openvino"), ("eval", "onnxruntime"), ("predict", "tensorrt")]
)
def test_a_runtime_that_is_not_installed(house, monkeypatch, verb, target):
    from edgevision import dependencies

    present = dependencies.find_spec
    monkeypatch.setattr(dependencies, "find_spec", lambda name: None if name == target else present(name))
    more = {"predict": [house.images(1)[0]], "eval": ["--data", f"csv:{house.labels}"]}.get(verb, [])
    told = refused(call(verb, house.bundle(target, "fp32"), *more))
    assert f'pip install "edgevision[{target}]"' in told
    assert len(told.splitlines()) == 1


def test_data_that_cannot_be_evaluated(house, tmp_path):
    bundle = house.bundle("ncnn", "fp32")
    assert "gone.csv" in refused(call("eval", bundle, "--data", f"csv:{tmp_path / 'gone.csv'}"))
    (tmp_path / "labels.csv").write_text("file,label\nnot-there.png,cat\n")
    assert "not-there.png" in refused(call("eval", bundle, "--data", f"csv:{tmp_path / 'labels.csv'}"))
    assert "no class labels" in refused(call("eval", bundle, "--data", f"images:{house.pictures / 'images'}"), 2)


def test_results_that_cannot_be_reported(tmp_path):
    assert "gone.json" in refused(call("report", tmp_path / "gone.json", "-o", tmp_path / "report"))
    (tmp_path / "bad.json").write_text("{")
    assert "bad.json" in refused(call("report", tmp_path / "bad.json", "-o", tmp_path / "report"))
    assert not (tmp_path / "report").exists()
