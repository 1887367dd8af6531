"""The compiled 3x3 convolution: a direct sum's numbers, for every shape; bits that depend on nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from undiffuse import kernels
from undiffuse.kernels import autotune, convolution
from undiffuse.kernels.autotune import Plan, planned
from undiffuse.kernels.convolution import conv_3x3, filter_3x3, has_winograd, taps
from undiffuse.nets.packing import PackedConv2d, can_pack

KINDS = [dtype for dtype in (torch.float32, torch.bfloat16) if has_winograd(32, 32, dtype)]
needs_kernel = pytest.mark.skipif(torch.float32 not in KINDS, reason="no compiled convolution on this processor")
# [B, C, H, W] and output channels: odd sizes, one pixel, fewer tiles than a block and one more, a panel of half width
SHAPES = [
    (1, 32, 1, 1, 16), (1, 32, 2, 3, 32), (2, 64, 5, 4, 48), (3, 32, 8, 8, 80), (1, 96, 7, 9, 32), (5, 32, 3, 14, 16),
    (1, 32, 8, 34, 64), (2, 160, 6, 6, 112),
]  # fmt: skip


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and base."""
    batch, channels, height, width, out = shape
    r = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=r).to(dtype)
    weight = (torch.randn(out, channels, 3, 3, generator=r) / (9 * channels) ** 0.5).to(dtype)
    bias, base = torch.randn(out, generator=r), torch.randn(batch, out, height, width, generator=r).to(dtype)
    return *(part.contiguous(memory_format=torch.channels_last) for part in (x, weight)), bias, base


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, base: Tensor | None) -> Tensor:
    y = nn.functional.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    return y if base is None else y + base.double()


@needs_kernel
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("parts", ["", "bias", "base", "bias base"])
def test_it_is_the_convolution(shape: tuple[int, ...], parts: str, dtype: torch.dtype) -> None:
    x, weight, bias, base = drawn(shape, dtype)
    given = (bias if "bias" in parts else None, base if "base" in parts else None)
    y = filter_3x3(x, taps(weight), *given)
    truth = exact(x, weight, *given)
    assert y.dtype == dtype and y.shape == truth.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    bound = 3e-6 if dtype == torch.float32 else 0.04
    assert float((y - truth).abs().max()) < bound


@needs_kernel
def test_its_error_is_that_of_a_direct_sum() -> None:
    x, weight, _, _ = drawn((2, 128, 16, 16, 64), torch.float32)
    truth = exact(x, weight, None, None)
    errors = [
        float((y - truth).square().mean().sqrt())
        for y in (filter_3x3(x, taps(weight), None), nn.functional.conv2d(x, weight, padding=1))
    ]
    assert errors[0] < 2 * errors[1]


@needs_kernel
@pytest.mark.parametrize("dtype", KINDS)
def test_bits_depend_neither_on_threads_nor_on_the_batch(dtype: torch.dtype) -> None:
    x, weight, bias, base = drawn((5, 64, 9, 10, 48), dtype)
    w, before = taps(weight), torch.get_num_threads()
    y = filter_3x3(x, w, bias, base)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(filter_3x3(x, w, bias, base), y)
    finally:
        torch.set_num_threads(before)
    for k in range(5):
        assert torch.equal(filter_3x3(x[k : k + 1], w, bias, base[k : k + 1])[0], y[k])


@needs_kernel
def test_what_it_is_given_in_another_layout_is_laid_out() -> None:
    x, weight, bias, base = drawn((2, 32, 6, 6, 32), torch.float32)
    y = filter_3x3(x, taps(weight), bias, base)
    assert torch.equal(filter_3x3(x.contiguous(), taps(weight.contiguous()), bias, base.contiguous()), y)


@needs_kernel
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(value: float) -> None:
    x, weight, _, _ = drawn((1, 32, 8, 8, 32), torch.float32)
    x[0, 3, 4, 4] = value
    y = filter_3x3(x, taps(weight), None)
    assert not torch.isfinite(y[0, :, 3:6, 3:6]).any()
    assert torch.isfinite(y[0, :, :, :2]).all()


@needs_kernel
def test_large_numbers_come_through() -> None:
    x, weight, _, _ = drawn((1, 32, 8, 8, 32), torch.float32)
    plain = filter_3x3(x, taps(weight), None)
    assert torch.allclose(filter_3x3(x * 2.0**100, taps(weight), None), plain * 2.0**100, rtol=0, atol=0)


def test_where_it_is_possible() -> None:
    for channels, out, dtype in ((48, 32, torch.float32), (32, 24, torch.float32), (32, 32, torch.float64)):
        assert not has_winograd(channels, out, dtype)
    with kernels.using("pure"):
        assert not has_winograd(32, 32, torch.float32)
        with pytest.raises(ValueError, match="no compiled convolution"):
            filter_3x3(torch.zeros(1, 32, 4, 4), torch.zeros(3, 3, 32, 32), None)


