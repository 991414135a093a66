"""What the tests of the command line share: a short clip, and a command run in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from typer.testing import CliRunner

from sightline.cli.app import app
from sightline.media import VideoWriter


def make_video(path: Path, count: int, columns: int = 6, square: int = 12) -> Path:
    """A red square that moves over a still picture of blocks, 64 high and 16 * columns wide."""
    still = np.random.default_rng(0).integers(0, 255, (4, columns, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    with VideoWriter(path, 10.0) as writer:
        for index in range(count):
            image = still.copy()
            image[10:26, 4 * index : 4 * index + square] = (255, 0, 0)
            writer.write(image)
    return path


def run(*arguments: object) -> Any:
    """A command's result: exit_code, stdout, stderr, output."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
