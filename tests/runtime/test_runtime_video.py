"""Videos: what Pillow alone reads and writes is proved here; OpenCV and PyAV where they are installed."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevision.errors import DataError, MissingDependencyError, OutputError, UsageError
from edgevision.runtime.frames import Frame, open_source, source_names
from edgevision.runtime.motion_jpeg import MotionJpegWriter, avi_frame_rate, read_avi
from edgevision.runtime.video import VideoWriter, is_video, open_camera, open_video


def pictures(count: int, size: tuple[int, int] = (48, 32)) -> list[Image.Image]:
    """Smooth pictures, each of another brightness, that JPEG keeps to a few levels."""
    ramp = np.linspace(0, 60, size[0])[None, :] + np.zeros((size[1], 1))
    return [Image.fromarray(np.uint8(np.stack([ramp + 20 * number] * 3, -1))) for number in range(count)]


def alike(one: Image.Image, other: Image.Image, levels: float = 4.0) -> bool:
    """Mean difference in grey levels: JPEG at quality 90 changes smooth pictures by one or two."""
    difference = np.abs(np.asarray(one.convert("RGB"), float) - np.asarray(other.convert("RGB"), float))
    return one.size == other.size and float(difference.mean()) < levels


def jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def written(path: Path, frames: list[Image.Image], fps: float = 25.0) -> Path:
    writer = VideoWriter(path, fps)
    for frame in frames:
        writer.write(frame)
    writer.close()
    return path


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.floats(0.5, 240), st.integers(0, 2**32 - 1)
)  # widths, heights and noise give chunks of odd and even length
def test_what_is_written_is_read_again(tmp_path_factory, count: int, width: int, height: int, fps: float, seed: int):
    rng = np.random.default_rng(seed)
    frames = [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(count)]
    path = written(tmp_path_factory.mktemp("video") / "clip.avi", frames, fps)
    assert avi_frame_rate(path) == pytest.approx(fps, abs=0.001)
    assert [frame.tobytes() for frame in read_avi(path)] == [
        Image.open(io.BytesIO(jpeg(frame))).convert("RGB").tobytes() for frame in frames
    ]


def test_the_chunks_are_those_of_the_format(tmp_path: Path) -> None:
    """Lengths, counts and the index: what players go by, and our own reader does not."""
    data = written(tmp_path / "clip.avi", pictures(3), 12.5).read_bytes()
    assert (data[:4], data[8:12]) == (b"RIFF", b"AVI ")
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8
    (microseconds,) = struct.unpack_from("<I", data, data.index(b"avih") + 8)
    frames, _, streams = struct.unpack_from("<III", data, data.index(b"avih") + 8 + 16)
    assert (microseconds, frames, streams) == (80_000, 3, 1)
    movi = data.index(b"movi")
    index = data.index(b"idx1")
    assert struct.unpack_from("<I", data, movi - 4)[0] == index - movi
    assert struct.unpack_from("<I", data, index + 4)[0] == 3 * 16
    for number in range(3):
        name, flags, offset, size = struct.unpack_from("<4sIII", data, index + 8 + 16 * number)
        assert (name, flags) == (b"00dc", 0x10)
        assert data[movi + offset : movi + offset + 8] == b"00dc" + struct.pack("<I", size)
        assert data[movi + offset + 8 : movi + offset + 10] == b"\xff\xd8"


def test_a_recording_that_was_cut_off_gives_its_whole_pictures(tmp_path: Path) -> None:
    path = written(tmp_path / "clip.avi", pictures(4))
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"00dc", 0, data.index(b"idx1")) + 40])
    assert len(list(open_video(path))) == 3


def test_damaged_pictures_and_lengths_are_data_errors(tmp_path: Path) -> None:
    path = written(tmp_path / "clip.avi", pictures(2))
    data = path.read_bytes()
    first = data.index(b"00dc") + 8
    path.write_bytes(data[:first] + b"\0" * 20 + data[first + 20 :])
    with pytest.raises(DataError, match=r"clip\.avi: frame 0 cannot be read"):
        list(open_video(path))
    path.write_bytes(data[: first - 4] + b"\xff\xff\xff\x7f" + data[first:])
    with pytest.raises(DataError, match="claims 2147483647 bytes"):
        list(open_video(path))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_is_broken_is_a_data_error(tmp_path_factory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    whole = bytearray(written(folder / "clip.avi", pictures(2, (16, 16))).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(12, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (folder / "clip.avi").write_bytes(bytes(whole[: data.draw(st.integers(12, len(whole)))]))
    try:
        for frame in open_video(folder / "clip.avi"):
            assert frame.mode == "RGB"
    except (DataError, MissingDependencyError):  # another coding than Motion JPEG needs OpenCV
        pass


def test_a_stream_of_jpeg_pictures(tmp_path: Path) -> None:
    frames = pictures(5)
    (tmp_path / "clip.mjpeg").write_bytes(b"".join(map(jpeg, frames)))
    video = open_video(tmp_path / "clip.mjpeg")
    # files start over each time
    for _ in range(2):
        assert all(alike(one, other) for one, other in zip(video, frames, strict=True))
    (tmp_path / "bad.mjpeg").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"bad\.mjpeg: frame 0"):
        list(open_video(tmp_path / "bad.mjpeg"))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tiff"])
def test_animations_are_videos_and_single_pictures_are_not(tmp_path: Path, suffix: str) -> None:
    frames = pictures(3)
    path = tmp_path / f"clip{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({} if suffix == ".tiff" else {"duration": 40}))
    assert is_video(path)
    video = open_video(path)
    assert video.fps == pytest.approx(25.0)
    found = list(video)
    assert len(found) == 3
    assert all(alike(one, other, levels=8.0) for one, other in zip(found, frames, strict=True))
    frames[0].save(tmp_path / f"single{suffix}")
    assert not is_video(tmp_path / f"single{suffix}")
    (tmp_path / f"broken{suffix}").write_bytes(b"no picture")
    assert not is_video(tmp_path / f"broken{suffix}")


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.avi", 25)
    writer.write(Image.new("RGB", (16, 16)))
    with pytest.raises(OutputError, match="frames of one size"):
        writer.write(Image.new("RGB", (16, 17)))
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_a_full_file_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = MotionJpegWriter(io.BytesIO(), 25)
    writer.write(Image.new("RGB", (16, 16)))
    monkeypatch.setattr("edgevision.runtime.motion_jpeg.MAX_AVI_BYTES", 900)
    with pytest.raises(OutputError, match="as much as an AVI file holds"):
        writer.write(Image.new("RGB", (16, 16)))


def test_other_kinds_of_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.avi or \.mp4"):
        VideoWriter(tmp_path / "clip.mkv", 25)
    with pytest.raises(DataError, match="no such video"):
        open_video(tmp_path / "missing.mp4")


def test_sources_are_files_folders_patterns_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a.png", "c.jpg", "b/d.png", "0"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="PNG")
    written(tmp_path / "film.avi", pictures(2))
    (tmp_path / ".hidden.png").write_bytes(b"")
    names = [str(tmp_path / name) for name in ("a.png", "c.jpg", "film.avi")]
    assert source_names(str(tmp_path)) == names
    assert source_names(str(tmp_path / "*.[pj][np]g")) == names[:2]
    assert source_names(str(tmp_path / "**" / "*.png")) == [names[0], str(tmp_path / "b" / "d.png")]
    monkeypatch.chdir(tmp_path)
    assert source_names("*.png") == ["a.png"]
    # a file of that name comes before a camera
    assert open_source("0").kind == "image"
    assert [frame.number for frame in open_source("film.avi").frames()] == [0, 1]
    [frame] = open_source("a.png").frames()
    assert frame == Frame("a.png", "a.png", None, frame.source)
    (tmp_path / "empty.avi").write_bytes(written(tmp_path / "film.avi", pictures(1)).read_bytes()[:240])
    with pytest.raises(DataError, match="not one whole picture"):
        list(open_source("empty.avi").frames())


STAND_IN = """
import numpy as np
CAP_PROP_FPS = 5
class VideoCapture:
    def __init__(self, source):
        self.source, self.left, self.released = source, 3, False
    def isOpened(self):
        return self.source != 9 and "bad" not in str(self.source)
    def get(self, what):
        return 0.0 if self.source == 0 else 50.0
    def read(self):
        self.left -= 1
        frame = np.zeros((4, 6, 3), np.uint8)
        frame[..., 0] = 200  # blue, in OpenCV's order
        return self.left >= 0, frame
    def release(self):
        self.released = True
