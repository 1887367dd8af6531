"""Guidance by a classifier of noisy images (Dhariwal & Nichol 2021, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoiser import Condition, Denoiser, ProcessConfig, TimeAdapter
from undiffuse.levels import Chain, Level
from undiffuse.prediction import Guide, Prediction

PLACES = ("x_t", "mean")


class LevelClassifier:
    """A classifier network trained on a chain, asked at noise levels: (x [B, C, H, W], level) -> scores [B, K].

    The network's parameters are frozen: guidance differentiates with respect to the image only.
    """

    def __init__(self, network: Any, process: ProcessConfig) -> None:
        self.network = network
        self.chain: Chain = process.chain()
        self.time = TimeAdapter(self.chain, process.rescale_timesteps)
        if isinstance(network, torch.nn.Module):
            network.requires_grad_(False).eval()

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        return self.network(x, self.time(level, x))

    def log_prob(self, x: Tensor, level: Level, y: Tensor) -> Tensor:
        """log p(y | x) [B] in float32 for class indices y [B]; ValueError unless there is one an image."""
        if y.shape != (x.shape[0],):
            raise ValueError(f"expected one class index for each of the {x.shape[0]} images, got shape {list(y.shape)}")
        y = y.to(x.device)
        return torch.log_softmax(self(x, level).float(), dim=-1).gather(1, y[:, None])[:, 0]

    def gradient(self, x: Tensor, level: Level, y: Tensor) -> Tensor:
        """grad_x log p(y | x) [B, C, H, W]. No layer mixes the images of a batch, so one backward pass serves all."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()  # clones, because a caller's inference tensors cannot be used here
            return torch.autograd.grad(self.log_prob(x, level, y.clone()).sum(), x)[0]


class ClassifierGuidance:
    """Steer a denoiser, conditional or not, towards class `cond["y"]` by s grad log p(y | x).

    `scale`  s, any number: 0 is no guidance, 1 Bayes' rule for an unconditional model, more is sharper. In the paper
             1 for 64x64 and 256x256, 0.5 for 128x128, 4 for 512x512 (250 ancestral steps, conditional models), 10
             for the unconditional 256x256 model.
    `at`     where ancestral sampling takes the gradient: "x_t" (the released code) or "mean" (the paper's algorithm)

    Ancestral sampling shifts the mean by s Sigma g (Algorithm 1), DDIM shifts the noise by -s sigma g (Algorithm 2).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classifier: LevelClassifier | Callable[[Tensor, Level, Tensor], Tensor],
        scale: float = 1.0,
        at: str = "x_t",
    ) -> None:
        """`classifier` may also be a function (x, level, y) -> gradient of log p(y | x)."""
        if at not in PLACES:
            raise ValueError(f"the guidance gradient is taken at one of {', '.join(PLACES)}; got {at!r}")
        self.denoiser = denoiser
        self.gradient = classifier.gradient if isinstance(classifier, LevelClassifier) else classifier
        self.scale = float(scale)
        self.at = at
        self.chain = denoiser.chain

    @property
    def conditions(self) -> frozenset[str]:
        return self.denoiser.conditions | {"y"}

    def __call__(self, x: Tensor, level: Level, cond: Condition | None = None) -> Prediction:
        prediction = self.denoiser(x, level, cond)
        if self.scale == 0:
            return prediction
        if not cond or "y" not in cond:
            raise ValueError("classifier guidance needs the classes to guide to: give cond={'y': class indices}")
        y = cond["y"]
        guide = Guide(lambda point, at_level: self.scale * self.gradient(point, at_level, y), at=self.at)
        return replace(prediction, guides=(*prediction.guides, guide))
