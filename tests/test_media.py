"""Frames in and files out: what is read, what is written, and what happens when either goes wrong."""

from __future__ import annotations

import errno
import resource
import wave
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image as Pictures

from sightline.errors import MediaError
from sightline.media import Image, VideoWriter, check_writable, open_source, write_text

SIZE = (64, 48)  # width, height


def picture(index: int, size: tuple[int, int] = SIZE) -> Image:
    """A grey ramp with a bright bar whose place tells the frame's number."""
    width, height = size
    image = np.repeat(np.linspace(40, 120, width).astype(np.uint8)[None, :, None], height, 0).repeat(3, 2)
    image[:, (index * 4) % (width - 4) : (index * 4) % (width - 4) + 4] = (250, 60, 60)
    return image


def make_video(path: Path, count: int = 10, size: tuple[int, int] = SIZE, fps: float = 10.0) -> Path:
    with VideoWriter(path, fps) as writer:
        for index in range(count):
            writer.write(picture(index, size))
    return path


def write_all(writer: VideoWriter, images: Iterable[Image]) -> None:
    with writer:
        for image in images:
            writer.write(image)


def bar_place(image: Image) -> int:
    """Where the red bar of `picture` begins."""
    redness = image[..., 0].astype(int).mean(0) - image[..., 2].astype(int).mean(0)
    return int(np.argmax(redness > 60))


def raw_h264(count: int, size: tuple[int, int]) -> bytes:
    import io

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="h264") as container:
        stream: Any = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for index in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


# -- in -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
def test_a_written_video_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = make_video(tmp_path / f"v{suffix}", 10)
    with open_source(str(path)) as source:
        frames = [(frame.index, frame.rgb()) for frame in source]
    assert (source.kind, source.size, source.fps, source.count, source.warnings) == ("file", SIZE, 10.0, 10, [])
    assert [index for index, _ in frames] == list(range(10))
    for index, image in frames:
        assert image.shape == (48, 64, 3)
        assert abs(bar_place(image) - index * 4) <= 1
        assert np.abs(image.astype(int) - picture(index)).mean() < 8


def test_frames_are_resized_on_request(tmp_path: Path) -> None:
    with open_source(str(make_video(tmp_path / "v.mp4", 2))) as source:
        frame = next(iter(source))
        assert frame.rgb((32, 32)).shape == (32, 32, 3)
        assert frame.rgb().shape == (48, 64, 3)