"""


def test_cameras_and_videos_are_read_by_opencv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of its interface, so that what is done with it is tested where it is not installed."""
    import sys

    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "cv2.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0 ftyp")
    monkeypatch.setattr("edgevision.runtime.video.installed", lambda name: name == "cv2")
    video = open_video(tmp_path / "clip.mp4")
    assert video.fps == 50.0
    frames = list(video)
    assert [(frame.size, frame.getpixel((0, 0))) for frame in frames] == [((6, 4), (0, 0, 200))] * 3
    assert len(list(video)) == 3
    assert open_camera(0).fps == 25.0
    with pytest.raises(DataError, match="camera 9 cannot be opened"):
        open_camera(9)
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bad\.mp4: cannot be read as a video"):
        open_video(tmp_path / "bad.mp4")
    # not with monkeypatch, which would put it back
    del sys.modules["cv2"]


def test_opencv_reads_what_is_written_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    avi = cv2.VideoCapture(str(written(tmp_path / "clip.avi", pictures(5))))
    assert [avi.read()[0] for _ in range(6)] == [True] * 5 + [False]
    pytest.importorskip("av", reason="PyAV is not installed")
    path = written(tmp_path / "clip.mp4", pictures(5))
    monkeypatch.setattr("edgevision.runtime.video.installed", lambda name: name == "cv2")
    video = open_video(path)
    assert video.fps == pytest.approx(25.0)
    assert all(alike(one, other, levels=8.0) for one, other in zip(video, pictures(5), strict=True))


