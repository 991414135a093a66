"""Whether an installed package works: a small network on a video, natively, against PyTorch; the command line; the type marker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

import sightline as sl
from sightline import kernels


def main() -> int:
    """Raises what is wrong."""
    status = kernels.native_status()
    assert status["available"], status["reason"]
    package = Path(sl.__file__).parent
    assert (package / "py.typed").is_file()
    assert not list(package.glob("kernels/csrc")), "sources do not belong in an installed package"
    layers = [torch.nn.Conv2d(3, 20, 3, 2, 1), torch.nn.SiLU(), torch.nn.Conv2d(20, 8, 3, padding=1), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers).eval()
    stream = sl.stream(model, backend="native")
    frame = torch.rand(1, 3, 40, 48)
    for _ in range(4):
        frame[:, :, 4:9, 6:12] += 0.1
        with torch.no_grad():
            assert torch.allclose(stream(frame), model(frame), atol=1e-5)
    assert 0 < stream.stats.last.macs_done < 0.2 * stream.stats.last.macs_dense
    run = subprocess.run([sys.executable, "-m", "sightline.cli.main", "--version"], capture_output=True, text=True, check=False)
    assert run.returncode in {0, 1}, run.stderr  # 1: the command line's own packages are an extra
    print(f"sightline {sl.__version__} at {package}: native on {status['isa']}, works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
