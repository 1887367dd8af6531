"""Schedules, chains and sub-chains against values and identities known without any implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from undiffuse.denoiser import TimeAdapter
from undiffuse.noise_levels import DiscreteSchedule, Level, diffuse, linear_betas, named_schedule, respacing_indices

# schedule, T -> beta_1, beta_T, abar at T/4, T/2, 3T/4, T-1, T, clipped betas, fraction of abar < 1e-3, log-SNR of the
# first and last step, beta~/beta at t = 2, 10, 100, beta~_2, prior bits/dim for mean x0^2 = 1/4. Computed in float64.
SCALARS = {
    ("linear", 1000): (1e-4, 0.02, 0.52408537, 0.078587243, 0.0033505504, 4.1181936e-5, 4.0358298e-5, 0, 0.175,
                       9.2102, -10.1177, 0.4547, 0.8528, 0.9819, 5.453187661e-5, 7.28e-6),
    ("linear", 4000): (2.5e-5, 0.005, 0.52378077, 0.078944873, 0.0034186012, 4.2679922e-5, 4.2466523e-5, 0, 0.1725,
                       10.5966, -10.0668, 0.4879, 0.8817, 0.9830, 1.280362861e-5, 7.66e-6),
    ("cosine", 1000): (4.128422482e-5, 0.999, 0.84701216, 0.49384359, 0.1442721, 2.4287669e-6, 2.4287669e-9, 1, 0.021,
                       10.0950, -19.8359, 0.4722, 0.8654, 0.9816, 2.178949615e-5, 4.4e-10),
    ("cosine", 4000): (9.865818814e-6, 0.999, 0.84701216, 0.49384359, 0.1442721, 1.5179805e-7, 1.5179805e-10, 1, 0.0205,
                       11.5264, -22.6085, 0.4924, 0.8878, 0.9840, 5.007683395e-6, 2.7e-11),
}  # fmt: skip


@pytest.mark.parametrize(("schedule", "steps"), SCALARS)
def test_scalar_table(schedule: str, steps: int) -> None:
    c = named_schedule(schedule, steps)
    abar = c.alphas_cumprod
    snr = c.level(torch.tensor([0, steps - 1])).logsnr.tolist()
    prior = 0.5 * (-1 - math.log1p(-abar[-1]) + (1 - abar[-1]) + abar[-1] * 0.25) / math.log(2)
    ratio = c.posterior_variance / c.betas
    got = [
        c.betas[0], c.betas[-1], *abar[[steps // 4 - 1, steps // 2 - 1, 3 * steps // 4 - 1, -2, -1]],
        np.sum(c.betas == 0.999), np.mean(abar < 1e-3), *snr, *ratio[[1, 9, 99]], c.posterior_variance[1], prior,
    ]  # fmt: skip
    # Each expected value is given to a number of digits: compare to half a unit of the last one.
    for value, expected in zip(got, SCALARS[schedule, steps], strict=True):
        digits = len(f"{expected!r}".split("e")[0].replace(".", "").replace("-", "").lstrip("0"))
        exponent = math.floor(math.log10(abs(expected))) if expected else 0
        assert abs(value - expected) <= 0.51 * 10.0 ** (exponent - digits + 1) + 1e-15, (value, expected)


@pytest.mark.parametrize(
    ("spec", "head", "tail", "count"),
    [
        ("250", [0, 4, 8, 12, 16], [991, 995, 999], 250),
        ("100", [0, 10], [989, 999], 100),
        ("25", [0, 42, 83, 125, 166, 208], [957, 999], 25),
        ("ddim25", [0, 40], [920, 960], 25),
        ("90,60,60,20,20", [0, 2, 4, 7, 9, 11], [999], 250),
        ([999, 0, 10], [0, 10, 999], [0, 10, 999], 3),
        ("at:0,10,999", [0, 10, 999], [0, 10, 999], 3),
        (1000, [0, 1, 2], [998, 999], 1000),
        ("", [0, 1, 2], [998, 999], 1000),
    ],
)
def test_published_grids(spec: str | int | list[int], head: list[int], tail: list[int], count: int) -> None:
    kept = respacing_indices(1000, spec)
    assert (kept[: len(head)], kept[-len(tail) :], len(kept)) == (head, tail, count)


def test_respaced_betas() -> None:
    linear = named_schedule("linear", 1000)
    assert [round(linear.respaced(s).betas[-1], 7) for s in ("250", "25", "ddim25")] == [
        0.0775193,
        0.5643942,
        0.5326018,
    ]
    assert linear.respaced("250").betas[0] == pytest.approx(1e-4, rel=1e-9)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("spec", ["250", "ddim25", "90,60,60,20,20", [0, 10, 500, 999], "1"])
def test_sub_chain_keeps_levels_and_original_times(schedule: str, spec: str | list[int]) -> None:
    """abar of the kept steps is preserved, and a network is told the original step number (times 1000 / T if rescaled).

    Going through 1 - beta costs digits where a stride removes nearly all signal, beta = 1 - 5e-9 at worst here.
    """
    full = named_schedule(schedule, 4000 if spec == "250" else 1000)
    sub = full.respaced(spec)
    np.testing.assert_allclose(sub.alphas_cumprod, full.alphas_cumprod[sub.indices], rtol=1e-8)
    for rescale in (False, True):
        tell = TimeAdapter(full, rescale)
        told = tell(sub.level(torch.arange(sub.steps)), torch.zeros(sub.steps, 1, 1, 1))
        scale = 1000 / full.steps if rescale else 1
        torch.testing.assert_close(told.double(), torch.from_numpy(sub.indices * float(scale)), rtol=1e-7, atol=0)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_full_respacing_is_the_original_chain(schedule: str) -> None:
    full = named_schedule(schedule, 1000)
    for spec in ("1000", "ddim1000", list(range(1000))):
        again = full.respaced(spec)
        for table in (
            "betas",
            "posterior_variance",
            "posterior_log_variance_clipped",
            "posterior_mean_coef1",
            "posterior_mean_coef2",
        ):
            # 1 - abar_k / abar_{k-1} loses the digits beta lacks to 1, so the smallest betas are good to 1e-11.
            np.testing.assert_allclose(getattr(again, table), getattr(full, table), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(
    "chain",
    [named_schedule("linear", 1000), named_schedule("cosine", 50), named_schedule("cosine", 1000).respaced("25")],
)
def test_posterior_is_bayes_rule(chain: DiscreteSchedule) -> None:
    """q(x_s | x_t, x0) by multiplying N(x_s; .., x0) and N(x_t; .., x_s), independently of the closed form in use."""
    for k in (1, chain.steps // 2, chain.steps - 1):
        before, beta = chain.alphas_cumprod[k - 1], chain.betas[k]
        precision = 1 / (1 - before) + (1 - beta) / beta
        assert chain.posterior_variance[k] == pytest.approx(1 / precision, rel=1e-9)
        assert chain.posterior_mean_coef1[k] == pytest.approx(math.sqrt(before) / (1 - before) / precision, rel=1e-9)
        assert chain.posterior_mean_coef2[k] == pytest.approx(math.sqrt(1 - beta) / beta / precision, rel=1e-9)


@pytest.mark.parametrize("chain", [named_schedule("linear", 1000), named_schedule("cosine", 1000).respaced("ddim25")])
def test_mean_from_noise_equals_mean_from_image(chain: DiscreteSchedule) -> None:
    """(x_t - beta / sqrt(1 - abar) eps) / sqrt(1 - beta) = coef1 x0 + coef2 x_t (DDPM eq. 7 and 11)."""
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1, 3, 4, 4, generator=g, dtype=torch.float64)
    for k in (0, 1, chain.steps // 2, chain.steps - 1):
        t, beta = chain.transition(k), chain.betas[k]
        x = diffuse(x0, t.source, eps)
        from_noise = (x - beta / math.sqrt(1 - chain.alphas_cumprod[k]) * eps) / math.sqrt(1 - beta)
        torch.testing.assert_close(from_noise, t.coef_x0 * x0 + t.coef_xt * x, rtol=1e-9, atol=1e-12)


def test_transition_ends() -> None:
    chain = named_schedule("linear", 1000)
    t = chain.transition(torch.tensor([0, 1, 999]))
    assert t.last.tolist() == [True, False, False]
    assert (t.target_index.tolist(), t.source_index.tolist()) == ([-1, 0, 998], [0, 1, 999])
    assert t.target.sigma[0] == 0
    assert t.target.alpha[0] == 1
    assert t.log_posterior_variance[0] == t.log_posterior_variance[1] == math.log(chain.posterior_variance[1])
    assert (t.coef_x0[0], t.coef_xt[0]) == (pytest.approx(1), 0)
    for outside in (-1, 1000):
        with pytest.raises(ValueError, match="0 to 999"):
            chain.transition(outside)


def test_forward_marginal_by_single_steps() -> None:
    """Applying q(x_t | x_{t-1}) step by step gives the closed-form mean and variance of every x_t."""
    chain = named_schedule("cosine", 40)
    mean, variance = 1.0, 0.0
    for k, beta in enumerate(chain.betas):
        mean, variance = mean * math.sqrt(1 - beta), variance * (1 - beta) + beta
        level = chain.level(k)
        assert (level.alpha.item(), level.sigma.item() ** 2) == (
            pytest.approx(mean, rel=1e-12),
            pytest.approx(variance, rel=1e-12),
        )


def test_one_step_chains() -> None:
    """The original crashes on these; their only variance is beta."""
    for chain in (
        DiscreteSchedule([0.5]),
        named_schedule("cosine", 1),
        named_schedule("cosine", 1000).respaced("1"),
        DiscreteSchedule([0.3, 0.4]).respaced([1]),
    ):
        t = chain.transition(0)
        assert t.last.all()
        assert (t.coef_x0.item(), t.coef_xt.item()) == (pytest.approx(1), 0)
        assert t.log_posterior_variance.item() == pytest.approx(math.log(chain.betas[0]))


@pytest.mark.parametrize("betas", [[0.1, 0.0], [0.1, 1.5], [-0.1], [], [[0.1]], [0.1, float("nan")]])
def test_impossible_betas_are_refused(betas: list[float]) -> None:
    with pytest.raises(ValueError, match="beta"):
        DiscreteSchedule(betas)


def test_bad_schedules_are_explained() -> None:
    with pytest.raises(ValueError, match="at least 20"):
        linear_betas(19)
    linear_betas(20)
    with pytest.raises(ValueError, match="linear, cosine"):
        named_schedule("quadratic", 10)
    with pytest.raises(ValueError, match="full chain"):
        named_schedule("linear", 100).respaced("10").respaced("5")


def test_levels_between_steps_interpolate_in_log_snr() -> None:
    chain = named_schedule("linear", 1000)
    a, b = chain.level(400).logsnr, chain.level(401).logsnr
    abar = torch.sigmoid(0.25 * a + 0.75 * b)
    assert chain.index_of(Level.from_alpha_bar(abar)).item() == pytest.approx(400.75, abs=1e-6)
    assert chain.index_of(Level.clean()).item() == 0
    assert chain.index_of(Level.noise()).item() == 999


@pytest.mark.parametrize(
    ("c", "expected"),
    [
        (1.0, [1, 1, 1, 1, 1]),
        (0.25, [0.9995, 0.9948, 0.766, 0.266, 0.250]),
        (0.01, [0.985, 0.852, 0.090, 0.011, 0.010]),
    ],
)
def test_optimal_variance_of_gaussian_data(c: float, expected: list[float]) -> None:
    """v of Var(x_{t-1} | x_t) = beta~ + coef1^2 Var(x0 | x_t) at t = 2, 10, 100, 500, 1000; data variance c."""
    chain = named_schedule("linear", 1000)
    k = np.array([1, 9, 99, 499, 999])
    abar = chain.alphas_cumprod[k]
    best = chain.posterior_variance[k] + chain.posterior_mean_coef1[k] ** 2 * c * (1 - abar) / (c * abar + 1 - abar)
    low = chain.posterior_log_variance_clipped[k]
    v = (np.log(best) - low) / (np.log(chain.betas[k]) - low)
    np.testing.assert_allclose(v, expected, atol=6e-4)
