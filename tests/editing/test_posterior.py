"""Sampling given an observation, against Gaussian data, whose posteriors are known exactly.

x0 ~ N(m, C), y = A x0 + n:   x0 | y ~ N(m + K (y - A m), C - K A C),  K = C A^T (A C A^T + noise^2 I)^-1
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.editing import DPS, Blur, Downsampling, Mask, ObservationGuidance, Operator, repaint
from undiffuse.editing.observation import conjugate_gradient
from undiffuse.grids import grid
from undiffuse.guidance import LossGuidance
from undiffuse.noise_levels import Level, named_schedule
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM, DDPM, build_solver
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser

CHAIN = named_schedule("linear", 1000)
SHAPE = (1, 2, 2)
SEEN = torch.tensor([True, True, True, False]).reshape(1, 1, 2, 2)
OPERATORS: dict[str, Operator] = {"mask": Mask(SEEN), "downsampling": Downsampling(2), "blur": Blur(0.6)}
NOISE = 0.1
FULL = Mixture.random(SHAPE, components=1, seed=5)
"""Gaussian data with correlations."""
ROUND = Mixture(SHAPE, FULL.weights, FULL.means, torch.full_like(FULL.variances, 0.4**2))
"""The same without any, and with one standard deviation, 0.4."""


def matrix(operator: Operator) -> Tensor:
    eye = torch.eye(4, dtype=torch.float64)
    return operator(eye.reshape(4, *SHAPE)).flatten(1).T


def posterior(data: Mixture, operator: Operator, y: Tensor, noise: float) -> Mixture:
    """x0 | y for one observation y [1, C, h, w]."""
    mean, cov = data.moments()
    a = matrix(operator)
    inner = a @ cov @ a.T + noise**2 * torch.eye(len(a), dtype=torch.float64)
    gain = cov @ a.T @ torch.linalg.pinv(inner)
    values, vectors = torch.linalg.eigh(cov - gain @ a @ cov)
    centre = mean + gain @ (y.flatten() - a @ mean)
    return Mixture(SHAPE, data.weights, centre[None], values.clamp(min=0)[None], vectors[None])


def observation(data: Mixture, operator: Operator) -> Tensor:
    """y [1, C, h, w] of some image of the data."""
    return operator(data.sample(1, seed=1)) + NOISE * operator(torch.full((1, *SHAPE), 0.5, dtype=torch.float64))


def guided_score(guided: ObservationGuidance, level: Level, x: Tensor, y: Tensor) -> Tensor:
    return guided(x, level, {"observed": y.expand(len(x), -1, -1, -1)}).guided_score().score


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("k", [5, 300, 900])
def test_moment_matching_is_exact_for_gaussian_data(name: str, k: int) -> None:
    """As many steps of conjugate gradients as numbers seen: the score of the posterior, at every level."""
    operator, level, x = OPERATORS[name], CHAIN.level(k), Noise64(0, 3).normal(SHAPE)
    y = observation(FULL, operator)
    exact = posterior(FULL, operator, y, NOISE).score(x, level.alpha, level.sigma)
    guided = ObservationGuidance(OracleDenoiser(FULL, CHAIN), operator, NOISE, iterations=4)
    torch.testing.assert_close(guided_score(guided, level, x, y), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("k", [5, 300, 900])
def test_pigdm_is_exact_for_gaussian_data_of_one_deviation(name: str, k: int) -> None:
    operator, level, x = OPERATORS[name], CHAIN.level(k), Noise64(0, 3).normal(SHAPE)
    y = observation(ROUND, operator)
    exact = posterior(ROUND, operator, y, NOISE).score(x, level.alpha, level.sigma)
    right = ObservationGuidance(OracleDenoiser(ROUND, CHAIN), operator, NOISE, data_std=0.4)
    torch.testing.assert_close(guided_score(right, level, x, y), exact, rtol=1e-8, atol=1e-8)


def test_pigdm_is_not_exact_for_other_data_and_iterations_close_the_gap() -> None:
    operator, level, x = OPERATORS["mask"], CHAIN.level(300), Noise64(0, 3).normal(SHAPE)
    y = observation(FULL, operator)
    exact = posterior(FULL, operator, y, NOISE).score(x, level.alpha, level.sigma)
    errors = []
    for iterations in range(4):
        guided = ObservationGuidance(OracleDenoiser(FULL, CHAIN), operator, NOISE, iterations=iterations)
        errors.append(float((guided_score(guided, level, x, y) - exact).norm()))
    assert errors[0] > 0.1
    assert errors[3] < 1e-6  # three numbers are seen
    assert errors[3] < errors[2] < errors[0]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.flatten(1).mean(0), torch.cov(x.flatten(1).T)


COUNT = 3000


@pytest.mark.parametrize(("solver", "steps"), [("dpmpp-2m", 40), ("ddpm", 150), ("heun", 30)])
def test_samples_have_the_posterior_s_moments(solver: str, steps: int) -> None:
    """Through the whole of sampling, with solvers of different kinds."""
    operator = OPERATORS["mask"]
    y = observation(FULL, operator)
    guided = ObservationGuidance(OracleDenoiser(FULL, CHAIN, "optimal"), operator, NOISE, iterations=3)
    path = grid(CHAIN, steps, "logsnr")
    cond = {"observed": y.expand(COUNT, -1, -1, -1)}
    mean, cov = moments(generate(guided, path, build_solver(solver), Noise64(0, COUNT), SHAPE, cond=cond))
    exact = posterior(FULL, operator, y, NOISE).moments()
    torch.testing.assert_close(mean, exact[0], rtol=0, atol=0.02)
    torch.testing.assert_close(cov, exact[1], rtol=0, atol=0.02)


def test_dps_goes_to_the_observation_but_not_to_the_posterior() -> None:
    """It fits what was seen the better the longer its steps, and its unseen pixel comes near the posterior's mean; but
    the spread is not the posterior's."""
    operator = OPERATORS["mask"]
    y = observation(FULL, operator)
    path, many = CHAIN.respaced("100"), y.expand(COUNT, -1, -1, -1)
    denoiser, exact = OracleDenoiser(FULL, CHAIN), posterior(FULL, operator, y, NOISE).moments()
    unguided = generate(denoiser, path, DDPM(), Noise64(0, COUNT), SHAPE)
    distance = {0.0: float((operator(unguided) - y).flatten(1).norm(dim=1).mean())}
    for zeta in (0.02, 0.1):
        dps = DPS(DDPM(), operator, many, zeta)
        assert dps.name == "dps-ddpm"
        x = generate(denoiser, path, dps, Noise64(0, COUNT), SHAPE)
        distance[zeta] = float((operator(x) - y).flatten(1).norm(dim=1).mean())
    assert distance[0.1] < 0.5 * distance[0.02] < 0.5 * distance[0.0]
    mean, cov = moments(x)
    hidden = 3
    assert (mean - exact[0])[hidden].abs() < 0.1
    assert (mean - exact[0]).abs().max() > 1e-3
    before = (moments(unguided)[0] - exact[0])[hidden].abs()
    assert (mean - exact[0])[hidden].abs() < 0.5 * before
    assert float(cov.diagonal()[:3].mean()) != pytest.approx(float(exact[1].diagonal()[:3].mean()), rel=0.1)


