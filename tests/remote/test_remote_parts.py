"""The parts of a job away from home: addresses, slices, messages, kept answers, counts."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgevision
from edgevision.cli import main
from edgevision.data import open_dataset
from edgevision.data.base import Subset
from edgevision.devices.cpu import parse_cpuinfo
from edgevision.errors import DataError, DeviceError, UsageError
from edgevision.remote import device_side
from edgevision.remote.arm.cores import CORES, cpuinfo
from edgevision.remote.arm.cost import Cost, compare_costs, load_costs, save_costs
from edgevision.remote.arm.project import project_site
from edgevision.remote.conversation import Conversation
from edgevision.remote.device_url import Device, parse_device
from edgevision.remote.devices import bench_devices, read_kept
from edgevision.remote.job import prepare
from edgevision.remote.slice import DEFAULT_PICTURES, take_slice
from edgevision.remote.ssh import remote_word
from edgevision.remote.transport import LocalTransport, program, spawn

QUICK = ("--rounds", "1", "--seconds", "0.02", "--queries", "1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("local", Device("local")),
        ("ssh://board", Device("ssh", "board")),
        ("ssh://pi@10.0.0.7:2222", Device("ssh", "10.0.0.7", "pi", 2222)),
        ("ssh://pi@[fe80::1]:22", Device("ssh", "fe80::1", "pi", 22)),
        (
            "ssh://b?python=/opt/v/bin/python&dir=/data",
            Device("ssh", "b", python="/opt/v/bin/python", directory="/data"),
        ),
        ("emulated://cortex-a72", Device("emulated", "cortex-a72")),
    ],
)
def test_addresses(text, expected):
    assert parse_device(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raspberry", "expected ssh://USER@HOST"),
        ("http://board", "expected ssh://USER@HOST"),
        ("ssh:board", "expected ssh://USER@HOST"),
        # what ssh would take for an option could run commands at the desk
        ("ssh://-oProxyCommand=touch%20x", "letters, digits"),
        ("ssh://-v@board", "letters, digits"),
        ("ssh://board;reboot", "letters, digits"),
        ("ssh://", "letters, digits|cannot be read"),
        ("ssh://board/some/path", "has no path"),
        ("ssh://board:0", "1 to 65535"),
        ("ssh://board:70000", "1 to 65535"),
        ("ssh://board?pyton=x", "python"),
        ("emulated://cortex-a27", "cortex-a72"),
    ],
)
def test_addresses_that_are_none(text, expected):
    with pytest.raises(UsageError, match=expected):
        parse_device(text)


def test_the_interpreter_of_all_devices_can_be_named_once(monkeypatch):
    monkeypatch.setenv("EDGEVISION_DEVICE_PYTHON", "~/venv/bin/python")
    assert parse_device("ssh://board").python == "~/venv/bin/python"
    assert remote_word("~/my venv/bin/python") == "~/'my venv/bin/python'"


def test_one_device_twice_is_refused(make_bundle):
    with pytest.raises(UsageError, match="named twice"):
        bench_devices(prepare([make_bundle("a")]), ["local", "local"])


def unpack(files, folder: Path) -> Path:
    for file in files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        data = b"".join(file.pieces(7))
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)
        (folder / file.path).write_bytes(data)
    return folder


def opened(part, folder: Path):
    kind, _, path = part.spec.partition(":")
    return open_dataset(f"{kind}:{unpack(part.files, folder) / path}")


def pixels(sample) -> np.ndarray:
    image = sample.image
    return np.asarray(Image.open(image) if isinstance(image, (str, Path)) else image)


def test_a_slice_of_labelled_arrays_keeps_pixels_labels_and_all_classes(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
    labels = np.arange(12) % 2
    names = np.array(["a,b", "c", "never shown"])
    np.savez(tmp_path / "set.npz", images=images, labels=labels, classes=names)
    dataset = open_dataset(tmp_path / "set.npz")
    part = take_slice(dataset, 4)
    assert (part.count, part.total) == (4, 12)
    found = opened(part, tmp_path / "device")
    assert found.classes == ("a,b", "c", "never shown")
    assert found.labels.tolist() == [labels[index] for index in (0, 4, 7, 11)]
    for index, origin in enumerate((0, 4, 7, 11)):
        assert np.array_equal(pixels(found[index]), images[origin])


def test_a_slice_of_files_copies_them_byte_for_byte(labelled, tmp_path):
    dataset = open_dataset(f"csv:{labelled}")
    part = take_slice(dataset, None)
    assert part.count == min(DEFAULT_PICTURES, 40)
    found = opened(part, tmp_path / "device")
    assert found.labels.tolist() == dataset.labels.tolist()
    assert Path(found[7].image).read_bytes() == Path(dataset[7].image).read_bytes()


def test_a_slice_without_labels_is_pictures(labelled, tmp_path):
    part = take_slice(open_dataset(f"images:{labelled.parent / 'images'}"), 5)
    assert part.spec == "images:data/images"
    assert len(opened(part, tmp_path / "device")) == 5


def test_a_slice_of_detections_keeps_boxes_classes_and_crowds(tmp_path):
    for index in range(6):
        Image.new("RGB", (40, 30), (index, 0, 0)).save(tmp_path / f"{index}.png")
    annotations = [
        {"id": index, "image_id": index, "category_id": 7 if index % 2 else 3, "bbox": [1.5, 2, 10, 11.25],
         "area": 112.5, "iscrowd": int(index == 5)}
        for index in range(6)
    ]  # fmt: skip
    document = {
        "images": [{"id": index, "file_name": f"{index}.png", "width": 40, "height": 30} for index in range(6)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "owl"}],
        "annotations": annotations,
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    dataset = open_dataset(f"coco:{tmp_path / 'instances.json'}")
    # a subset of a data set finds its crowds, too
    part = take_slice(Subset(dataset, [0, 2, 3, 5]), 3)
    found = opened(part, tmp_path / "device")
    assert found.classes == ("cat", "dog", "owl")
    for index, origin in enumerate((0, 3, 5)):
        assert np.array_equal(found[index].boxes.xyxy, dataset[origin].boxes.xyxy)
        assert np.array_equal(found[index].boxes.labels, dataset[origin].boxes.labels)
    assert np.array_equal(found.crowds[2].xyxy, dataset.crowds[5].xyxy)
    assert len(found.crowds[0].labels) == 0


def test_the_key_of_a_job_follows_what_decides_its_result(make_bundle, labelled):
    first, second = make_bundle("a"), make_bundle("b", noise=0.1)
    board = Device("ssh", "board")
    job = prepare([first], f"csv:{labelled}", limit=4, arguments=QUICK)
    again = prepare([first], f"csv:{labelled}", limit=4, arguments=QUICK)
    assert job.key(board) == again.key(board)
    others = [
        prepare([second], f"csv:{labelled}", limit=4, arguments=QUICK).key(board),
        prepare([first], f"csv:{labelled}", limit=5, arguments=QUICK).key(board),
        prepare([first], f"csv:{labelled}", limit=4).key(board),
        prepare([first], f"csv:{labelled}", limit=4, arguments=QUICK, reference=second).key(board),
        job.key(Device("ssh", "twin")),
        job.key(board, "another emulator"),
    ]
    assert len({job.key(board), *others}) == 7


def test_a_bundle_folder_is_copied_as_a_folder(make_bundle, tmp_path):
    from edgevision.bundle import Bundle

    folder = Bundle.open(make_bundle("a")).save(tmp_path / "folder")
    job = prepare([folder])
    assert {file.path.rpartition("/")[2] for file in job.files} >= {"manifest.json", "model.npz"}
    Bundle.open(unpack(job.files, tmp_path / "device") / job.bundles[0].path)


def test_this_machine_as_a_device(make_bundle, labelled, tmp_path, capsys):
    bundle, out = make_bundle("a"), tmp_path / "report"
    place = tmp_path / "place"
    place.mkdir()
    command = ["bench", str(bundle), "--data", f"csv:{labelled}", "--limit", "5", *QUICK, "--json", "--quiet"]
    assert main([*command, "--device", f"local://?dir={place}", "-o", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == [{"device": "local", "kept": False, "notes": [], "error": None}]
    assert found["results"][0]["n"] == 5
    assert list(place.iterdir()) == []
    assert (out / "index.html").is_file()


def test_options_that_exclude_each_other(make_bundle, capsys):
    assert main(["bench", str(make_bundle("a")), "--device", "local", "--cluster", "tcp://desk:1"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_a_devices_report_tells_the_desks_paths_and_command(make_bundle):
    path = str(make_bundle("a"))
    job = prepare([path], typed="edgevision bench a.evb --device local")
    there = job.bundles[0].path
    document = job.at_the_desk(
        {
            "results": [{"bundle": there, "reference": there}],
            "provenance": {"command": f"edgevision bench {there} --json", "cost_proxy": [{"bundle": there}]},
        }
    )
    assert document["results"] == [{"bundle": path, "reference": path}]
    assert document["provenance"] == {"command": job.typed, "cost_proxy": [{"bundle": path}]}
    # what was typed decides nothing: a kept answer is found again
    device = parse_device("local")
    assert prepare([path]).key(device) == job.key(device)


def test_kept_answers_that_are_damaged_are_asked_for_again(make_bundle, tmp_path):
    job = prepare([make_bundle("a")], arguments=QUICK)
    (first,) = bench_devices(job, ["local"], out=tmp_path)
    (path,) = (tmp_path / "devices").iterdir()
    (kept,) = bench_devices(job, ["local"], out=tmp_path)
    assert (first.kept, kept.kept) == (False, True)
    assert kept.document == first.document
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (again,) = bench_devices(job, ["local"], out=tmp_path)
    assert (again.kept, again.error) == (False, None)
    assert read_kept(path, "another key") is None


class Scripted(LocalTransport):
    """A device that says what a test wants it to."""

    def __init__(self, *said: bytes) -> None:
        super().__init__(Device("local"))
        self.said = said

    def start(self):
        # it listens for a second, so that what the desk writes finds a reader
        code = (
            "import os, sys, threading, time\n"
            "threading.Thread(target=sys.stdin.buffer.read, daemon=True).start()\n"
            "os.write(1, bytes.fromhex(''.join(sys.argv[1:])))\n"
            "time.sleep(1)\n"
            "os._exit(0)"
        )
        return spawn([sys.executable, "-c", code, *(piece.hex() for piece in self.said)])


def event(name: str, **values) -> bytes:
    return f"EDGEVISION1 {json.dumps({'event': name, **values})}\n".encode()


HELLO = event(
    "hello", python="3.11.2", executable="/p", edgevision="0.1", modules={}, free_bytes=1 << 30, directory="/"
)
NOTHING = {"results": [], "provenance": {}, "errors": []}


def talk(job, *said: bytes):
    return Conversation(Scripted(*said), lambda *_: None).hold(job)


def results(data: bytes, **values) -> bytes:
    about = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "code": 0, "tail": ["last words"]}
    return event("results", **{**about, **values})


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ((), "dropped out: Python there ended with exit code 0"),
        ((HELLO,), "dropped out"),
        ((HELLO, event("received"), event("line", text="measuring")), "dropped out"),
        ((HELLO, event("received"), results(b"x" * 1000), b"x" * 400), "results were cut: 400 of 1000 bytes came"),
        ((HELLO, event("received"), results(b"xx", sha256="0" * 64), b"xx"), "results were cut"),
        ((HELLO, event("received"), results(b'{"results": ['), b'{"results": ['), "exit code 0: last words"),
        ((HELLO, event("received"), results(b"[1]"), b"[1]"), "exit code 0: last words"),
        ((HELLO, event("failed", reason="damaged", message="a.evb arrived with the hash 1")), "arrived with the hash"),
        ((HELLO, event("failed", reason="disk", message="full", directory="/d")), "the disk of /d is full"),
        ((HELLO, b"EDGEVISION1 {cut"), "dropped out"),
    ],
)
def test_devices_that_break_off(make_bundle, said, expected):
    with pytest.raises(DeviceError, match=expected):
        talk(prepare([make_bundle("a")]), *said)


def test_a_device_of_another_version_that_does_all_it_should(make_bundle):
    data = json.dumps(NOTHING).encode()
    talk = Conversation(Scripted(HELLO, event("received"), results(data), data, event("bye")), lambda *_: None)
    assert talk.hold(prepare([make_bundle("a")]))["results"] == []
    assert talk.notes == [f"local has edgevision 0.1, this desk {edgevision.__version__}"]


def feed(*, order: dict, blobs: bytes = b"", directory: Path) -> list[dict]:
    """Run the device's side as it is sent, in a process, and give back what it says."""
    request = {"needs": ["numpy", "no_such_module"], "directory": str(directory)}
    sent = json.dumps(request).encode() + b"\n" + json.dumps(order).encode() + b"\n" + blobs
    done = subprocess.run([sys.executable, "-c", program()], input=sent, capture_output=True, timeout=60)
    lines = [line for line in done.stdout.split(b"\n") if line.startswith(b"EDGEVISION1 ")]
    return [json.loads(line[12:]) for line in lines]