@pytest.mark.parametrize("size", [(48, 32), (47, 33)])
def test_pyav_writes_what_it_reads(tmp_path: Path, size: tuple[int, int]) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    video = open_video(written(tmp_path / "clip.mp4", pictures(6, size), 12.5))
    assert video.fps == pytest.approx(12.5)
    found = list(video)
    assert len(found) == 6
    # sides are even in the file: the last row and column come twice
    cut = [frame.crop((0, 0, *size)) for frame in found]
    assert all(alike(one, other, levels=8.0) for one, other in zip(cut, pictures(6, size), strict=True))
    writer = VideoWriter(tmp_path / "half.mp4", 25)
    writer.write(pictures(1)[0])
    with pytest.raises(OutputError, match="frames of one size"):
        writer.write(pictures(1, (16, 16))[0])
    writer.abort()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4"]


def test_a_camera_that_is_not_there_is_a_data_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    monkeypatch.setattr("edgevision.runtime.video.installed", lambda name: name == "av")
    monkeypatch.setattr("edgevision.runtime.video.sys.platform", "linux")
    with pytest.raises(DataError, match="camera 97 cannot be opened: is it connected"):
        open_camera(97)


def test_pyav_reads_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    monkeypatch.setattr("edgevision.runtime.video.installed", lambda name: name == "av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for image in pictures(5):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    video = open_video(tmp_path / "clip.mp4")
    assert video.fps == pytest.approx(25.0)
    assert all(alike(one, other, levels=8.0) for one, other in zip(video, pictures(5), strict=True))
    with av.open(str(written(tmp_path / "clip.avi", pictures(4), 12.5))) as container:
        assert float(container.streams.video[0].average_rate) == 12.5
        assert len(list(container.decode(video=0))) == 4
    (tmp_path / "bad.mp4").write_bytes(b"nothing of the kind" * 9)
    with pytest.raises(DataError, match="cannot be read as a video"):
        open_video(tmp_path / "bad.mp4")
