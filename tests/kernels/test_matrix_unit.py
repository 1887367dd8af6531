"""Compiled convolutions on the matrix unit (AMX): layout, results, gradients, independence of batch and threads."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from undiffuse import kernels
from undiffuse.kernels import building, matrix_unit, products
from undiffuse.kernels.autotune import Plan, planned, rule
from undiffuse.kernels.convolution import conv_3x3, implementation
from undiffuse.nets.packing import PackedConv2d, PackedPointwise

HERE = matrix_unit.suits(32, 32, torch.bfloat16)
needs_unit = pytest.mark.skipif(not HERE, reason="no matrix unit here")
# Batch, channels, output channels, height, width: whole tiles in a line or not, one pixel, odd numbers of tiles.
SIZES = [
    (1, 64, 32, 8, 8), (3, 32, 64, 5, 7), (2, 128, 96, 16, 16), (1, 32, 32, 1, 1), (3, 256, 64, 4, 4),
    (1, 64, 64, 32, 32), (5, 64, 32, 33, 3), (2, 32, 32, 3, 48), (1, 32, 320, 2, 16), (1, 160, 32, 40, 20),
]  # fmt: skip


def drawn(size: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, bias and summand."""
    batch, channels, out, height, width = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    last = torch.channels_last
    x = normal(batch, channels, height, width).bfloat16().contiguous(memory_format=last)
    weight = (normal(out, channels, 3, 3) / (9 * channels) ** 0.5).bfloat16().contiguous(memory_format=last)
    return x, weight, normal(out), normal(batch, out, height, width).bfloat16().contiguous(memory_format=last)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max())


