"""What the tests of sightline.compat.deltacnn share: its documented examples as text, small networks and videos, a reference.

What belongs here: set-up. What does not: tests.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import oracle
from sightline.compat.deltacnn import (
    DCActivation,
    DCAdaptiveAveragePooling,
    DCAdd,
    DCBackend,
    DCBatchNorm2d,
    DCConcatenate,
    DCConv2d,
    DCDensify,
    DCMaxPooling,
    DCModule,
    DCSparsify,
    DCThreshold,
    DCUpsamplingNearest2d,
)


def fresh_layers() -> Iterator[None]:
    """A fixture's body: no layer of another test takes part, and the class attributes are as at import."""
    DCThreshold.reset()
    yield
    DCThreshold.reset()
    DCThreshold.t_default, DCThreshold.scale, DCThreshold.path = 0.0, 1.0, None
    DCConv2d.backend = DCBackend.deltacnn


def video(
    frames: int = 4, size: tuple[int, int] = (24, 20), noise: float = 0.0, batch: int = 1, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """A still picture with a moving patch, and noise if wanted."""
    still = torch.rand(batch, 3, *size)
    patch = torch.rand(batch, 3, 5, 4)
    result = []
    for index in range(frames):
        frame = still + noise * torch.randn_like(still)
        frame[:, :, 2 * index : 2 * index + 5, 3 * index : 3 * index + 4] = patch
        result.append(frame.to(dtype))
    return result


class Small(DCModule):
    """One of each layer, with skip connections; `dense` is the same network in plain PyTorch."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.sparsify = DCSparsify(**options)
        self.conv1 = DCConv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = DCBatchNorm2d(8)
        self.relu1 = DCActivation(activation="relu6")
        self.conv2 = DCConv2d(8, 8, 3, padding=1, groups=8, activation="leaky")
        self.conv3 = DCConv2d(8, 8, 1, activation="swish", name="third")
        self.add = DCAdd(activation="relu", weight_b=0.5)
        self.pool = DCMaxPooling(3, 2, 1)
        self.up = DCUpsamplingNearest2d(2)
        self.cat = DCConcatenate()
        self.mean = DCAdaptiveAveragePooling((1, 1))
        self.conv4 = DCConv2d(16, 4, 3, padding=(1, 0, 0, 1), activation="sigmoid", dense_out=True)
        self.densify = DCDensify()
        assert self.bn1.running_var is not None and self.bn1.running_mean is not None
        self.bn1.running_var.uniform_(0.5, 2)
        self.bn1.running_mean.normal_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.relu1(self.bn1(self.conv1(self.sparsify(x))))
        a = self.add(self.conv3(self.conv2(a)), a)
        joined = self.cat(self.up(self.pool(a)), a)
        return self.conv4(joined), self.densify(self.mean(a))

    def dense(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bn = self.bn1
        a = F.batch_norm(F.conv2d(x, self.conv1.weight, padding=1), bn.running_mean, bn.running_var, bn.weight, bn.bias)
        a = F.relu6(a)
        b = F.leaky_relu(F.conv2d(a, self.conv2.weight, self.conv2.bias, padding=1, groups=8), 0.1)
        b = F.silu(F.conv2d(b, self.conv3.weight, self.conv3.bias))
        a = F.relu(b + 0.5 * a)
        joined = torch.cat([F.interpolate(F.max_pool2d(a, 3, 2, 1), scale_factor=2.0), a], 1)
        out = torch.sigmoid(F.conv2d(F.pad(joined, (1, 0, 0, 1)), self.conv4.weight, self.conv4.bias))
        return out, a.mean((2, 3), keepdim=True)


def assert_exact(model: Small, frames: list[Tensor]) -> None:
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        for index, frame in enumerate(frames):
            oracle.assert_law(model(frame), model.dense(frame), exact.dense(frame.double()), f"frame {index}")


def reference(model: Small, frames: list[Tensor], limits: dict[str, float]) -> list[list[Tensor]]:
    """DeltaCNN's truncation in plain PyTorch: a pixel is published when its change exceeds the limit, by the maximum over channels."""
    held: dict[str, Tensor] = {}

    def publish(name: str, value: Tensor) -> Tensor:
        old = held.get(name, torch.full_like(value, math.inf))
        held[name] = torch.where((value - old).abs().amax(1, keepdim=True) > limits[name], value, old)
        return held[name]

    results = []
    with torch.no_grad():
        for frame in frames:
            bn = model.bn1
            a = F.conv2d(publish("sparsify", frame), model.conv1.weight, padding=1)
            a = publish("relu1", F.relu6(F.batch_norm(a, bn.running_mean, bn.running_var, bn.weight, bn.bias)))
            b = publish("conv2", F.leaky_relu(F.conv2d(a, model.conv2.weight, model.conv2.bias, padding=1, groups=8), 0.1))
            b = publish("conv3", F.silu(F.conv2d(b, model.conv3.weight, model.conv3.bias)))
            a = F.relu(b + 0.5 * a)
            joined = torch.cat([F.interpolate(F.max_pool2d(a, 3, 2, 1), scale_factor=2.0), a], 1)
            out = torch.sigmoid(F.conv2d(F.pad(joined, (1, 0, 0, 1)), model.conv4.weight, model.conv4.bias))
            results.append([out, a.mean((2, 3), keepdim=True)])
    return results


# -- its documented examples ------------------------------------------------------------------------------------------------------

NETWORK = """
import deltacnn
class CNN(deltacnn.DCModule):
    def __init__(self):
        super(CNN, self).__init__()
        self.sparsify = deltacnn.DCSparsify()
        self.conv1 = deltacnn.DCConv2d(...)
        self.conv2 = deltacnn.DCConv2d(...)
        self.conv3 = deltacnn.DCConv2d(...)
        self.relu1 = deltacnn.DCActivation(activation="relu")
        self.relu2 = deltacnn.DCActivation(activation="relu")
        self.relu3 = deltacnn.DCActivation(activation="relu")
        self.densify = deltacnn.DCDensify()

    def forward(self, x):
        x = self.sparsify(x)
        x = self.relu1(self.conv1(x))
        x = self.relu2(self.conv2(x))
        return self.densify(self.relu3(self.conv3(x)))
"""

SIMPLIFIED = """
import deltacnn
class CNN(deltacnn.DCModule):
    def __init__(self):
        super(CNN, self).__init__()
        self.sparsify = deltacnn.DCSparsify()
        self.conv1 = deltacnn.DCConv2d(..., activation="relu")
        self.conv2 = deltacnn.DCConv2d(..., activation="relu")
        self.conv3 = deltacnn.DCConv2d(..., activation="relu", dense_out=True)

    def forward(self, x):
        x = self.sparsify(x)
        x = self.conv1(x)
        x = self.conv2(x)
        return self.conv3(x)
"""

NORMALIZE = """
from deltacnn import DCDensify, DCSparsify, DCModule
class Normalize(DCModule):
    def __init__(self):
        super(Normalize, self).__init__()
        self.densify = DCDensify()
        self.sparsify = DCSparsify()

    def forward(self, x):
        x = self.densify(x)
        x = x / x.max()
        return self.sparsify(x)
"""

LAYOUT = """
model = MyDCModel()
load_weights(model, weights_path) # weights are stored in PyTorch standard format
model.to(device, memory_format=torch.channels_last) # set the network in channels last mode
model.process_filters() # convert filters into DeltaCNN format

for frame in video:
    frame = frame.to(device).contiguous(memory_format=torch.channels_last)
    out = model(frame)
"""

LOADING = """
def run(self):
    for frame_idx, frame in enumerate(video):
        frame = frame.to(device).contiguous(memory_format=torch.channels_last)
        out = self.model(frame)

        if frame_idx == 0:
            DCThreshold.path = threshold_path
            DCThreshold.load_thresholds()
    return out
"""

TUNING = """
sequence = load_video()
DCThreshold.t_default = 0.0
model = init_model()
ref_loss = calc_loss(model, sequence)
max_per_layer_loss_increase = 1.001 # some random number
step_size = 2 # some random number

for key in DCThreshold.t.keys():
    start_loss = calc_loss(model, sequence)
    DCThreshold.t[key] = 0.001 # some random number

    while calc_loss(model, sequence) < start_loss * max_per_layer_loss_increase:
        DCThreshold.t[key] *= step_size
    DCThreshold.t[key] /= step_size # since loss with prev threshold was already too large, go back a step
"""


def executed(code: str, **names: Any) -> dict[str, Any]:
    """Runs an example with its import line changed, and its dots filled in."""
    code = code.replace("import deltacnn\n", "import sightline.compat.deltacnn as deltacnn\n").replace(
        "from deltacnn", "from sightline.compat.deltacnn"
    )
    code = code.replace("conv1 = deltacnn.DCConv2d(...", "conv1 = deltacnn.DCConv2d(3, 8, 3, padding=1")
    code = code.replace("conv2 = deltacnn.DCConv2d(...", "conv2 = deltacnn.DCConv2d(8, 8, 3, padding=1")
    code = code.replace("conv3 = deltacnn.DCConv2d(...", "conv3 = deltacnn.DCConv2d(8, 4, 3, padding=1")
    scope: dict[str, Any] = {"__name__": "example", **names}
    exec(code, scope)
    return scope


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(x))))))
