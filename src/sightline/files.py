"""Files that appear under their name whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path


def partial_path(path: Path) -> Path:
    """Where a file is written until it is complete: beside it, so that the final rename cannot cross a file system."""
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a path to write to; the file takes its own name when the block ends, and is removed when the block fails.

    Args:
        path: the file to be. An older one of that name stays as it was until then.

    Raises:
        OSError: the file cannot be renamed. What the block raises comes through as it is.
    """
    path = Path(path)
    partial = partial_path(path)
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())  # else, after a power cut, the name could stand before the content
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def sweep_partials(path: Path) -> None:
    """Removes what processes that were killed in the middle of writing a file have left beside it."""
    start, end = f".{path.stem}.", f".partial{path.suffix}"
    for partial in path.parent.glob(f"{glob.escape(start)}*{glob.escape(end)}"):
        number = partial.name.removeprefix(start).removesuffix(end)
        if number.isdecimal() and not _runs(int(number)):
            with contextlib.suppress(OSError):
                partial.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