@needs_unit
@pytest.mark.parametrize("size", [(32, 32, 3), (64, 96, 3), (96, 64, 1), (320, 32, 1)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_weights_come_back_from_their_layout(size: tuple[int, int, int], layout: torch.memory_format) -> None:
    out, channels, side = size
    numbers = torch.arange(out * channels * side**2) % 251  # which bfloat16 holds
    weight = numbers.view(out, channels, side, side).bfloat16().contiguous(memory_format=layout)
    packed = matrix_unit.pack(weight)
    assert torch.equal(matrix_unit.unpack(packed, out, side**2), weight.flatten(2))
    pairs = packed[:512].view(16, 16, 2)  # a tile: pairs of inputs, results, the two of a pair
    assert torch.equal(pairs, weight[:16, :32, 0, 0].reshape(16, 16, 2).transpose(0, 1))
    turned = matrix_unit.unpack(matrix_unit.pack(weight, turned=True), channels, side**2)
    assert torch.equal(turned, weight.flip(2, 3).transpose(0, 1).flatten(2))


@needs_unit
@pytest.mark.parametrize("size", SIZES)
def test_results(size: tuple[int, ...]) -> None:
    x, weight, bias, base = drawn(size)
    out, packed = weight.shape[0], matrix_unit.pack(weight)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    for b, s in ((None, None), (bias, None), (None, base), (bias, base)):
        expected = exact + (0 if b is None else b.double()[:, None, None]) + (0 if s is None else s.double())
        found = matrix_unit.convolution(x, packed, out, b, s)
        assert found.dtype == torch.bfloat16
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert error(found, expected) < 4e-3


@needs_unit
@pytest.mark.parametrize("size", SIZES)
def test_gradients(size: tuple[int, ...]) -> None:
    x, weight, bias, grad = drawn(size)
    inputs = [part.double().requires_grad_() for part in (x, weight, bias)]
    exact = torch.autograd.grad(F.conv2d(*inputs, padding=1), inputs, grad.double())
    assert (
        error(matrix_unit.convolution(grad, matrix_unit.pack(weight, turned=True), x.shape[1], None), exact[0]) < 4e-3
    )
    by_weight, by_bias = matrix_unit.weight_gradient(x, grad)
    assert by_weight.dtype == by_bias.dtype == torch.float32  # sums are not rounded
    assert error(by_weight, exact[1]) < 2e-6
    assert error(by_bias, exact[2]) < 2e-6


@needs_unit
@pytest.mark.parametrize("rows", [32, 33, 63, 64, 1000])
@pytest.mark.parametrize(("channels", "out"), [(32, 32), (64, 96), (1024, 64)])
def test_products(rows: int, channels: int, out: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight, base = (
        torch.randn(*size, generator=generator).bfloat16() for size in ((rows, channels), (out, channels), (rows, out))
    )
    bias, packed = torch.randn(out, generator=generator), matrix_unit.pack(weight[:, :, None, None])
    exact = x.double() @ weight.double().T
    assert error(matrix_unit.product(x, packed, out, None), exact) < 4e-3
    assert error(matrix_unit.product(x, packed, out, bias, base), exact + bias.double() + base.double()) < 4e-3
    few = matrix_unit.product(x[:32], packed, out, None)
    assert torch.equal(few, matrix_unit.product(x, packed, out, None)[:32])


@needs_unit
@pytest.mark.parametrize("size", [(7, 64, 96, 8, 8), (5, 32, 64, 16, 16), (3, 32, 32, 5, 7), (40, 64, 32, 4, 4)])
def test_they_depend_neither_on_the_batch_nor_on_threads(size: tuple[int, ...]) -> None:
    x, weight, bias, _ = drawn(size)
    out, packed, threads = weight.shape[0], matrix_unit.pack(weight), torch.get_num_threads()
    found, gradients = [], []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            found.append(matrix_unit.convolution(x, packed, out, bias))
            gradients.append(matrix_unit.weight_gradient(x, found[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, found[0]) for one in found)
    assert all(torch.equal(one, two) for pair in gradients for one, two in zip(pair, gradients[0], strict=True))
    single = torch.cat([matrix_unit.convolution(x[k : k + 1], packed, out, bias) for k in range(len(x))])
    assert torch.equal(single, found[0])


FEWER = """
import torch
from undiffuse.kernels import matrix_unit
torch.set_num_threads(3)
x = torch.linspace(-1, 1, 2 * 64 * 256).sin().view(2, 64, 16, 16).bfloat16()
one, three = (torch.linspace(-1, 1, 96 * 64 * k * k).cos().view(96, 64, k, k).bfloat16() for k in (1, 3))
y = matrix_unit.convolution(x, matrix_unit.pack(three), 96, None)
z = matrix_unit.product(x.permute(0, 2, 3, 1), matrix_unit.pack(one), 96, None)
print(y.double().sum().item(), z.double().sum().item(), y.isfinite().all().item() and z.isfinite().all().item())
"""


@needs_unit
def test_fewer_threads_than_wanted_do_all_the_work() -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", FEWER], env={**os.environ, **limit}, capture_output=True, text=True, check=True
        ).stdout
        for limit in ({}, {"OMP_THREAD_LIMIT": "1"})
    ]
    assert said[0] == said[1]
    assert said[0].split()[2] == "True"


@needs_unit
def test_what_is_not_a_number_stays_where_it_is() -> None:
    x, weight, _, _ = drawn((3, 32, 32, 6, 9))
    x[1, 3, 0, 0] = float("nan")
    y = matrix_unit.convolution(x, matrix_unit.pack(weight), 32, None)
    assert torch.isfinite(y[0]).all()
    assert torch.isfinite(y[2]).all()
    assert torch.isnan(y[1, :, :2, :2]).all()
    assert torch.isfinite(y[1, :, :, 2:]).all()
    assert torch.isfinite(y[1, :, 2:]).all()


@needs_unit
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False), (True, False, False)])
def test_training_takes_what_the_plan_says(needs: tuple[bool, bool, bool]) -> None:
    x, weight, bias, grad = drawn((2, 32, 64, 8, 8))
    found = {}
    for way in ("amx", "torch"):
        inputs = [part.clone().requires_grad_(n) for part, n in zip((x, weight, bias.bfloat16()), needs, strict=True)]
        with kernels.using(f"conv3x3=amx,conv3x3_grad={way},conv3x3_weight={way}"), planned(Plan()) as plan:
            conv_3x3(*inputs).backward(grad)
        record = plan.record()[way]
        assert ("conv3x3_grad bf16 64-32 8x8" in record) == needs[0]
        assert ("conv3x3_weight bf16 32-64 8x8" in record) == (needs[1] or needs[2])
        found[way] = [part.grad for part in inputs]
    for ours, theirs, needed in zip(found["amx"], found["torch"], needs, strict=True):
        assert (ours is None, theirs is None) == (not needed, not needed)
        if ours is not None and theirs is not None:
            assert ours.dtype == torch.bfloat16
            assert error(ours, theirs.double()) < 8e-3


@needs_unit
@torch.no_grad()
def test_packed_layers_change_their_layout_with_the_plan() -> None:
    generator = torch.Generator().manual_seed(3)
    conv, single = nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(32, 64, 1)
    layer, other = PackedConv2d(conv, torch.bfloat16), PackedPointwise(single, torch.bfloat16)
    x = torch.randn(2, 32, 8, 8, generator=generator).bfloat16().contiguous(memory_format=torch.channels_last)
    exact = [
        F.conv2d(x.double(), c.weight.bfloat16().double(), c.bias.double(), padding=c.padding) for c in (conv, single)
    ]
    for way, product in (("amx", "amx"), ("packed", "packed"), ("amx", "amx"), ("torch", "packed"), ("amx", "amx")):
        with kernels.using(f"conv3x3_packed={way},conv1x1_packed={product}"), planned() as plan:
            results = layer(x), other(x)
            assert "conv3x3_packed bf16 32-64 8x8" in plan.record()[way]
            assert "conv1x1_packed bf16 32-64 8x8" in plan.record()[product]
        for found, expected in zip(results, exact, strict=True):
            assert error(found, expected) < 8e-3


def queries(batch: int, length: int, heads: int, width: int) -> list[Tensor]:
    """Queries, keys and values [B, heads, L, D] as parts of one product."""
    generator = torch.Generator().manual_seed(4)
    qkv = (2 * torch.randn(batch, length, 3, heads, width, generator=generator)).bfloat16()
    return list(qkv.permute(2, 0, 3, 1, 4))


