"""Noise schedules and respacing against the original tables (float64)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.golden_files import FLOAT64, Golden, for_each
from undiffuse.noise_levels import DiscreteSchedule, named_schedule, respacing_indices

# Every table of the original class, in terms of ours.
TABLES: dict[str, Callable[[DiscreteSchedule], np.ndarray]] = {
    "betas": lambda c: c.betas,
    "alphas_cumprod": lambda c: c.alphas_cumprod,
    "alphas_cumprod_prev": lambda c: np.append(1.0, c.alphas_cumprod[:-1]),
    "alphas_cumprod_next": lambda c: np.append(c.alphas_cumprod[1:], 0.0),
    "sqrt_alphas_cumprod": lambda c: np.sqrt(c.alphas_cumprod),
    "sqrt_one_minus_alphas_cumprod": lambda c: np.sqrt(1 - c.alphas_cumprod),
    "log_one_minus_alphas_cumprod": lambda c: np.log(1 - c.alphas_cumprod),
    "sqrt_recip_alphas_cumprod": lambda c: np.sqrt(1 / c.alphas_cumprod),
    "sqrt_recipm1_alphas_cumprod": lambda c: np.sqrt(1 / c.alphas_cumprod - 1),
    "posterior_variance": lambda c: c.posterior_variance,
    "posterior_log_variance_clipped": lambda c: c.posterior_log_variance_clipped,
    "posterior_mean_coef1": lambda c: c.posterior_mean_coef1,
    "posterior_mean_coef2": lambda c: c.posterior_mean_coef2,
}


def specification(text: str) -> str:
    """A specification of the golden files as ours: "[25]" is the original's list of section counts."""
    return text.strip("[]")


def relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    """Largest element-wise relative error: tables span many magnitudes and every entry of them is used."""
    if value.shape != expected.shape:
        return float("inf")
    scale = np.where(expected == 0, 1.0, np.abs(expected))
    return float(np.max(np.abs(value - expected) / scale))


@for_each("schedules")
def test_golden_tables(path: Path) -> None:
    golden = Golden(path)
    for key in golden.names():
        expected = golden.take(key).numpy()
        if key.startswith("respaced_betas."):
            steps, spec = key.removeprefix("respaced_betas.").split("|")
            value = named_schedule("cosine", int(steps)).respaced(specification(spec)).betas
        else:
            schedule, steps, name = key.split(".")
            value = TABLES[name](named_schedule(schedule, int(steps)))
        error = relative_error(value, expected)
        if not error <= FLOAT64:
            golden.fail(f"{key}: relative error {error:.3g}")
    golden.finish()


@for_each("schedules")
def test_golden_respacing_grids(path: Path) -> None:
    wrong = []
    for key, kept in Golden(path).meta["respacing"].items():
        steps, spec = key.split("|")
        chain = named_schedule("cosine", int(steps)).respaced(specification(spec))
        if respacing_indices(int(steps), specification(spec)) != kept or chain.indices.tolist() != kept:
            wrong.append(key)
        # The same steps given one by one are the same chain.
        np.testing.assert_array_equal(named_schedule("cosine", int(steps)).respaced(kept).betas, chain.betas)
    assert not wrong


@for_each("schedules")
def test_golden_impossible_specifications(path: Path) -> None:
    for key, verdict in Golden(path).meta["errors"].items():
        steps, spec = key.split("|")
        counts = (
            []
            if "ddim" in spec
            else [int(n) for n in specification(spec).split(",") if n.strip().lstrip("-").isdigit()]
        )
        # The original lets through what keeps no step at all, and negative counts; we name the mistake.
        pointless = bool(counts) and (min(counts) < 0 or sum(counts) == 0)
        if verdict == "accepted" and not pointless:
            kept = respacing_indices(int(steps), specification(spec))
            wanted = int(spec[4:]) if spec.startswith("ddim") else sum(counts)
            assert len(kept) == wanted, key
        else:
            with pytest.raises(ValueError, match=r"no integer stride|cannot|must be"):
                respacing_indices(int(steps), specification(spec))


@pytest.mark.parametrize(
    ("steps", "spec", "names"),
    [
        (1000, "ddim600", "nearest N for 'ddimN' are .*500"),
        (10, "20", "at most 10"),
        (100, "60,60", "section 1 of 2 cannot keep 60 steps: it has 50"),
        (1000, "ddim1", "nearest N for 'ddimN'"),
        (1000, "lots", "ddim25"),
        (1000, [0, 0], "distinct"),
        (1000, [0, 1000], "999"),
        (1000, [], "one or more"),
        (1000, "0", "from 1 to 1000"),
    ],
)
def test_impossible_specifications_say_what_is_possible(steps: int, spec: str | list[int], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        respacing_indices(steps, spec)
