"""Samplers of the training timestep: what is drawn, with which weight, and that the loss stays unbiased."""

from __future__ import annotations

import numpy as np
import pytest

from undiffuse.noise import NoiseSource
from undiffuse.timesteps import SAMPLERS, LossSecondMoment, make_timestep_sampler

STEPS = 20
LOSS = np.exp(-np.arange(STEPS) / 3.0) * 7 + 0.1  # expected loss of each step, very uneven as the bound's is


def uniforms(count: int, step: int) -> np.ndarray:
    return NoiseSource(0, range(count)).uniform(step).numpy()


def warmed_up() -> LossSecondMoment:
    sampler = LossSecondMoment(STEPS)
    for k in range(10):
        sampler.update(np.arange(STEPS), LOSS * (1 + 0.3 * (-1) ** k))
    return sampler


def estimates(sampler: object, rounds: int = 400, batch: int = 16) -> np.ndarray:
    """Weighted means of the loss over many batches."""
    out = []
    for step in range(rounds):
        t, weights = sampler.sample(uniforms(batch, step))  # type: ignore[attr-defined]
        assert t.dtype == np.int64
        assert ((t >= 0) & (t < STEPS)).all()
        out.append(np.mean(LOSS[t] * weights))
    return np.array(out)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_unbiased(name: str) -> None:
    sampler = warmed_up() if name == "loss-second-moment" else make_timestep_sampler(name, STEPS)
    got = estimates(sampler)
    error = got.std() / np.sqrt(len(got))
    assert abs(got.mean() - LOSS.mean()) < 4.5 * error
    assert error < 0.1  # the bar itself is no excuse


def test_importance_and_stratified_sampling_lower_the_variance() -> None:
    spread = {name: estimates(make_timestep_sampler(name, STEPS)).std() for name in SAMPLERS if "loss" not in name}
    assert estimates(warmed_up()).std() < 0.15 * spread["uniform"]  # p ~ loss: almost no variance is left
    assert spread["stratified"] < 0.5 * spread["uniform"]
    assert spread["antithetic"] < 0.9 * spread["uniform"]


def test_importance_probabilities_by_the_formula() -> None:
    """p = 0.999 w / sum w + 0.001 / T, w the root mean square of the last ten losses; uniform until all are there."""
    sampler = LossSecondMoment(STEPS)
    history = {t: [] for t in range(STEPS)}
    rng = np.random.default_rng(0)
    for _ in range(400):
        t, loss = rng.integers(0, STEPS, 3), rng.random(3) * 5
        full = all(len(h) >= 10 for h in history.values())
        w = np.array([np.sqrt(np.mean(np.square(h[-10:]))) if full else 1.0 for h in history.values()])
        expected = 0.999 * w / w.sum() + 0.001 / STEPS if full else w / STEPS
        np.testing.assert_allclose(sampler.probabilities(), expected, rtol=1e-12)
        np.testing.assert_allclose(
            sampler.sample(np.array([0.5]))[1], 1 / (STEPS * expected[sampler.sample(np.array([0.5]))[0]])
        )
        sampler.update(t, loss)
        for step, value in zip(t.tolist(), loss.tolist(), strict=True):
            history[step].append(value)
    assert full


def test_draws_follow_the_probabilities() -> None:
    sampler = warmed_up()
    t, _ = sampler.sample(uniforms(40_000, 0))
    p = sampler.probabilities()
    counts = np.bincount(t, minlength=STEPS)
    chi2 = np.sum((counts - len(t) * p) ** 2 / (len(t) * p))
    assert chi2 < 50  # 19 degrees of freedom: 50 is exceeded once in 10 000 draws


def test_antithetic_pairs_and_stratified_combs() -> None:
    t, weights = make_timestep_sampler("antithetic", STEPS).sample(uniforms(7, 1))
    assert (t[0:6:2] + t[1:6:2] == STEPS - 1).all()
    assert (weights == 1).all()
    for step in range(20):
        t, _ = make_timestep_sampler("stratified", STEPS).sample(uniforms(STEPS, step))
        assert sorted(t) == list(range(STEPS))


def test_uneven_losses_do_not_enter_when_not_finite() -> None:
    sampler = warmed_up()
    before = sampler.probabilities()
    sampler.update(np.array([3, 4]), np.array([np.nan, np.inf]))
    np.testing.assert_array_equal(sampler.probabilities(), before)


def test_the_state_is_all_there_is() -> None:
    a, b = warmed_up(), LossSecondMoment(STEPS)
    b.load_state_dict(a.state_dict())
    for sampler in (a, b):
        sampler.update(np.array([1, 1, 5]), np.array([3.0, 4.0, 5.0]))
    np.testing.assert_array_equal(a.probabilities(), b.probabilities())
    with pytest.raises(ValueError, match="8 timesteps"):
        LossSecondMoment(8).load_state_dict(a.state_dict())
    with pytest.raises(ValueError, match="uniform, antithetic"):
        make_timestep_sampler("cleverest", STEPS)
