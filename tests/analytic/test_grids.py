"""Grids: levels by every rule, their transitions, texts that say them, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from undiffuse.grid_specs import GRIDS
from undiffuse.grids import FARTHEST, Grid, grid
from undiffuse.noise_levels import DiscreteSchedule, Level, named_schedule

LINEAR, COSINE = named_schedule("linear", 1000), named_schedule("cosine", 1000)
# Karras et al.'s 18 levels from 80 to 0.002, from an independent implementation.
EDM = (
    80, 57.586, 40.7856, 28.3746, 19.3525, 12.9101, 8.40094, 5.31519, 3.25682, 1.92334, 1.08817, 0.585348, 0.296442,
    0.139516, 0.0599473, 0.0229345, 0.00752802, 0.002,
)  # fmt: skip


def ratios(path: Grid | DiscreteSchedule) -> list[float]:
    """sigma / alpha, noisiest first."""
    levels = path.level(torch.arange(path.steps - 1, -1, -1))
    return (levels.sigma / levels.alpha).tolist()


def logsnrs(path: Grid | DiscreteSchedule) -> list[float]:
    return path.level(torch.arange(path.steps - 1, -1, -1)).logsnr.tolist()


def test_the_grid_of_edm() -> None:
    ends = f"from={-2 * math.log(80)},to={-2 * math.log(0.002)}"
    assert ratios(grid(LINEAR, 18, f"karras:{ends}")) == pytest.approx(EDM, rel=2e-5)


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "at"])
@pytest.mark.parametrize("chain", [LINEAR, COSINE, named_schedule("cosine", 40)])
@pytest.mark.parametrize("steps", [1, 2, 7, 25])
def test_every_rule_goes_down_from_noise_to_the_clean_image(name: str, chain: DiscreteSchedule, steps: int) -> None:
    path = grid(chain, str(steps), name)
    assert path.steps == len(path) == steps
    assert path.parent_steps == chain.steps
    got = logsnrs(path)
    assert got == sorted(got)
    assert bool(path.transition(0).last)
    assert path.transition(0).target.sigma.item() == 0
    assert path.transition(0).target.alpha.item() == 1
    noisiest, cleanest = chain.level(chain.steps - 1).logsnr.item(), chain.level(0).logsnr.item()
    assert noisiest - 1e-9 <= got[0] <= got[-1] <= cleanest + 1e-9
    if steps > 1 and name not in ("leading", "trailing"):
        first = max(noisiest, -2 * math.log(FARTHEST)) if name in ("karras", "logsnr") else noisiest
        assert (got[0], got[-1]) == pytest.approx((first, cleanest))
    # The network is told a time between the chain's ends, and the clean image is not a step of it.
    indices = torch.cat([path.transition(k).source_index for k in range(steps)])
    assert bool(((indices >= 0) & (indices <= chain.steps - 1)).all())
    assert int(path.transition(0).target_index) == -1


def test_what_the_rules_are_even_in() -> None:
    assert np.diff(logsnrs(grid(LINEAR, 9, "logsnr"))) == pytest.approx(np.full(8, 19.328 / 8), abs=0.2)
    assert np.ptp(np.diff(logsnrs(grid(LINEAR, 9, "logsnr:from=-6,to=8")))) < 1e-9
    roots = np.array(ratios(grid(LINEAR, 9, "karras:rho=3"))) ** (1 / 3)
    assert np.ptp(np.diff(roots)) < 1e-9
    t = {name: times(grid(LINEAR, 8, name)) for name in ("uniform", "trailing", "leading", "quadratic")}
    assert t["uniform"] == pytest.approx([999 - 999 / 7 * i for i in range(8)])
    plain, shifted = (logsnrs(grid(LINEAR, 3, f"uniform:shift={shift}")) for shift in (1, 0.5))
    assert shifted == pytest.approx([value + 2 * math.log(2) for value in plain])
    assert t["trailing"] == pytest.approx([999, 874, 749, 624, 499, 374, 249, 124])
    assert t["leading"] == pytest.approx([875, 750, 625, 500, 375, 250, 125, 0])
    assert np.ptp(np.diff(np.sqrt(t["quadratic"]))) < 1e-5


def times(path: Grid | DiscreteSchedule) -> list[float]:
    return [float(path.transition(k).source_index) for k in range(path.steps - 1, -1, -1)]


def test_whole_steps_are_the_chains_own_levels_to_the_bit() -> None:
    path = grid(COSINE, 8, "trailing")
    for k, t in enumerate(reversed(times(path))):
        assert torch.equal(path.level(k).alpha, COSINE.level(round(t)).alpha)
        assert torch.equal(path.level(k).sigma, COSINE.level(round(t)).sigma)


@pytest.mark.parametrize("spec", ["12", "ddim25", "at:0,10,500,999", "1", ""])
def test_transitions_are_those_of_the_chain_where_the_levels_are(spec: str) -> None:
    """All posterior coefficients of any two levels, by the general formulas and by the chain's betas."""
    for full in (LINEAR, COSINE):
        chain = full.respaced(spec)
        levels = chain.level(torch.arange(chain.steps - 1, -1, -1))
        path = Grid(np.append(levels.alpha, 1.0), np.append(levels.sigma, 0.0), full)
        k = torch.arange(chain.steps)
        ours, theirs = path.transition(k), chain.transition(k)
        for name in ("log_beta", "log_posterior_variance", "posterior_variance", "coef_x0", "coef_xt"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=2e-7, atol=1e-12, msg=name)
        assert torch.equal(ours.last, theirs.last)
        assert torch.equal(ours.adjacent, theirs.adjacent)
        torch.testing.assert_close(ours.source_index, theirs.source_index.double())


