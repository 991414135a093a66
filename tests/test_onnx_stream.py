"""ONNX files on video: streamed frame by frame at threshold 0 they equal onnxruntime, the files at hand and exports of known networks."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import oracle
import sightline as sl
import zoo
from sightline.graph.onnx_import import load_onnx
from sightline.stream import Stream
from test_onnx_import import NETWORKS, Network, assert_close, open_sizes, run_onnxruntime
from test_zoo import moving_patch

EXPORTED = ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5", "regnet_y_400mf",
            "efficientnet_b0", "densenet121", "googlenet", "convnext_tiny", "lraspp_mobilenet_v3_large"]  # fmt: skip
QUICK = ("mobilenet_v3_small", "shufflenet_v2_x0_5")


def compare(stream: Stream, frames: list[Tensor], file: Path | bytes, tolerance: float) -> None:
    for index, frame in enumerate(frames):
        got = stream(frame)
        assert_close(oracle.tensors(got), run_onnxruntime(file, frame.numpy()), tolerance)
        assert index == 0 or stream.stats.last.macs_share < 1
    stream(frames[-1])
    assert stream.stats.last.macs_done == 0


def test_every_file_at_hand_is_tried(shared_data: Path) -> None:
    assert {path.stem for path in (shared_data / "models").glob("*.onnx")} <= {network.name for network in NETWORKS}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_files_at_hand(network: Network, shared_data: Path) -> None:
    path = shared_data / "models" / f"{network.name}.onnx"
    if not path.is_file():
        pytest.skip(f"the shared data holds no models/{path.name}")
    _, _, h, w = network.sizes[-1]
    still = torch.rand(1, 3, h, w) * 2 - 1
    frames = [still]
    for index in range(2):
        frames.append(still.clone())
        frames[-1][:, :, h // 4 : h // 2, w // 4 + 8 * index : w // 2] *= 0.5
    compare(sl.stream(load_onnx(path)), frames, open_sizes(path), 1e-4)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in EXPORTED])
def test_exports_of_torchvision(name: str, tmp_path: Path) -> None:
    model, path = zoo.build(name), tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter announces its end
        torch.onnx.export(model, (zoo.frame(name),), str(path), dynamo=False)
    stream = sl.stream(load_onnx(path))
    compare(stream, moving_patch(name, 4), path, 1e-4)
    on_torch = [row for row in stream.explain().rows if row["executor"] != "native" and row["op"] != "constant"]
    assert not any(row["macs"] for row in on_torch), on_torch
