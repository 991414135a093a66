"""Frames in and files out: videos, image folders, cameras and URLs as a stream of RGB frames, and a video writer.

What belongs here: decoding, resizing, encoding, and writing files so that a partial one is never left behind. What does not:
networks, drawing, reports. Everything is numpy; PyAV and Pillow are imported when the first source or writer is opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sightline.errors import MediaError
from sightline.extras import need
from sightline.files import partial_path, whole_file

Image = npt.NDArray[np.uint8]
"""An RGB picture, (h, w, 3) uint8."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
VIDEO_SUFFIXES = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi"}
"""Containers that can be written, by file suffix."""

_URL = re.compile(r"^(rtsps?|https?|rtmps?|udp|tcp)://", re.IGNORECASE)
_OPEN_TIMEOUT = 10.0  # seconds; a camera that answers at all does so well within this
_READ_TIMEOUT = 20.0


@dataclass
class Frame:
    """One decoded frame.

    Attributes:
        index: position in the source, counted from its beginning.
        size: (width, height) of the source's first frame; frames of another size are resized to it.
        key: whether a video's codec made the frame without looking at others; its noise jumps there.
    """

    index: int
    size: tuple[int, int]
    _render: Callable[[tuple[int, int]], Image] = field(repr=False)
    key: bool = False

    def rgb(self, size: tuple[int, int] | None = None) -> Image:
        """The picture.

        Args:
            size: (width, height) to resize to (bilinear with prefilter); None: as decoded.

        Returns:
            (h, w, 3) uint8, RGB, contiguous, the caller's own.
        """
        return self._render(size or self.size)


class Source:
    """A running source of frames; iterate over it once, inside ``with``.

    Attributes:
        name: what the user gave.
        kind: "file", "folder", "camera" or "url".
        size: (width, height) of the frames, upright and with square pixels, as a screen shows them.
        fps: frames per second of the source (25.0 where it says nothing).
        count: number of frames that will come, or None where that is not known.
        warnings: what went wrong without stopping the run, one sentence each; complete once the iteration has ended.
    """

    def __init__(self, name: str, kind: str, size: tuple[int, int], fps: float, count: int | None, frames: Iterator[Frame]) -> None:
        self.name = name
        self.kind = kind
        self.size = size
        self.fps = fps
        self.count = count
        self.warnings: list[str] = []
        self._frames = frames
        self._close: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[Frame]:
        return self._frames

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def open_source(source: str, *, start: int = 0, frames: int | None = None) -> Source:
    """Open a video file, a folder of images, a camera or a URL.

    The first frame is decoded at once, so a source that cannot deliver fails here and not in the middle of a job.

    Args:
        source: path of a video or image, path of a folder (its images in natural order), camera index ("0"), or URL (rtsp, http ...).
        start: frames to skip at the beginning, >= 0.
        frames: stop after this many frames, >= 1; None: all.

    Returns:
        A `Source`.

    Raises:
        MediaError: if it is missing, cannot be decoded, or holds no frame from ``start`` on.
        MissingPackageError: without PyAV (or Pillow, for a folder).
    """
    path = Path(source)
    if source.isdecimal() and not path.exists():
        opened = _open_av(source, "camera", start, frames)
    elif _URL.match(source):
        opened = _open_av(source, "url", start, frames)
    elif path.is_dir():
        opened = _open_folder(path, start, frames)
    elif not path.exists():
        raise MediaError(f"video: there is no file or folder {source!r}; check the path (a camera is given by its number, e.g. 0)")
    else:
        opened = _open_av(source, "file", start, frames)
    return opened


# -- PyAV ---------------------------------------------------------------------------------------------------------------------


