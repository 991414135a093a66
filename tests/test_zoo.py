"""Real architectures: streaming a moving patch at threshold 0 equals dense PyTorch, and a table says what ran on torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import oracle
import sightline as sl
import zoo

# Families that add nothing to the rest and take long; they run with -m slow.
SLOW = {
    "hrnet_w18_small", "densenet121", "inception_v3", "efficientnet_b0", "googlenet", "deeplabv3_mobilenet_v3_large", "swin_t",
    "convnext_tiny", "fastvit_t8", "efficientvit_b0", "edgenext_xx_small", "mobilevit_xxs", "pvt_v2_b0", "mixnet_s", "res2net50_14w_8s",
    "resnest14d", "repvit_m0_9", "poolformer_s12", "rexnet_100", "dpn48b", "hgnetv2_b0",
}  # fmt: skip
FAST = [name for name in zoo.ZOO if name not in SLOW]


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    print(f"\n{'network':36}{'sites':>6}{'torch':>6}{'MACs of 5':>11}  call sites that run densely or on torch")
    print("\n".join(rows))


def moving_patch(name: str, frames: int = 5) -> list[Tensor]:
    """A still picture with a patch of a sixth of each side that moves along the diagonal."""
    still = zoo.frame(name)
    h, w = still.shape[2:]
    high, wide = h // 6, w // 6
    patch = zoo.frame(name, seed=1)[:, :, :high, :wide]
    result = []
    for index in range(frames):
        frame = still.clone()
        y, x = (h - high) * index // frames, (w - wide) * index // frames
        frame[:, :, y : y + high, x : x + wide] = patch
        result.append(frame)
    return result


def stream_and_compare(name: str, table: list[str]) -> None:
    model = zoo.build(name)
    exact = copy.deepcopy(model).double()
    stream = sl.stream(model)
    for index, frame in enumerate(moving_patch(name)):
        got: Any = stream(frame)
        with torch.no_grad():
            truth = oracle.tensors(exact(frame.double()))
        oracle.assert_law(oracle.tensors(got), oracle.plain_results(model, frame, truth), truth, f"{name}, frame {index}")
    explained = stream.explain()
    sparse = [row for row in explained.rows if row["executor"] == "native"]
    dense = sorted({f"{row['op']} ({row['note']})" for row in explained.rows if row["executor"] != "native"})
    table.append(
        f"{name:36}{len(explained.rows):6}{len(explained.rows) - len(sparse):6}{stream.stats.total.macs_share:11.1%}  {'; '.join(dense)}"
    )
    stream(frame)
    assert stream.stats.last.macs_done == 0


def test_at_least_thirty_networks_of_both_libraries() -> None:
    assert len(FAST) >= 30
    assert {zoo.ZOO[name].library for name in FAST} == {"torchvision", "timm"}
    assert set(zoo.ZOO) >= SLOW


@pytest.mark.parametrize("name", FAST)
def test_streaming_equals_dense(name: str, table: list[str]) -> None:
    stream_and_compare(name, table)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SLOW))
def test_streaming_equals_dense_slow(name: str, table: list[str]) -> None:
    stream_and_compare(name, table)
