"""The networks of the benchmarks, with random weights, and the dense peers that run them.

Written out here so that no other package is needed; layer by layer they are torchvision's VGG16, ResNet-50 and MobileNetV2.
"""

from __future__ import annotations

import io
import itertools
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import MissingPeer
from torch import Tensor, nn


def _conv(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, act: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(cout),
    ]
    return nn.Sequential(*layers, *([act(inplace=True)] if act is not None else []))


class Bottleneck(nn.Module):
    """ResNet's block: 1x1, 3x3 (with the stride), 1x1, plus the input."""

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(cin, width, 1), _conv(width, width, 3, stride), _conv(width, 4 * width, 1, act=None))
        self.shortcut = nn.Identity() if stride == 1 and cin == 4 * width else _conv(cin, 4 * width, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return torch.relu(self.body(x) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """MobileNetV2's block: expand, depthwise, project, plus the input where the size stays."""

    def __init__(self, cin: int, cout: int, stride: int, expand: int, kernel: int = 3) -> None:
        super().__init__()
        wide = cin * expand
        first = [] if expand == 1 else [_conv(cin, wide, 1, act=nn.ReLU6)]
        self.body = nn.Sequential(*first, _conv(wide, wide, kernel, stride, groups=wide, act=nn.ReLU6), _conv(wide, cout, 1, act=None))
        self.adds = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x + self.body(x) if self.adds else self.body(x)


class Classifier(nn.Sequential):
    """Trunk, mean over the map, linear layer."""

    def __init__(self, trunk: list[nn.Module], width: int) -> None:
        super().__init__(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def resnet50() -> nn.Module:
    trunk: list[nn.Module] = [_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    cin = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            trunk.append(Bottleneck(cin, width, stride if i == 0 else 1))
            cin = 4 * width
    return _random(Classifier(trunk, cin))


def mobilenet_v2() -> nn.Module:
    trunk: list[nn.Module] = [_conv(3, 32, 3, 2, act=nn.ReLU6)]
    cin = 32
    table = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, cout, blocks, stride in table:
        for i in range(blocks):
            trunk.append(InvertedResidual(cin, cout, stride if i == 0 else 1, expand))
            cin = cout
    trunk.append(_conv(cin, 1280, 1, act=nn.ReLU6))
    return _random(Classifier(trunk, 1280))


def efficientnet_lite0() -> nn.Module:
    trunk: list[nn.Module] = [_conv(3, 32, 3, 2, act=nn.ReLU6)]
    cin = 32
    table = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    for expand, cout, blocks, stride, kernel in table:
        for i in range(blocks):
            trunk.append(InvertedResidual(cin, cout, stride if i == 0 else 1, expand, kernel))
            cin = cout
    trunk.append(_conv(cin, 1280, 1, act=nn.ReLU6))
    return _random(Classifier(trunk, 1280))


class Pyramid(nn.Module):
    """A segmentation network: residual blocks down to 1/16, a feature pyramid back up to 1/4, scores of 19 classes at full size."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 160), inner: int = 64, classes: int = 19) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, widths[0], 3, 2), _conv(widths[0], widths[0], 3, 1))
        stages = [nn.Sequential(_conv(a, b, 3, 2), _conv(b, b, 3), _conv(b, b, 3)) for a, b in itertools.pairwise(widths)]
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList(_conv(width, inner, 1, act=None) for width in widths[1:])
        self.smooth = nn.ModuleList(_conv(inner, inner, 3) for _ in widths[1:])
        self.scores = nn.Sequential(nn.Conv2d(inner, classes, 1))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        y = self.lateral[-1](maps[-1])
        for i in range(len(maps) - 2, -1, -1):
            up = nn.functional.interpolate(y, scale_factor=2.0, mode="nearest")
            y = self.smooth[i](self.lateral[i](maps[i]) + up)
        return nn.functional.interpolate(self.scores(y), scale_factor=4.0, mode="bilinear", align_corners=False)


def pyramid() -> nn.Module:
    return _random(Pyramid())


class OnnxFile:
    """A network that comes as a file; calling it runs it densely in ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run: Runner | None = None

    def graph(self) -> Any:
        """What `sightline.stream` takes."""
        from sightline.models import load_model

        return load_model(str(self.path)).model

    def __call__(self, frame: Tensor) -> Tensor:  # noqa: D102
        if self._run is None:
            self._run = onnxruntime(with_shape(self.path, frame), frame, 1)
        return self._run(frame)


def face_detector() -> OnnxFile:
    """CenterFace: MobileNetV2 and a pyramid with four heads."""
    return _file("CenterFace", "centerface.onnx")


def object_detector() -> OnnxFile:
    """FastestDet: ShuffleNetV2, two maps put together, one grid of boxes; made for processors in telephones."""
    return _file("FastestDet", "fastestdet_coco.onnx")


def small_face_detector() -> OnnxFile:
    """UltraLight RFB-640: depthwise convolutions of few channels on large maps, four heads."""
    return _file("UltraLight", "ultralight_face_rfb640.onnx")


def portrait_segmentation() -> OnnxFile:
    """SINet: many thin branches at small sizes, two channels at the end."""
    return _file("SINet", "sinet_portrait.onnx")


def _file(network: str, name: str) -> OnnxFile:
    folder = data_folder()
    if folder is None:
        raise MissingPeer(f"{network}: no data folder beside the checkout, and SIGHTLINE_DATA names none")
    return OnnxFile(folder / "models" / name)


def data_folder() -> Path | None:
    """The folder of clips and models that lies beside the checkout, or that SIGHTLINE_DATA names."""
    root = Path(__file__).resolve().parents[1]
    named = os.environ.get("SIGHTLINE_DATA")
    candidates = [Path(named)] if named else [root.parent / "shared" / "data", root / "shared" / "data"]
    return next((folder for folder in candidates if (folder / "videos").is_dir() and (folder / "models").is_dir()), None)


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    cin = 3
    for cout in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(cin, cout, 3, padding=1), nn.ReLU()] if cout else [nn.MaxPool2d(2)]
        cin = cout or cin
    head = [nn.Linear(512 * 7 * 7, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return _random(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head))


def trunk(model: nn.Module) -> nn.Sequential:
    """The layers before the head: up to the first adaptive pooling."""
    layers = list(model.children())
    end = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.AdaptiveAvgPool2d))
    return nn.Sequential(*layers[:end])


def _random(model: nn.Module) -> nn.Module:
    """Random weights and statistics under which values stay near 1 in every layer, batch norm folded."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.6, 0.9, generator=generator)
            module.bias.data.uniform_(-0.1, 0.2, generator=generator)
    model.eval().requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
            module[0] = torch.nn.utils.fusion.fuse_conv_bn_eval(module[0], module[1])
            module[1] = nn.Identity()
    return model


# -- dense peers ---------------------------------------------------------------------------------------------------------
# Each takes the model, an example frame and the number of threads, and returns a function from a frame to the output.

Runner = Callable[[Tensor], Tensor]


def eager(model: nn.Module, example: Tensor, threads: int) -> Runner:
    """PyTorch as it comes, channels last, batch norm folded."""
    del example, threads
    model = model.to(memory_format=torch.channels_last)
    return lambda x: model(x.to(memory_format=torch.channels_last))


def eager_contiguous(model: nn.Module, example: Tensor, threads: int) -> Runner:
    """PyTorch as most people call it, channels first, batch norm folded."""
    del example, threads
    return model.to(memory_format=torch.contiguous_format)


def compiled(model: nn.Module, example: Tensor, threads: int) -> Runner:
    """torch.compile with frozen (prepacked) weights."""
    del threads
    import torch._dynamo
    import torch._inductor.config

    torch._inductor.config.freezing = True
    torch._dynamo.reset()
    run = torch.compile(model.to(memory_format=torch.channels_last))
    run(example.to(memory_format=torch.channels_last))
    return lambda x: run(x.to(memory_format=torch.channels_last))


class _MatrixPool(nn.Module):
    """Adaptive average pooling as two matrix products, for exporters that know it only where the size is a factor."""

    def __init__(self, size: int, h: int, w: int) -> None:
        super().__init__()
        for name, n in (("rows", h), ("cols", w)):
            self.register_buffer(name, torch.nn.functional.adaptive_avg_pool1d(torch.eye(n)[None], size)[0])

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(torch.matmul(self.rows.T, x), self.cols)  # type: ignore[operator]


def _exportable(model: nn.Module, example: Tensor) -> nn.Module:
    """The model with adaptive pooling to odd sizes in a form that can be exported."""
    sizes: dict[int, tuple[int, int]] = {}
    layers = list(model.children())
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size != 1:
            sizes[i] = tuple(nn.Sequential(*layers[:i])(example).shape[2:])  # type: ignore[assignment]
    for i, (h, w) in sizes.items():
        layers[i] = _MatrixPool(layers[i].output_size, h, w)  # type: ignore[arg-type]
    return nn.Sequential(*layers) if sizes else model


def _onnx_bytes(model: nn.Module, example: Tensor) -> bytes:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingPeer("onnx is not installed; pip install 'sightline[bench]'") from error
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(_exportable(model, example), (example,), buffer, dynamo=False, input_names=["frame"], opset_version=17)
    return buffer.getvalue()


def with_shape(path: Path, example: Tensor) -> bytes:
    """An ONNX file with the example's shape as its input's; some files declare one that is not meant."""
    try:
        import onnx
    except ImportError as error:
        raise MissingPeer("onnx is not installed; pip install 'sightline[bench]'") from error
    proto = onnx.load(path)
    weights = {tensor.name for tensor in proto.graph.initializer}
    frame = next(entry for entry in proto.graph.input if entry.name not in weights)
    for axis, size in zip(frame.type.tensor_type.shape.dim, example.shape, strict=True):
        axis.dim_value = size
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    data: bytes = proto.SerializeToString()
    return data


def onnxruntime(model: nn.Module | bytes, example: Tensor, threads: int) -> Runner:
    """ONNX Runtime's CPU provider with all graph optimisations (its default)."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingPeer("onnxruntime is not installed; pip install 'sightline[bench]'") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if threads > 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = model if isinstance(model, bytes) else _onnx_bytes(model, example)
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def openvino(model: nn.Module | bytes, example: Tensor, threads: int, precision: str = "f32") -> Runner:
    """OpenVINO, set up for latency; frames and outputs are float32 whatever it computes in ("f32" or "bf16")."""
    os.environ.setdefault("OPENVINO_TELEMETRY_DISABLED", "1")
    try:
        import openvino as ov
    except ImportError as error:
        raise MissingPeer("openvino is not installed; pip install 'sightline[bench]'") from error
    core = ov.Core()
    data = model if isinstance(model, bytes) else _onnx_bytes(model, example)
    read = core.read_model(data, b"")
    read.reshape(list(example.shape))
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(read, "CPU", settings).create_infer_request()
    return lambda x: torch.from_numpy(request.infer([x.numpy()], share_inputs=True)[0])


PEERS: dict[str, tuple[Callable[[Any, Tensor, int], Runner], bool]] = {
    # name: (how to make it, whether it runs in threads of its own)
    "eager": (eager, False),
    "torch.compile": (compiled, False),
    "onnxruntime": (onnxruntime, False),
    "openvino": (openvino, True),
}


def eager_bfloat16(model: nn.Module, example: Tensor, threads: int) -> Runner:
    """PyTorch with weights and maps of bfloat16, channels last, batch norm folded."""
    run = eager(model.to(torch.bfloat16), example, threads)
    return lambda x: run(x.to(torch.bfloat16))


# ONNX Runtime's CPU provider has no convolutions of bfloat16.
PEERS_BFLOAT16: dict[str, tuple[Callable[[Any, Tensor, int], Runner], bool]] = {
    "eager": (eager_bfloat16, False),
    "openvino": (partial(openvino, precision="bf16"), True),
}
