"""The noise source: a known bijection, independent of the batch, with the statistics of independent normal numbers."""

from __future__ import annotations

import math

import pytest
import torch

from undiffuse.noise import NoiseSource, philox4x32

MASK = 0xFFFFFFFF


def philox_by_hand(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Philox 4x32-10 in Python's integers (Salmon et al. 2011, section 3.3)."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k, q & MASK, (p >> 32) ^ d ^ m, p & MASK
        k, m = (k + 0x9E3779B9) & MASK, (m + 0xBB67AE85) & MASK
    return [a, b, c, d]


# Known answers published with the paper's library, Random123.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((MASK,) * 4, (MASK,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words_of(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    a, b, c, d = (torch.tensor([word], dtype=torch.int64) for word in counter)
    return [int(word) for word in philox4x32((a, b, c, d), key)]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: str) -> None:
    assert " ".join(f"{word:08x}" for word in philox_by_hand(counter, key)) == expected
    assert " ".join(f"{word:08x}" for word in words_of(counter, key)) == expected


def test_philox_on_random_counters() -> None:
    draws = torch.randint(0, MASK + 1, (50, 6), generator=torch.Generator().manual_seed(0)).tolist()
    for *counter, k0, k1 in draws:
        assert words_of(tuple(counter), (k0, k1)) == philox_by_hand(tuple(counter), (k0, k1))


def test_an_image_does_not_depend_on_its_batch() -> None:
    together = NoiseSource(5, range(10))
    for purpose in ("x_T", "step"):
        whole = together.normal((3, 5, 7), step=4, purpose=purpose)
        parts = [
            NoiseSource(5, part).normal((3, 5, 7), step=4, purpose=purpose)
            for part in ([9, 0], [4], torch.tensor([7, 7]))
        ]
        torch.testing.assert_close(torch.cat(parts), whole[[9, 0, 4, 7, 7]], rtol=0, atol=0)
    assert (NoiseSource(5, [3]).uniform(2) == together.uniform(2)[3]).all()


def test_a_longer_image_begins_with_the_shorter_one() -> None:
    """Element e is a function of its number alone, so nothing depends on how many elements are drawn."""
    source = NoiseSource(1, [0, 1])
    torch.testing.assert_close(source.normal((7,)), source.normal((100,))[:, :7], rtol=0, atol=0)


def streams() -> dict[str, torch.Tensor]:
    """Draws that differ in one part of the counter or key; each [100000] numbers."""
    n = 100_000
    flat = {
        "seed 0": NoiseSource(0, [0]).normal((n,)),
        "seed 1": NoiseSource(1, [0]).normal((n,)),
        "seed 2^32": NoiseSource(2**32, [0]).normal((n,)),
        "image 1": NoiseSource(0, [1]).normal((n,)),
        "step 1": NoiseSource(0, [0]).normal((n,), step=1),
        "purpose x_T": NoiseSource(0, [0]).normal((n,), purpose="x_T"),
        "purpose train": NoiseSource(0, [0]).normal((n,), purpose="train"),
        "across images": NoiseSource(0, range(n)).normal((1,)),
        "across steps": torch.stack([NoiseSource(0, range(1000)).normal((1,), step=s).flatten() for s in range(100)]),
    }
    return {name: draw.flatten().double() for name, draw in flat.items()}


def test_moments_are_those_of_normal_numbers() -> None:
    """Mean, variance, skewness, kurtosis and tail fractions within five standard errors for 100 000 numbers."""
    for name, z in streams().items():
        n = len(z)
        errors = {
            "mean": (z.mean(), 0, 1),
            "variance": (z.square().mean(), 1, 2),
            "skewness": ((z**3).mean(), 0, 15),
            "kurtosis": ((z**4).mean(), 3, 96),
            "lag": ((z[1:] * z[:-1]).mean(), 0, 1),
            "pairs of Box-Muller": ((z[0::2] ** 2 * z[1::2] ** 2).mean() / 1, 1, 2 * 8),
        }
        for tail in (1.0, 2.0, 3.0):
            p = math.erfc(tail / math.sqrt(2))
            errors[f"beyond {tail}"] = ((z.abs() > tail).double().mean(), p, p * (1 - p))
        for statistic, (value, expected, variance) in errors.items():
            assert abs(float(value) - expected) < 5 * math.sqrt(variance / n), (name, statistic)


def test_streams_are_uncorrelated() -> None:
    table = torch.stack(list(streams().values()))
    correlation = torch.corrcoef(table) - torch.eye(len(table), dtype=torch.float64)
    # The all-elements and the across-images streams share their first number, hence the 1 / n.
    assert correlation.abs().max() < 5 / math.sqrt(table.shape[1]) + 1e-4
    assert torch.corrcoef(table.square()).fill_diagonal_(0).abs().max() < 5 / math.sqrt(table.shape[1]) + 1e-3


def test_normal_numbers_fit_the_distribution_function() -> None:
    """Kolmogorov-Smirnov distance of 400 000 numbers below its 0.1 % quantile, 1.95 / sqrt(n)."""
    z = NoiseSource(77, range(4)).normal((100_000,)).flatten().double().sort().values
    cdf = torch.special.ndtr(z)
    rank = torch.arange(len(z), dtype=torch.float64) / len(z)
    assert (cdf - rank).abs().max() < 1.95 / math.sqrt(len(z))


def test_uniform_numbers() -> None:
    u = NoiseSource(3, range(100_000)).uniform(step=9)
    assert u.dtype == torch.float64
    assert u.min() > 0
    assert u.max() < 1
    rank = torch.arange(len(u), dtype=torch.float64) / len(u)
    assert (u.sort().values - rank).abs().max() < 1.95 / math.sqrt(len(u))
    assert len(u.unique()) == len(u)


def test_all_numbers_are_finite_and_typed() -> None:
    z = NoiseSource(2**64 - 1, [0, 2**32 - 1]).normal((100_003,), step=2**32 - 1, dtype=torch.bfloat16)
    assert z.shape == (2, 100_003)
    assert z.dtype == torch.bfloat16
    assert torch.isfinite(z).all()


@pytest.mark.parametrize(
    ("seed", "indices", "message"),
    [(-1, [0], "seed"), (2**64, [0], "seed"), (0, [], "image"), (0, [-1], "image"), (0, [2**32], "image")],
)
def test_impossible_seeds_and_images(seed: int, indices: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseSource(seed, indices)
