"""Training objectives: the simple loss, the variational bound, and the hybrid of both."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.denoiser import ChainDenoiser, Condition
from undiffuse.noise_levels import Level, Transition, diffuse, expand
from undiffuse.prediction import Prediction
from undiffuse.weightings import NATIVE, loss_factor, parse_weighting

LOSSES = ("simple", "hybrid", "vlb")
DECODERS = ("exact", "tanh")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Configures a training objective.

    Attributes:
        loss: "simple" is the mean squared error of the network's target (DDPM eq. 14). "hybrid" is simple + `vb_weight`
            * T * L_t, where the gradient of the bound reaches the variance only (Improved DDPM section 3.1). "vlb" is
            the variational bound, T * L_t (DDPM eq. 5).
        weighting: Weighting of the mean squared error by noise level, see `weightings`: "native" (none), "min-snr:5",
            "p2", ...
        rescale: Whether the bound's term has the factors `vb_weight` * T and T: True corresponds to the original's
            RESCALED_MSE and RESCALED_KL, False to its plain MSE and KL.
        vb_weight: lambda of the hybrid loss, at least 0.
        decoder: Log-probability of 8-bit pixels: "exact", or the original's "tanh" approximation.
    """

    loss: str = "simple"
    weighting: str = NATIVE
    rescale: bool = True
    vb_weight: float = 0.001
    decoder: str = "exact"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}; choose one of {', '.join(LOSSES)}")
        parse_weighting(self.weighting)
        if self.loss == "vlb" and self.weighting != NATIVE:
            raise ValueError(
                f"weighting={self.weighting!r} requires loss='simple' or 'hybrid': the bound fixes the weights of the "
                "noise levels"
            )
        if not 0 <= self.vb_weight < math.inf:
            raise ValueError(f"vb_weight must be a finite number of 0 or more, got {self.vb_weight}")
        if self.decoder not in DECODERS:
            raise ValueError(f"unknown decoder {self.decoder!r}; choose one of {', '.join(DECODERS)}")


class Objective:
    """Computes the losses of a training batch with one pass of the network.

    The denoised image is not clipped in training.

    Args:
        denoiser: The denoiser to train.
        config: The objective.

    Raises:
        ValueError: The objective does not fit the process.
    """

    def __init__(self, denoiser: ChainDenoiser, config: ObjectiveConfig) -> None:
        if denoiser.process.target == "consistency":
            raise ValueError(
                "regression cannot train target='consistency': use the consistency loss (undiffuse.distillation), or "
                "target='edm' to train its teacher"
            )
        if config.loss == "hybrid" and not denoiser.process.learns_variance:
            raise ValueError(
                f"loss='hybrid' requires a learned variance, but the process has variance="
                f"{denoiser.process.variance!r}; use variance='learned_range', or loss='simple'"
            )
        if config.loss == "simple" and denoiser.process.learns_variance:
            raise ValueError(
                f"loss='simple' does not train the learned variance {denoiser.process.variance!r}; use "
                "loss='hybrid', or variance='fixed_small' or 'fixed_large'"
            )
        if config.loss == "vlb" and denoiser.process.continuous:
            raise ValueError(
                "loss='vlb' is a sum over the steps of a chain, but the preconditioning "
                f"{denoiser.process.preconditioning!r} has continuous levels; use loss='simple'"
            )
        self.denoiser = denoiser.clipping("none")
        self.config = config

    def __call__(self, x0: Tensor, t: Tensor, noise: Tensor, cond: Condition | None = None) -> dict[str, Tensor]:
        """Computes the terms of the loss.

        Args:
            x0: Images [B, C, H, W] in [-1, 1].
            t: Positions [B] of the noise levels: step numbers (int64) of a chain, or any numbers (float64) of a
                continuous preconditioning.
            noise: Standard normal noise [B, C, H, W].
            cond: Conditions by name.

        Returns:
            Terms by name, each [B]: "loss"; "mse", the squared error of the network's target before any weighting;
            "vb", the single term L_t of the bound in bits per dimension before any factor. "mse" and "vb" are present
            if the loss uses them.
        """
        process, config, chain = self.denoiser.process, self.config, self.denoiser.chain
        transition = None if process.continuous else chain.transition(t)
        level = self.denoiser.preconditioning.level(t) if transition is None else transition.source
        x_t = diffuse(x0, level, noise)
        prediction = self.denoiser(x_t, level, cond)
        if config.loss == "vlb":
            assert transition is not None  # __init__ rejects continuous levels
            vb = bound_term(prediction, x0, transition, config.decoder)
            return {"loss": vb * chain.steps if config.rescale else vb, "vb": vb}
        target = regression_target(process.target, x0, x_t, noise, transition or level, process.sigma_data)
        terms = {"mse": mean_flat((target - prediction.value) ** 2)}
        terms["loss"] = terms["mse"]
        if config.weighting != NATIVE:
            coef_x0 = None if transition is None else transition.coef_x0
            factor = loss_factor(
                config.weighting, process.target, level, sigma_data=process.sigma_data, coef_x0=coef_x0
            )
            terms["loss"] = factor.to(x0.dtype).to(x0.device) * terms["mse"]
        if config.loss == "hybrid":
            assert transition is not None  # only chains learn a variance
            terms["vb"] = bound_term(prediction.detached(), x0, transition, config.decoder)
            weight = config.vb_weight * chain.steps if config.rescale else 1.0
            terms["loss"] = terms["loss"] + weight * terms["vb"]
        return terms