@needs_unit
@pytest.mark.parametrize("size", [(1, 64, 2, 64), (2, 256, 3, 32), (1, 32, 1, 96), (1, 1024, 6, 64), (3, 96, 2, 160)])
@torch.no_grad()
def test_attention(size: tuple[int, int, int, int]) -> None:
    parts = queries(*size)
    exact = F.scaled_dot_product_attention(*(part.double() for part in parts))
    found, threads = matrix_unit.attention(*parts), torch.get_num_threads()
    assert found.shape == exact.shape
    assert found.transpose(1, 2).is_contiguous()
    assert error(found, exact) < 4e-3
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(matrix_unit.attention(*parts), found)
    finally:
        torch.set_num_threads(threads)
    for k in range(size[0]):
        assert torch.equal(matrix_unit.attention(*(part[k : k + 1] for part in parts)), found[k : k + 1])


@needs_unit
@torch.no_grad()
def test_attention_of_large_and_missing_numbers() -> None:
    q, k, v = (part.contiguous() for part in queries(2, 64, 2, 32))
    q, k = q * 20, k * 20  # scores of thousands
    assert (
        error(matrix_unit.attention(q, k, v), F.scaled_dot_product_attention(q.double(), k.double(), v.double())) < 0.02
    )
    q[0, 1, 5, 0] = float("nan")
    found = matrix_unit.attention(q, k, v)
    assert torch.isnan(found[0, 1, 5]).all()
    assert torch.isfinite(found[0, 1, 6:]).all()
    assert torch.isfinite(found[1]).all()


@needs_unit
@torch.no_grad()
def test_attention_goes_by_the_plan() -> None:
    parts, found = queries(2, 64, 2, 32), {}
    for way in ("fused", "products", "amx"):
        with kernels.using(f"attention={way}"), planned() as plan:
            found[way] = kernels.attention(*parts)
        assert plan.record()[way] == ["attention bf16 32-2 64x1"]
    exact = F.scaled_dot_product_attention(*(part.double() for part in parts))
    assert all(error(one, exact) < (0.05 if way == "products" else 8e-3) for way, one in found.items())  # rounds scores
    for others in (queries(2, 63, 2, 32), queries(2, 64, 2, 48), [parts[0], parts[1], parts[2].clone()]):
        assert not matrix_unit.suits_attention(*others)
        with pytest.raises(ValueError, match="no compiled attention"):
            matrix_unit.attention(*others)
        with kernels.using("attention=amx"), planned() as plan:  # what is pinned is used where it is possible
            kernels.attention(*others)
        assert "amx" not in plan.record()


@needs_unit
def test_what_does_not_suit_is_refused() -> None:
    assert not matrix_unit.suits(48, 32, torch.bfloat16)
    assert not matrix_unit.suits(32, 40, torch.bfloat16)
    assert not matrix_unit.suits(32, 32, torch.float32)
    x, weight, _, _ = drawn((1, 32, 32, 4, 4))
    packed = matrix_unit.pack(weight)
    with pytest.raises(ValueError, match="bfloat16"):
        matrix_unit.convolution(x.float(), packed, 32, None)
    with pytest.raises(ValueError, match="bfloat16"):
        matrix_unit.convolution(x, packed[:-1], 32, None)
    with pytest.raises(ValueError, match="bfloat16"):
        matrix_unit.pack(weight.float())
    with pytest.raises(ValueError, match="rows"):
        matrix_unit.product(torch.zeros(31, 32).bfloat16(), packed[:1024], 32, None)
    # Of a product, the rows of one image are enough or not, so that the choice does not depend on the batch.
    assert products.implementation(Plan(recorded={}), torch.Size((64, 32, 4, 4)), 32, torch.bfloat16) != "amx"


def test_without_the_kernels_there_is_none() -> None:
    with kernels.using("pure"):
        assert not matrix_unit.suits(32, 32, torch.bfloat16)
        with pytest.raises(ValueError, match="matrix unit"):
            matrix_unit.pack(torch.zeros(32, 32, 3, 3).bfloat16())
        size = torch.Size((2, 32, 16, 16))
        assert implementation("conv3x3", Plan(), size, 32, torch.bfloat16) == "torch"


@needs_unit
@pytest.mark.parametrize(("limit", "there"), [("AVX512_CORE_BF16", False), ("AVX512_CORE_AMX", True), ("", True)])
def test_the_limit_of_onednn_holds_for_it(
    limit: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(building, "SOURCES", building.SOURCES[2:])
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    assert hasattr(ctypes.CDLL(str(building._built())), "undiffuse_tiles_product") == there


def test_the_rule_takes_it_where_it_is() -> None:
    for operation, others in (("conv3x3_packed", ("packed",)), ("conv1x1_packed", ("packed",)), ("conv3x3_weight", ())):
        key = (operation, "bf16", 64, 64, 16, 16)
        assert rule(key, 8, ("winograd", "amx", *others, "torch")) == "amx"