def file_order(path: str, data: bytes, digest: str | None = None) -> dict:
    return {"command": ["true"], "files": [[path, len(data), digest or hashlib.sha256(data).hexdigest()]]}


def test_the_device_tells_what_it_has(tmp_path):
    hello = feed(order={"command": ["true"], "files": []}, directory=tmp_path)[0]
    assert hello["modules"] == {"numpy": True, "no_such_module": False}
    assert hello["free_bytes"] > 0
    assert Path(hello["executable"]).name.startswith("python")


def test_the_device_takes_no_damaged_file(tmp_path):
    said = feed(order=file_order("a.evb", b"data", "0" * 64), blobs=b"data", directory=tmp_path)
    assert said[-2]["event"] == "failed"
    assert "arrived with the hash" in said[-2]["message"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["../escaped", "/tmp/escaped", "a/../../escaped", ""])
def test_the_device_takes_no_path_that_leads_out(tmp_path, path):
    place = tmp_path / "place"
    place.mkdir()
    said = feed(order=file_order(path, b"data"), blobs=b"data", directory=place)
    assert "leads out" in said[-2]["message"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["place"]


def test_the_device_cleans_up_when_the_desk_leaves_in_the_middle_of_a_file(tmp_path):
    said = feed(order=file_order("a.evb", b"data" * 1000), blobs=b"data", directory=tmp_path)
    assert [event["event"] for event in said] == ["hello"]
    assert list(tmp_path.iterdir()) == []


def test_the_device_notices_a_desk_that_falls_silent():
    source, sink = os.pipe()
    desk = device_side.Desk(source, sink, patience_s=0.05)
    with pytest.raises(device_side.DeskGone, match="silent"):
        desk.line()
    os.close(source)
    os.close(sink)


def test_the_device_removes_what_lies_about_from_jobs_that_were_killed(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = tmp_path / f"edgevision-job-{os.getuid()}-{gone.pid}-xyz"
    alive = tmp_path / f"edgevision-job-{os.getuid()}-{os.getpid()}-xyz"
    others = tmp_path / f"edgevision-job-{os.getuid() + 1}-{gone.pid}-xyz"
    for folder in (dead, alive, others):
        folder.mkdir()
    device_side.sweep(str(tmp_path))
    assert sorted(tmp_path.iterdir()) == sorted([alive, others])


def test_the_device_side_is_standard_library_and_old_python():
    import ast

    tree = ast.parse(Path(device_side.__file__).read_text(), feature_version=(3, 7))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names
    # it must survive every shell's quotes, and be no longer than a command line may be
    assert "'" not in program()
    assert len(program()) < 32_000


def some_cost(**changes) -> Cost:
    counts = {"instructions": 1_000_000, "loads": 1, "stores": 1, "bytes_loaded": 600_000, "bytes_stored": 400_000,
              "branches": 1, "simd": 1, "multiply": 1, "dot": 0}  # fmt: skip
    return Cost("emulated cortex-a72", "a.evb", "net", "ncnn", "int8", {**counts, **changes})


def test_the_gate_finds_one_percent_and_no_less():
    before = [some_cost()]
    (found,) = compare_costs(before, [some_cost(instructions=1_010_000)])
    assert found.measure == "instructions"
    assert str(found) == "net ncnn int8 on emulated cortex-a72: instructions 1,000,000 → 1,010,000 (+1.00%)"
    (found,) = compare_costs(before, [some_cost(bytes_stored=410_000)])
    assert (found.measure, found.ratio) == ("bytes moved", pytest.approx(1.01))
    assert compare_costs(before, [some_cost()]) == []
    assert compare_costs(before, [some_cost(instructions=1_000_900)]) == []
    assert compare_costs(before, [some_cost(instructions=900_000)]) == []
    # another core is another matter
    assert compare_costs(before, [replace(some_cost(instructions=2_000_000), device="emulated cortex-a76")]) == []


def test_counts_are_kept(tmp_path):
    save_costs(tmp_path / "cost.json", [some_cost()])
    assert load_costs(tmp_path / "cost.json") == [some_cost()]
    written = (tmp_path / "cost.json").read_text()
    assert "not a latency" in written
    for text in (written[:100], "[]", '{"version": 1}', '{"version": 99, "costs": []}'):
        (tmp_path / "cost.json").write_text(text)
        with pytest.raises(DataError, match=r"cost\.json"):
            load_costs(tmp_path / "cost.json")


@pytest.mark.parametrize("name", list(CORES))
def test_a_core_is_recognized_by_the_projects_own_reader(name):
    found, features = parse_cpuinfo(cpuinfo(CORES[name], 4))
    assert CORES[name].name in found
    assert ("dotprod" in features) == (name == "cortex-a76")


def test_the_projects_wheel_for_another_machine(tmp_path):
    site = project_site(tmp_path)
    assert (site / "edgevision" / "remote" / "arm" / "icount.c").is_file()
    assert (site / "edgevision_benchmarks" / "report" / "report.html.j2").is_file()
    assert list(site.glob("edgevision-*.dist-info"))
    assert project_site(tmp_path) == site
    assert [entry.name for entry in tmp_path.iterdir()] == [site.name]


def test_png_keeps_grey_pictures(tmp_path):
    np.savez(tmp_path / "grey.npz", images=np.arange(32, dtype=np.uint8).reshape(2, 4, 4), labels=np.zeros(2, int))
    part = take_slice(open_dataset(tmp_path / "grey.npz"), 1)
    image = Image.open(io.BytesIO(part.files[0].source))
    assert image.mode == "L"