def test_dps_asks_the_network_as_often_as_its_solver() -> None:
    operator, y = OPERATORS["blur"], observation(FULL, OPERATORS["blur"]).expand(2, -1, -1, -1)
    for solver in (DDPM(), DDIM(), build_solver("heun")):
        counts = []
        for wrapped in (solver, DPS(solver, operator, y, 0.1)):
            denoiser = OracleDenoiser(FULL, CHAIN)
            generate(denoiser, grid(CHAIN, 6, "logsnr"), wrapped, Noise64(0, 2), SHAPE)
            counts.append(len(denoiser.calls))
        assert counts[0] == counts[1]


@pytest.mark.parametrize("name", OPERATORS)
def test_the_step_of_dps(name: str) -> None:
    """z times the gradient of the distance, which has length z where x0 moves as x does; shorter near the goal. The
    distance is in units in which the operator lengthens nothing."""
    operator, x = OPERATORS[name], Noise64(3, 4).normal(SHAPE)
    transition, y = CHAIN.transition(400), observation(FULL, operator).expand(4, -1, -1, -1)
    denoiser = OracleDenoiser(FULL, CHAIN)
    plain, _, _ = DDIM().step(denoiser, x, transition, None, lambda number=0: x)
    for zeta in (1e-3, 50.0):
        moved, _, _ = DPS(DDIM(), operator, y, zeta).step(denoiser, x, transition, None, lambda number=0: x)
        at = x.clone().requires_grad_()
        distance = (y - operator(denoiser(at, transition.source).x0)).flatten(1).norm(dim=1)
        distance = distance * (2 if name == "downsampling" else 1)
        loss = distance if zeta < 1 else 0.5 * distance**2  # within z of the goal
        expected = -(zeta if zeta < 1 else 1.0) * torch.autograd.grad(loss.sum(), at)[0]
        torch.testing.assert_close(moved - plain, expected)


