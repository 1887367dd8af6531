"""Likelihood of images by the probability flow (Song et al. 2021, section 4.3), in bits per dimension.

With alpha^2 + sigma^2 = 1 and u = log(sigma / alpha) (minus half of the log-SNR), the flow of a denoiser is

    dx/du = f(x, u) = sigma (eps(x, u) - sigma x)

and a density carried along it obeys log p_a(x(a)) = log p_b(x(b)) + int_a^b div f du, exactly, for any network. The
model measured is therefore: x ~ N(0, 1) at the noisy end, the flow down to the cleanest level that the network was
trained at, and there y = x / alpha as it is. No denoising beyond, no extrapolation: a density of *images with noise of
sigma / alpha on them*, 0.01 for the linear chain of 1,000 steps, 0.0064 for the cosine one, 0.002 for EDM. Only the
denoised image matters, clipped as the denoiser clips it (the flow then is another one, and its density still integrates
to 1); learned variances do not, but in the decoder of "noise". The noisy end is that of the grids
even in log-SNR: the chain's own, or sigma / alpha = 80 where the chain goes farther.

Pixels are integers, and a density says nothing of them by itself; there are two ways to a bound on the probability of
8-bit pixels, `dequantise`:

    "uniform"   log P(x) >= E log p(x + d) + D log w, d uniform over a pixel's bin of width w = 1/127.5 (Theis et al.
                2016). The number mostly published. Where bins are narrower than the noise at the cleanest level, it
                cannot be low: a pixel that the model knows exactly costs log2(127.5 sqrt(2 pi) sigma / alpha) bits.
    "noise"     log P(x) >= E [log p(x | y) + log p(y) - log q(y | x)], y = x + (sigma / alpha) eps: the model's own
                first level as the noise, its own discretised decoder for the pixels. Comparable with the variational
                bound, whose decoder this is: what differs is only what the levels cost.

The divergence is the trace of the Jacobian: exact with D backward passes a call, or without bias by Skilling's and
Hutchinson's estimator v^T J v, with one v per trajectory so that the integrand stays smooth.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser
from undiffuse.grids import FARTHEST
from undiffuse.likelihood.runge_kutta import integrate
from undiffuse.noise import Noise
from undiffuse.noise_levels import DiscreteSchedule, Level, diffuse, expand
from undiffuse.objectives import bound_term, mean_flat

PROBES = ("rademacher", "gaussian")
DEQUANTISE = ("uniform", "noise")
BIN = 1 / 127.5  # between neighbouring pixel values

Terminal = Callable[[Tensor, Level], Tensor]
"""(x [B, C, H, W] at the noisy end, its level) -> log density [B] in nats."""


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """How the likelihood by the flow is measured.

    `probes`      of the divergence for every trajectory; all of them share its network calls and cost a backward pass
                  each. None: the exact trace, a backward pass for every number of the image
    `probe`       "rademacher" (signs, the lower variance) or "gaussian"; one probe is kept along a whole trajectory
    `draws`       of the dequantisation, a trajectory each
    `dequantise`  "uniform" or "noise", see above
    `decoder`     of "noise": "exact" or "tanh", see `discretized_log_likelihood`
    `tol`         of every step: of x relative to 1 + |x| (root mean square over the image), and of log p in nats per
                  dimension. The default leaves an error of thousandths of a bit per dimension in the mean over images
                  (docs/likelihood.md); images of a few numbers, whose errors do not average, need 1e-5
    """

    probes: int | None = 1
    probe: str = "rademacher"
    draws: int = 1
    dequantise: str = "uniform"
    decoder: str = "exact"
    tol: float = 1e-3

    def __post_init__(self) -> None:
        if self.probes is not None and self.probes < 1 or self.draws < 1:
            raise ValueError(
                f"a likelihood needs at least 1 probe (None: the exact trace) and 1 draw; got {self.probes} and "
                f"{self.draws}"
            )
        if self.probe not in PROBES or self.dequantise not in DEQUANTISE:
            raise ValueError(
                f"probes are one of {', '.join(PROBES)}, and dequantisation one of {', '.join(DEQUANTISE)}; got "
                f"{self.probe!r} and {self.dequantise!r}"
            )
        if not 0 < self.tol < 1:
            raise ValueError(f"the tolerance is a number between 0 and 1, such as 1e-3; got {self.tol}")


@dataclass(frozen=True)
class Density:
    """Log densities of B images, float64 on the CPU, in nats.

    `log_p` [B, P] by each probe (P = 1 for the exact trace), `terminal` [B] the log density at the noisy end, of which
    it has been made, `latent` [B, C, H, W] the image there; `nfe` [B] of the network; `forced` [B] steps that missed
    the tolerance at the least length, 0 unless the network is rough (16-bit precision, say).
    """

    log_p: Tensor
    terminal: Tensor
    latent: Tensor
    nfe: Tensor
    forced: Tensor


@dataclass(frozen=True)
class FlowBits:
    """Bits per dimension of B images, float64 on the CPU.

    `values` [B, draws, P] are one draw's and one probe's estimates of a bound on -log2 P(image) / D, P the probability
    of its D 8-bit numbers under the flow's density; `total` [B] is their mean. With uniform dequantisation a value is
    -log2 p(x + d) / D + log2(127.5), where the last term turns a density over [-1, 1] into one over grey levels.
    `decoder` [B] is what of the total are the pixels given the noisy image (0 with uniform dequantisation). `nfe`,
    `forced` [B] as in `Density`, over all draws.
    """

    total: Tensor
    values: Tensor
    decoder: Tensor
    nfe: Tensor
    forced: Tensor


def flow_ends(chain: DiscreteSchedule) -> tuple[Level, Level]:
    """The levels between which the flow is followed, the cleanest first."""
    noisiest, cleanest = chain.level(torch.tensor([chain.steps - 1, 0])).logsnr.tolist()
    noisiest = max(noisiest, -2 * math.log(FARTHEST))
    if not noisiest < cleanest:
        raise ValueError(f"a flow needs a chain of at least two levels; got {chain}")
    return Level.from_logsnr(cleanest), Level.from_logsnr(noisiest)


def standard_normal(x: Tensor, level: Level) -> Tensor:
    """log N(x; 0, I) [B]: what samplers begin with, whatever is left of the data at that level.

    That is a cost of at most log2(e) alpha^2 / 2 bits per dimension in the mean over data in [-1, 1] of unit second
    moment: 0.0001 at sigma / alpha = 80.
    """
    flat = x.cpu().double().flatten(1)
    return -0.5 * (flat**2).sum(1) - 0.5 * flat.shape[1] * math.log(2 * math.pi)


def flow_density(
    denoiser: Denoiser,
    y: Tensor,
    noise: Noise,
    *,
    cond: Condition | None = None,
    config: FlowConfig | None = None,
    terminal: Terminal = standard_normal,
    draw: int = 0,
) -> Density:
    """log p(y) of images y [B, C, H, W] with the noise of the cleanest level on them.

    `noise` gives the probes, those of one `draw` independent of another's. `terminal` is the density at the noisy end;
    the default is what samplers begin with. Guides of the denoiser are ignored: guidance is no change of the model.
    """
    config = config or FlowConfig()
    if getattr(getattr(denoiser, "process", None), "target", None) == "previous_mean":
        raise ValueError(
            "a network that predicts the previous mean is defined at its chain's steps only, and a flow goes between "
            "them: measure the bound"
        )
    clean, noisy = flow_ends(denoiser.chain)
    shape, dimension = tuple(y.shape[1:]), y[0].numel()
    probes = _probes(noise, shape, config, draw, y)
    cond = dict(cond or {})

    def slope(x: Tensor, u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        here = rows.to(x.device)
        level = Level.from_logsnr(-2 * u)
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            eps = denoiser(x, level, {name: value[here] for name, value in cond.items()}).eps
            velocity = expand(level.sigma, x) * (eps - expand(level.sigma, x) * x)
            trace = _exact_trace(velocity, x) if probes is None else _estimates(velocity, x, probes[:, here])
        return velocity.detach(), trace

    begin, end = (-0.5 * float(level.logsnr) for level in (clean, noisy))
    arrival = integrate(slope, expand(clean.alpha, y) * y, begin, end, config.tol, weight=1 / dimension)
    last = terminal(arrival.x, noisy).cpu().double()
    log_p = last[:, None] + arrival.q + dimension * float(clean.alpha.log())
    return Density(log_p, last, arrival.x, arrival.nfe, arrival.forced)


def flow_bits_per_dim(
    denoiser: Denoiser,
    x0: Tensor,
    noise: Noise,
    *,
    cond: Condition | None = None,
    config: FlowConfig | None = None,
    terminal: Terminal = standard_normal,
) -> FlowBits:
    """A bound on -log2 P(x0) / D by the flow, for images x0 [B, C, H, W] in [-1, 1] of 8-bit pixels.

    Everything drawn for image i depends on its number alone (`noise`), not on what else is in the batch. See
    `flow_density` for the other arguments. The network must have gradients with respect to the image (a network made
    ready by `prepare_for_inference` needs `gradient=True`).
    """
    config = config or FlowConfig()
    values, decoders, nfe, forced = [], [], [], []
    for draw in range(config.draws):
        y, price, decoder = _dequantised(denoiser, x0, noise, cond, config, draw)
        density = flow_density(denoiser, y, noise, cond=cond, config=config, terminal=terminal, draw=draw)
        values.append(price[:, None] - density.log_p / (x0[0].numel() * math.log(2)))
        decoders.append(decoder)
        nfe.append(density.nfe)
        forced.append(density.forced)
    every = torch.stack(values, dim=1)
    return FlowBits(
        every.mean((1, 2)), every, torch.stack(decoders).mean(0), torch.stack(nfe).sum(0), torch.stack(forced).sum(0)
    )


def _dequantised(
    denoiser: Denoiser, x0: Tensor, noise: Noise, cond: Condition | None, config: FlowConfig, draw: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, what is added to its bits per dimension [B], what of that is the decoder's [B])."""
    normal = noise.normal(tuple(x0.shape[1:]), step=draw, purpose="dequantise", device=x0.device).to(x0.dtype)
    if config.dequantise == "uniform":
        uniform = torch.special.ndtr(normal) - 0.5
        price = torch.full((len(x0),), -math.log2(BIN), dtype=torch.float64)
        return x0 + BIN * uniform, price, torch.zeros_like(price)
    transition = denoiser.chain.transition(0)
    level = transition.source
    x = diffuse(x0, level, normal)
    with torch.no_grad():
        decoder = bound_term(denoiser(x, level, cond), x0, transition, config.decoder).cpu().double()
    spread = float((level.sigma / level.alpha).log())
    drawn = -0.5 * mean_flat(normal.cpu().double() ** 2) - 0.5 * math.log(2 * math.pi) - spread  # log q(y | x0) / D
    return x / expand(level.alpha, x), decoder + drawn / math.log(2), decoder