def _open_av(source: str, kind: str, start: int, frames: int | None) -> Source:
    av = need("av", "read and write video")
    av.logging.set_level(None)  # any other level makes decoder threads wait for Python's lock, which can deadlock with a closing codec
    container = _open_container(av, source, kind)
    if not container.streams.video:
        container.close()
        raise MediaError(f"video: {source!r} holds no video stream; give a file with pictures in it")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    announced = _announced_frames(stream, container, rate) if kind == "file" else None
    notes: list[str] = []
    decoded = _decode(av, container, stream, source, announced, notes)
    for _ in range(start):
        if next(decoded, None) is None:
            break
    first = next(decoded, None)
    if first is None:
        container.close()
        came = f"no frame from frame {start} on" if start else "no frame that can be decoded"
        raise MediaError(f"video: {source!r} holds {came}; {notes[0] if notes else 'give another file, or a smaller --start'}")
    aspect = stream.sample_aspect_ratio or Fraction(1)
    size = _upright_size(first, aspect)
    pace = _Pace()

    def generate() -> Iterator[Frame]:
        picture: Any = first
        index = start
        while picture is not None and (frames is None or index - start < frames):
            pace.see(picture.time)
            if _upright_size(picture, aspect) != size and not any("change size" in note for note in notes):
                notes.append(f"frames change size at frame {index}; they are resized to the first frame's {size[0]}x{size[1]}")
            yield Frame(index, size, _av_renderer(picture), bool(picture.key_frame))
            index += 1
            if frames is None or index - start < frames:
                picture = next(decoded, None)
        steady = kind != "file" or container.format.name == "avi"  # which knows one rate only, and numbers frames oddly
        if not steady and pace.varies and not notes:
            notes.append(
                f"frames of {source!r} come at changing intervals ({min(pace.gaps)} to {max(pace.gaps)} ms); "
                f"all are taken, and a written video shows them at {float(rate):.3g} a second"
            )

    count = None if announced is None else max(announced - start, 1)
    if frames is not None:
        count = frames if count is None else min(count, frames)
    opened = Source(source, kind, size, float(rate), count, generate())
    opened.warnings = notes
    opened._close = container.close
    return opened


def _open_container(av: Any, source: str, kind: str) -> Any:
    timeout = (_OPEN_TIMEOUT, _READ_TIMEOUT)
    try:
        if kind == "camera":
            device, driver = _camera(source)
            return av.open(device, format=driver, timeout=timeout)
        if kind == "url":
            options = {"rtsp_transport": "tcp"} if source.lower().startswith("rtsp") else {}
            return av.open(source, options=options, timeout=timeout)
        return av.open(source)
    except _failures(av) as error:
        reason = _reason(error)
        if kind == "camera":
            message = f"camera {source} cannot be opened ({reason}); check that it is plugged in and that no other program holds it"
        elif kind == "url":
            message = f"video: {source!r} cannot be opened ({reason}); check the address, the network and the password"
        else:
            message = f"video: {source!r} cannot be read ({reason}); it is damaged, cut off or not a video"
        raise MediaError(message) from error


def _failures(av: Any) -> tuple[type[Exception], ...]:
    """What PyAV raises; some of its errors are neither of the built-in two."""
    return OSError, ValueError, av.error.FFmpegError


def _camera(index: str) -> tuple[str, str]:
    """Device name and PyAV input format of a camera number on this system."""
    if sys.platform.startswith("linux"):
        device = f"/dev/video{index}"
        if not Path(device).exists():
            present = sorted(path.name.removeprefix("video") for path in Path("/dev").glob("video[0-9]*"))
            there = f"cameras present: {', '.join(present)}" if present else "no camera is present"
            raise MediaError(f"camera {index} is not there ({there}); plug one in, or give a file or a URL")
        return device, "v4l2"
    if sys.platform == "darwin":
        return index, "avfoundation"
    return f"video={index}", "dshow"


def _announced_frames(stream: Any, container: Any, rate: Fraction) -> int | None:
    if stream.frames:
        return int(stream.frames)
    if stream.duration and stream.time_base:
        return max(int(stream.duration * stream.time_base * rate), 1)
    return max(int(Fraction(container.duration, 1_000_000) * rate), 1) if container.duration else None


def _decode(av: Any, container: Any, stream: Any, source: str, announced: int | None, notes: list[str]) -> Iterator[Any]:
    """Decode what can be decoded; a broken end becomes a note instead of an error."""
    count = 0
    bad = 0
    shown = 0.0  # seconds
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except _failures(av) as error:
            notes.append(f"reading {source!r} stopped after {count} frames ({_reason(error)})")
            break
        if packet is None:
            break
        try:
            pictures = packet.decode()
        except _failures(av):
            bad += 1
            continue
        for picture in pictures:
            count += 1
            shown = picture.time or 0.0
            yield picture
    if bad:
        notes.append(f"{bad} damaged packets of {source!r} were skipped")
    # Containers without an index announce frames by duration, which is not exact: one missing in fifty is not worth a warning.
    # At changing intervals that number means nothing, but the last frame stands near the end.
    whole = not stream.frames and container.duration and shown >= 0.95 * container.duration / 1_000_000 - 0.1
    if not notes and announced is not None and count < announced * 0.98 - 1 and not whole:
        notes.append(f"{source!r} announces {announced} frames but only {count} could be decoded; the file seems to be cut off")