class Silent:
    """No noise at all: what is linear in noise then gives the mean."""

    def __len__(self) -> int:
        return 1

    def normal(self, shape: tuple[int, ...], step: int = 0, purpose: str = "", device: str = "cpu") -> Tensor:
        return torch.zeros(1, *shape, dtype=torch.float64)


def filled(resamples: int, jump: int = 10, steps: str = "50") -> Tensor:
    """The mean of RePaint's fourth pixel, exactly: for Gaussian data all steps are linear."""
    y = observation(FULL, OPERATORS["mask"])
    denoiser, mask = OracleDenoiser(FULL, CHAIN), Mask(SEEN)
    chain = CHAIN.respaced(steps)
    *_, last = repaint(denoiser, chain, DDPM(), Silent(), y, mask, jump=jump, resamples=resamples)
    assert last.total == chain.steps * resamples == last.index + 1 == last.nfe
    assert torch.equal(mask(last.x), mask(y)), "what is known is kept exactly"
    return last.x.flatten()[3]


def test_repaint_comes_closer_to_the_posterior_with_resampling_but_not_all_the_way() -> None:
    """Its mean's error as a part of the way from the data's mean to the posterior's, in 50 steps, by (resamples, jump):
    plain replacement is biased even with exact scores, and short stretches are better than long ones.
    """
    y = observation(FULL, OPERATORS["mask"])
    exact = posterior(FULL, OPERATORS["mask"], y, 0.0).means[0, 3]
    prior = FULL.means[0, 3]
    errors = {(r, j): float((filled(r, j) - exact) / (prior - exact)) for r, j in ((1, 10), (3, 10), (10, 10), (10, 1))}
    assert errors == pytest.approx({(1, 10): 0.566, (3, 10): 0.461, (10, 10): 0.455, (10, 1): 0.152}, abs=0.002)


def test_repaint_s_spread() -> None:
    """Mean and variance of the filled pixel from many samples."""
    y = observation(FULL, OPERATORS["mask"])
    exact = posterior(FULL, OPERATORS["mask"], y, 0.0)
    known = y.expand(COUNT, -1, -1, -1)
    steps = repaint(
        OracleDenoiser(FULL, CHAIN, "optimal"), CHAIN.respaced("40"), DDPM(), Noise64(0, COUNT), known, Mask(SEEN),
        jump=4, resamples=8,
    )  # fmt: skip
    *_, last = steps
    mean, cov = moments(last.x)
    scale = float(FULL.moments()[1][3, 3].sqrt())
    assert abs(float(mean[3] - exact.means[0, 3])) < 0.15 * scale
    assert float(cov[3, 3]) == pytest.approx(float(exact.moments()[1][3, 3]), rel=0.3)


