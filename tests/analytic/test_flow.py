"""Likelihood by the probability flow: against the known log density of mixtures, estimates, steps, bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.likelihood import FlowConfig, bits_per_dim, flow_bits_per_dim, flow_density, flow_ends, mean_and_error
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import DiscreteSchedule, Level, named_schedule
from undiffuse.prediction import Prediction
from undiffuse.testing.oracles import Mixture, Noise64, OracleDenoiser, OracleNet

LINEAR = named_schedule("linear", 1000)
CHAINS = {
    "linear": LINEAR,
    "cosine": named_schedule("cosine", 1000),
    "edm": ProcessConfig(preconditioning="edm", target="edm", variance="fixed_small").chain(),
    "flow": ProcessConfig(preconditioning="flow", target="velocity", variance="fixed_small").chain(),
}
SCALAR = Mixture.scalar([0.2, 0.5, 0.3], [-1.0, 0.1, 0.8], [0.02, 0.25, 0.05])
WIDE = Mixture.random((1, 2, 3), 3, seed=4, classes=2)
EXACT = FlowConfig(probes=None, tol=1e-6)


def ratio(level: Level) -> float:
    return float(level.sigma / level.alpha)


def noisy(mixture: Mixture, chain: DiscreteSchedule, count: int, seed: int = 1) -> Tensor:
    """Images with the noise of the cleanest level on them."""
    x0 = mixture.sample(count, seed)
    return x0 + ratio(flow_ends(chain)[0]) * Noise64(seed, count).normal(mixture.shape)


def truth(mixture: Mixture, chain: DiscreteSchedule, y: Tensor) -> Tensor:
    return mixture.log_prob(y, torch.ones(1), torch.tensor([ratio(flow_ends(chain)[0])], dtype=torch.float64))


def terminal(mixture: Mixture):  # type: ignore[no-untyped-def]
    return lambda x, level: mixture.log_prob(x, level.alpha, level.sigma)


@pytest.mark.parametrize(
    ("name", "mixture"), [*((name, SCALAR) for name in CHAINS), ("linear", WIDE), ("edm", WIDE)],
    ids=[*CHAINS, "linear, six numbers", "edm, six numbers"],
)  # fmt: skip
def test_with_the_exact_trace_it_is_the_known_log_density(name: str, mixture: Mixture) -> None:
    chain = CHAINS[name]
    y = noisy(mixture, chain, 6)
    found = flow_density(OracleDenoiser(mixture, chain), y, Noise64(0, 6), config=EXACT, terminal=terminal(mixture))
    torch.testing.assert_close(found.log_p[:, 0], truth(mixture, chain, y), atol=5e-5, rtol=0)
    assert found.forced.tolist() == [0] * 6


def test_the_default_end_is_the_noise_that_samplers_begin_with() -> None:
    """It differs from the truth by what the noisy end knows of the data, and by nothing else."""
    y = noisy(SCALAR, LINEAR, 6)
    found = flow_density(OracleDenoiser(SCALAR, LINEAR), y, Noise64(0, 6), config=EXACT)
    noisiest = flow_ends(LINEAR)[1]
    assert ratio(noisiest) == pytest.approx(80)
    known = SCALAR.log_prob(found.latent, noisiest.alpha, noisiest.sigma)
    gap = found.log_p[:, 0] - truth(SCALAR, LINEAR, y)
    torch.testing.assert_close(gap, found.terminal - known, atol=5e-5, rtol=0)
    assert 1e-5 < gap.abs().max() < 0.03


def test_the_ends_are_those_of_the_chain() -> None:
    assert ratio(flow_ends(CHAINS["edm"])[0]) == pytest.approx(0.002)
    assert ratio(flow_ends(CHAINS["flow"])[0]) == pytest.approx(1 / 999)
    clean, noisiest = flow_ends(named_schedule("cosine", 50))
    assert float(clean.alpha**2) == pytest.approx(named_schedule("cosine", 50).alphas_cumprod[0])
    assert ratio(noisiest) == pytest.approx(80)
    assert ratio(flow_ends(named_schedule("linear", 100).respaced("at:0,50"))[1]) < 80
    with pytest.raises(ValueError, match="two levels"):
        flow_ends(DiscreteSchedule([0.5]))


def by_probes(probe: str, count: int, probes: int = 1) -> tuple[Tensor, float]:
    """Estimates of one log density [count, probes] with a probe each, and its true value."""
    y = noisy(WIDE, LINEAR, 1)
    config = FlowConfig(probes=probes, probe=probe, tol=1e-4)
    found = flow_density(
        OracleDenoiser(WIDE, LINEAR), y.expand(count, -1, -1, -1), Noise64(1, count), config=config,
        terminal=terminal(WIDE),
    )  # fmt: skip
    return found.log_p, float(truth(WIDE, LINEAR, y))


def test_probes_are_unbiased_and_signs_vary_less() -> None:
    """Means of 500 probes within 3 standard errors of the truth."""
    spread = {}
    for probe in ("rademacher", "gaussian"):
        values, known = by_probes(probe, 500)
        mean, error = mean_and_error(values[:, 0])
        assert 0 < error < 0.3
        assert abs(mean - known) < 3 * error
        spread[probe] = error
    assert spread["rademacher"] < spread["gaussian"]


def test_probes_of_an_image_are_independent() -> None:
    values, known = by_probes("rademacher", 120, 3)
    assert values.shape == (120, 3)
    assert torch.corrcoef(values.T).triu(1).abs().max() < 0.3
    mean, error = mean_and_error(values.mean(1))
    assert abs(mean - known) < 3 * error


def test_a_sign_is_exact_for_a_single_number() -> None:
    y = noisy(SCALAR, LINEAR, 3)
    both = [FlowConfig(probes=probes, tol=1e-3) for probes in (1, None)]
    one, exact = (flow_density(OracleDenoiser(SCALAR, LINEAR), y, Noise64(1, 3), config=c).log_p for c in both)
    torch.testing.assert_close(one, exact, atol=1e-9, rtol=0)


def test_a_smaller_tolerance_is_nearer_to_the_truth() -> None:
    y = noisy(SCALAR, LINEAR, 16)
    known = truth(SCALAR, LINEAR, y)
    errors, calls, tols = [], [], (1e-2, 1e-4, 1e-6, 1e-7)
    for tol in tols:
        config = FlowConfig(probes=None, tol=tol)
        found = flow_density(
            OracleDenoiser(SCALAR, LINEAR), y, Noise64(0, 16), config=config, terminal=terminal(SCALAR)
        )
        errors.append(float((found.log_p[:, 0] - known).abs().max()))
        calls.append(float(found.nfe.double().mean()))
    for tol, error in zip(tols, errors, strict=True):
        assert error < 100 * tol, errors
    assert errors[2] < 0.1 * errors[1] < 0.03 * errors[0], errors
    # The estimate of a step is of order 5: a tenth of the tolerance takes 10^(1/5) = 1.6 times as many short steps.
    assert 1.3 < calls[3] / calls[2] < 2, calls


def test_the_tolerance_is_of_a_dimension() -> None:
    """An image of sixteen numbers that are each the same problem takes the steps of one number."""
    calls = []
    for size in (1, 4):
        numbers = torch.zeros(1, size**2, dtype=torch.float64)
        same = Mixture((1, size, size), torch.ones(1, dtype=torch.float64), numbers, numbers + 0.04)
        y = torch.full((1, 1, size, size), 0.3, dtype=torch.float64)
        found = flow_density(OracleDenoiser(same, LINEAR), y, Noise64(0, 1), config=FlowConfig(probes=None, tol=1e-6))
        calls.append(int(found.nfe))
    assert calls[0] == calls[1] > 60


def test_the_pair_is_of_order_five() -> None:
    """x' = x cos u, q' = x: errors of a whole way in fixed steps fall with the fifth power, the estimate's too."""
    from undiffuse.likelihood import runge_kutta

    def slope(x: Tensor, u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return x * u.cos()[:, None], (x * u.cos()[:, None])

    errors, estimates = [], []
    for count in (32, 64, 128):
        x, u = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        step, q = torch.tensor([2.0 / count], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
        first = slope(x, u, u)
        for _ in range(count):
            x, gain, *first_, error = runge_kutta._trial(slope, x, u, step, first, u, 1.0, 1.0)
            first, u, q = (first_[0], first_[1]), u + step, q + gain
        errors.append([abs(float(x) - math.exp(math.sin(2))), abs(float(q) - math.exp(math.sin(2)) + 1)])
        estimates.append(float(error))
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert ((slopes > 4.5) & (slopes < 7)).all(), slopes
    assert np.diff(np.log2(estimates)).max() < -4.3, estimates  # of order 4, over one step


def test_an_image_does_not_depend_on_its_batch() -> None:
    """Bits, latents and the number of calls, with every other row gone or others in its place."""
    x0 = WIDE.sample(5, 3)
    denoiser = OracleDenoiser(WIDE, LINEAR, conditional=True)
    y = torch.tensor([0, 1, 1, 0, 1])
    config = FlowConfig(probes=2, draws=2, tol=1e-4)
    whole = flow_bits_per_dim(denoiser, x0, NoiseSource(7, range(5)), cond={"y": y}, config=config)
    assert len(set(whole.nfe.tolist())) > 1  # the steps are really each image's own
    for rows in ([4], [3, 1], [0, 4, 2]):
        part = flow_bits_per_dim(denoiser, x0[rows], NoiseSource(7, rows), cond={"y": y[rows]}, config=config)
        assert part.nfe.tolist() == whole.nfe[rows].tolist()
        torch.testing.assert_close(part.values, whole.values[rows], rtol=1e-10, atol=0)


def test_images_that_have_arrived_are_not_computed_further() -> None:
    denoiser = OracleDenoiser(SCALAR, LINEAR)
    found = flow_density(denoiser, noisy(SCALAR, LINEAR, 8), Noise64(0, 8), config=FlowConfig(probes=None))
    assert sum(denoiser.calls) == int(found.nfe.sum())
    assert denoiser.calls[-1] < 8


def test_the_class_is_told() -> None:
    y = noisy(WIDE, LINEAR, 3)
    labels = torch.tensor([0, 1, 0])
    denoiser = OracleDenoiser(WIDE, LINEAR, conditional=True)
    for k in (0, 1):
        own = WIDE.of_class(k)
        found = flow_density(denoiser, y, Noise64(0, 3), cond={"y": labels}, config=EXACT, terminal=terminal(own))
        rows = labels == k
        torch.testing.assert_close(found.log_p[rows, 0], truth(own, LINEAR, y[rows]), atol=1e-4, rtol=1e-5)


def on_grid(x: Tensor) -> Tensor:
    return ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def mass_bits(mixture: Mixture, x0: Tensor, extra: float) -> Tensor:
    """-log2 of the mass that the mixture, widened by noise `extra`, gives to the closed bin of each number [B]."""
    x, std = x0.reshape(-1, 1), (mixture.variances[:, 0] + extra**2).sqrt()
    low, high = (torch.special.ndtr((x + d / 255 - mixture.means[:, 0]) / std) for d in (-1, 1))
    return -((high - low) @ mixture.weights).log2()


def test_uniform_dequantisation_bounds_the_mass_of_a_bin() -> None:
    """Against the bin's mass under the density measured: E[bound] is the integral of -log2 p over the bin, above it."""
    chain = CHAINS["edm"]
    narrow = Mixture.scalar([0.5, 0.5], [-0.2, 0.3], [0.004, 0.03])
    extra = ratio(flow_ends(chain)[0])
    x0 = on_grid(torch.tensor([-0.2, -0.195, 0.3, 0.25], dtype=torch.float64)).reshape(-1, 1, 1, 1)
    bits = flow_bits_per_dim(
        OracleDenoiser(narrow, chain), x0.repeat_interleave(300, 0), Noise64(2, 1200),
        config=FlowConfig(probes=None), terminal=terminal(narrow),
    ).total.reshape(4, 300)  # fmt: skip
    inside = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 - 0.5
    grid = (x0.reshape(-1, 1) + inside / 127.5).reshape(-1, 1, 1, 1)
    log_p = narrow.log_prob(grid, torch.ones(1), torch.tensor([extra], dtype=torch.float64))
    expected = -log_p.reshape(4, -1).mean(1) / math.log(2) + math.log2(127.5)
    for values, mean in zip(bits, expected.tolist(), strict=True):
        found, error = mean_and_error(values)
        assert abs(found - mean) < 3 * error + 1e-3
    exact = mass_bits(narrow, x0, extra)
    assert (expected > exact).all()
    assert (expected - exact)[:2].min() > 0.005  # where the density changes within a bin


def discrete() -> tuple[Mixture, Tensor, Tensor]:
    """Three pixel values with their probabilities, as a mixture of points; 3000 draws of them."""
    values = torch.tensor([20.0, 128.0, 250.0], dtype=torch.float64) / 127.5 - 1
    weights = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    points = Mixture((1, 1, 1), weights, values[:, None], torch.zeros(3, 1, dtype=torch.float64))
    return points, values, weights


def test_noise_dequantisation_reaches_the_entropy_of_pixels() -> None:
    """For three pixel values far apart, the exact model, and a decoder that is certain enough: -sum p log2 p."""
    points, values, weights = discrete()
    chain = named_schedule("cosine", 4000)
    k = torch.arange(3).repeat(40)
    x0 = values[k].reshape(-1, 1, 1, 1)
    config = FlowConfig(probes=None, dequantise="noise", tol=1e-5)
    found = flow_bits_per_dim(
        OracleDenoiser(points, chain), x0, Noise64(3, len(k)), config=config, terminal=terminal(points)
    )
    rate = found.total - found.decoder
    torch.testing.assert_close(rate, -weights[k].log2(), atol=2e-3, rtol=0)
    assert (found.decoder > 0).all()


def test_noise_dequantisation_lies_below_the_bound_of_the_chain() -> None:
    """The same decoder and the same first level: the levels cost the flow less than the chain's Gaussian steps."""
    mixture = Mixture.scalar([0.3, 0.4, 0.3], [-0.6, 0.0, 0.5], [0.06, 0.1, 0.15])
    x0 = on_grid(mixture.sample(2000, 2))
    chain = LINEAR.respaced("13")
    denoiser = OracleDenoiser(mixture, LINEAR, "optimal")
    config = FlowConfig(probes=None, dequantise="noise")
    flow = flow_bits_per_dim(denoiser, x0, Noise64(1, 2000), config=config, terminal=terminal(mixture))
    bound = bits_per_dim(denoiser, chain, x0, Noise64(1, 2000))
    gap, error = mean_and_error(bound.total - flow.total)
    assert gap > 3 * error
    excess, error = mean_and_error(flow.total - mass_bits(mixture, x0, 0.0))
    assert -3 * error < excess < 3 * error + 0.02


def test_a_pixel_known_exactly_costs_what_the_documentation_says() -> None:
    """Uniform dequantisation cannot be sharper than the cleanest level: 1.68 bits for the linear chain."""
    points, values, _ = discrete()
    one = Mixture(
        (1, 1, 1), torch.ones(1, dtype=torch.float64), values[:1, None], torch.zeros(1, 1, dtype=torch.float64)
    )
    s = ratio(flow_ends(LINEAR)[0])
    floor = math.log2(127.5 * math.sqrt(2 * math.pi) * s)
    assert floor == pytest.approx(1.68, abs=0.01)
    found = flow_bits_per_dim(
        OracleDenoiser(one, LINEAR), values[:1].expand(100).reshape(-1, 1, 1, 1), Noise64(0, 100),
        config=FlowConfig(probes=None), terminal=terminal(one),
    )  # fmt: skip
    within = (1 / 127.5) ** 2 / 12 / (2 * s**2 * math.log(2))
    assert float(found.total.mean()) == pytest.approx(floor + within, abs=0.02)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_gaussian_from_pixels_to_bits(schedule: str) -> None:
    """Its flow is a straight scaling, so every draw's bits are known, the noise at the end being the default one's."""
    mean, deviation = -0.3, 0.2
    chain = named_schedule(schedule, 1000)
    low, high = (ratio(level) for level in flow_ends(chain))
    noise, x0 = Noise64(5, 300), on_grid(torch.linspace(-1, 0.4, 300, dtype=torch.float64)).reshape(-1, 1, 1, 1)
    found = flow_bits_per_dim(
        OracleDenoiser(Mixture.scalar([1.0], [mean], [deviation]), chain), x0, noise, config=FlowConfig(tol=1e-6)
    )
    y = x0 + (torch.special.ndtr(noise.normal((1, 1, 1), purpose="dequantise")) - 0.5) / 127.5
    stretch = math.sqrt((deviation**2 + high**2) / (deviation**2 + low**2))
    end = mean + (y.flatten() - mean) * stretch  # with alpha = 1; there the default is N(0, 1 + high^2)
    log_p = -0.5 * end**2 / (1 + high**2) - 0.5 * math.log(2 * math.pi * (1 + high**2)) + math.log(stretch)
    torch.testing.assert_close(found.total, math.log2(127.5) - log_p / math.log(2), atol=1e-4, rtol=0)


def test_a_clipped_flow_is_still_a_density() -> None:
    """Clamping the denoised image bends the flow; what comes out integrates to 1, and is another density."""
    mixture = Mixture.scalar([0.4, 0.6], [-0.98, 0.5], [0.02, 0.5])
    y = torch.cat([torch.linspace(a, b, n + 1, dtype=torch.float64)[1:] for a, b, n in (
        (-2.5, -1.08, 60), (-1.08, -0.85, 500), (-0.85, 0.9, 100), (0.9, 1.1, 300), (1.1, 3, 60),
    )])  # fmt: skip
    density = {}
    for clip in ("none", "static"):
        denoiser = ChainDenoiser(OracleNet(mixture, LINEAR), ProcessConfig(variance="fixed_small"), clip=clip)
        config = FlowConfig(tol=1e-4)
        found = flow_density(denoiser, y.reshape(-1, 1, 1, 1), Noise64(0, len(y)), config=config)
        density[clip] = found.log_p[:, 0].exp()
        assert float(torch.trapezoid(density[clip], y)) == pytest.approx(1, abs=2e-3)
    assert (density["static"] - density["none"]).abs().max() > 0.1


def test_draws_and_probes_are_of_their_own() -> None:
    x0 = WIDE.sample(2, 3)
    found = flow_bits_per_dim(
        OracleDenoiser(WIDE, LINEAR),
        x0,
        NoiseSource(0, [0, 1]),
        config=FlowConfig(probes=3, draws=2, tol=1e-2, probe="gaussian"),
    )
    assert found.values.shape == (2, 2, 3)
    assert found.values.flatten().unique().numel() == 12
    torch.testing.assert_close(found.total, found.values.mean((1, 2)))
    # Either alone makes the draws differ: another dequantisation, and other probes at the same image.
    exact = FlowConfig(probes=None, draws=2, tol=1e-2)
    denoiser = OracleDenoiser(WIDE, LINEAR)
    alone = flow_bits_per_dim(denoiser, x0, NoiseSource(0, [0, 1]), config=exact)
    assert alone.values.unique().numel() == 4
    assert int(alone.nfe.sum()) == sum(denoiser.calls)
    y, config = noisy(WIDE, LINEAR, 2), FlowConfig(probes=2, probe="gaussian", tol=1e-2)
    drawn = [
        flow_density(OracleDenoiser(WIDE, LINEAR), y, NoiseSource(0, [0, 1]), config=config, draw=draw).log_p
        for draw in (0, 1)
    ]
    assert torch.cat(drawn).unique().numel() == 8


def test_the_decoder_is_the_chosen_one() -> None:
    """The original's approximation is off by a few percent of a probability, more in the tails."""
    x0 = on_grid(SCALAR.sample(50, 3))
    found = [
        flow_bits_per_dim(
            OracleDenoiser(SCALAR, LINEAR), x0, Noise64(0, 50),
            config=FlowConfig(tol=1e-2, dequantise="noise", decoder=decoder),
        )
        for decoder in ("exact", "tanh")
    ]  # fmt: skip
    apart = (found[0].decoder - found[1].decoder).abs()
    assert 1e-5 < apart.max() < 0.1
    twice = FlowConfig(tol=1e-2, dequantise="noise", draws=2)
    both = flow_bits_per_dim(OracleDenoiser(SCALAR, LINEAR), x0, NoiseSource(0, range(50)), config=twice)
    first = flow_bits_per_dim(
        OracleDenoiser(SCALAR, LINEAR), x0, NoiseSource(0, range(50)), config=replace(twice, draws=1)
    )
    assert (both.decoder - first.decoder).abs().max() > 1e-3
    torch.testing.assert_close(both.values[:, :1], first.values)
    torch.testing.assert_close(found[0].total - found[0].decoder, found[1].total - found[1].decoder, atol=1e-12, rtol=0)


def test_a_network_with_positions_is_asked_between_its_steps_in_single_precision() -> None:
    """A real network's dtypes and times: fractional steps are told, and float32 agrees with float64."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.times: list[Tensor] = []

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.times.append(t)
            at = torch.from_numpy(np.interp(t.double().numpy(), np.arange(1000), LINEAR._logsnr))
            level = Level.from_logsnr(at)
            return WIDE.eps(x, level.alpha, level.sigma)

    net = Net()
    denoiser = ChainDenoiser(net, ProcessConfig(variance="fixed_small"), clip="none")
    y = noisy(WIDE, LINEAR, 2)
    config = FlowConfig(probes=None, tol=1e-4)
    found = flow_density(denoiser, y.float(), Noise64(0, 2), config=config, terminal=terminal(WIDE))
    torch.testing.assert_close(found.log_p[:, 0], truth(WIDE, LINEAR, y), atol=3e-3, rtol=0)
    told = torch.cat(net.times)
    assert (told != told.round()).any()
    assert told.min() == 0
    assert told.max() < 999


class Broken:
    """A denoiser whose output, or only its gradient, is not finite from some level on, or jumps at random."""

    conditions: frozenset[str] = frozenset()
    chain = LINEAR

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, x: Tensor, level: Level, cond: Mapping[str, Tensor] | None = None) -> Prediction:
        if self.kind == "gradient":  # x + |0|, whose gradient as a root of a square is 0 / 0
            return Prediction(x, level, "eps", x + ((0 * x) ** 2).sqrt())
        if self.kind == "nan":
            return Prediction(x, level, "eps", x * torch.where(level.logsnr < 0, math.nan, 1.0).reshape(-1, 1, 1, 1))
        jumps = (1e4 * level.logsnr).sin().reshape(-1, 1, 1, 1)
        return Prediction(x, level, "eps", x + 50 * jumps)


def test_what_is_not_finite_is_refused_and_what_is_rough_is_counted() -> None:
    y = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for kind in ("nan", "gradient"):
        with pytest.raises(ValueError, match="finite"):
            flow_density(Broken(kind), y, Noise64(0, 1))
    rough = flow_density(Broken("rough"), y, Noise64(0, 1), config=FlowConfig(probes=None, tol=1e-6))
    assert rough.forced.item() > 100
    assert rough.nfe.item() < 20_000


def test_a_predicted_mean_has_no_flow() -> None:
    denoiser = ChainDenoiser(
        OracleNet(SCALAR, LINEAR, "previous_mean"), ProcessConfig(target="previous_mean", variance="fixed_small")
    )
    with pytest.raises(ValueError, match="measure the bound"):
        flow_density(denoiser, torch.zeros(1, 1, 1, 1), Noise64(0, 1))


@pytest.mark.parametrize(
    "wrong",
    [{"probes": 0}, {"draws": 0}, {"probe": "ternary"}, {"dequantise": "none"}, {"tol": 0.0}, {"tol": math.nan}],
)
def test_settings_that_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="got"):
        FlowConfig(**wrong)  # type: ignore[arg-type]