class _Pace:
    """The intervals between frames."""

    def __init__(self) -> None:
        self.gaps: Counter[int] = Counter()  # milliseconds
        self._last: float | None = None

    def see(self, time: float | None) -> None:
        if time is not None and self._last is not None and time > self._last:
            self.gaps[round(1000 * (time - self._last))] += 1
        self._last = time

    @property
    def varies(self) -> bool:
        """Every tenth interval is not the usual one; rounding to milliseconds and single lost frames are not meant."""
        if not self.gaps:
            return False
        usual, _ = self.gaps.most_common(1)[0]
        odd = sum(count for gap, count in self.gaps.items() if abs(gap - usual) > usual / 2 + 2)
        return odd > 1 and odd > 0.1 * self.gaps.total()


def _upright_size(picture: Any, aspect: Fraction) -> tuple[int, int]:
    """(width, height) as a screen shows the picture: turned, and with square pixels, of which there are never fewer than decoded."""
    width, height = int(picture.width), int(picture.height)
    if aspect > 1:
        width = round(width * aspect)
    elif 0 < aspect < 1:
        height = round(height / aspect)
    return (height, width) if int(getattr(picture, "rotation", 0)) % 180 else (width, height)


def _av_renderer(picture: Any) -> Callable[[tuple[int, int]], Image]:
    turns = (int(getattr(picture, "rotation", 0)) // 90) % 4

    def render(size: tuple[int, int]) -> Image:
        width, height = (size[1], size[0]) if turns % 2 else size
        image = picture.reformat(width=width, height=height, format="rgb24", interpolation="BILINEAR").to_ndarray()
        return np.ascontiguousarray(np.rot90(image, turns) if turns else image)

    return render


# -- folders of images --------------------------------------------------------------------------------------------------------


def _open_folder(folder: Path, start: int, frames: int | None) -> Source:
    pillow = need("PIL.Image", "read images")
    paths = sorted((path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES), key=lambda path: _natural(path.name))
    chosen = paths[start:] if frames is None else paths[start : start + frames]
    if not chosen:
        held = f"{len(paths)} images, none from {start} on" if paths else f"no image ({', '.join(sorted(IMAGE_SUFFIXES))})"
        raise MediaError(f"video: the folder {str(folder)!r} holds {held}; give a folder of frames, or a smaller --start")
    notes: list[str] = []
    readable = _read_images(pillow, chosen, notes)
    first = next(readable, None)
    if first is None:
        raise MediaError(f"video: none of the {len(chosen)} images in {str(folder)!r} can be read; {notes[0]}")
    size = (int(first[1].width), int(first[1].height))

    def generate() -> Iterator[Frame]:
        item: tuple[int, Any] | None = first
        while item is not None:
            index, picture = item
            if (picture.width, picture.height) != size and not any("other sizes" in note for note in notes):
                notes.append(f"some images have other sizes; they are resized to the first one's {size[0]}x{size[1]}")
            yield Frame(start + index, size, _pillow_renderer(pillow, picture))
            item = next(readable, None)

    opened = Source(str(folder), "folder", size, 25.0, len(chosen), generate())
    opened.warnings = notes
    return opened


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which frame10 follows frame9."""
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def _read_images(pillow: Any, paths: list[Path], notes: list[str]) -> Iterator[tuple[int, Any]]:
    for index, path in enumerate(paths):
        try:
            with pillow.open(path) as image:
                yield index, image.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            notes.append(f"the image {path.name!r} was skipped ({_reason(error)})")


def _pillow_renderer(pillow: Any, picture: Any) -> Callable[[tuple[int, int]], Image]:
    def render(size: tuple[int, int]) -> Image:
        resized = picture if (picture.width, picture.height) == size else picture.resize(size, pillow.Resampling.BILINEAR)
        return np.array(resized, dtype=np.uint8)

    return render


# -- files out ----------------------------------------------------------------------------------------------------------------


def check_writable(path: Path, argument: str) -> None:
    """Find out before the work starts whether a file can be written.

    Args:
        path: the file to be written; it may exist already.
        argument: name of the option, for the message.

    Raises:
        MediaError: if the folder does not exist, the path is a folder, or nothing can be created there.
    """
    folder = path.parent
    if path.is_dir():
        raise MediaError(f"{argument}: {str(path)!r} is a folder; give a file name inside it")
    if not folder.is_dir():
        raise MediaError(f"{argument}: the folder {str(folder)!r} does not exist; create it first (mkdir -p {folder})")
    probe = partial_path(path)
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MediaError(f"{argument}: {str(path)!r} cannot be written ({_reason(error)}); choose another place") from error


def write_text(path: Path, text: str, argument: str) -> None:
    """Write a text file completely or not at all.

    Args:
        path: the file.
        text: its content, written as UTF-8.
        argument: name of the option, for the message.

    Raises:
        MediaError: if it cannot be written; nothing is left behind, and an older file stays as it was.
    """
    try:
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _write_error(path, argument, error) from error


class VideoWriter:
    """Writes RGB frames into a video file that appears under its name only when it is complete.

    Use it in a ``with`` block: leaving it normally finishes the file, leaving it by an exception removes what was written.
    H.264 where the installed PyAV has it, MPEG-4 otherwise; 4:2:0, so odd sizes are padded by one repeated row or column.

    Args:
        path: file to write; its suffix chooses the container, see `VIDEO_SUFFIXES`.
        fps: frames per second, > 0.
        argument: name of the option, for messages.

    Raises:
        MediaError: if the suffix is not known or the file cannot be created.
    """

    def __init__(self, path: Path, fps: float, argument: str = "--output") -> None:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            known = ", ".join(VIDEO_SUFFIXES)
            raise MediaError(f"{argument}: {str(path)!r} has the suffix {path.suffix!r}, which is not a video format; use one of {known}")
        check_writable(path, argument)
        self.path = path
        self.frames = 0
        self._argument = argument
        self._av = need("av", "read and write video")
        self._av.logging.set_level(None)
        self._rate = Fraction(fps if 0 < fps <= 1000 else 25.0).limit_denominator(1001)
        self._partial = partial_path(path)
        # A file object of our own: its write errors come back as exceptions, which a path handed to the muxer swallows.
        self._file: Any = self._partial.open("w+b")
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def write(self, image: Image) -> None:
        """Append a frame.

        Args:
            image: (h, w, 3) uint8 RGB; every frame as large as the first.

        Raises:
            MediaError: if it cannot be written (a full disk, for example); the partial file is removed.
        """
        height, width = image.shape[:2]
        padded = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge") if height % 2 or width % 2 else image
        with self._removing_on_failure():
            if self._container is None:
                self._start(padded.shape[1], padded.shape[0])
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
            for packet in self._stream.encode(picture):
                self._container.mux(packet)
        self.frames += 1

    def close(self) -> None:
        """Finish the file and give it its name; without a single frame nothing is written."""
        if self._file is None:
            return
        if self._container is None:
            self.discard()
            return
        with self._removing_on_failure():
            for packet in self._stream.encode(None):
                self._container.mux(packet)
            self._container.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._partial.replace(self.path)
        self._file = None

    def discard(self) -> None:
        """Remove what was written."""
        if self._file is None:
            return
        with contextlib.suppress(*_failures(self._av)):
            if self._container is not None:
                self._container.close()
        with contextlib.suppress(OSError, ValueError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._partial.unlink()
        self._file = None

    def _start(self, width: int, height: int) -> None:
        self._container = self._av.open(self._file, "w", format=VIDEO_SUFFIXES[self.path.suffix.lower()])
        h264 = "libx264" in self._av.codecs_available
        options = {"preset": "veryfast", "crf": "22"} if h264 else {"qscale": "3"}
        self._stream = self._container.add_stream("libx264" if h264 else "mpeg4", rate=self._rate, options=options)
        self._stream.width = width
        self._stream.height = height
        self._stream.pix_fmt = "yuv420p"
        self._stream.thread_type = "AUTO"

    @contextlib.contextmanager
    def _removing_on_failure(self) -> Iterator[None]:
        try:
            yield
        except _failures(self._av) as error:
            self.discard()
            raise _write_error(self.path, self._argument, error) from error


def _write_error(path: Path, argument: str, error: Exception) -> MediaError:
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        remedy = "the disk is full; free some space or choose another place"
    elif code == errno.EFBIG:
        remedy = "the file grew beyond what the system allows; raise the limit (ulimit -f) or process fewer frames"
    else:
        remedy = f"{_reason(error)}; choose another place"
    return MediaError(f"{argument}: writing {str(path)!r} failed, and the partial file was removed: {remedy}")


def _reason(error: Exception) -> str:
    """The system's own words for an error, without numbers and paths."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).split(";", maxsplit=1)[0].strip().rstrip(".")