@needs_kernel
def test_a_weight_that_does_not_fit_is_refused() -> None:
    x, weight, _, _ = drawn((1, 32, 8, 8, 64), torch.float32)
    for wrong in (weight, taps(weight)[:, :, :16], taps(weight).double()):
        with pytest.raises(ValueError, match="no compiled convolution"):
            filter_3x3(x, wrong, None)


@needs_kernel
@pytest.mark.skipif(not can_pack(torch.float32), reason="this PyTorch cannot pack convolutions")
@pytest.mark.parametrize("dtype", KINDS)
@torch.no_grad()
def test_only_onednns_layout_changes_with_the_batch(dtype: torch.dtype) -> None:
    layer = PackedConv2d(nn.Conv2d(32, 64, 3, padding=1), dtype)
    for way in convolution.possible("conv3x3_packed", 32, 64, dtype):
        with kernels.using(f"conv3x3_packed={way}"), planned():
            found = [layer.weight_for(torch.Size((batch, 32, 8, 8))) for batch in (2, 5)]
        assert [name for name, _ in found] == [way, way]
        assert (found[0][1] is found[1][1]) == (way != "packed")


@needs_kernel
@pytest.mark.skipif(not can_pack(torch.float32), reason="this PyTorch cannot pack convolutions")
@pytest.mark.parametrize("dtype", KINDS)
@torch.no_grad()
def test_a_packed_layer_changes_with_its_inputs(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """From oneDNN's layout to the kernel's and back, with the same weights, also where kernels are switched off."""
    used: list[bool] = []
    monkeypatch.setattr(autotune, "processor", lambda: ("a processor", ""))  # which has no matrix unit
    monkeypatch.setattr(
        "undiffuse.nets.packing.filter_3x3", lambda *given: (used.append(True), convolution.filter_3x3(*given))[1]
    )
    conv = nn.Conv2d(32, 48, 3, padding=1)
    layer = PackedConv2d(conv, dtype)
    for size, fast in ((4, False), (64, True), (4, False), (48, True), (64, True)):
        x = torch.randn(1, 32, size, size, generator=torch.Generator().manual_seed(size)).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        truth = exact(x, conv.weight.to(dtype), conv.bias, None)
        for mode in ("rule", "pure", "rule"):
            used.clear()
            with kernels.using(mode):
                y, more = layer(x), layer.onto(torch.ones_like(truth, dtype=dtype), x)
            assert bool(used) == (fast and mode == "rule")
            for got, wanted in ((y, truth), (more, truth + 1)):
                assert float((got - wanted).abs().max()) < (1e-5 if dtype == torch.float32 else 0.04)


def test_strided_and_grouped_convolutions_are_left_alone() -> None:
    if not can_pack(torch.float32):
        pytest.skip("this PyTorch cannot pack convolutions")
    x = torch.randn(1, 32, 64, 64, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last)
    for more in (
        {"stride": 2, "padding": 1},
        {"groups": 2, "padding": 1},
        {"padding": 0},
        {"dilation": 2, "padding": 1},
    ):
        conv = nn.Conv2d(32, 32, 3, **more)
        with torch.no_grad():
            assert torch.allclose(PackedConv2d(conv, torch.float32)(x), conv(x), atol=1e-5)


def leaves(*parts: Tensor) -> list[Tensor]:
    return [part.clone().requires_grad_() for part in parts]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wanted", ["x", "x weight bias", "weight", "bias"])
@pytest.mark.parametrize("size", [6, 48])
def test_gradients(size: int, wanted: str, dtype: torch.dtype) -> None:
    """Of a loss in float64, for few and for many tiles, as far as gradients are wanted."""
    x, weight, bias, base = drawn((1, 32, size, size, 64), dtype)
    parts = {"x": x, "weight": weight, "bias": bias.to(dtype)}
    own = {name: part.clone().requires_grad_(name in wanted.split()) for name, part in parts.items()}
    wide = {name: part.double().requires_grad_(name in wanted.split()) for name, part in parts.items()}
    y = conv_3x3(own["x"], own["weight"], own["bias"])
    truth = nn.functional.conv2d(wide["x"], wide["weight"], wide["bias"], padding=1)
    (y * base).float().sum().backward()
    (truth * base.double()).sum().backward()
    for name, part in own.items():
        assert (part.grad is not None) == (name in wanted.split())
        if part.grad is not None:
            assert part.grad.dtype == dtype
            error = (part.grad - wide[name].grad).norm() / wide[name].grad.norm()
            assert float(error) < (2e-6 if dtype == torch.float32 else 0.02), name


def test_second_derivatives() -> None:
    x, weight, bias, _ = drawn((1, 32, 32, 32, 32), torch.float32)
    found = []
    for function in (conv_3x3, lambda *parts: nn.functional.conv2d(*parts, padding=1)):
        own = leaves(x, weight, bias)
        (gx,) = torch.autograd.grad(function(*own).square().sum(), own[0], create_graph=True)
        found.append(torch.autograd.grad(gx.square().sum(), own, allow_unused=True))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_under_autocast_gradients_come_back_in_float32() -> None:
    x, weight, bias, _ = drawn((2, 32, 32, 32, 32), torch.float32)
    found = []
    for mode in ("auto", "pure"):
        own = leaves(x, weight, bias)
        with kernels.using(mode), torch.autocast("cpu", dtype=torch.bfloat16):
            y = conv_3x3(*own)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        assert all(part.grad is not None and part.grad.dtype == torch.float32 for part in own)
        found.append([part.grad for part in own])
    for ours, theirs in zip(*found, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02  # type: ignore[union-attr]


def test_without_gradients_nothing_is_kept() -> None:
    x, weight, bias, _ = drawn((1, 32, 32, 32, 32), torch.float32)
    assert conv_3x3(x, weight, bias).grad_fn is None
    with torch.no_grad():
        assert not conv_3x3(*leaves(x, weight, bias)).requires_grad


@pytest.mark.skipif(not convolution.has_weight_gradient(32, 32, torch.float32), reason="no compiled gradient here")
class TestWeightGradient:
    @pytest.mark.parametrize(
        ("batch", "channels", "out", "height", "width"),
        [
            (1, 32, 32, 4, 4),
            (3, 64, 32, 9, 7),
            (2, 16, 96, 1, 1),
            (5, 32, 64, 2, 11),
            (8, 48, 32, 16, 16),
            (40, 32, 32, 8, 8),
        ],
    )
    def test_it_is_that_of_a_direct_sum(self, batch: int, channels: int, out: int, height: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(batch, channels, height, width, generator=generator)
        grad = torch.randn(batch, out, height, width, generator=generator)
        exact = torch.ops.aten.convolution_backward(
            grad.double(), x.double(), torch.empty(out, channels, 3, 3).double(), [out], (1, 1), (1, 1), (1, 1), False,
            (0, 0), 1, (False, True, True),
        )  # fmt: skip
        for found, wanted in zip(convolution.weight_gradient(x, grad), exact[1:], strict=True):
            assert found.shape == wanted.shape
            assert (found - wanted).abs().max() < 3e-6 * wanted.abs().max()

    def test_it_does_not_depend_on_threads(self) -> None:
        generator = torch.Generator().manual_seed(1)
        x, grad = torch.randn(9, 32, 13, 10, generator=generator), torch.randn(9, 64, 13, 10, generator=generator)
        threads, found = torch.get_num_threads(), []
        try:
            for count in (1, 2, 3, 7):
                torch.set_num_threads(count)
                found.append(convolution.weight_gradient(x, grad))
        finally:
            torch.set_num_threads(threads)
        for weight, bias in found[1:]:
            assert torch.equal(weight, found[0][0])
            assert torch.equal(bias, found[0][1])

    def test_what_it_does_not_take(self) -> None:
        assert not convolution.has_weight_gradient(32, 48, torch.float32)
        assert not convolution.has_weight_gradient(24, 32, torch.float32)
        assert not convolution.has_weight_gradient(32, 32, torch.bfloat16)
        with pytest.raises(ValueError, match="no compiled gradient"):
            convolution.weight_gradient(torch.zeros(1, 24, 4, 4), torch.zeros(1, 32, 4, 4))

    @pytest.mark.parametrize(
        "needs", [(True, True, True), (False, True, True), (True, False, True), (False, True, False)]
    )
    def test_training_takes_what_the_plan_says(self, needs: tuple[bool, bool, bool]) -> None:
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(2, 32, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
        weight, bias = torch.randn(32, 32, 3, 3, generator=generator), torch.randn(32, generator=generator)
        found = {}
        for way in ("winograd", "torch"):
            inputs = [
                part.clone().requires_grad_(needed) for part, needed in zip((x, weight, bias), needs, strict=True)
            ]
            pins = f"conv3x3=winograd,conv3x3_grad=winograd,conv3x3_weight={way}"
            with kernels.using(pins), planned(Plan()) as plan:
                out = convolution.conv_3x3(*inputs)
                out.square().sum().backward()
            assert ("conv3x3_weight fp32 32-32 8x8" in plan.record()[way]) == (needs[1] or needs[2])
            found[way] = [part.grad for part in inputs]
        for ours, theirs, needed in zip(found["winograd"], found["torch"], needs, strict=True):
            assert (ours is None, theirs is None) == (not needed, not needed)
            if ours is not None and theirs is not None:
                assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()

    def test_runs_that_were_recorded_before_go_on_with_pytorchs(self) -> None:
        old = {"batch": 8, "winograd": ["conv3x3 fp32 32-32 8x8", "conv3x3_grad fp32 32-32 8x8"]}
        size = torch.Size((8, 32, 8, 8))
        assert convolution.implementation("conv3x3_weight", Plan(recorded=old), size, 32, torch.float32) == "torch"
