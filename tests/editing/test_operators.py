"""What an observation is: adjoints, solves and known answers of masks, down-sampling and blur."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from undiffuse.editing import Blur, Downsampling, Mask, Operator
from undiffuse.noise import NoiseSource

SHAPE = (2, 6, 4)


def images(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return NoiseSource(seed, range(count)).normal(shape).double()


def holes() -> Tensor:
    seen = torch.ones(1, 1, 6, 4, dtype=torch.bool)
    seen[..., 1:4, 2:] = False
    return seen


OPERATORS: dict[str, Callable[[], Operator]] = {
    "mask": lambda: Mask(holes()),
    "mask of each": lambda: Mask(torch.cat([holes(), holes().flip(-1), holes().flip(-2)])),
    "downsampling": lambda: Downsampling(2),
    "blur": lambda: Blur(0.8),
}


def matrix(operator: Operator, number: int = 0) -> Tensor:
    """A [d_y, d_x] for one image, column by column (of image `number` of three)."""
    columns = []
    for e in torch.eye(math.prod(SHAPE), dtype=torch.float64):
        columns.append(operator(e.reshape(1, *SHAPE).expand(3, -1, -1, -1))[number].flatten())
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_and_solve(name: str) -> None:
    operator = OPERATORS[name]()
    x = images(3)
    y = operator(images(3, 1))
    torch.testing.assert_close((operator(x) * y).sum((1, 2, 3)), (x * operator.adjoint(y)).sum((1, 2, 3)))
    spread, noise = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64), 0.2
    solved = operator.solve(y, spread, noise)
    back = spread.reshape(3, 1, 1, 1) * operator(operator.adjoint(solved)) + noise**2 * solved
    torch.testing.assert_close(back, y)
    shared = operator.solve(y, torch.tensor([0.7], dtype=torch.float64), noise)
    torch.testing.assert_close(0.7 * operator(operator.adjoint(shared)) + noise**2 * shared, y)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_largest_singular_value(name: str) -> None:
    operator = OPERATORS[name]()
    assert operator.norm == pytest.approx(float(torch.linalg.matrix_norm(matrix(operator), 2)), abs=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_without_noise_it_is_the_pseudo_inverse(name: str) -> None:
    operator = OPERATORS[name]()
    y = operator(images(3))
    solved = operator.solve(y, torch.tensor([0.5], dtype=torch.float64), 0.0)
    for number in range(3):
        a = matrix(operator, number)
        expected = torch.linalg.pinv(0.5 * a @ a.T, rtol=1e-9) @ y[number].flatten()
        torch.testing.assert_close(solved[number].flatten(), expected, rtol=1e-6, atol=1e-8)


def test_downsampling_takes_means_of_squares() -> None:
    x = images(1)
    assert Downsampling(2)(x)[0, 1, 2, 1] == x[0, 1, 4:6, 2:4].mean()
    with pytest.raises(ValueError, match="6x4.*cannot be divided by 4"):
        Downsampling(4)(x)
    for wrong in (1, 2.0, True):
        with pytest.raises(ValueError, match="whole factor of 2 or more"):
            Downsampling(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("std", [0.3, 0.8, 5.0])
def test_blur_is_a_convolution_with_mirrored_edges(std: float) -> None:
    """Also where the kernel is wider than the image, which is then mirrored again and again."""
    x = images(1)
    radius = math.ceil(4 * std)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    kernel /= kernel.sum()
    wide = np.pad(x[0, 0].numpy(), radius, mode="symmetric")
    down = np.stack([np.convolve(column, kernel, "valid") for column in wide.T], axis=1)
    both = np.stack([np.convolve(row, kernel, "valid") for row in down])
    np.testing.assert_allclose(Blur(std)(x)[0, 0].numpy(), both, atol=1e-12)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="above 0"):
            Blur(wrong)


def test_blur_keeps_the_precision_of_what_it_blurs() -> None:
    x = images(1).float()
    assert Blur(1.0)(x).dtype == torch.float32
    torch.testing.assert_close(Blur(1.0)(x), Blur(1.0)(x.double()).float())


def test_wrong_masks_are_told() -> None:
    with pytest.raises(ValueError, match="every pixel is known"):
        Mask(torch.ones(1, 1, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="covers a whole image"):
        Mask(torch.tensor([True, False]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2))
    with pytest.raises(ValueError, match="bool tensor"):
        Mask(torch.ones(1, 1, 2, 2))
    mask = Mask(holes())
    with pytest.raises(ValueError, match="does not fit images"):
        mask(torch.zeros(1, 2, 6, 5))
    with pytest.raises(ValueError, match="does not fit images"):
        Mask(holes().expand(2, -1, -1, -1))(torch.zeros(3, 2, 6, 4))


def test_a_mask_merges() -> None:
    known, x = images(3), images(3, 1)
    merged = Mask(holes()).merged(known, x)
    seen = holes().expand_as(x)
    assert torch.equal(merged[seen], known[seen])
    assert torch.equal(merged[~seen], x[~seen])