def test_repaint_does_not_depend_on_the_batch_and_takes_any_path() -> None:
    known = FULL.sample(3, seed=2)
    denoiser, path = OracleDenoiser(FULL, CHAIN), grid(CHAIN, 7, "logsnr")
    solver = build_solver("dpmpp-2m")
    *_, all_three = repaint(denoiser, path, solver, Noise64(0, 3), known, Mask(SEEN), jump=3, resamples=2)
    *_, first = repaint(denoiser, path, solver, Noise64(0, 1), known[:1], Mask(SEEN), jump=3, resamples=2)
    torch.testing.assert_close(all_three.x[:1], first.x)
    assert all_three.total == 14
    with pytest.raises(ValueError, match="1 or more steps"):
        next(repaint(denoiser, path, solver, Noise64(0, 3), known, Mask(SEEN), jump=0))
    with pytest.raises(ValueError, match="noise for 2"):
        next(repaint(denoiser, path, solver, Noise64(0, 2), known, Mask(SEEN)))


def test_reusing_the_gradient() -> None:
    y = observation(FULL, OPERATORS["mask"])
    cond, results = {"observed": y}, {}
    for every in (1, 2):
        denoiser = OracleDenoiser(FULL, CHAIN)
        guided = ObservationGuidance(denoiser, OPERATORS["mask"], NOISE, every=every)
        results[every] = generate(guided, grid(CHAIN, 40, "logsnr"), DDIM(), Noise64(0, 1), SHAPE, cond=cond)
    assert not torch.equal(results[1], results[2])
    torch.testing.assert_close(results[1], results[2], rtol=0, atol=0.2)


def test_what_is_used_again_is_the_shift_of_the_noise() -> None:
    """sigma g, so that the gradient of the next call is larger as the noise is less."""
    y = observation(FULL, OPERATORS["mask"])
    guided = ObservationGuidance(OracleDenoiser(FULL, CHAIN), OPERATORS["mask"], NOISE, every=2)
    cond, x, found = {"observed": y}, Noise64(0, 1).normal(SHAPE), []
    for level in (CHAIN.level(600), CHAIN.level(200)):
        (guide,) = guided(x, level, cond).guides
        found.append(level.sigma * guide.gradient(x, level))
    torch.testing.assert_close(found[0], found[1])


class Linear(torch.nn.Module):
    """A network that predicts x0 = 5 x, far beyond white and black."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 5 * x


def test_clipped_pixels_can_be_pulled_back() -> None:
    """Where x0 is clipped, its derivative is zero, and a loss of it would leave the pixel where it is for ever."""
    denoiser = ChainDenoiser(Linear(), ProcessConfig(target="x0", variance="fixed_small"))
    x, level = torch.full((1, 1, 2, 2), 0.9), CHAIN.level(500)
    y = torch.zeros(1, 1, 2, 2)
    guided = ObservationGuidance(denoiser, Blur(0.5), 0.1)
    assert (guided_score(guided, level, x, y) - guided(x, level, {"observed": y}).score).abs().min() > 0.1
    loss = LossGuidance(denoiser, lambda x0: x0.square().flatten(1).sum(1))
    assert torch.equal(loss(x, level).guided_score().eps, loss(x, level).eps)


def test_bad_input_is_told() -> None:
    denoiser = OracleDenoiser(FULL, CHAIN)
    guided = ObservationGuidance(denoiser, Downsampling(2), 0.1)
    assert guided.conditions == {"observed"}
    x, level = torch.zeros(1, *SHAPE, dtype=torch.float64), CHAIN.level(10)
    with pytest.raises(ValueError, match="needs it: give cond="):
        guided(x, level)
    with pytest.raises(ValueError, match=r"observed is \[1, 1, 2, 2\].*observed as \[1, 1, 1, 1\]"):
        guided(x, level, {"observed": x})
    for wrong in ({"noise": -1.0}, {"noise": 0.1, "data_std": 0.0}, {"noise": math.nan}):
        with pytest.raises(ValueError, match="0 or more"):
            ObservationGuidance(denoiser, Blur(1.0), **wrong)
    with pytest.raises(ValueError, match="iterations"):
        ObservationGuidance(denoiser, Blur(1.0), 0.1, iterations=-1)
    with pytest.raises(ValueError, match="above 0"):
        DPS(DDIM(), Blur(1.0), x, 0.0)
    with pytest.raises(ValueError, match="outside any other guidance"):
        outer = ObservationGuidance(guided, Blur(1.0), 0.1)
        outer(x, level, {"observed": x[..., :1, :1]})


def test_next_to_pure_noise_nothing_guides() -> None:
    """There the derivative of x0 is the network's error times sigma / alpha, up to 20,000 on a cosine chain."""
    chain = named_schedule("cosine", 1000)
    denoiser, operator = OracleDenoiser(FULL, chain), OPERATORS["mask"]
    x, y = Noise64(3, 4).normal(SHAPE), observation(FULL, operator).expand(4, -1, -1, -1)
    guided = ObservationGuidance(denoiser, operator, 0.1, iterations=2)
    ratio = [float(chain.level(k).sigma / chain.level(k).alpha) for k in range(1000)]
    first = next(k for k in range(1000) if ratio[k] > 100)
    assert 900 < first < 999
    for k in (first - 1, first, 999):
        prediction = guided(x, chain.level(k), {"observed": y})
        assert len(prediction.guides) == (k < first)
        transition = chain.transition(k)
        steps = [solver.step(denoiser, x, transition, None, lambda number=0: x)[0]
                 for solver in (DDIM(), DPS(DDIM(), operator, y))]  # fmt: skip
        assert torch.equal(steps[0], steps[1]) == (k >= first)


