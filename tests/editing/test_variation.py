"""SDEdit and class translation on data whose answers are known."""

from __future__ import annotations

import pytest
import torch

from undiffuse.editing import ddib, sdedit, shortened, steps_for
from undiffuse.grids import NoisePath, grid
from undiffuse.noise_levels import DiscreteSchedule, Level, named_schedule
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM, DDPM, build_solver
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser

CHAIN = named_schedule("linear", 1000)
MIXTURE = Mixture.random((1, 1, 2), components=4, seed=3, classes=2)
PATHS = [CHAIN.respaced("40"), grid(CHAIN, 40, "logsnr")]


@pytest.mark.parametrize("path", PATHS, ids=["chain", "grid"])
def test_strength_one_is_sampling_bit_for_bit(path: NoisePath) -> None:
    denoiser, noise = OracleDenoiser(MIXTURE, CHAIN), Noise64(0, 5)
    x0 = MIXTURE.sample(5, seed=1)
    for solver in (DDPM(), build_solver("heun")):
        *_, last = sdedit(denoiser, path, solver, noise, x0, steps_for(path, 1.0))
        assert torch.equal(last.x, generate(denoiser, path, solver, noise, MIXTURE.shape))


@pytest.mark.parametrize("path", PATHS, ids=["chain", "grid"])
def test_the_weaker_the_nearer_the_image(path: NoisePath) -> None:
    denoiser, noise = OracleDenoiser(MIXTURE, CHAIN), Noise64(0, 400)
    x0 = MIXTURE.sample(400, seed=1)
    errors = []
    for strength in (0.025, 0.25, 0.5, 0.9):
        *_, last = sdedit(denoiser, path, DDPM(), noise, x0, steps_for(path, strength))
        errors.append(float((last.x - x0).square().mean().sqrt()))
    assert errors == sorted(errors)
    assert errors[0] < 2 * float(path.level(0).sigma)  # one step: the noise of the cleanest level
    assert errors[-1] > 10 * errors[0]


def test_variations_of_data_are_data() -> None:
    """With exact scores the way up and down keeps the data's distribution at any strength: mean and covariance."""
    denoiser, path = OracleDenoiser(MIXTURE, CHAIN), grid(CHAIN, 40, "logsnr")
    x0 = MIXTURE.sample(4000, seed=1)
    *_, last = sdedit(denoiser, path, build_solver("dpmpp-2m"), Noise64(0, 4000), x0, steps_for(path, 0.6))
    mean, cov = MIXTURE.moments()
    torch.testing.assert_close(last.x.flatten(1).mean(0), mean, rtol=0, atol=0.04)
    torch.testing.assert_close(torch.cov(last.x.flatten(1).T), cov, rtol=0, atol=0.04)


def test_a_shortened_path_goes_through_the_same_levels() -> None:
    for path in PATHS:
        part = shortened(path, 13, CHAIN)
        assert part.steps == 13
        assert part.parent_steps == 1000
        assert type(part) is type(path)
        for k in range(1, 13):
            ours, theirs = part.transition(k), path.transition(k)
            for name in ("log_beta", "posterior_variance", "coef_x0", "coef_xt", "source_index", "target_index"):
                torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), msg=name)
        assert bool(part.transition(0).last)
        assert shortened(path, 40, CHAIN) is path
    with pytest.raises(ValueError, match="no last 41"):
        shortened(PATHS[0], 41, CHAIN)


def test_strength_by_log_snr() -> None:
    path = grid(CHAIN, 40, "logsnr")
    steps = steps_for(path, logsnr=0.0)
    assert float(path.level(steps - 1).logsnr) >= 0 > float(path.level(steps).logsnr)
    assert steps_for(path, 0.5) == 20
    assert steps_for(path, logsnr=-100.0) == 40
    for wrong, told in (({}, "either"), ({"strength": 0.001}, "changes nothing"), ({"logsnr": 99.0}, "changes nothing"),
                        ({"strength": 1.5}, "from 0 to 1"), ({"strength": 0.5, "logsnr": 0.0}, "either")):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            steps_for(path, **wrong)  # type: ignore[arg-type]


def test_translation_to_the_same_class_reconstructs() -> None:
    denoiser = OracleDenoiser(MIXTURE, CHAIN, conditional=True)
    x0 = MIXTURE.of_class(1).sample(20, seed=1)
    one = {"y": torch.ones(20, dtype=torch.int64)}
    errors = []
    for steps in ("50", "200"):
        *_, last = ddib(denoiser, CHAIN.respaced(steps), Noise64(0, 20), x0, one, one)
        errors.append(float((last.x - x0).square().mean().sqrt()))
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.05


def test_translation_to_another_class_gives_images_of_it() -> None:
    """Encoding and decoding carry one class's distribution onto the other's."""
    denoiser = OracleDenoiser(MIXTURE, CHAIN, conditional=True)
    x0 = MIXTURE.of_class(1).sample(3000, seed=1)
    zeros = {"y": torch.zeros(3000, dtype=torch.int64)}
    *_, last = ddib(denoiser, CHAIN.respaced("250"), Noise64(0, 3000), x0, {"y": zeros["y"] + 1}, zeros)
    mean, cov = MIXTURE.of_class(0).moments()
    torch.testing.assert_close(last.x.flatten(1).mean(0), mean, rtol=0, atol=0.06)
    torch.testing.assert_close(torch.cov(last.x.flatten(1).T), cov, rtol=0, atol=0.06)
    # The classes overlap, so that their own images are not always taken for theirs either.
    taken = [
        float((MIXTURE.class_log_posterior(x, *_clean()).argmax(1) == 0).double().mean())
        for x in (last.x, MIXTURE.of_class(0).sample(3000, seed=2), x0)
    ]
    assert taken[0] == pytest.approx(taken[1], abs=0.05)
    assert taken[2] < taken[1] - 0.15


def test_translation_part_of_the_way_keeps_more() -> None:
    denoiser, path = OracleDenoiser(MIXTURE, CHAIN, conditional=True), CHAIN.respaced("100")
    x0 = MIXTURE.of_class(1).sample(200, seed=1)
    zeros = {"y": torch.zeros(200, dtype=torch.int64)}
    ones = {"y": zeros["y"] + 1}
    moved = []
    for steps in (20, 50, None):
        *_, last = ddib(denoiser, path, Noise64(0, 200), x0, ones, zeros, steps=steps)
        moved.append(float((last.x - x0).square().mean()))
    assert moved[0] < moved[1] < moved[2]
    unconditional = OracleDenoiser(MIXTURE, CHAIN)
    *_, other = ddib(denoiser, path, Noise64(0, 200), x0, ones, None, decoder=unconditional, solver=DDIM())
    assert other.x.isfinite().all()


def _clean() -> tuple[torch.Tensor, torch.Tensor]:
    level = Level.clean()
    return level.alpha, level.sigma


def test_a_chain_can_be_shortened_to_one_step() -> None:
    part = shortened(CHAIN, 1, CHAIN)
    assert isinstance(part, DiscreteSchedule)
    assert part.steps == 1
