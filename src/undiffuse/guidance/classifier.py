"""Guidance by a classifier (Dhariwal & Nichol 2021, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser, ProcessConfig, TimeAdapter
from undiffuse.guidance.base import GradientGuidance
from undiffuse.guidance.schedules import Schedule
from undiffuse.noise_levels import DiscreteSchedule, Level

PLACES = ("x_t", "mean", "x0")


class LevelClassifier:
    """A classifier network trained on a chain, asked at noise levels: (x [B, C, H, W], level) -> scores [B, K].

    `temperature`  T > 0 divides the scores: p(y | x) proportional to exp(score_y / T). Above 1 the classifier is less
                   sure of itself, and its gradient reaches images that it has already decided about

    The network's parameters are frozen: guidance differentiates with respect to the image only.
    """

    def __init__(self, network: Any, process: ProcessConfig, temperature: float = 1.0) -> None:
        if not 0 < temperature < float("inf"):
            raise ValueError(f"the temperature of a classifier must be above 0; got {temperature}")
        self.network = network
        self.chain: DiscreteSchedule = process.chain()
        self.time = TimeAdapter(self.chain, process.rescale_timesteps)
        self.temperature = float(temperature)
        if isinstance(network, torch.nn.Module):
            network.requires_grad_(False).eval()

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        return self.network(x, self.time(level, x))

    def log_prob(self, x: Tensor, level: Level, y: Tensor) -> Tensor:
        """log p(y | x) [B] in float32 for class indices y [B]; ValueError unless there is one of its own an image."""
        if y.shape != (x.shape[0],):
            raise ValueError(f"expected one class index for each of the {x.shape[0]} images, got shape {list(y.shape)}")
        y = y.to(x.device)
        scores = self(x, level).float()
        if bool(((y < 0) | (y >= scores.shape[1])).any()):
            raise ValueError(
                f"the classifier has classes 0 to {scores.shape[1] - 1} and was asked for {sorted(set(y.tolist()))}; "
                "with classifier-free guidance, whose null class it does not know, it belongs outside: "
                "ClassifierGuidance(ClassifierFree(...))"
            )
        if self.temperature != 1:
            scores = scores / self.temperature
        return torch.log_softmax(scores, dim=-1).gather(1, y[:, None])[:, 0]

    def gradient(self, x: Tensor, level: Level, y: Tensor) -> Tensor:
        """grad_x log p(y | x) [B, C, H, W]. No layer mixes the images of a batch, so one backward pass serves all."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()  # clones, because a caller's inference tensors cannot be used here
            return torch.autograd.grad(self.log_prob(x, level, y.clone()).sum(), x)[0]


class ClassifierGuidance(GradientGuidance):
    """Steer a denoiser, conditional or not, towards class `cond["y"]` by s grad log p(y | x).

    `classifier`  or a function (x, level, y) -> gradient of log p(y | x)
    `scale`       s, any number: 0 is no guidance, 1 Bayes' rule for an unconditional model, more is sharper. In the
                  paper 1 for 64x64 and 256x256, 0.5 for 128x128, 4 for 512x512 (250 ancestral steps, conditional
                  models), 10 for the unconditional 256x256 model
    `at`          where the gradient is taken: "x_t", the noisy image (the released code); "mean", of the reverse step
                  (the paper's algorithm; ancestral sampling only); "x0", the denoised image, asked as a clean one, and
                  brought back to x_t through the network, which then costs a backward pass too. "x0" needs no
                  classifier of noisy images, and near pure noise, where x0 says little, has little to go by
    `condition`   name of the condition with the class indices [B]: several classifiers may judge by different names
    `normalize`   every image's gradient is brought to the size that moves the predicted noise by s (root mean square)
    `schedule`, `every` as in `Guided`

    Ancestral sampling shifts the mean by s Sigma g (Algorithm 1), others shift the noise by -s sigma g (Algorithm 2).
    Several classifiers act together by nesting, each with its own scale: their gradients add up.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: LevelClassifier | Callable[[Tensor, Level, Tensor], Tensor],
        scale: float = 1.0,
        at: str = "x_t",
        *,
        condition: str = "y",
        normalize: bool = False,
        schedule: Schedule | None = None,
        every: int = 1,
    ) -> None:
        if at not in PLACES:
            raise ValueError(f"the guidance gradient is taken at one of {', '.join(PLACES)}; got {at!r}")
        super().__init__(denoiser, scale, at, (condition,), normalize, schedule, every)
        self.classify = classifier.gradient if isinstance(classifier, LevelClassifier) else classifier

    def gradient(self, x: Tensor, level: Level, cond: Condition) -> Tensor:
        return self.classify(x, level, cond[self.names[0]])
