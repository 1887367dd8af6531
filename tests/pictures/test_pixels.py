"""Float images and bytes: exact levels, both roundings, every channel count, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from undiffuse.pixels import from_uint8, to_uint8


def every_level(channels: int = 1) -> np.ndarray:
    return np.repeat(np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1), channels, axis=-1)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_nearest_gives_all_levels_back(channels: int) -> None:
    levels = every_level(channels)
    assert np.array_equal(to_uint8(from_uint8(levels)).numpy(), levels)


def test_truncation_is_the_original_cast_and_loses_63_levels() -> None:
    x = from_uint8(every_level())
    original = ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    truncated = to_uint8(x, rounding="truncate")
    assert torch.equal(truncated, original)
    difference = every_level().astype(int) - truncated.numpy()
    assert (difference != 0).sum() == 63
    assert set(np.unique(difference)) == {0, 1}


def test_range_layout_and_saturation() -> None:
    x = torch.tensor([-5.0, -1.0, 0.0, 1.0, 7.0, float("inf")]).reshape(1, 1, 2, 3)
    u = to_uint8(x)
    assert u.dtype == torch.uint8 and u.shape == (1, 2, 3, 1) and u.is_contiguous()
    assert u.flatten().tolist() == [0, 0, 128, 255, 255, 255]
    assert to_uint8(x, "truncate").flatten().tolist() == [0, 0, 127, 255, 255, 255]


def test_channels_and_axes_keep_their_places() -> None:
    u = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    x = from_uint8(u)
    assert x.shape == (2, 3, 5, 7) and x.dtype == torch.float32 and x.is_contiguous()
    assert x[1, 2, 3, 4].item() == pytest.approx(u[1, 3, 4, 2] / 127.5 - 1)
    assert x.min() >= -1 and x.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_float32_or_better(dtype: torch.dtype) -> None:
    x = from_uint8(every_level()).to(dtype)
    expected = (x.double() + 1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert (to_uint8(x).int() - expected.int()).abs().max() <= (0 if dtype != torch.float16 else 1)
    assert (to_uint8(x).int() - torch.from_numpy(every_level()).int()).abs().max() <= (
        1 if dtype == torch.bfloat16 else 0
    )


def test_read_only_and_reversed_arrays_are_copied() -> None:
    u = every_level()
    u.flags.writeable = False
    assert torch.equal(from_uint8(u[:, ::-1]), from_uint8(u).flip(2))
    from_uint8(u).add_(1)
    assert u[0, 0, 0, 0] == 0


def test_gradient_is_left_behind() -> None:
    assert not to_uint8(torch.zeros(1, 1, 2, 2, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "floating-point"),
        (torch.zeros(1, 2, 2), r"shape \[1, 2, 2\]"),
        (np.zeros((1, 1, 2, 2), np.float32), "float32"),
        (torch.full((1, 1, 2, 2), float("nan")), "4 of 4 values are NaN"),
    ],
)
def test_to_uint8_refuses(x: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_uint8(x)  # type: ignore[arg-type]


def test_unknown_rounding_and_wrong_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="'nearest'"):
        to_uint8(torch.zeros(1, 1, 2, 2), rounding="floor")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint8"):
        from_uint8(np.zeros((1, 2, 2, 3), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        from_uint8(np.zeros((2, 2, 3), np.uint8))