def test_a_path_that_does_not_preserve_the_variance() -> None:
    """Flow matching's alpha = 1 - t, sigma = t: the posterior by Bayes' rule, the bound exact for unit variance."""
    path = Grid([0.1, 0.4, 0.9, 1.0], [0.9, 0.6, 0.1, 0.0])
    step = path.transition(2)
    (at, st), (a, s) = (0.1, 0.9), (0.4, 0.6)
    noise = st**2 - (at / a) ** 2 * s**2  # of x_t given x_s
    precision = 1 / s**2 + (at / a) ** 2 / noise  # of x_s given x_t and x_0
    assert float(step.posterior_variance) == pytest.approx(1 / precision)
    assert float(step.coef_x0) == pytest.approx(a / s**2 / precision)
    assert float(step.coef_xt) == pytest.approx(at / a / noise / precision)
    joint = np.array([[a**2 + s**2, at * a + (at / a) * s**2], [0, at**2 + st**2]])  # of (x_s, x_t) for unit variance
    assert float(step.log_beta.exp()) == pytest.approx(joint[0, 0] - joint[0, 1] ** 2 / joint[1, 1])
    assert path.parent_steps is None


def test_explicit_levels_and_their_text() -> None:
    path = grid(LINEAR, "4", "at:-8,-4, 2,8")
    assert logsnrs(path) == pytest.approx([-8, -4, 2, 8])
    assert isinstance(path, Grid)
    assert logsnrs(grid(LINEAR, "4", path.spec)) == logsnrs(path)


def test_a_chain_that_ends_in_pure_noise() -> None:
    """Zero terminal SNR: the first level is pure noise on grids by t, and finite on grids by log-SNR."""
    betas = named_schedule("linear", 100).betas.copy()
    betas[-1] = 1.0
    chain = DiscreteSchedule(betas)
    assert logsnrs(grid(chain, 11, "uniform"))[0] == -math.inf
    assert logsnrs(grid(chain, 6, "logsnr"))[0] == pytest.approx(-2 * math.log(FARTHEST))
    assert bool(torch.isfinite(grid(chain, 11, "uniform").transition(10).coef_x0).all())
    with pytest.raises(ValueError, match="pure noise"):
        grid(chain, 90, "leading")


@pytest.mark.parametrize(
    ("steps", "spec", "message"),
    [
        ("10", "kerras", "choose one of chain, karras"),
        ("ddim25", "karras", "plain number"),
        ("0", "logsnr", "plain number"),
        ("10", "karras:rho=0", "above 0"),
        ("10", "karras:p=7", "no option 'p'"),
        ("10", "logsnr:rho=7", "no option 'rho'"),
        ("10", "logsnr:from=x", "not a number"),
        ("10", "logsnr:from=4,to=-4", "start at a lower log-SNR than it ends"),
        ("10", "logsnr:to=inf", "start at a lower log-SNR than it ends"),
        ("10", "chain:5", "unknown spacing '5'"),
        ("3", "at:1,2", "2 levels"),
        ("2", "at:1,b", "cannot read log-SNRs"),
        ("2", "at:1,1", "go from noisy to clean"),
        ("2000", "uniform", "1000 trained"),
        ("10", "uniform:x=1", "has: shift"),
        ("10", "leading:x=1", "has: none"),
        ("10", "uniform:shift=0", "shift must be above 0"),
    ],
)
def test_what_cannot_be_a_grid_is_explained(steps: str, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(LINEAR, steps, spec)


def test_levels_that_cannot_be_a_grid_are_explained() -> None:
    for alpha, sigma, message in (
        ([0.5], [0.5], "the same length, at least 2"),
        ([0.9, 0.1], [0.1, 0.9], "from noisy to clean"),
        ([math.nan, 1], [1, 0], "finite numbers"),
        ([-0.1, 1], [1, 0], "finite numbers"),
    ):
        with pytest.raises(ValueError, match=message), np.errstate(invalid="ignore"):
            Grid(alpha, sigma)
    with pytest.raises(ValueError, match="is out of range: this grid has the steps"):
        grid(LINEAR, 5, "logsnr").level(5)


def test_levels_from_log_snr() -> None:
    level = Level.from_logsnr(torch.tensor([-math.inf, -40.0, 0.0, 40.0, math.inf]))
    assert torch.equal(level.alpha[[0, 4]], torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(level.logsnr[1:4], torch.tensor([-40.0, 0, 40], dtype=torch.float64))