def _probes(noise: Noise, shape: tuple[int, ...], config: FlowConfig, draw: int, like: Tensor) -> Tensor | None:
    """[P, B, C, H, W], or None for the exact trace."""
    if config.probes is None:
        return None
    numbers = range(draw * config.probes, (draw + 1) * config.probes)
    drawn = [noise.normal(shape, step=number, purpose="probe", device=like.device) for number in numbers]
    normal = torch.stack(drawn).to(like.dtype)
    return normal if config.probe == "gaussian" else torch.where(normal >= 0, 1.0, -1.0).to(like.dtype)


def _estimates(velocity: Tensor, x: Tensor, probes: Tensor) -> Tensor:
    """v^T J v [B, P] of every probe v, J the Jacobian of velocity by x, image by image."""
    found = []
    for number, probe in enumerate(probes):
        (back,) = torch.autograd.grad(velocity, x, probe, retain_graph=number + 1 < len(probes))
        found.append((back * probe).cpu().double().flatten(1).sum(1))  # not every device knows float64
    return torch.stack(found, dim=1)


def _exact_trace(velocity: Tensor, x: Tensor) -> Tensor:
    """The trace [B, 1] of the Jacobian, a backward pass for every number of the image."""
    flat = velocity.flatten(1)
    total = torch.zeros(len(x), dtype=torch.float64)
    for i in range(flat.shape[1]):
        (back,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=i + 1 < flat.shape[1])
        total += back.flatten(1)[:, i].cpu().double()
    return total[:, None]
