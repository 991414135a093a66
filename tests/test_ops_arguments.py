"""What users get wrong, and what they are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import sightline as sl
from sightline import ops
from sightline.errors import DeviceError, DTypeError, ShapeError

X, WEIGHT, BIAS = torch.randn(2, 4, 8, 9), torch.randn(6, 4, 3, 3), torch.randn(6)
UP = torch.randn(4, 6, 2, 2)
MASK = torch.ones(8, 9, dtype=torch.bool)


def conv(x: Any = X, weight: Any = WEIGHT, bias: Any = BIAS, **options: Any) -> torch.Tensor:
    return ops.conv2d_at(x, weight, bias, **{"sites": MASK, "padding": 1, **options})


def up(x: Any = X, weight: Any = UP, bias: Any = None, **options: Any) -> torch.Tensor:
    return ops.conv_transpose2d_at(x, weight, bias, **{"sites": torch.ones(16, 18, dtype=torch.bool), "stride": 2, **options})


def most(x: Any = X, kernel_size: Any = 2, **options: Any) -> torch.Tensor:
    return ops.max_pool2d_at(x, kernel_size, **{"sites": torch.ones(4, 4, dtype=torch.bool), **options})


def mean(x: Any = X, kernel_size: Any = 2, **options: Any) -> torch.Tensor:
    return ops.avg_pool2d_at(x, kernel_size, **{"sites": torch.ones(4, 4, dtype=torch.bool), **options})


def sums(x: Any = X, weight: Any = WEIGHT, **options: Any) -> torch.Tensor:
    return ops.channel_sum_conv2d(x, weight, **options)


def test_the_calls_below_are_right_but_for_one_argument() -> None:
    for call in (conv, up, most, mean, sums):
        call()


BAD: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    (conv, {"x": X.numpy()}, DTypeError, "x: expected a torch.Tensor"),
    (conv, {"x": X.int()}, DTypeError, "x: .*call x.float"),
    (conv, {"x": X[0]}, ShapeError, r"x: .*x\[None\]"),
    (conv, {"x": X[:0]}, ShapeError, "x: expected at least one value"),
    (conv, {"weight": WEIGHT[0]}, ShapeError, r"weight: expected \(c_out, c_in / groups, kh, kw\)"),
    (conv, {"weight": None}, DTypeError, "weight: expected a torch.Tensor"),
    (conv, {"weight": WEIGHT[:, :3]}, ShapeError, r"weight: x has 4 channels in 1 groups, so expected \(c_out, 4, kh, kw\)"),
    (conv, {"weight": WEIGHT.double()}, DTypeError, r"weight: expected the dtype of x, torch.float32.*weight.to\(x.dtype\)"),
    (conv, {"weight": WEIGHT.to("meta")}, DeviceError, r"weight: expected the device of x, cpu, got meta"),
    (conv, {"bias": BIAS[:5]}, ShapeError, r"bias: expected \(6,\), got \(5,\)"),
    (conv, {"bias": BIAS.double()}, DTypeError, "bias: expected the dtype of x"),
    (conv, {"bias": 3}, DTypeError, "bias: expected a torch.Tensor"),
    (conv, {"groups": 3}, ShapeError, "groups: must divide x's 4 channels and weight's 6, got 3"),
    (conv, {"groups": 0}, ShapeError, "groups: must divide"),
    (conv, {"groups": 2}, ShapeError, "weight: x has 4 channels in 2 groups"),
    (conv, {"groups": 1.0}, DTypeError, "groups: expected an int"),
    (conv, {"stride": 0}, ShapeError, "stride: expected an int or a pair"),
    (conv, {"stride": (1, 2, 3)}, ShapeError, "stride: expected an int or a pair"),
    (conv, {"stride": 1.5}, DTypeError, "stride: expected an int or a pair of ints"),
    (conv, {"dilation": True}, DTypeError, "dilation: expected an int or a pair of ints"),
    (conv, {"dilation": 20}, ShapeError, "leaves no output"),
    (conv, {"padding": -1}, ShapeError, "padding: expected an int or a pair"),
    (conv, {"padding": "full"}, ShapeError, "padding: expected an int, a pair, 'same' or 'valid', got 'full'"),
    (conv, {"padding": "same", "stride": 2}, ShapeError, "padding: 'same' needs stride 1"),
    (conv, {"padding_mode": "mirror"}, ShapeError, "padding_mode: expected one of zeros, reflect"),
    (conv, {"padding": 8, "padding_mode": "reflect"}, ShapeError, "padding: mode 'reflect' on 8 cells takes at most 7"),
    (conv, {"sites": None}, DTypeError, "sites: expected sl.Sites or a bool torch.Tensor, got NoneType"),
    (conv, {"sites": MASK.float()}, DTypeError, "sites: expected a mask of torch.bool, got torch.float32; pass `mask != 0`"),
    (conv, {"sites": MASK.float() * float("nan")}, DTypeError, "sites: expected a mask of torch.bool"),
    (conv, {"sites": MASK.to(torch.uint8)}, DTypeError, "sites: expected a mask of torch.bool"),
    (conv, {"sites": MASK[None, None]}, ShapeError, r"sites: expected a mask \(h, w\) or \(n, h, w\).*mask.any\(1\)"),
    (conv, {"sites": MASK[0]}, ShapeError, "sites: expected a mask"),
    (conv, {"sites": MASK.expand(3, -1, -1)}, ShapeError, "sites: expected 1 or 2 batch elements as in x, got 3"),
    (conv, {"sites": MASK[:7]}, ShapeError, r"sites: expected the grid of the output, 8 x 9, got \(7, 9\).*resize\(8, 9\)"),
    (conv, {"sites": sl.Sites.full(sl.Grid(1, 4, 4))}, ShapeError, "sites: expected the grid of the output"),
    (conv, {"sites": MASK.to("meta")}, DeviceError, "sites: expected the device of x, cpu, got meta"),
    (conv, {"held": torch.zeros(2, 6, 8, 8)}, ShapeError, r"held: expected \(2, 6, 8, 9\), got \(2, 6, 8, 8\)"),
    (conv, {"held": torch.zeros(2, 6, 8, 9).half()}, DTypeError, "held: expected the dtype of x"),
    (conv, {"held": torch.zeros(2, 6, 8, 9, device="meta")}, DeviceError, "held: expected the device of x"),
    (conv, {"held": 0.0}, DTypeError, "held: expected a torch.Tensor"),
    (up, {"weight": UP.transpose(0, 1)}, ShapeError, "weight: expected 4 input channels as in x, got 6"),
    (up, {"weight": UP[0]}, ShapeError, r"weight: expected \(c_in, c_out / groups, kh, kw\)"),
    (up, {"groups": 3}, ShapeError, "groups: must divide"),
    (up, {"padding": "same"}, ShapeError, "padding: .*transposed convolution has no 'same'"),
    (up, {"output_padding": 2}, ShapeError, "output_padding: must be smaller than stride"),
    (up, {"sites": MASK}, ShapeError, "sites: expected the grid of the output, 16 x 18"),
    (most, {"x": X[0]}, ShapeError, "x: expected"),
    (most, {"kernel_size": 0}, ShapeError, "kernel_size: expected"),
    (most, {"padding": 2}, ShapeError, r"padding: at most half the kernel_size \(2, 2\), got \(2, 2\)"),
    (most, {"sites": MASK}, ShapeError, "sites: expected the grid of the output, 4 x 4"),
    (most, {"held": torch.zeros(2, 4, 4, 5)}, ShapeError, "held: expected"),
    (mean, {"kernel_size": 20}, ShapeError, "leaves no output"),
    (mean, {"divisor_override": 0}, ShapeError, "divisor_override: expected a number other than 0"),
    (mean, {"divisor_override": 2.0}, DTypeError, "divisor_override: expected an int or None"),
    (mean, {"stride": "2"}, DTypeError, "stride: expected an int or a pair of ints"),
    (sums, {"weight": WEIGHT[0, 0]}, ShapeError, r"weight: expected \(c, kh, kw\) or \(f, c, kh, kw\)"),
    (sums, {"weight": WEIGHT[:, :3]}, ShapeError, "weight: x has 4 channels"),
    (sums, {"weight": WEIGHT.bfloat16()}, DTypeError, "weight: expected the dtype of x"),
    (sums, {"weight": [1.0]}, DTypeError, "weight: expected a torch.Tensor"),
    (sums, {"x": X[0]}, ShapeError, "x: expected"),
    (sums, {"dilation": 9}, ShapeError, "leaves no output"),
    (sums, {"padding": "same", "stride": 3}, ShapeError, "padding: 'same' needs stride 1"),
]


@pytest.mark.parametrize(
    ("call", "wrong", "kind", "message"), BAD, ids=[f"{c.__name__}-{next(iter(w))}-{i}" for i, (c, w, _, _) in enumerate(BAD)]
)
def test_bad_arguments_are_named(call: Callable[..., Any], wrong: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(**wrong)


def test_the_operator_itself_checks_too() -> None:
    window = ([1, 1], [1, 1, 1, 1], [1, 1], 1, "zeros", False, [0, 0])
    operator = torch.ops.sightline.conv2d_at
    assert operator(X, WEIGHT, BIAS, MASK.expand(2, -1, -1), None, *window).shape == (2, 6, 8, 9)
    for given in (
        (X, WEIGHT, BIAS, MASK[:7].expand(2, -1, -1), None),
        (X, WEIGHT, BIAS, MASK[None], None),
        (X, WEIGHT[:, :2], BIAS, MASK.expand(2, -1, -1), None),
        (X, WEIGHT, BIAS[:3], MASK.expand(2, -1, -1), None),
        (X, WEIGHT, BIAS, MASK.expand(2, -1, -1), torch.zeros(2, 6, 7, 9)),
    ):
        with pytest.raises(ShapeError):
            operator(*given, *window)
    with pytest.raises(ShapeError):
        torch.ops.sightline.conv2d_at_backward(X, X, WEIGHT, MASK.expand(2, -1, -1), *window, True, True, True)
    with pytest.raises(ShapeError):
        torch.ops.sightline.channel_sum_conv2d_backward(X[0], X, WEIGHT, [1, 1], [1, 1, 1, 1], [1, 1], True, True)


def test_lazy_names() -> None:
    assert sl.ops is ops and sl.nn.FocusedConv2d.__module__ == "sightline.nn.focused"
    assert not hasattr(sl, "nothing")