def regression_target(
    kind: str, x0: Tensor, x_t: Tensor, noise: Tensor, at: Transition | Level, sigma_data: float = 1.0
) -> Tensor:
    """Returns the regression target [B, C, H, W] of a network.

    Args:
        kind: What the network predicts, for example "eps" or "v".
        x0: Clean images [B, C, H, W].
        x_t: Noisy images.
        noise: Their noise.
        at: The noise level; for "previous_mean", the reverse step.
        sigma_data: Standard deviation of the data, for "edm".
    """
    if kind in ("eps", "score"):
        return noise if kind == "eps" else -noise
    if kind == "x0":
        return x0
    if kind == "velocity":
        return noise - x0
    level = at.source if isinstance(at, Transition) else at
    if kind == "v":
        return expand(level.alpha, x0) * noise - expand(level.sigma, x0) * x0
    if kind == "edm":
        # (x0 - c_skip x) / c_out with x = alpha x0 + sigma eps substituted: no cancellation where sigma is small
        q = (level.sigma**2 + sigma_data**2 * level.alpha**2).sqrt()
        of_x0, of_noise = level.sigma / (sigma_data * q), sigma_data * level.alpha / q
        return expand(of_x0, x0) * x0 - expand(of_noise, x0) * noise
    assert isinstance(at, Transition)  # a process with continuous levels has no previous mean
    return expand(at.coef_x0, x0) * x0 + expand(at.coef_xt, x0) * x_t


def bound_term(prediction: Prediction, x0: Tensor, transition: Transition, decoder: str = "exact") -> Tensor:
    """Computes one term of the variational bound in bits per dimension [B] (DDPM eq. 5).

    It is KL(q(x_s | x_t, x0) || p(x_s | x_t)) for steps onto a noisy level, and -log p(x0 | x_t) of 8-bit pixels for
    the step onto the clean image.

    Args:
        prediction: The model's prediction at x_t.
        x0: Clean images [B, C, H, W] in [-1, 1].
        transition: The reverse steps.
        decoder: "exact" or "tanh", see `discretized_log_likelihood`.
    """
    x = prediction.x
    true_mean = expand(transition.coef_x0, x) * x0 + expand(transition.coef_xt, x) * x
    true_log_variance = transition.log_posterior_variance.to(x.dtype).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
    mean, log_variance = prediction.mean(transition), prediction.log_variance(transition)
    kl = mean_flat(normal_kl(true_mean, true_log_variance, mean, log_variance)) / math.log(2)
    last = transition.last.expand(len(x)).to(x.device)
    if not bool(last.any()):
        return kl
    # Only the rows of the last step: elsewhere the decoder's gradient may overflow, and 0 * inf is NaN.
    std = (0.5 * log_variance).expand_as(mean)
    nll = -mean_flat(discretized_log_likelihood(x0[last], mean[last], std[last], decoder)) / math.log(2)
    return kl.masked_scatter(last, nll)


def mean_flat(x: Tensor) -> Tensor:
    """Returns the mean over all axes but the first."""
    return x.flatten(1).mean(dim=1)


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """Returns KL(N1 || N2) of diagonal Gaussians, elementwise, in nats."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    )


def discretized_log_likelihood(x0: Tensor, mean: Tensor, log_std: Tensor, decoder: str = "exact") -> Tensor:
    """Returns log p of 8-bit pixel values under N(mean, std^2), elementwise, in nats (DDPM eq. 13).

    The outer bins extend to infinity.

    Args:
        x0: Pixels [B, C, H, W] in [-1, 1], in bins of width 2/255.
        mean: Means [B, C, H, W].
        log_std: Logarithm of std, broadcastable to the shape of `mean`.
        decoder: "exact" integrates the Gaussian in the log domain, which neither saturates nor vanishes far from the
            mean. "tanh" is the original's approximation of the normal distribution function, with probabilities floored
            at 1e-12.
    """
    inverse_std = torch.exp(-log_std)
    upper = inverse_std * (x0 - mean + 1 / 255)
    lower = inverse_std * (x0 - mean - 1 / 255)
    if decoder == "tanh":
        cdf_upper, cdf_lower = _tanh_cdf(upper), _tanh_cdf(lower)
        inner = (cdf_upper - cdf_lower).clamp(min=1e-12).log()
        first, last = cdf_upper.clamp(min=1e-12).log(), (1 - cdf_lower).clamp(min=1e-12).log()
    else:
        first, last = log_normal_cdf(upper), log_normal_cdf(-lower)
        # Mirror bins above the mean: the lower tail keeps all digits.
        above = lower > 0
        high = torch.where(above, -lower, upper)
        low = torch.where(above, -upper, lower)
        log_high = log_normal_cdf(high)
        gap = (log_normal_cdf(low) - log_high).clamp(max=-1e-30)
        inner = log_high + torch.log(-torch.expm1(gap))
    return torch.where(x0 < -0.999, first, torch.where(x0 > 0.999, last, inner))


def log_normal_cdf(z: Tensor) -> Tensor:
    """Returns log Phi(z) with value and gradient accurate in both tails.

        z < -1: log(erfcx(-z / sqrt 2) / 2) - z^2 / 2,    otherwise log1p(-erfc(z / sqrt 2) / 2)

    (`torch.special.log_ndtr` has the right value, but its float32 gradient is wrong far out in the tail.)
    """
    left = z < -1
    tail = torch.where(left, z, -1.0)  # each branch has only its own numbers, so both gradients are finite
    middle = torch.where(left, 0.0, z)
    below = torch.log(0.5 * torch.special.erfcx(tail * -math.sqrt(0.5))) - 0.5 * tail**2
    return torch.where(left, below, torch.log1p(-0.5 * torch.erfc(middle * math.sqrt(0.5))))


def _tanh_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
