"""Turns a network into a denoiser: which noise levels it was trained on, how it is shown one, what its output means."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from undiffuse.nets.protocol import conditions_of
from undiffuse.noise_levels import DiscreteSchedule, Level, expand, named_schedule
from undiffuse.preconditioning import (
    PRECONDITIONINGS,
    ChainPreconditioning,
    EDMPreconditioning,
    FlowPreconditioning,
    Preconditioning,
    TimeAdapter,
    VEPreconditioning,
    VPPreconditioning,
)
from undiffuse.prediction import KINDS, FixedVariance, LearnedLogVariance, Prediction, ReverseVariance, VarianceFraction

__all__ = ["CLIPS", "VARIANCES", "ChainDenoiser", "Condition", "Denoiser", "ProcessConfig", "TimeAdapter"]

MOST_STEPS = 1_000_000
VARIANCES = ("learned_range", "learned", "fixed_large", "fixed_small")
Condition = Mapping[str, Tensor]


class Denoiser(Protocol):
    """A function of noisy images x [B, C, H, W], a noise level and conditions by name that returns a `Prediction`.

    Attributes:
        chain: The discrete view of its noise levels.
        conditions: Names of the conditions it accepts.
    """

    chain: DiscreteSchedule

    @property
    def conditions(self) -> frozenset[str]: ...

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction: ...


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """The diffusion process a network was trained on.

    Attributes:
        preconditioning: The noise levels and how the network is shown one: "chain" (discrete steps), or "edm", "flow",
            "ve", "vp" or "subvp" (continuous), see `preconditioning`.
        schedule: Noise schedule of a chain: "linear", "cosine+zero-terminal", ..., see `schedules`.
        steps: Number of steps of a chain, 1 to 1,000,000; of a continuous preconditioning, of its discrete view.
        betas: The betas of a chain; they replace `schedule` and `steps`.
        target: What the network predicts: "eps", "x0", "v", "velocity" (eps - x0, the velocity of flow matching), "edm"
            (preconditioned as in EDM), "consistency" (the same with the boundary condition of consistency models at
            `sigma_min`), "score" (times sigma, which is -eps), or "previous_mean" (of the previous step).
        variance: Variance of the reverse step: "learned_range" (learned by interpolation, Improved DDPM eq. 15),
            "learned" (learned log variance), "fixed_large" or "fixed_small" (fixed; DDPM section 3.2).
        rescale_timesteps: Whether the network's time input is k * 1000 / steps instead of the step number k.
        sigma_min: Lowest sigma / alpha of "edm" and "ve".
        sigma_max: Highest sigma / alpha of "edm" and "ve".
        sigma_data: Standard deviation of the data that "edm", "edm" and "consistency" scale by.
        time_factor: Factor of ln(sigma / alpha) in the time input of "edm".
        beta_min: Rate of noise at t = 0 of "vp" and "subvp".
        beta_max: Rate of noise at t = 1 of "vp" and "subvp".

    Raises:
        ValueError: A field is out of its range, or the fields contradict each other.
    """

    preconditioning: str = "chain"
    schedule: str = "linear"
    steps: int = 1000
    betas: tuple[float, ...] | None = None
    target: str = "eps"
    variance: str = "learned_range"
    rescale_timesteps: bool = False
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    time_factor: float = 0.25
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if self.betas is not None:
            object.__setattr__(self, "betas", tuple(self.betas))
            object.__setattr__(self, "steps", len(self.betas))
        if not isinstance(self.steps, int) or not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"a process has from 1 to {MOST_STEPS:,} steps; got {self.steps!r}")
        if self.target not in KINDS:
            raise ValueError(f"unknown prediction target {self.target!r}; choose one of {', '.join(KINDS)}")
        if self.variance not in VARIANCES:
            raise ValueError(f"unknown variance {self.variance!r}; choose one of {', '.join(VARIANCES)}")
        if self.preconditioning not in PRECONDITIONINGS:
            raise ValueError(
                f"unknown preconditioning {self.preconditioning!r} of processes; choose one of "
                f"{', '.join(PRECONDITIONINGS)}"
            )
        if not 0 < self.sigma_min < self.sigma_max < math.inf or not 0 < self.sigma_data < math.inf:
            raise ValueError(
                f"sigma_min, sigma_max and sigma_data must be positive, the first below the second; got "
                f"{self.sigma_min}, {self.sigma_max} and {self.sigma_data}"
            )
        if not 0 < self.time_factor < math.inf:
            raise ValueError(f"time_factor must be positive, got {self.time_factor}")
        if not 0 < self.beta_min < self.beta_max < math.inf:
            raise ValueError(
                f"beta_min and beta_max must be positive, the first below the second; got {self.beta_min} and "
                f"{self.beta_max}"
            )
        if self.target == "consistency" and self.preconditioning != "edm":
            raise ValueError(
                "target='consistency' has its boundary at sigma_min of preconditioning='edm': choose that "
                "preconditioning"
            )
        if self.continuous:
            self._check_continuous()

    def _check_continuous(self) -> None:
        usual = {"edm": "edm", "flow": "velocity", "ve": "score"}.get(self.preconditioning, "eps")
        problems = []
        if self.learns_variance:
            problems.append(
                f"variance={self.variance!r} is learned from the bound, a sum over the steps of a chain: choose "
                "variance='fixed_small' or 'fixed_large' (and the simple loss)"
            )
        if self.target == "previous_mean":
            problems.append(f"target='previous_mean' is the mean of a chain's step: choose target={usual!r}")
        if self.target in ("eps", "score") and self.preconditioning == "flow":
            problems.append(
                f"target={self.target!r} says nothing at t = 1, which is pure noise: choose target={usual!r}"
            )
        if self.betas is not None or self.rescale_timesteps:
            problems.append("betas and rescale_timesteps belong to chains")
        if self.steps < 2:
            problems.append("steps must be at least 2")
        if problems:
            raise ValueError(
                f"the preconditioning {self.preconditioning!r} has continuous levels: {'; '.join(problems)}"
            )

    @property
    def continuous(self) -> bool:
        """Whether noise levels exist between the steps of `chain`."""
        return self.preconditioning != "chain"

    @property
    def learns_variance(self) -> bool:
        """Whether the network predicts the variance as well."""
        return self.variance in ("learned_range", "learned")

    @property
    def needs_last_level(self) -> bool:
        """Whether sampling must begin at the very last level: with continuous levels and at zero terminal SNR.

        Chains that end slightly before pure noise can begin a few steps earlier, as the original's "ddimN" does.
        """
        return self.continuous or self.chain().ends_in_noise

    @property
    def levels_text(self) -> str:
        """Describe the noise levels in a few words."""
        if self.preconditioning == "edm":
            return f"EDM, noise {self.sigma_min:g} to {self.sigma_max:g}"
        if self.preconditioning == "flow":
            return "flow matching"
        if self.preconditioning == "ve":
            return f"variance-exploding SDE, noise {self.sigma_min:g} to {self.sigma_max:g}"
        if self.continuous:
            name = "sub-VP" if self.preconditioning == "subvp" else "variance-preserving"
            return f"{name} SDE, beta {self.beta_min:g} to {self.beta_max:g}"
        return f"{self.steps} {self.schedule if self.betas is None else 'given'} steps"

    def chain(self) -> DiscreteSchedule:
        """Return the full chain of levels; of a continuous preconditioning its discrete view."""
        return self.build_preconditioning().chain

    def build_preconditioning(self) -> Preconditioning:
        """Return the levels and how the network is shown them."""
        if self.preconditioning == "edm":
            return EDMPreconditioning(self.steps, self.sigma_min, self.sigma_max, self.sigma_data, self.time_factor)
        if self.preconditioning == "flow":
            return FlowPreconditioning(self.steps)
        if self.preconditioning == "ve":
            return VEPreconditioning(self.steps, self.sigma_min, self.sigma_max)
        if self.continuous:
            return VPPreconditioning(self.steps, self.beta_min, self.beta_max, self.preconditioning == "subvp")
        chain = DiscreteSchedule(self.betas) if self.betas is not None else named_schedule(self.schedule, self.steps)
        return ChainPreconditioning(chain, self.rescale_timesteps)

    def out_channels(self, image_channels: int) -> int:
        """Return the output channels a network needs: twice the image's if it also predicts the variance."""
        return 2 * image_channels if self.learns_variance else image_channels


