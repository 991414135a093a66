"""What operations without a canonical form do to the description of a tensor, by the name of the call.

ATen calls that the captured graph keeps as they are, and the functions that the ONNX importer adds. A name that is missing here
makes the result unknown; nothing is guessed. Same rules as in `sightline.fields.propagate`: a function from `Step` to `View`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

from sightline.fields import views
from sightline.fields.propagate import WRAPS, Rule, Step, join, resampled, same, through_table, through_window, with_statistics
from sightline.fields.units import Units
from sightline.fields.views import View
from sightline.geometry import Window
from sightline.graph.ir import Node, Operand

Args = dict[str, Any]
Handler = Callable[[Step, Args], View]
_TABLE: dict[str, Handler] = {}
_NAMES = (
    "add sub mul div rsub pow clamp clip where addcmul addcdiv lerp maximum minimum fmod remainder relu gelu silu hardswish erf exp"
    " log log1p expm1 sqrt rsqrt square sigmoid tanh sin cos abs neg sign floor ceil round trunc softplus elu leaky_relu celu selu"
    " hardtanh hardsigmoid mish relu6 logit reciprocal threshold hardshrink softshrink log_sigmoid atan2 eq ne lt le gt ge"
    " logical_and logical_or logical_not masked_fill nan_to_num to _to_copy clone contiguous detach alias type_as isnan isinf"
    " dropout native_dropout feature_dropout bernoulli copy fill zeros_like ones_like"
    " elementwise prelu cast thresholded_relu sigmoid_ hypot floor_divide true_divide batch_norm"
)
POINTWISE = frozenset(_NAMES.split())
"""Calls that work element by element."""
_MOVE_NAMES = (
    "reshape view _unsafe_view flatten squeeze unsqueeze unflatten transpose swapaxes t numpy_T mT permute movedim expand broadcast_to"
    " repeat tile repeat_interleave slice cut select pick index_select take flip roll stack cat concat pad constant_pad_nd im2col unfold"
    " col2im"
)
MOVES = frozenset(_MOVE_NAMES.split())
"""Calls that only move elements, or repeat or add them up."""


def call_name(node: Node) -> str:
    """Name of what a ``torch`` node calls, without overload and trailing underscore; "" for other nodes."""
    target = node.attrs.get("target")
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return str(schema.name).rpartition("::")[2].removesuffix("_")
    return str(getattr(target, "__name__", ""))


def arguments(node: Node) -> Args:
    """Arguments of the call by name, defaults filled in; operands stay `Operand`s."""
    target, args, kwargs = node.attrs["target"], node.attrs["args"], node.attrs["kwargs"]
    schema = getattr(target, "_schema", None)
    if schema is not None:
        names = [argument.name for argument in schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        defaults: Args = {argument.name: argument.default_value for argument in schema.arguments}
        return {**defaults, **given}
    try:
        call = inspect.signature(target).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {}
    call.apply_defaults()
    return dict(call.arguments)


def _arg(args: Args, *names: str, default: Any = None) -> Any:
    """The argument under the first of several names that is there (ATen and ONNX differ)."""
    return next((args[name] for name in names if name in args), default)


def opaque_rule(node: Node) -> Rule | None:
    """The rule for a ``torch`` or ``item`` node, or None."""
    if node.op == "item":
        return _item
    if node.op != "torch":
        return None
    name = call_name(node)
    handler = _TABLE.get(name)
    if handler is not None:
        return lambda step: handler(step, arguments(step.node))
    tags = getattr(node.attrs["target"], "tags", ())
    if name in POINTWISE or torch.Tag.pointwise in tags:
        return lambda step: join(step) if len(step.inputs) > 1 else same(step)
    return None


def _item(step: Step) -> View:
    """One of several results: followed where all results have the place of the operand."""
    source = step.node.inputs[0]
    if source.op == "torch" and call_name(source) in {"native_layer_norm", "native_group_norm", "max_pool2d_with_indices"}:
        return step.x if step.x.shape == step.shape else step.unknown("a second result that cannot be followed")
    return step.unknown("one of several results of an operation without a rule")


def enter(*names: str) -> Callable[[Handler], Handler]:
    """Enter a function in the table under these names."""

    def register(handler: Handler) -> Handler:
        _TABLE.update(dict.fromkeys(names, handler))
        return handler

    return register


def _view(step: Step, value: Any) -> View:
    """View of an argument: of an operand, or of a number."""
    return step.inputs[value.index] if isinstance(value, Operand) else views.blank((), step.axes)


def _dim(value: int, rank: int) -> int:
    return int(value) % max(rank, 1)


def dims_of(value: Any, rank: int) -> list[int]:
    """Dimensions as given to a reduction; none given means all."""
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return list(range(rank))
    return [_dim(item, rank) for item in (value if isinstance(value, (list, tuple)) else [value])]


# -- moving elements --------------------------------------------------------------------------------------------------------------


@enter("reshape", "view", "_unsafe_view", "flatten", "squeeze", "unsqueeze", "unflatten")
def _reshape(step: Step, _: Args) -> View:
    return views.reshaped(step.x, step.shape)


@enter("transpose", "swapaxes", "t", "numpy_T", "mT")
def _transpose(step: Step, args: Args) -> View:
    rank = len(step.x.dims)
    first, second = (_dim(_arg(args, f"dim{end}", f"axis{end}", default=end - 2), rank) for end in (0, 1))
    order = list(range(rank))
    order[first], order[second] = order[second], order[first]
    return views.permuted(step.x, order)


@enter("permute", "movedim")
def _permute(step: Step, args: Args) -> View:
    order = _arg(args, "dims", "axes")
    if order is None or "source" in args:
        return step.unknown("axes moved in a form that is not followed")
    return views.permuted(step.x, [_dim(value, len(step.x.dims)) for value in order])


@enter("expand", "broadcast_to")
def _expand(step: Step, _: Args) -> View:
    return views.expanded(step.x, step.shape)


@enter("repeat", "tile")
def _repeat(step: Step, args: Args) -> View:
    repeats = list(_arg(args, "repeats", "dims", default=()))
    view = step.x
    if len(repeats) != len(view.dims):
        return step.unknown("repeated along new axes")
    for dim, count in enumerate(repeats):
        if count != 1:
            size = view.shape[dim]
            view = _gathered(view, dim, [i % size for i in range(size * count)], step)
    return view


@enter("repeat_interleave")
def _repeat_interleave(step: Step, args: Args) -> View:
    repeats = args.get("repeats")
    if not isinstance(repeats, int) or args.get("dim") is None:
        return step.unknown("repeated a number of times that is not constant")
    dim = _dim(args["dim"], len(step.x.dims))
    return _gathered(step.x, dim, [place // repeats for place in range(step.x.shape[dim] * repeats)], step)


@enter("slice", "cut")
def _slice(step: Step, args: Args) -> View:
    dim = _dim(_arg(args, "dim", "axis", default=0), len(step.x.dims))
    start, stop, stride = (_arg(args, *names) for names in (("start",), ("end", "stop"), ("step",)))
    stride = 1 if stride is None else stride
    size = step.x.shape[dim]
    if stride < 0:
        return _gathered(step.x, dim, list(range(start, stop, stride)), step)
    start, stop, stride = slice(start, stop, stride).indices(size)
    return views.sliced(step.x, dim, start, stop, stride)


@enter("select", "pick")
def _select(step: Step, args: Args) -> View:
    dim = _dim(_arg(args, "dim", "axis", default=0), len(step.x.dims))
    index = int(args["index"]) % step.x.shape[dim]
    return views.reshaped(views.sliced(step.x, dim, index, index + 1, 1), step.shape)


def _gathered(view: View, dim: int, index: Sequence[int], step: Step) -> View:
    """Pick places of one dimension as listed."""
    if not any(atom.opaque or any(atom in t.weights for axis in view.axes for t in axis.terms) for atom in view.dims[dim]):
        return View((*view.dims[:dim], views.fresh(len(index)), *view.dims[dim + 1 :]), view.axes)
    return through_table(view, dim, [(place,) for place in index], step.node.name)


@enter("index_select", "take")
def _index_select(step: Step, args: Args) -> View:
    dim = _dim(_arg(args, "dim", "axis", default=0), len(step.x.dims))
    index = args["index"]
    values = step.node.inputs[index.index].attrs.get("value") if isinstance(index, Operand) else index
    if not isinstance(values, torch.Tensor) or values.dim() != 1 or values.device.type == "meta":
        return step.unknown("picked by an index that is not a constant list")
    size = step.x.shape[dim]
    return _gathered(step.x, dim, [int(value) % size for value in values], step)


@enter("flip")
def _flip(step: Step, args: Args) -> View:
    view = step.x
    for dim in dims_of(args["dims"], len(view.dims)):
        view = _gathered(view, dim, list(range(view.shape[dim]))[::-1], step)
    return view


@enter("roll")
def _roll(step: Step, args: Args) -> View:
    view, dims = step.x, list(args["dims"])
    if not dims:
        return step.unknown("rolled over all axes at once")
    for amount, raw in zip(args["shifts"], dims, strict=True):
        dim = _dim(raw, len(view.dims))
        size = view.shape[dim]
        move = (int(amount) + size // 2) % size - size // 2
        if not any(atom in t.weights for atom in view.dims[dim] for axis in view.axes for t in axis.terms):
            continue
        index = [((place - move) % size,) for place in range(size)]

        def rolled(units: Units, move: int = move, size: int = size, index: Any = index) -> Units:
            return units.through([(-move,)], 1, size).with_table(units.gather(index))

        view = views.noted(views.along(view, dim, size, rolled, step.node.name), WRAPS)
    return view


@enter("stack")
def _stack(step: Step, args: Args) -> View:
    key = next(iter(args))
    parts = [_view(step, part) for part in args[key]]
    dim = _dim(args.get("dim", 0), len(step.shape))
    return views.concatenated([View((*part.dims[:dim], (), *part.dims[dim:]), part.axes) for part in parts], dim)


@enter("cat", "concat")
def _cat(step: Step, args: Args) -> View:
    key = next(iter(args))
    parts = [_view(step, part) for part in args[key]]
    return views.concatenated(parts, _dim(_arg(args, "dim", "axis", default=0), len(step.shape)))


@enter("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _pad(step: Step, args: Args) -> View:
    amounts = [int(value) for value in _arg(args, "pad", "padding", "pads", default=())]
    mode = str(args.get("mode", "constant"))
    view, rank = step.x, len(step.x.dims)
    if call_name(step.node) == "pad" and "pads" in args:
        half = len(amounts) // 2  # as ONNX counts them: all beginnings, then all ends
        pairs = list(zip(amounts[:half], amounts[half:], strict=True))
    else:
        pairs = list(zip(amounts[::2], amounts[1::2], strict=True))[::-1]
    if mode not in {"constant", "reflect", "replicate", "edge"} or len(pairs) > rank:
        return step.unknown(f"padding of mode {mode!r}")
    for dim, pads in enumerate(pairs, start=rank - len(pairs)):
        if any(pads):
            view = through_window(view, dim, Window(1, padding=pads), step.shape[dim], step.node.name)
    return view


@enter("im2col", "unfold")
def _unfold(step: Step, args: Args) -> View:
    if "kernel_size" not in args or len(step.x.dims) != 4:
        return step.unknown("a sliding view in a form that is not followed")
    view = views.mixed(views.merged(step.x), [1])
    for axis, dim in enumerate((2, 3)):
        kernel, stride, pad, dilation = (_pair(args[key])[axis] for key in ("kernel_size", "stride", "padding", "dilation"))
        window = Window(kernel, stride, pad, dilation)
        view = through_window(view, dim, window, window.out_size(view.shape[dim]), step.node.name)
    n, _, h, w = view.shape
    return views.reshaped(View((view.dims[0], views.fresh(step.shape[1]), *view.dims[2:]), view.axes), (n, step.shape[1], h * w))


@enter("col2im", "fold")
def _fold(step: Step, args: Args) -> View:
    before = str(getattr(step.node.inputs[0].attrs.get("target"), "__name__", "")).partition(".")[0]
    if before in {"im2col", "unfold"}:
        return step.unknown("folding what was just unfolded: the taps inside a column are not told apart")
    kernel, stride, pad, dilation = (_pair(args[key]) for key in ("kernel_size", "stride", "padding", "dilation"))
    grid = [
        Window(kernel[axis], stride[axis], pad[axis], dilation[axis]).out_size(size) for axis, size in enumerate(_pair(args["output_size"]))
    ]
    view = views.mixed(step.x, [1])
    view = views.merged(views.reshaped(view, (view.shape[0], view.shape[1], *grid)))
    for axis, dim in enumerate((2, 3)):
        window = Window(kernel[axis], stride[axis], pad[axis], dilation[axis], transposed=True)
        view = through_window(view, dim, window, step.shape[dim], step.node.name)
    return View((view.dims[0], views.fresh(step.shape[1]), *view.dims[2:]), view.axes)


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 if len(value) == 1 else 1)


# -- sums over axes ---------------------------------------------------------------------------------------------------------------


@enter("mean", "sum", "amax", "amin", "max", "min", "prod", "logsumexp", "std", "var", "var_mean", "argmax", "argmin", "any", "all")
@enter("norm", "linalg_vector_norm", "reduce", "median", "arg_extreme")
def _reduce(step: Step, args: Args) -> View:
    rank = len(step.x.dims)
    if len(step.inputs) > 1:
        return join(step) if step.node.shape is not None else step.unknown("several results")
    dims = dims_of(_arg(args, "dim", "axes", "axis"), rank)
    if step.node.shape is None:
        return step.unknown("several results")
    return views.reduced(step.x, dims, keepdim=len(step.shape) == rank)


@enter("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "cumulative_sum", "lp_norm")
def _mix(step: Step, args: Args) -> View:
    return views.mixed(step.x, [_dim(_arg(args, "dim", "axis", default=-1), len(step.x.dims))])


@enter("softmax_flat")
def _softmax_flat(step: Step, args: Args) -> View:
    return views.mixed(step.x, list(range(_dim(args["axis"], len(step.x.dims)), len(step.x.dims))))


@enter("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def _layer_norm(step: Step, args: Args) -> View:
    rank = len(step.x.dims)
    first = _dim(args["axis"], rank) if "axis" in args else rank - len(args["normalized_shape"])
    return with_statistics(step, step.x, list(range(first, rank)))


@enter("group_norm", "native_group_norm", "instance_norm", "mean_variance_norm")
def _spatial_norm(step: Step, args: Args) -> View:
    return with_statistics(step, step.x, args.get("axes") or list(range(1, len(step.x.dims))))


@enter("local_response_norm")
def _channel_norm(step: Step, _: Args) -> View:
    return views.mixed(step.x, [1])


# -- products ---------------------------------------------------------------------------------------------------------------------


def product(left: View, right: View) -> View:
    """``left @ right``."""
    left = views.contracted(left, len(left.dims) - 1, 1)
    if len(right.dims) == 1:
        return views.reduced(views.joined([left, views.reduced(right, [0], keepdim=True)]), [len(left.dims) - 1], keepdim=False)
    right = views.contracted(right, len(right.dims) - 2, 1)
    return views.joined([left, right])


@enter("matmul", "mm", "bmm", "mv", "dot")
def _matmul(step: Step, _: Args) -> View:
    left, right = step.inputs if len(step.inputs) == 2 else (step.x, step.x)
    if len(left.dims) == 1:
        return step.unknown("a product of vectors")
    return product(left, right)


@enter("addmm", "baddbmm", "gemm")
def _addmm(step: Step, args: Args) -> View:
    if "trans_a" in args:
        left, right = _view(step, args["a"]), _view(step, args["b"])
        left = views.permuted(left, (1, 0)) if args["trans_a"] else left
        right = views.permuted(right, (1, 0)) if args["trans_b"] else right
        parts = [product(left, right)] + ([_view(step, args["c"])] if isinstance(args["c"], Operand) else [])
        return views.joined(parts)
    first, left, right = (_view(step, value) for value in step.node.attrs["args"][:3])
    return views.joined([first, product(left, right)])


@enter("einsum")
def _einsum(step: Step, args: Args) -> View:
    equation, operands = str(args["equation"]).replace(" ", ""), [_view(step, value) for value in args["tensors"]]
    if "." in equation or "->" not in equation:
        return step.unknown("einsum with an ellipsis or an implied result")
    left, right = equation.split("->")
    labels = [*right, *sorted(set(left) - set(right) - {","})]
    aligned = []
    for names, view in zip(left.split(","), operands, strict=True):
        if len(set(names)) != len(names):
            return step.unknown("einsum along a diagonal")
        aligned.append(View(tuple(view.dims[names.index(label)] if label in names else () for label in labels), view.axes))
    return views.reduced(views.joined(aligned), list(range(len(right), len(labels))), keepdim=False)


@enter("scaled_dot_product_attention")
def _attention(step: Step, args: Args) -> View:
    query, key, value = (_view(step, args[name]) for name in ("query", "key", "value"))
    rank = len(key.dims)
    if args.get("enable_gqa"):
        return step.unknown("grouped heads")
    scores = product(query, views.permuted(key, (*range(rank - 2), rank - 1, rank - 2)))
    if isinstance(args.get("attn_mask"), Operand):
        scores = views.joined([scores, _view(step, args["attn_mask"])])
    return product(scores, value)


@enter("linear")
def _linear(step: Step, args: Args) -> View:
    if not _view(step, args["weight"]).constant:
        return step.unknown("weights that depend on the input")
    return views.contracted(step.x, len(step.x.dims) - 1, step.shape[-1])


# -- windows over any number of axes ----------------------------------------------------------------------------------------------


@enter("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
@enter("conv_transpose")
def _conv(step: Step, args: Args) -> View:
    count = len(step.shape) - 2
    if any(not view.constant for view in step.inputs[1:]):
        return step.unknown("weights that depend on the input")
    kernel = step.inputs[1].shape[2:]
    transposed = bool(args.get("transposed", "transpose" in call_name(step.node)))
    strides, dilations, extra = (
        _tuple(args.get(key, default), count) for key, default in (("stride", 1), ("dilation", 1), ("output_padding", 0))
    )
    pads = _arg(args, "padding", "pads", default=0)
    if isinstance(pads, str):
        spans = [0 if pads == "valid" else d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        pads = [(span // 2, span - span // 2) for span in spans]
    elif "pads" in args and len(pads) == 2 * count:
        pads = list(zip(pads[:count], pads[count:], strict=True))
    else:
        pads = _tuple(pads, count)
    view = views.mixed(views.merged(step.x), [1])
    for axis in range(count):
        window = Window(kernel[axis], strides[axis], pads[axis], dilations[axis], transposed, extra[axis] if transposed else 0)
        view = through_window(view, axis + 2, window, step.shape[axis + 2], step.node.name)
    return View((view.dims[0], views.fresh(step.shape[1]), *view.dims[2:]), view.axes)


def _tuple(value: Any, count: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * count
    return tuple(value) * (count if len(value) == 1 else 1)


@enter("avg_pool1d", "avg_pool3d", "max_pool1d", "max_pool3d", "max_pool2d", "avg_pool2d", "lp_pool2d")
def _pool(step: Step, args: Args) -> View:
    count = len(step.shape) - 2
    kernel = _tuple(args["kernel_size"], count)
    stride = _tuple(args["stride"], count) if args.get("stride") else kernel
    padding, dilation = (_tuple(args.get(key, default), count) for key, default in (("padding", 0), ("dilation", 1)))
    view = views.mixed(views.merged(step.x), [1])
    for axis in range(count):
        window = Window(kernel[axis], stride[axis], padding[axis], dilation[axis])
        view = through_window(view, axis + 2, window, step.shape[axis + 2], step.node.name)
    return view


@enter("adaptive_avg_pool1d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool3d")
def _adaptive(step: Step, args: Args) -> View:
    if any(size != 1 for size in step.shape[2:]):
        return step.unknown("adaptive pooling to more than 1 in other than two axes")
    return views.reduced(step.x, list(range(2, len(step.x.dims))), keepdim=True)


@enter("upsample_nearest1d", "upsample_nearest3d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_nearest_exact2d")
@enter("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
def _upsample(step: Step, args: Args) -> View:
    name = call_name(step.node)
    if "exact" in name or name.endswith("_aa"):
        return step.unknown("interpolation of a kind without a table")
    scales = args.get("scale_factors") or [None] * (len(step.shape) - 2)
    view = views.mixed(views.merged(step.x), [1])
    for axis, scale in enumerate(scales):
        mode = "nearest" if "nearest" in name else "bilinear"
        align = bool(args.get("align_corners", False))
        view = resampled(view, axis + 2, step.shape[axis + 2], mode, step.node.name, scale, align_corners=align)
    return view


@enter("resample")
def _resample(step: Step, args: Args) -> View:
    view = views.mixed(views.merged(step.x), [1])
    for dim, key, factor in ((2, "rows", "row_weights"), (3, "columns", "column_weights")):
        tables = [args[name] for name in (key, factor)]
        index, weight = (step.node.inputs[t.index].attrs.get("value") if isinstance(t, Operand) else t for t in tables)
        if not isinstance(index, torch.Tensor) or not isinstance(weight, torch.Tensor):
            return step.unknown("interpolation by a table that is not constant")
        pairs = zip(index.tolist(), weight.tolist(), strict=True)
        rows = [[int(u) for u, f in zip(units, factors, strict=True) if f != 0] for units, factors in pairs]
        view = through_table(view, dim, rows, step.node.name)
    return view


@enter("one_hot", "embedding")
def _lookup(step: Step, args: Args) -> View:
    operand = _view(step, _arg(args, "indices", "self"))
    if prod(operand.shape) * step.shape[-1] != prod(step.shape):
        return step.unknown("a table look-up in a form that is not followed")
    return View((*operand.dims, views.fresh(step.shape[-1])), operand.axes)
