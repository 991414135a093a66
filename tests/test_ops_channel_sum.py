"""Products summed over channels only: values, gradients, and the memory that they take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import sightline as sl
from op_cases import LAYOUTS, laid_out
from oracle import assert_bits_equal, assert_sums_law
from sightline import kernels, ops
from sightline.ops import arguments, channel_sum, native
from sightline.ops.plane import plane


def by_patches(x: Tensor, weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1) -> Tensor:
    """The forum's way: all patches, multiplied, summed. (n, f, windows, kh, kw)."""
    c, kh, kw = weight.shape[1:]
    strides, dilations = arguments.pair("", stride), arguments.pair("", dilation)
    top, bottom, left, right = arguments.paddings(padding, (kh, kw), strides, dilations)
    patches = F.unfold(F.pad(x, (left, right, top, bottom)), (kh, kw), dilation, 0, stride)
    result: Tensor = torch.einsum("nctw,fct->nfwt", patches.unflatten(1, (c, kh * kw)), weight.flatten(2)).unflatten(3, (kh, kw))
    return result


def check(shape: tuple[int, ...], weight_shape: tuple[int, ...], layout: str, dtype: torch.dtype, **options: Any) -> None:
    random = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(s, generator=random, dtype=torch.float64).to(dtype).double() for s in (shape, weight_shape))
    grad = torch.randn(by_patches(x, weight, **options).shape, generator=random, dtype=torch.float64).to(dtype).double()

    def run(function: Any, dtype: torch.dtype, layout: str = "contiguous", sizes: bool = False) -> list[Tensor]:
        values = [value.abs() if sizes else value for value in (x, weight, grad)]
        given = laid_out(values[0].to(dtype), layout).requires_grad_(), values[1].to(dtype).requires_grad_()
        y = function(*given, **options)
        return [y.detach(), *torch.autograd.grad(y, given, values[2].to(dtype))]

    exact, plain, size = run(by_patches, torch.float64), run(by_patches, dtype), run(by_patches, torch.float64, sizes=True)
    assert_sums_law(run(ops.channel_sum_conv2d, dtype, layout), plain, exact, size, f"{shape} {weight_shape} {options} {layout}")


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients_obey_the_law(layout: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native, "usable", lambda *_: False)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        check((1, 5, 12, 12), (1, 5, 3, 3), layout, dtype, stride=3)
        check((2, 3, 9, 10), (2, 3, 3, 2), layout, dtype, padding=(1, 2), stride=(2, 1))
        check((2, 40, 6, 7), (3, 40, 3, 3), layout, dtype, dilation=2, padding="same")
        check((1, 2, 4, 3), (1, 2, 3, 3), layout, dtype, padding=4)


@given(
    st.integers(1, 40), st.integers(1, 4), st.tuples(*[st.integers(5, 12)] * 2), st.tuples(*[st.integers(1, 4)] * 2),
    st.tuples(*[st.integers(1, 3)] * 2), st.tuples(*[st.integers(0, 3)] * 2), st.sampled_from(LAYOUTS),
)  # fmt: skip
def test_any_geometry_obeys_the_law(
    c: int, f: int, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], layout: str
) -> None:
    for dtype in (torch.float32, torch.float64):
        check((2, c, *size), (f, c, *kernel), layout, dtype, stride=stride, padding=padding)


def test_the_sum_over_windows_is_the_convolution() -> None:
    x, weight = torch.randn(2, 6, 9, 11), torch.randn(4, 6, 3, 3)
    ours = ops.channel_sum_conv2d(x, weight, padding=1, stride=2)
    assert ours.shape == (2, 4, 30, 3, 3) and ours.is_contiguous()
    torch.testing.assert_close(ours.sum((3, 4)).unflatten(2, (5, 6)), F.conv2d(x, weight, padding=1, stride=2), rtol=1e-4, atol=1e-4)


def test_one_filter_has_no_axis_of_filters() -> None:
    x, weight = torch.randn(2, 6, 9, 11), torch.randn(6, 3, 3)
    assert_bits_equal(ops.channel_sum_conv2d(x, weight), ops.channel_sum_conv2d(x, weight[None])[:, 0])


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x, weight = torch.randn(2, 40, 30, 40), torch.randn(3, 40, 3, 3)
    grad, before, found = torch.randn(2, 3, 1064, 3, 3), sl.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            sl.set_num_threads(threads)
            leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
            y = ops.channel_sum_conv2d(*leaves)
            found.append([y.detach(), *torch.autograd.grad(y, leaves, grad)])
    finally:
        sl.set_num_threads(before)
    assert_bits_equal(found[1:], [found[0], found[0]])


# -- memory -----------------------------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Bytes of the largest memory that any operation inside made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.bytes = max(self.bytes, value.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("k", [1, 3, 9])
def test_no_patches_are_made_in_torch(k: int) -> None:
    x, weight = torch.randn(1, 8, 40, 40), torch.randn(1, 8, k, k)
    where = plane((40, 40), (k, k), (1, 1), (0, 0, 0, 0), (1, 1))
    windows = where.out_size[0] * where.out_size[1]
    out, grad = torch.empty(1, 1, windows, k, k), torch.randn(1, 1, windows, k, k)
    with Largest() as largest:
        channel_sum.forward(where, x, weight, out)
        channel_sum.backward(where, grad, x, weight, torch.zeros_like(x), torch.zeros_like(weight))
    assert x.nbytes // 2 < largest.bytes <= max(x.nbytes, out.nbytes)  # views of x and of the output, and copies of x
    with Largest() as patches:
        by_patches(x, weight)
    assert patches.bytes >= k * k * windows * 8 * 4  # that the measure sees them


def peak(function: Any) -> int:
    """Bytes by which the process grew at most while the function ran."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(name: str) -> int:
        found = re.search(rf"{name}:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) * 1024

    try:
        reset.write_text("5")
        read("VmHWM")
    except (OSError, AssertionError):
        pytest.skip("this system does not tell a process's peak of memory")
    before = read("VmRSS")
    kept = function()
    after = read("VmHWM") - before
    del kept
    return after


def test_no_patches_are_made_natively() -> None:
    if kernels.native() is None:
        pytest.skip("the compiled kernels are not built here")
    x = torch.randn(1, 32, 160, 160)
    extra = {}
    for k in (1, 9):
        weight = torch.randn(1, 32, k, k)
        out = ops.channel_sum_conv2d(x, weight)
        extra[k] = peak(lambda w=weight: ops.channel_sum_conv2d(x, w)) - out.nbytes
        assert extra[k] < 2.5 * x.nbytes, extra
    assert peak(lambda: by_patches(x, torch.randn(1, 32, 9, 9))) > 20 * x.nbytes  # that the measure sees patches