def clip_static(x0: Tensor, reach: float = 1.0) -> Tensor:
    """Clamp the denoised image to [-reach, reach]; to [-1, 1] as the original does."""
    return x0.clamp(-reach, reach)


def clip_dynamic(x0: Tensor, quantile: float = 0.995, most: float = math.inf) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022): clamp to [-s, s] and divide by s = max(1, quantile of |x0|).

    s is at most `most`.
    """
    flat = x0.abs().flatten(1).float()
    s = torch.quantile(flat, quantile, dim=1).clamp(min=1, max=most).to(x0.dtype).reshape(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


CLIPS: dict[str, Callable[[Tensor], Tensor] | None] = {"none": None, "static": clip_static, "dynamic": clip_dynamic}


def clip_function(spec: str) -> Callable[[Tensor], Tensor] | None:
    """Return what a specification does to denoised images; None for nothing.

    Args:
        spec: "none"; "static", or "static:2" for another range; "dynamic", or "dynamic:0.9" for another quantile and
            "dynamic:0.9,1.5" for a threshold of at most 1.5.

    Raises:
        ValueError: There is no such specification.
    """
    if spec in CLIPS:
        return CLIPS[spec]
    name, _, rest = spec.partition(":")
    try:
        values = [float(part) for part in rest.split(",")]
    except ValueError:
        values = []
    if name == "static" and len(values) == 1 and 0 < values[0] < math.inf:
        return functools.partial(clip_static, reach=values[0])
    if name == "dynamic" and len(values) in (1, 2) and 0 < values[0] <= 1 and (values[1:] or [1.0])[0] >= 1:
        return functools.partial(clip_dynamic, quantile=values[0], most=(values[1:] or [math.inf])[0])
    raise ValueError(
        f"unknown clipping {spec!r}; choose one of {', '.join(CLIPS)}, or give static:2 (a range), dynamic:0.9 (a "
        "quantile) or dynamic:0.9,1.5 (and the largest threshold)"
    )


class ChainDenoiser:
    """A network trained on a process as a denoiser.

    It can be called at any noise level, on the chain or between its steps, with alpha^2 + sigma^2 = 1 or not: images
    are scaled first.

    Args:
        network: `network(x, t, **conditions)` returns [B, C, H, W], or [B, 2C, H, W] if it also predicts the variance;
            t is a float tensor [B]. See `undiffuse.nets.protocol.Network`.
        process: The process the network was trained on.
        clip: Treatment of the denoised image: "static" (clamp to [-1, 1]), "dynamic" (`clip_dynamic`), "none", or a
            function.

    Attributes:
        preconditioning: The process's preconditioning of noise levels.
        chain: Its discrete view.

    Raises:
        ValueError: `clip` is unknown, or the target says nothing about the image at the noisiest level.
    """

    def __init__(self, network: Any, process: ProcessConfig, clip: str | Callable[[Tensor], Tensor] = "static") -> None:
        self.network = network
        self.process = process
        self.preconditioning = process.build_preconditioning()
        self.chain = self.preconditioning.chain
        if process.target in ("eps", "score") and self.chain.ends_in_noise:
            raise ValueError(
                "this chain ends in pure noise (its last beta is 1), where predicted noise says nothing about the "
                "image; predict 'v', 'x0', 'velocity', 'edm' or 'previous_mean', or use a chain with more steps"
            )
        self.clip = clip_function(clip) if isinstance(clip, str) else clip

    @property
    def conditions(self) -> frozenset[str]:
        """Names of the conditions that the network accepts."""
        return conditions_of(self.network)

    def clipping(self, clip: str | Callable[[Tensor], Tensor]) -> ChainDenoiser:
        """Return the same denoiser with another treatment of the denoised image."""
        return ChainDenoiser(self.network, self.process, clip)

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction:
        """Return the prediction at noisy images.

        Args:
            x: Images [B, C, H, W].
            level: Their noise level, one for all or one an image.
            cond: Conditions by name; the network gets those that it accepts.
        """
        squared = level.alpha**2 + level.sigma**2
        if bool(((squared - 1).abs() < 1e-9).all()):
            return self._predict(x, level, cond)
        norm = squared.sqrt()
        there = Level(level.alpha / norm, level.sigma / norm)
        found = self._predict(expand(1 / norm, x) * x, there, cond)
        # The denoised image and the noise are the same whatever the scale; v and the previous mean are not.
        scaled = Prediction(x, level, "x0", found.x0, found.variance, noise=found.eps, clip=self.clip)
        if found.raw is None:
            return scaled
        return replace(scaled, raw=replace(scaled, value=found.raw.x0, noise=found.raw.eps))

    def _predict(self, x: Tensor, level: Level, cond: Condition | None) -> Prediction:
        given = {name: value for name, value in (cond or {}).items() if name in self.conditions}
        scale = self.preconditioning.scale(level)
        seen = x if scale is None else expand(scale, x) * x
        output = self.network(seen, self.preconditioning.time(level, x), **given)
        value, variance = self._split(output, x, level)
        target = self.process.target
        trained = self._trained_step(level) if target == "previous_mean" else None
        prediction = Prediction(
            x,
            level,
            target,
            value,
            variance,
            trained=trained,
            clip=self.clip,
            sigma_data=self.process.sigma_data,
            sigma_min=self.process.sigma_min,
        )
        if target == "previous_mean":
            prediction = replace(prediction, direct_mean=value)
        return (
            prediction if self.clip is None else replace(prediction.with_x0(self.clip(prediction.x0)), raw=prediction)
        )

    def _split(self, output: Tensor, x: Tensor, level: Level) -> tuple[Tensor, ReverseVariance]:
        channels = x.shape[1]
        expected = self.process.out_channels(channels)
        if output.shape[1] != expected:
            raise ValueError(
                f"the network returned {output.shape[1]} channels for images of {channels}; with variance="
                f"{self.process.variance!r} it must return {expected}. The process does not belong to this network"
            )
        if not self.process.learns_variance:
            return output, FixedVariance(self.process.variance)
        value, raw = output.split(channels, dim=1)
        if self.process.variance == "learned_range":
            return value, VarianceFraction((raw + 1) / 2)
        return value, LearnedLogVariance(raw, self._trained_step(level))

    def _trained_step(self, level: Level) -> Any:
        index = self.chain.index_of(level)
        whole = index.round().long()
        return self.chain.transition(whole) if bool((index == whole).all()) else None