def test_conjugate_gradients_begin_with_too_little() -> None:
    """Stopped early, moment matching moves x0 less than it should; Pi-GDM moves it too far where data vary much."""
    operator = Mask(SEEN)
    wide = Mixture(SHAPE, FULL.weights, FULL.means, torch.tensor([[100.0, 1.0, 0.01, 0.01]]).double(), FULL.rotations)
    level, x = CHAIN.level(900), Noise64(0, 1).normal(SHAPE)
    y = operator(torch.full((1, *SHAPE), 0.8, dtype=torch.float64))
    denoiser, exact = OracleDenoiser(wide, CHAIN), posterior(wide, operator, y, NOISE)
    target = exact.score(x, level.alpha, level.sigma) - denoiser(x, level).score
    sizes = []
    for settings in ({"iterations": 1}, {"iterations": 4}, {"data_std": 0.5}):
        guided = ObservationGuidance(denoiser, operator, NOISE, **settings)
        sizes.append(float((guided_score(guided, level, x, y) - denoiser(x, level).score).norm() / target.norm()))
    assert sizes[0] < 1.01
    assert sizes[1] == pytest.approx(1)
    assert sizes[2] > 10


def test_an_image_stops_where_the_jacobian_is_not_positive() -> None:
    """Each image by itself: the one with the negative product keeps 0, the others are solved."""
    diagonal = torch.tensor([[1.0, 4.0], [-1.0, -2.0], [2.0, 3.0]]).reshape(3, 1, 1, 2)
    found = conjugate_gradient(lambda u: diagonal * u, lambda u: u, torch.ones(3, 1, 1, 2), 2)
    expected = torch.tensor([[1.0, 0.25], [0.0, 0.0], [0.5, 1 / 3]]).reshape(3, 1, 1, 2)
    torch.testing.assert_close(found, expected)
    exact = conjugate_gradient(lambda u: diagonal * u, lambda u: u / diagonal.abs(), torch.ones(3, 1, 1, 2), 5)
    torch.testing.assert_close(exact, expected)


def test_no_guidance_at_scale_nought() -> None:
    denoiser = OracleDenoiser(FULL, CHAIN)
    idle = ObservationGuidance(denoiser, Blur(1.0), 0.1, scale=0.0)
    assert idle(torch.zeros(1, *SHAPE, dtype=torch.float64), CHAIN.level(10)).guides == ()