@pytest.mark.parametrize(("start", "frames", "expected"), [(0, 3, [0, 1, 2]), (7, None, [7, 8, 9]), (4, 2, [4, 5]), (8, 50, [8, 9])])
def test_start_and_frames_choose_a_part(tmp_path: Path, start: int, frames: int | None, expected: list[int]) -> None:
    with open_source(str(make_video(tmp_path / "v.mp4", 10)), start=start, frames=frames) as source:
        got = [(frame.index, bar_place(frame.rgb())) for frame in source]
    assert [index for index, _ in got] == expected
    assert source.count == len(expected)
    assert all(abs(place - index * 4) <= 1 for index, place in got)


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    for index in (10, 9, 1):
        Pictures.fromarray(picture(index)).save(tmp_path / f"frame{index}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    with open_source(str(tmp_path)) as source:
        places = [bar_place(frame.rgb()) for frame in source]
    assert source.kind == "folder"
    assert source.count == 3
    assert places == [4, 36, 40]


def test_a_folder_with_a_broken_and_a_larger_image(tmp_path: Path) -> None:
    Pictures.fromarray(picture(0)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"\x89PNG broken")
    Pictures.fromarray(picture(2, (128, 96))).save(tmp_path / "2.png")
    with open_source(str(tmp_path)) as source:
        shapes = [(frame.index, frame.rgb().shape) for frame in source]
    assert shapes == [(0, (48, 64, 3)), (2, (48, 64, 3))]
    assert any("'1.png' was skipped" in warning for warning in source.warnings)
    assert any("resized to the first one's 64x48" in warning for warning in source.warnings)


def test_a_size_that_changes_within_a_video_becomes_the_first(tmp_path: Path) -> None:
    path = tmp_path / "v.h264"
    path.write_bytes(raw_h264(4, (64, 48)) + raw_h264(4, (96, 64)))
    with open_source(str(path)) as source:
        shapes = [frame.rgb().shape for frame in source]
    assert len(shapes) >= 6
    assert set(shapes) == {(48, 64, 3)}
    assert any("change size" in warning and "64x48" in warning for warning in source.warnings)


def encode(path: Path, times: Iterable[int], size: tuple[int, int] = SIZE, *, aspect: Fraction | None = None, turn: int = 0) -> Path:
    """A video of `picture`s at these milliseconds, each with its number as time."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"g": "4", "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if turn:
            stream.set_display_rotation(turn)
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(index, size), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_at_changing_intervals_are_all_taken_and_told(tmp_path: Path, suffix: str) -> None:
    times = [0, 40, 80, 600, 640, 1500, 1540, 1580]
    with open_source(str(encode(tmp_path / f"v{suffix}", times))) as source:
        places = [bar_place(frame.rgb()) for frame in source]
    assert [abs(place - 4 * index) <= 1 for index, place in enumerate(places)] == [True] * len(times)
    assert len(source.warnings) == 1
    assert "changing intervals (40 to 860 ms)" in source.warnings[0]


def test_a_steady_pace_is_not_told(tmp_path: Path) -> None:
    with open_source(str(encode(tmp_path / "v.mkv", [round(index * 1000 / 30) for index in range(12)]))) as source:
        assert sum(1 for _ in source) == 12
    assert source.warnings == []


@pytest.mark.parametrize(("turn", "size"), [(90, (48, 64)), (180, (64, 48)), (270, (48, 64))])
def test_a_rotated_video_comes_upright(tmp_path: Path, turn: int, size: tuple[int, int]) -> None:
    path = encode(tmp_path / "v.mp4", range(0, 400, 100), turn=turn)
    with open_source(str(path)) as source, av.open(str(path)) as container:
        stored = next(container.decode(video=0))
        assert stored.rotation % 360 == turn % 360
        image = next(iter(source)).rgb()
    assert (source.size, image.shape) == (size, (size[1], size[0], 3))
    turned = np.rot90(stored.to_ndarray(format="rgb24"), turn // 90)  # rotation: by so much against the clock
    assert np.abs(image.astype(int) - turned).mean() < 3


@pytest.mark.parametrize(
    ("aspect", "turn", "size"), [(Fraction(4, 3), 0, (85, 48)), (Fraction(2, 3), 0, (64, 72)), (Fraction(4, 3), 90, (48, 85))]
)
def test_pixels_that_are_not_square_become_square(tmp_path: Path, aspect: Fraction, turn: int, size: tuple[int, int]) -> None:
    with open_source(str(encode(tmp_path / "v.mp4", range(0, 400, 100), aspect=aspect, turn=turn))) as source:
        shapes = {frame.rgb().shape for frame in source}
        assert source.size == size
    assert shapes == {(size[1], size[0], 3)}
    assert source.warnings == []


def test_keyframes_are_known(tmp_path: Path) -> None:
    with open_source(str(encode(tmp_path / "v.mp4", range(0, 1000, 100)))) as source:
        assert [frame.index for frame in source if frame.key] == [0, 4, 8]


def test_a_truncated_video_gives_what_decodes_and_says_so(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mkv", 100, (192, 128)).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: int(len(whole) * 0.6)])
    with open_source(str(path)) as source:
        count = sum(1 for _ in source)
    assert 5 < count < 95
    assert len(source.warnings) == 1
    assert "cut.mkv" in source.warnings[0]


def test_damage_in_the_middle_is_skipped_and_told(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.avi", 60, (192, 128))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(range(256)) + bytes(144)
    path.write_bytes(bytes(data))
    with open_source(str(path)) as source:
        count = sum(1 for _ in source)
    assert 10 < count < 60
    assert source.warnings


def _text(folder: Path) -> str:
    (folder / "v.mp4").write_text("this is no video " * 100)
    return str(folder / "v.mp4")


def _empty(folder: Path) -> str:
    (folder / "v.mp4").touch()
    return str(folder / "v.mp4")


def _headless(folder: Path) -> str:
    path = make_video(folder / "v.mp4", 30)
    path.write_bytes(path.read_bytes()[:-400])  # the index of an mp4 stands at its end
    return str(path)


def _sound(folder: Path) -> str:
    with wave.open(str(folder / "v.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    return str(folder / "v.wav")


def _bare_folder(folder: Path) -> str:
    (folder / "readme.txt").touch()
    return str(folder)


def _broken_images(folder: Path) -> str:
    (folder / "a.png").write_bytes(b"nothing")
    return str(folder)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: str(folder / "none.mp4"), "no file or folder"),
        (_text, "cannot be read"),
        (_empty, "cannot be read"),
        (_headless, "cannot be read"),
        (_sound, "no video stream"),
        (_bare_folder, "no image"),
        (_broken_images, "none of the 1 images"),
        (lambda folder: "97", "camera 97 is not there"),
        (lambda folder: "http://127.0.0.1:9/v.mp4", "check the address"),
    ],
    ids=["missing", "text", "empty", "headless", "sound", "bare-folder", "broken-images", "camera", "url"],
)
def test_a_source_that_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path, make: Any, says: str) -> None:
    with pytest.raises(MediaError, match=says) as caught:
        open_source(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_start_beyond_the_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no frame from frame 99 on"):
        open_source(str(make_video(tmp_path / "v.mp4", 5)), start=99)


# -- out ----------------------------------------------------------------------------------------------------------------------


def test_a_video_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with VideoWriter(path, 10.0) as writer:
        writer.write(picture(0))
        assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.mp4"]


def test_an_error_within_removes_the_partial_video(tmp_path: Path) -> None:
    def interrupted() -> None:
        with VideoWriter(tmp_path / "v.mp4", 10.0) as writer:
            writer.write(picture(0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_no_frame_writes_no_file(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.mp4", 10.0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_odd_sizes_are_padded(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", 2, (33, 21))
    with open_source(str(path)) as source:
        assert source.size == (34, 22)


@pytest.fixture
def small_files() -> Iterator[None]:
    """A limit of 20 kB on the size of any file, as a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_file_that_cannot_grow_is_removed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 256, 256, 3), dtype=np.uint8)
    with pytest.raises(MediaError, match=r"--output: writing .* failed, and the partial file was removed"):
        write_all(VideoWriter(tmp_path / "v.mp4", 10.0), noise)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullFile:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    writer = VideoWriter(tmp_path / "v.mp4", 10.0)
    monkeypatch.setattr(writer, "_file", FullFile(writer._file))
    with pytest.raises(MediaError, match="the disk is full"):
        write_all(writer, [picture(index) for index in range(80)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [("none/v.mp4", "does not exist; create it"), (".", "is a folder"), ("v.xyz", "not a video format"), ("v", "not a video format")],
)
def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path, name: str, says: str) -> None:
    target = tmp_path / "d.mp4" if name == "." else tmp_path / name
    if name == ".":
        target.mkdir()
    with pytest.raises(MediaError, match=says):
        VideoWriter(target, 10.0)
    assert [entry for entry in tmp_path.iterdir() if entry != target] == []


def test_a_file_system_that_refuses_is_named() -> None:
    with pytest.raises(MediaError, match=r"--report: .* cannot be written"):
        check_writable(Path("/proc/report.html"), "--report")


def test_a_text_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_text(path, "old", "--report")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sightline.media.os.fsync", full)
    with pytest.raises(MediaError, match=r"--report: .* the disk is full"):
        write_text(path, "new", "--report")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
