"""Networks by name: what ``--model`` and ``--weights`` mean.

=====================  =====================================================================================================
``torchvision:NAME``   a builder of torchvision; ``--weights`` takes a file or one of its weight names (DEFAULT, IMAGENET1K_V1 ...)
``timm:NAME``          a builder of timm; ``--weights pretrained`` (or a tag) loads its own weights
``path.py:callable``   a function without arguments, or a module object, in a Python file
``file.pt2``           a program saved by ``torch.export.save``
``file.onnx``          an ONNX file
=====================  =====================================================================================================

What belongs here: finding, building and loading a network, and the preprocessing that its makers ask for. What does not:
capturing or running it. Weights are always loaded with ``weights_only=True`` or from safetensors: a weights file never runs code.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sightline.errors import CaptureError
from sightline.graph.ir import Graph
from sightline.torchvision_import import import_torchvision

_VISION = ("torchvision", "timm")
FORMS = "torchvision:NAME, timm:NAME, path.py:callable, file.pt2 or file.onnx"


@dataclass(frozen=True)
class ModelSpec:
    """A parsed ``--model`` argument.

    Attributes:
        kind: "torchvision", "timm", "python", "pt2" or "onnx".
        target: the builder's name, or the path of the file.
        attribute: for "python", the name inside the file; "" otherwise.
    """

    kind: str
    target: str
    attribute: str = ""


@dataclass
class LoadedModel:
    """A network, ready to be handed to `sightline.stream`.

    Attributes:
        model: an ``nn.Module`` in eval mode, a captured graph, or what the ONNX importer returned.
        name: for messages and reports.
        kind: as in `ModelSpec`.
        path: the file it came from, or None.
        size: (width, height) that the network must have, or None if it takes any.
        mean, std: per channel, after scaling; what the makers of the weights ask for, else 0 and 1.
        labels: names of the classes, where the weights bring them.
        dense: runs the network without streaming, where ``model`` itself cannot be called.
    """

    model: Any
    name: str
    kind: str
    path: Path | None = None
    size: tuple[int, int] | None = None
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    labels: list[str] = field(default_factory=list)
    dense: Callable[[torch.Tensor], Any] | None = None


def parse_spec(spec: str) -> ModelSpec:
    """Tell which kind of network a ``--model`` argument names, without loading anything.

    Args:
        spec: the argument.

    Returns:
        Its parts.

    Raises:
        ValueError: if it has none of the known forms.

    >>> parse_spec("torchvision:resnet18")
    ModelSpec(kind='torchvision', target='resnet18', attribute='')
    """
    library, colon, rest = spec.partition(":")
    if colon and library in _VISION and rest:
        return ModelSpec(library, rest)
    path, colon, attribute = spec.rpartition(":")
    if colon and path.endswith(".py") and attribute:
        return ModelSpec("python", path, attribute)
    for suffix, kind in ((".pt2", "pt2"), (".onnx", "onnx")):
        if spec.lower().endswith(suffix):
            return ModelSpec(kind, spec)
    if spec.endswith(".py"):
        raise ValueError(f"{spec!r} names a Python file but not what to take from it; write {spec}:NAME")
    raise ValueError(f"{spec!r} is not a model; expected {FORMS}")


def load_model(spec: str, weights: str | None = None) -> LoadedModel:
    """Build the network that ``--model`` names and load its weights.

    Args:
        spec: see the module's table.
        weights: a file (.safetensors, or a state dict saved by torch.save), or the library's own name for its weights;
            None: the weights that the file holds, or random ones for a builder.

    Returns:
        The network in eval mode on the CPU, with what is known about its input.

    Raises:
        ValueError: if ``spec`` has no known form.
        CaptureError: if it cannot be imported or built, or the weights do not fit; the message says why and what to do.
    """
    parsed = parse_spec(spec)
    if parsed.kind in ("python", "pt2", "onnx") and not Path(parsed.target).is_file():
        raise CaptureError(f"model: there is no file {parsed.target!r}; check the path")
    loaded = _LOADERS[parsed.kind](parsed, weights)
    if isinstance(loaded.model, torch.nn.Module):
        loaded.model.eval()
    return loaded


# -- one loader per kind ------------------------------------------------------------------------------------------------------


def _load_torchvision(spec: ModelSpec, weights: str | None) -> LoadedModel:
    models = _import("torchvision.models", "torchvision")
    if spec.target not in models.list_models():
        raise CaptureError(f"model: torchvision has no network {spec.target!r}; {_nearest(spec.target, models.list_models())}")
    loaded = LoadedModel(None, f"torchvision:{spec.target}", "torchvision")
    if weights is None or _is_weights_file(weights):
        extra = {"init_weights": True} if spec.target in ("googlenet", "inception_v3") else {}
        with _clear_failure(f"torchvision's network {spec.target!r} could not be built"):
            loaded.model = models.get_model(spec.target, weights=None, **_without_backbone(spec.target), **extra)
        if weights is not None:
            load_weights(loaded.model, Path(weights))
        return loaded
    known = models.get_model_weights(spec.target)
    if weights not in [*known.__members__, "DEFAULT"]:
        raise CaptureError(f"weights: {weights!r} is neither a file nor one of torchvision's weights: {', '.join(known.__members__)}")
    entry = getattr(known, weights)
    with _clear_failure(f"torchvision's weights {weights!r} of {spec.target!r} could not be loaded"), _weights_only():
        loaded.model = models.get_model(spec.target, weights=entry)
    transform = entry.transforms()
    if hasattr(transform, "mean") and hasattr(transform, "std"):
        loaded.mean, loaded.std = _triple(transform.mean), _triple(transform.std)
    loaded.labels = [str(label) for label in entry.meta.get("categories", [])]
    return loaded


def _without_backbone(name: str) -> dict[str, Any]:
    """Detectors and segmenters download a backbone even when asked for no weights; this keeps them from it."""
    detectors = ("deeplab", "fcn_", "lraspp", "fasterrcnn", "fcos", "keypointrcnn", "maskrcnn", "retinanet", "ssd")
    return {"weights_backbone": None} if name.startswith(detectors) else {}


def _load_timm(spec: ModelSpec, weights: str | None) -> LoadedModel:
    timm = _import("timm", "timm")
    base, _, tag = spec.target.partition(".")
    if not timm.is_model(base):
        raise CaptureError(f"model: timm has no network {base!r}; {_nearest(base, timm.list_models())}")
    from_file = weights is not None and _is_weights_file(weights)
    name = spec.target if weights is None or from_file or tag or weights == "pretrained" else f"{base}.{weights}"
    with _clear_failure(f"timm's network {name!r} could not be built or its weights not be loaded"), _weights_only():
        model = timm.create_model(name, pretrained=weights is not None and not from_file)
    loaded = LoadedModel(model, f"timm:{name}", "timm")
    if from_file and weights is not None:
        load_weights(model, Path(weights))
    config = getattr(model, "pretrained_cfg", None) or {}
    if config.get("mean") and config.get("std"):
        loaded.mean, loaded.std = _triple(config["mean"]), _triple(config["std"])
    if config.get("fixed_input_size") and config.get("input_size"):
        loaded.size = (int(config["input_size"][2]), int(config["input_size"][1]))
    return loaded


def _load_python(spec: ModelSpec, weights: str | None) -> LoadedModel:
    path = Path(spec.target)
    module_spec = importlib.util.spec_from_file_location(f"_sightline_user_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise CaptureError(f"model: {spec.target!r} cannot be imported as Python; check that it is a .py file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module
    sys.path.insert(0, str(path.resolve().parent))  # so that the file can import its neighbours, as a script can
    try:
        if any(name in path.read_text(encoding="utf-8", errors="replace") for name in _VISION):
            with contextlib.suppress(Exception):  # if that fails, the file's own import says why
                import_torchvision()
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise CaptureError(f"model: {spec.target!r} does not import: {_one_line(error, path)}; fix the file first") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    if not hasattr(module, spec.attribute):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise CaptureError(f"model: {spec.target!r} has no {spec.attribute!r}; {_nearest(spec.attribute, names)}")
    model = getattr(module, spec.attribute)
    if not isinstance(model, torch.nn.Module) and callable(model):
        try:
            model = model()
        except (Exception, SystemExit) as error:
            raise CaptureError(
                f"model: {spec.attribute}() of {spec.target!r} failed: {_one_line(error, path)}; it must build a network without arguments"
            ) from error
    if not isinstance(model, torch.nn.Module) and not isinstance(model, Graph):
        raise CaptureError(f"model: {spec.attribute} of {spec.target!r} gave {type(model).__name__}; expected a torch.nn.Module")
    if isinstance(model, torch.nn.Module):
        if weights is not None:
            load_weights(model, Path(weights))
    else:
        _no_weights(weights, f"{spec.target}:{spec.attribute}")
    return LoadedModel(model, f"{path.name}:{spec.attribute}", "python", path)


def _load_pt2(spec: ModelSpec, weights: str | None) -> LoadedModel:
    path = Path(spec.target)
    _no_weights(weights, spec.target)
    with _clear_failure(f"{spec.target!r} is not a program saved by torch.export.save"), _weights_only():
        program = torch.export.load(path)  # noqa: TID251 - reads a saved program, traces nothing
    graph = importlib.import_module("sightline.graph.capture").load_exported(program)
    loaded = LoadedModel(graph, path.name, "pt2", path, dense=program.module())
    if graph.input.shape is not None:
        loaded.size = (int(graph.input.shape[3]), int(graph.input.shape[2]))
    return loaded


def _load_onnx(spec: ModelSpec, weights: str | None) -> LoadedModel:
    _no_weights(weights, spec.target)
    importer = importlib.import_module("sightline.graph.onnx_import")
    path = Path(spec.target)
    return LoadedModel(importer.load_onnx(path), path.name, "onnx", path)


_LOADERS: dict[str, Callable[[ModelSpec, str | None], LoadedModel]] = {
    "torchvision": _load_torchvision,
    "timm": _load_timm,
    "python": _load_python,
    "pt2": _load_pt2,
    "onnx": _load_onnx,
}


# -- weights ------------------------------------------------------------------------------------------------------------------


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load a file of weights into a network, in place.

    Args:
        model: the network.
        path: .safetensors, or a state dict saved by torch.save (also under a key "state_dict" or "model", and with the
            prefix "module." that data-parallel training leaves).

    Raises:
        CaptureError: if the file is missing, cannot be read without running code from it, or does not fit the network.
    """
    if not path.is_file():
        raise CaptureError(f"weights: there is no file {str(path)!r}; check the path")
    try:
        if path.suffix == ".safetensors":
            state: Any = _import("safetensors.torch", "safetensors").load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(
            f"weights: {str(path)!r} holds no plain state dict ({type(error).__name__}); save one with torch.save(model.state_dict(), path)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CaptureError(f"weights: {str(path)!r} holds no state dict; save one with torch.save(model.state_dict(), path)")
    plain = {str(name).removeprefix("module."): value for name, value in state.items()}
    try:
        outcome = model.load_state_dict(plain, strict=False)
    except RuntimeError as error:
        detail = str(error).strip().splitlines()[-1].strip()
        raise CaptureError(f"weights: {str(path)!r} does not fit the network: {detail}") from error
    if outcome.missing_keys or outcome.unexpected_keys:
        missing, unexpected = outcome.missing_keys, outcome.unexpected_keys
        example = f"first missing: {missing[0]}" if missing else f"first unexpected: {unexpected[0]}"
        raise CaptureError(
            f"weights: {str(path)!r} belongs to another network: {len(missing)} tensors missing, {len(unexpected)} unexpected ({example})"
        )


def _is_weights_file(weights: str) -> bool:
    return Path(weights).suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors") or Path(weights).is_file()


def _no_weights(weights: str | None, target: str) -> None:
    if weights is not None:
        raise CaptureError(f"weights: {target!r} brings its own weights; leave --weights out")


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Have torch.load refuse to run code even where a library asks it not to refuse."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# -- helpers ------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _clear_failure(what: str) -> Iterator[None]:
    """Turn whatever a foreign library raises into one sentence."""
    try:
        yield
    except Exception as error:
        raise CaptureError(f"model: {what} ({_one_line(error)})") from error


def _import(module: str, package: str) -> Any:
    try:
        if package in _VISION and importlib.util.find_spec("torchvision") is not None:
            import_torchvision()  # timm imports it too
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise CaptureError(f"model: {package} is installed but lacks {error.name}: pip install {error.name}") from error
        raise CaptureError(f"model: {package} is not installed: pip install {package}") from error
    except Exception as error:
        culprit = "torchvision" if "torchvision::" in str(error) else package  # timm imports torchvision, which breaks first
        raise CaptureError(
            f"model: {package} does not import beside torch {torch.__version__} ({_one_line(error)}); install the {culprit} made for it"
        ) from error


def _one_line(error: BaseException, path: Path | None = None) -> str:
    """What an exception says, on one line, with the line number in the user's own file where it has one."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    line = ""
    if path is not None:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == path.name]
        number = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else (frames[-1].lineno if frames else None)
        line = f" (line {number})" if number else ""
    return f"{type(error).__name__}{': ' if text else ''}{text[:200]}{line}"


def _nearest(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    shown = close or sorted(known)[:8]
    return f"{'did you mean' if close else 'it has'} {', '.join(shown)}{'?' if close else ''}" if shown else "it defines nothing callable"


def _triple(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third
