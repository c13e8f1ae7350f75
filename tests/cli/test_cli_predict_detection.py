from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevision.cli import main
from edgevision.runtime.video import VideoWriter, open_video
from tests import squares


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    squares.register(tmp_path, monkeypatch)
    # no PyAV here, whatever is installed: the files that Pillow alone can read and write
    monkeypatch.setattr("edgevision.runtime.saving.installed", lambda module: False)
    return str(squares.make_bundle(tmp_path / "squares.evb"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        squares.scene(squares.random_boxes(number)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def gif(path: Path, count: int = 4) -> Path:
    # the palette of a GIF holds pure colours exactly
    frames = [squares.scene(squares.random_boxes(number)) for number in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)
    return path


def avi(path: Path, count: int = 4, fps: float = 12.5) -> Path:
    writer = VideoWriter(path, fps)
    for number in range(count):
        writer.write(squares.scene(squares.random_boxes(number)))
    writer.close()
    return path


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def boxes(record: dict) -> dict[str, list[float]]:
    return {found["name"]: found["box"] for found in record["objects"]}


def expected(number: int) -> dict[str, list[float]]:
    return {name: list(map(float, box)) for name, box in squares.random_boxes(number).items()}


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_files_folders_and_patterns(bundle: str, photos: Path, capsys: pytest.CaptureFixture[str], stream) -> None:
    assert (
        main(["predict", bundle, str(photos), str(photos / "[01].png"), str(photos / "2.png"), "--json", *stream]) == 0
    )
    printed = lines(capsys)
    assert [Path(record["image"]).name for record in printed] == [f"{n}.png" for n in (0, 1, 2, 0, 1, 2)]
    for record, number in zip(printed, (0, 1, 2) * 2, strict=True):
        # corners lie on whole pixels of the network's input
        assert boxes(record) == expected(number)


def test_a_table_for_people(bundle: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", bundle, str(photos / "0.png")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{photos / '0.png'}: 3 objects"
    assert printed[1].split() == ["class", "score", "left", "top", "right", "bottom"]
    assert printed[2].split()[:2] == ["red", "0.900"]


def test_confidence_and_classes_choose_boxes(bundle: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(photos / "0.png")
    chosen = {"--confidence 0.75": ["red", "green"], "--classes blue,red": ["red", "blue"], "--classes 1": ["green"]}
    for options, kept in chosen.items():
        assert main(["predict", bundle, picture, "--json", *options.split()]) == 0
        assert [found["name"] for found in lines(capsys)[0]["objects"]] == kept
    assert main(["predict", bundle, picture, "--classes", "gren"]) == 2
    assert "did you mean" in capsys.readouterr().err.lower()
    assert main(["predict", bundle, picture, "--confidence", "1.5"]) == 2
    assert "confidence must be a number from 0 to 1" in capsys.readouterr().err


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_pictures_are_drawn_and_saved(
    bundle: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stream
) -> None:
    out = tmp_path / "out"
    again = tmp_path / "again"
    again.mkdir()
    squares.scene({}).save(again / "0.png")
    assert main(["predict", bundle, str(photos), str(again), "-o", str(out), "--json", *stream]) == 0
    saved = [Path(record["saved"]) for record in lines(capsys)]
    assert saved == [out / name for name in ("0.png", "1.png", "2.png", "0-2.png")]
    drawn = np.asarray(Image.open(saved[0]))
    plain = np.asarray(squares.scene(squares.random_boxes(0)))
    assert drawn.shape == plain.shape
    assert (drawn != plain).any()
    # a picture without objects stays as it was
    assert not np.asarray(Image.open(saved[3])).any()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in saved)


def test_no_source_is_written_over(bundle: str, photos: Path) -> None:
    before = {path: path.read_bytes() for path in photos.iterdir()}
    assert main(["predict", bundle, str(photos), "-o", str(photos)]) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert (photos / "0-2.png").is_file()


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_animations_are_videos(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], stream) -> None:
    path = gif(tmp_path / "clip.gif")
    assert main(["predict", bundle, str(path), "-o", str(tmp_path / "out"), "--json", *stream]) == 0
    printed = lines(capsys)
    assert [record["frame"] for record in printed] == [0, 1, 2, 3]
    for record in printed:
        assert boxes(record) == expected(record["frame"])
        assert record["saved"] == str(tmp_path / "out" / "clip.avi")
    video = open_video(tmp_path / "out" / "clip.avi")
    assert video.fps == pytest.approx(10.0)
    assert [frame.size for frame in video] == [(128, 96)] * 4


def test_videos_of_motion_jpeg_need_nothing_installed(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", bundle, str(avi(tmp_path / "clip.avi")), "--json"]) == 0
    for record in lines(capsys):
        found, true = boxes(record), expected(record["frame"])
        assert found.keys() == true.keys()
        for name, box in found.items():
            # JPEG smears edges by a pixel or two, and a pixel of the input is two of the picture
            np.testing.assert_allclose(box, true[name], atol=4)


def test_a_stream_tells_throughput_and_latency(bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", bundle, str(gif(tmp_path / "clip.gif")), "--stream"]) == 0
    told = capsys.readouterr().err
    assert "4 pictures, " in told
    assert "pictures/s; latency ms: p50 " in told
    assert "stages ms: read " in told


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_one_bad_source_does_not_cost_the_others(
    bundle: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stream
) -> None:
    (photos / "1.png").write_bytes(b"no picture")
    (tmp_path / "bad.avi").write_bytes(avi(tmp_path / "good.avi").read_bytes()[:400] + b"00dc\x08\0\0\0notajpeg")
    sources = [photos / "0.png", photos / "1.png", tmp_path / "missing.mp4", tmp_path / "bad.avi", photos / "2.png"]
    assert main(["predict", bundle, *map(str, sources), "--json", *stream]) == 1
    captured = capsys.readouterr()
    assert [Path(json.loads(line)["image"]).name for line in captured.out.splitlines()] == ["0.png", "2.png"]
    for name in ("1.png", "missing.mp4", "bad.avi"):
        assert name in captured.err


def test_an_empty_folder_and_a_pattern_of_nothing_say_so(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "*.jpeg"):
        assert main(["predict", bundle, str(source)]) == 1
        assert "holds no pictures or videos" in capsys.readouterr().err


def test_a_camera_needs_a_package_and_a_camera(
    bundle: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgevision import dependencies

    real = dependencies.find_spec
    monkeypatch.setattr(dependencies, "find_spec", lambda name: None if name in ("cv2", "av") else real(name))
    assert main(["predict", bundle, "0"]) == 1
    assert 'pip install "edgevision[video]"' in capsys.readouterr().err


class Camera:
    """Hands out pictures until somebody presses Ctrl-C."""

    fps = 30.0

    def __iter__(self):
        for number in range(3):
            yield squares.scene(squares.random_boxes(number))
        raise KeyboardInterrupt


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_ctrl_c_ends_a_camera_and_keeps_the_video(
    bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stream
) -> None:
    monkeypatch.setattr("edgevision.runtime.frames.open_camera", lambda index: Camera())
    assert main(["predict", bundle, "0", "-o", str(tmp_path / "out"), "--json", *stream]) == 0
    assert [record["image"] for record in lines(capsys)] == ["camera 0"] * 3
    assert len(list(open_video(tmp_path / "out" / "camera 0.avi"))) == 3


def test_an_interrupted_video_leaves_no_half_file(bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Camera):
        pass

    (tmp_path / "clip.mp4").write_bytes(b"anything")
    monkeypatch.setattr("edgevision.runtime.frames.open_video", lambda path: Broken())
    assert main(["predict", bundle, str(tmp_path / "clip.mp4"), "-o", str(tmp_path / "out")]) == 130
    assert list((tmp_path / "out").iterdir()) == []


def test_options_for_detectors_are_refused_for_others(
    tmp_path: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from edgevision.bundle import Bundle

    opened = Bundle.open(bundle)
    plain = replace(opened.manifest, task="tensors", postprocess=None)
    path = Bundle(plain, {name: opened.read(name) for name in opened.files}).save(tmp_path / "plain.evb")
    squares.scene({}).save(tmp_path / "a.png")
    for option in (["-o", str(tmp_path / "out")], ["--confidence", "0.5"], ["--classes", "red"]):
        assert main(["predict", str(path), str(tmp_path / "a.png"), *option]) == 2
        assert f"{option[0]} is for detectors; squares does tensors" in capsys.readouterr().err
    assert main(["predict", str(path), str(tmp_path / "a.png")]) == 0
