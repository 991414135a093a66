"""DeltaCNN's names on top of Sightline: change the import line, keep the rest; on any device.

    import sightline.compat.deltacnn as deltacnn

Design. A layer's forward is the plain dense op, so a network is an ordinary model. The outermost `DCModule` captures itself when the
first frame comes and runs as a `sightline.stream`. `DCSparsify` and `DCActivation`, also inside ``DCConv2d(activation=...)``, leave a
mark while that happens; each mark becomes the threshold of the step that makes the map, absolute, in DeltaCNN's norm (the maximum over
channels unless `DCTruncation` says otherwise). So a map holds what was published last, and a pixel is published when it has moved by
more than the threshold: what DeltaCNN transmits, as absolute values. Between layers go dense tensors, not (delta, mask) tuples;
whatever a forward does with them is right. A forward that cannot be captured (it branches on values, or takes several inputs) runs
densely, with thresholds in place and a RuntimeWarning. A DCModule inside an ordinary ``nn.Module`` is a stream of its own.

Where thresholds are, and their order in `DCThreshold.t` and in files: `DCSparsify` and `DCActivation`, in the order of their first calls.
``DCConv2d(activation=..., dense_out=True)``, ``DCDensify(activation=...)`` and ``DCAdd(activation=...)`` have none.

What the original does wrong, and what happens here:

- Leaky ReLU has slope 0.01 on the first frame, 0.1 after: 0.1 always.
- A convolution or batch norm used twice loses its bias the second time; shared activations crash: state belongs to call sites.
- Max pooling starts at -1e-30, or misses values over large windows: it is PyTorch's. A reset leaves it at the old size: all is reset.
- Another batch size or resolution crashes: it starts a video of its own (two videos of one size in turns cost a full frame each, in
  both; give each a copy of the network).
- Float16: static frames count as changed, small updates are lost, sums drift, ``DCAdd`` crashes: held maps are absolute and cannot drift.
- bfloat16 and float64 do not run: they do.
- Inf in a frame poisons all later ones, NaN is ignored: `FrameError`, and the next frame goes on.
- Layers write into their inputs: never.
- NCHW frames give wrong results: both memory formats are right. ``process_filters`` forgotten or called twice gives garbage: it does
  nothing. Weights saved after it load (float32, where the shape tells).
- ``padding_mode`` other than zeros is ignored: it is done. Kernels, strides, groups, pool sizes and factors are restricted: any will do.
- Thresholds and buffers outlive their model, and mix in files: layers drop out of `DCThreshold.t` with their model; ``load_thresholds`` and
  ``save_thresholds`` take a ``model``.
- ``layer.delta_threshold`` and ``DCThreshold.set`` have no effect after the first frame, ``load_thresholds`` none the second time: they
  have.
- A thresholds file of another length is applied with a shift: `ThresholdError`. NaN and negative thresholds: ValueError.
- A tuning loop over a layer that never makes the loss too large does not end: it ends with a ValueError when the threshold leaves
  float32.
- An even ``dilation`` of `DCSparsify` fails at the second frame: ValueError when it is made.

Not here: training thresholds (`BackendError`), the raw functions on (delta, mask) tuples, performance counters (``model.stream.stats`` has
what they count), logging to tensorboard.

Source: names and semantics of facebookresearch/DeltaCNN (arXiv 2203.03996), written from its description.

Example:
    >>> import torch
    >>> class Net(DCModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.sparsify = DCSparsify(delta_threshold=0.1)
    ...         self.conv = DCConv2d(3, 8, 3, padding=1, activation="relu", dense_out=True)
    ...
    ...     def forward(self, x):
    ...         return self.conv(self.sparsify(x))
    >>> net, frame = Net(), torch.rand(1, 3, 32, 32)
    >>> first = net(frame)
    >>> frame[:, :, 3, 4] += 1
    >>> second = net(frame + 0.01)
    >>> net.stream.stats.last.density["conv"] * 32 * 32
    9.0
"""

from sightline.compat.deltacnn.layers import (
    DCActivation,
    DCAdaptiveAveragePooling,
    DCAdd,
    DCBatchNorm2d,
    DCConcatenate,
    DCConv2d,
    DCConvTranspose2d,
    DCDensify,
    DCMaxPooling,
    DCSparsify,
    DCUpsamplingNearest2d,
)
from sightline.compat.deltacnn.module import DCModule, process_filters
from sightline.compat.deltacnn.thresholds import DCBackend, DCThreshold, DCTruncation

__all__ = [
    "DCActivation",
    "DCAdaptiveAveragePooling",
    "DCAdd",
    "DCBackend",
    "DCBatchNorm2d",
    "DCConcatenate",
    "DCConv2d",
    "DCConvTranspose2d",
    "DCDensify",
    "DCMaxPooling",
    "DCModule",
    "DCSparsify",
    "DCThreshold",
    "DCTruncation",
    "DCUpsamplingNearest2d",
    "process_filters",
]
