"""Steps written down by hand: what an order cannot tell.

How much noise a setting means and at which level (any amount that is taken out again keeps the order), and mistakes of
a few per cent in the later terms of a step, which show in the order at very many steps only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from undiffuse.grids import NoisePath, grid
from undiffuse.noise_levels import Level, named_schedule
from undiffuse.prediction import Prediction
from undiffuse.sampling import generate, sample
from undiffuse.solvers import Solver, build_solver
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser

LINEAR = named_schedule("linear", 1000)
PATH = grid(LINEAR, "3", "at:-4,0,3")


class Told:
    """A denoiser that always answers 0, and remembers what it was asked: sigma / alpha, and x / alpha there."""

    chain = LINEAR
    conditions: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []

    def __call__(self, x: Tensor, level: Level, cond: Mapping[str, Tensor] | None = None) -> Prediction:
        self.asked.append((float(level.sigma / level.alpha), float(x.flatten()[0]) / float(level.alpha.flatten()[0])))
        return Prediction(x, level, "x0", torch.zeros_like(x))


class One:
    """Noise that is 1 in one draw (step, number) and 0 in all others."""

    def __init__(self, step: int, number: int = 0) -> None:
        self.which = step, number

    def __len__(self) -> int:
        return 1

    def normal(self, shape: Sequence[int], step: int = 0, purpose: str = "step", device: Any = "cpu") -> Tensor:
        here = (step, int(purpose.partition("+")[2] or 0)) == self.which and purpose != "x_T"
        return torch.full((1, *shape), float(here), dtype=torch.float64)


def asked(solver: Solver, step: int, path: NoisePath = PATH, number: int = 0) -> list[tuple[float, float]]:
    """What the denoiser was asked, where a single draw of step `step` (the first is 0) was one."""
    denoiser = Told()
    generate(denoiser, path, solver, One(step, number), (1, 1, 1), x_T=torch.zeros(1, 1, 1, 1, dtype=torch.float64))
    return denoiser.asked


S = [math.exp(-v / 2) for v in (-4.0, 0.0, 3.0)]  # sigma / alpha of the path's levels
ALPHA = [1 / math.sqrt(1 + s * s) for s in S]


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_draws_eta_times_the_posterior_deviation(eta: float) -> None:
    """n = eta (sigma' / sigma) sqrt(1 - alpha^2 / alpha'^2): asked about at the next level."""
    _, (s, x), _ = asked(build_solver("ddim", eta=eta), 0)
    sigma = [s * a for s, a in zip(S, ALPHA, strict=True)]
    expected = eta * sigma[1] / sigma[0] * math.sqrt(1 - (ALPHA[0] / ALPHA[1]) ** 2)
    assert (s, x) == pytest.approx((S[1], expected / ALPHA[1]), rel=1e-9)


@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.parametrize(("churn", "part"), [(0.6, 0.2), (30.0, math.sqrt(2) - 1)])
def test_churn_goes_up_by_its_part_of_the_level(name: str, churn: float, part: float) -> None:
    """s (1 + g), g = min(churn / steps, sqrt 2 - 1), by noise of deviation sqrt(s'^2 - s^2) s_noise in x / alpha."""
    seen = asked(build_solver(name, churn=churn, s_noise=1.1), 1)
    higher = S[1] * (1 + part)
    (found,) = [(s, x) for s, x in seen if s == pytest.approx(higher, rel=1e-9)]
    assert found[1] == pytest.approx(1.1 * math.sqrt(higher**2 - S[1] ** 2), rel=1e-9)


def test_churn_stays_within_its_levels() -> None:
    for options, churned in (({"s_max": 0.9 * S[0]}, [1, 2]), ({"s_min": 1.1 * S[2]}, [0, 1])):
        levels = [s for s, _ in asked(build_solver("euler", churn=0.3, **options), 0)]
        assert levels == pytest.approx([s * (1.1 if k in churned else 1) for k, s in enumerate(S)], rel=1e-9)


def test_langevin_time_is_the_rate_times_the_step() -> None:
    """z is weighed by sqrt(1 - c^2), c = exp(-rate h / correctors), h the step in log(alpha / sigma)."""
    for correctors, rate in ((1, 0.5), (3, 0.4)):
        seen = asked(build_solver("langevin-pc", correctors=correctors, rate=rate), 0, number=correctors - 1)
        kept = math.exp(-rate * 2.0 / correctors)
        assert seen[1 + correctors] == pytest.approx((S[1], math.sqrt(1 - kept**2) * S[1]), rel=1e-9)


def test_restart_goes_up_to_s_max_and_down_by_its_own_grid() -> None:
    low, high = S[2], 0.5
    seen = asked(build_solver("restart", restarts=1, inner=2, s_min=0.3, s_max=high), 2)
    up = next(k for k, (s, _) in enumerate(seen) if s == pytest.approx(high, rel=1e-9))
    assert seen[up][1] == pytest.approx(math.sqrt(high**2 - low**2), rel=1e-9)
    middle = ((high ** (1 / 7) + low ** (1 / 7)) / 2) ** 7
    levels = [s for s, _ in seen[up : up + 5]]  # Heun asks at both ends of each of the two steps
    assert levels == pytest.approx([high, middle, middle, low, low], rel=1e-9)


@pytest.mark.parametrize("name", ["dpmpp-2m-sde", "dpmpp-3m-sde"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_eta_of_the_reverse_diffusion(name: str, eta: float) -> None:
    """sigma' sqrt(1 - e^(-2 eta h)) z."""
    seen = asked(build_solver(name, eta=eta), 0)
    assert seen[1] == pytest.approx((S[1], S[1] * math.sqrt(1 - math.exp(-2 * eta * 2.0))), rel=1e-9)


MIXTURE = Mixture.scalar([0.4, 0.6], [-0.6, 0.5], [0.35, 0.3])


def first_step(solver: Solver, steps: str = "3", spec: str = "at:-4,0,3") -> tuple[Tensor, Tensor]:
    """(x / alpha where the path begins, x / alpha after the first step), of images of a mixture."""
    path = grid(LINEAR, steps, spec)
    x = Noise64(2, 5).normal((1, 1, 1))
    first = next(iter(sample(OracleDenoiser(MIXTURE, LINEAR), path, solver, Noise64(2, 5), (1, 1, 1), x_T=x)))
    begin, end = (path.transition(path.steps - 1).source, path.transition(path.steps - 1).target)
    return x / begin.alpha, first.x / end.alpha


def denoised(over: Tensor, s: float) -> Tensor:
    """D at x / alpha and s = sigma / alpha."""
    alpha = torch.tensor([1 / math.sqrt(1 + s * s)], dtype=torch.float64)
    return MIXTURE.denoised(over * alpha, alpha, s * alpha)


def noise_of(over: Tensor, s: float) -> Tensor:
    return (over - denoised(over, s)) / s


def test_heun() -> None:
    """x + (s' - s) (d + d') / 2 in x / alpha (Karras et al. 2022, algorithm 1)."""
    x, got = first_step(build_solver("heun"))
    d = noise_of(x, S[0])
    other = noise_of(x + (S[1] - S[0]) * d, S[1])
    torch.testing.assert_close(got, x + (S[1] - S[0]) * (d + other) / 2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["dpmpp-2s", "dpmpp-3m", "deis", "ab3"])
def test_the_second_order_step_of_2s(name: str) -> None:
    """D half way in log-SNR serves the whole step: e^-h x + (1 - e^-h) D2, u = e^(-h / 2) x + (1 - e^(-h / 2)) D1."""
    x, got = first_step(build_solver(name))
    h, middle = math.log(S[0] / S[1]), math.sqrt(S[0] * S[1])
    u = math.exp(-h / 2) * x + (1 - math.exp(-h / 2)) * denoised(x, S[0])
    expected = math.exp(-h) * x + (1 - math.exp(-h)) * denoised(u, middle)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_the_runge_kutta_start_of_pndm() -> None:
    """The classical method in s, its middle half way in s."""
    x, got = first_step(build_solver("pndm"), "5", "at:-4,-2,0,1,3")
    end = math.exp(1.0)
    h, middle = end - S[0], (S[0] + end) / 2
    a = noise_of(x, S[0])
    b = noise_of(x + h / 2 * a, middle)
    c = noise_of(x + h / 2 * b, middle)
    d = noise_of(x + h * c, end)
    torch.testing.assert_close(got, x + h / 6 * (a + 2 * b + 2 * c + d), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["dpmpp-3m", "ab3", "deis"])
def test_the_third_step_integrates_a_parabola(name: str) -> None:
    """Through what was predicted at the last three levels: of D by e^-(l' - l) dl (3M), of the noise by ds (DEIS in s,
    Adams in l = log(alpha / sigma)), here by Simpson's rule."""
    path = grid(LINEAR, "5", "at:-4,-2.2,-0.3,1.1,3")
    noise = Noise64(4, 3)
    run = list(sample(OracleDenoiser(MIXTURE, LINEAR), path, build_solver(name), noise, (1, 1, 1)))[:3]
    levels = [path.transition(4 - k).source for k in range(4)]
    half = [float(level.logsnr) / 2 for level in levels]
    s = [math.exp(-v) for v in half]
    x, got = run[1].x / levels[2].alpha, run[2].x / levels[3].alpha
    where = s if name == "deis" else half
    at = torch.linspace(where[2], where[3], 2001, dtype=torch.float64)
    simpson = torch.ones(2001, dtype=torch.float64)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    simpson *= (where[3] - where[2]) / 2000 / 3
    values = [(r.prediction.x0 if name == "dpmpp-3m" else r.prediction.eps) for r in run]
    weighed = {"dpmpp-3m": torch.exp(at - half[3]), "ab3": -torch.exp(-at), "deis": torch.ones_like(at)}[name] * simpson
    total = (s[3] / s[2] if name == "dpmpp-3m" else 1.0) * x
    for k, value in enumerate(values):
        others = [where[j] for j in range(3) if j != k]
        basis = math.prod((at - w) / (where[k] - w) for w in others)
        total = total + (weighed * basis).sum() * value
    torch.testing.assert_close(got, total, rtol=1e-8, atol=1e-8)
