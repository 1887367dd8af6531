"""Compiled 1x1 convolutions: layout, results, independence of rows and threads, and who chooses them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from undiffuse import kernels
from undiffuse.kernels import products
from undiffuse.kernels.autotune import Plan, planned, rule
from undiffuse.nets.packing import PackedPointwise

DTYPES = [torch.float32, torch.bfloat16]


def needs(dtype: torch.dtype) -> None:
    if not products.has_product(32, 32, dtype):
        pytest.skip(f"no compiled product in {dtype} here")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "out"), [(16, 16), (64, 32), (30, 48), (128, 384), (2, 80)])
def test_panels_are_the_matrix(dtype: torch.dtype, channels: int, out: int) -> None:
    weight = torch.randn(out, channels, generator=torch.Generator().manual_seed(0)).to(dtype)
    laid_out = products.panels(weight)
    assert laid_out.shape == (out * channels,)
    assert torch.equal(products.matrix(laid_out, out), weight)
    pair = 1 if dtype == torch.float32 else 2
    width = min(32, out)
    assert torch.equal(laid_out[: width * pair].view(width, pair), weight[:width, :pair])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [8, 9, 15, 64, 65, 1000])
@pytest.mark.parametrize(("channels", "out"), [(16, 16), (64, 48), (256, 128), (1024, 32)])
def test_results(dtype: torch.dtype, rows: int, channels: int, out: int) -> None:
    needs(dtype)
    generator = torch.Generator().manual_seed(1)
    x, weight, base = (
        torch.randn(*size, generator=generator).to(dtype) for size in ((rows, channels), (out, channels), (rows, out))
    )
    bias = torch.randn(out, generator=generator)
    exact = F.linear(x.double(), weight.double(), bias.double())
    laid_out = products.panels(weight)
    for summand, expected in ((None, exact), (base, exact + base.double())):
        found = products.product(x, laid_out, out, bias, summand)
        assert found.dtype == dtype
        error = float((found.double() - expected).abs().max() / expected.abs().max())
        assert error < (1e-6 if dtype == torch.float32 else 4e-3)
    plain = products.product(x, laid_out, out, None).double()
    assert float((plain - F.linear(x.double(), weight.double())).abs().max() / exact.abs().max()) < 4e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_the_others_or_on_threads(dtype: torch.dtype) -> None:
    needs(dtype)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(777, 96, generator=generator).to(dtype)
    laid_out, bias = products.panels(torch.randn(80, 96, generator=generator).to(dtype)), torch.randn(80)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = products.product(x, laid_out, 80, bias)
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            assert torch.equal(products.product(x, laid_out, 80, bias), whole)
            for first, last in ((0, 8), (3, 14), (700, 777), (1, 776)):
                assert torch.equal(products.product(x[first:last], laid_out, 80, bias), whole[first:last])
    finally:
        torch.set_num_threads(threads)


def test_what_it_does_not_take() -> None:
    assert not products.has_product(32, 40, torch.float32)
    assert not products.has_product(33, 32, torch.bfloat16)
    assert not products.has_product(32, 32, torch.float64)
    with kernels.using("pure"):
        assert not products.has_product(32, 32, torch.float32)
    needs(torch.float32)
    laid_out = products.panels(torch.zeros(32, 16))
    for x in (torch.zeros(7, 16), torch.zeros(8, 17), torch.zeros(8, 16, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match="no compiled product"):
            products.product(x, laid_out, 32, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv1d])
def test_a_layer_takes_what_the_plan_says(dtype: torch.dtype, kind: type[nn.Conv1d] | type[nn.Conv2d]) -> None:
    needs(dtype)
    conv = kind(32, 48, 1)
    x = torch.randn(2, 32, 6, 6).contiguous(memory_format=torch.channels_last).to(dtype)
    base = torch.randn(2, 48, 6, 6).contiguous(memory_format=torch.channels_last).to(dtype)
    exact = F.conv2d(x.double(), conv.weight.detach().double().view(48, 32, 1, 1), conv.bias.detach().double())
    near = 1e-6 if dtype == torch.float32 else 8e-3
    layer = PackedPointwise(conv, dtype)
    with torch.no_grad():
        for way in ("blocked", "packed", "blocked"):
            with kernels.using(f"conv1x1_packed={way}"), planned() as plan:
                assert layer.weight_for(x.shape)[0] == way
                for found, expected in (
                    (layer(x), exact), (layer.onto(base, x), exact + base.double()),
                    (layer.tokens(x), exact.flatten(2).transpose(1, 2)),
                ):  # fmt: skip
                    assert float((found.double() - expected).abs().max() / expected.abs().max()) < near
                assert plan.record()[way] == [f"conv1x1_packed {'fp32' if near < 1e-3 else 'bf16'} 32-48 6x6"]
        with planned():  # fewer rows than a block, for any batch
            assert layer.weight_for(torch.Size((64, 32, 2, 2)))[0] == "packed"


def test_records_that_are_older_than_the_choice_mean_packed() -> None:
    needs(torch.float32)
    size = torch.Size((4, 32, 8, 8))
    for recorded in ({}, {"batch": 8, "winograd": ["conv3x3_packed fp32 64-64 32x32"]}):
        assert products.implementation(Plan(recorded=recorded), size, 32, torch.float32) == "packed"
    kept = {"batch": 8, "blocked": ["conv1x1_packed fp32 32-32 8x8"]}
    assert products.implementation(Plan(recorded=kept), size, 32, torch.float32) == "blocked"


def test_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from undiffuse.kernels import autotune

    ways = ("blocked", "packed")
    for features, precision, expected in (
        ("avx2", "fp32", "blocked"), ("amx_bf16 amx_tile", "fp32", "blocked"), ("amx_bf16 amx_tile", "bf16", "packed"),
        ("avx512f avx512_bf16", "bf16", "blocked"),
    ):  # fmt: skip
        monkeypatch.setattr(autotune, "processor", lambda features=features: ("one", features))
        assert rule(("conv1x1_packed", precision, 64, 64, 16, 16), 8, ways) == expected
