"""Classifier guidance (Dhariwal & Nichol 2021, section 4)."""

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
    """Evaluates a classifier trained on a chain at noise levels: (x [B, C, H, W], level) -> scores [B, K].

    The network's parameters are frozen, because guidance differentiates with respect to the image only.

    Args:
        network: The classifier: (x, times [B]) -> scores.
        process: The process that it was trained on.
        temperature: T > 0 divides the scores: p(y | x) is proportional to exp(score_y / T). Above 1 the classifier is
            less certain, so its gradient also acts on images that it has already decided about.

    Raises:
        ValueError: The temperature is not positive and finite.
    """

    def __init__(self, network: Any, process: ProcessConfig, temperature: float = 1.0) -> None:
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number above 0; got {temperature}")
        self.network = network
        self.chain: DiscreteSchedule = process.chain()
        self.time = TimeAdapter(self.chain, process.rescale_timesteps)
        self.temperature = float(temperature)
        if isinstance(network, torch.nn.Module):
            network.requires_grad_(False).eval()

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        """Returns the scores [B, K]."""
        return self.network(x, self.time(level, x))

    def log_prob(self, x: Tensor, level: Level, y: Tensor) -> Tensor:
        """Returns log p(y | x) [B] in float32.

        Args:
            x: Noisy images [B, C, H, W].
            level: Their noise levels.
            y: Class indices [B].

        Raises:
            ValueError: There is not one index per image, or an index is out of range.
        """
        _check_labels(x, y)
        scores = self(x, level).float()
        _check_range(scores, y)
        return self._log_prob(scores, y.to(x.device))

    def gradient(self, x: Tensor, level: Level, y: Tensor) -> Tensor:
        """Returns grad_x log p(y | x) [B, C, H, W] from one backward pass, as no layer mixes the images of a batch."""
        _check_labels(x, y)
        record = getattr(self.network, "record", None)
        inputs = x, self.time(level, x), y.to(x.device)
        with torch.inference_mode(False):  # autograd cannot use inference tensors, so there are clones
            scores, gradient = self._gradient(*inputs) if record is None else record(self._gradient, *inputs)
        _check_range(scores, y)
        return gradient

    def _gradient(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The scores and the gradient; a label out of range counts as the nearest one, since it is checked later."""
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            scores = self.network(x, t.clone()).float()
            log_prob = self._log_prob(scores, y.clone().clamp(0, scores.shape[1] - 1))
            return scores.detach(), torch.autograd.grad(log_prob.sum(), x)[0]

    def _log_prob(self, scores: Tensor, y: Tensor) -> Tensor:
        if self.temperature != 1:
            scores = scores / self.temperature
        return torch.log_softmax(scores, dim=-1).gather(1, y[:, None])[:, 0]


def _check_labels(x: Tensor, y: Tensor) -> None:
    if y.shape != (x.shape[0],):
        raise ValueError(f"expected one class index for each of the {x.shape[0]} images; got shape {list(y.shape)}")


def _check_range(scores: Tensor, y: Tensor) -> None:
    if bool(((y < 0) | (y >= scores.shape[1])).any()):
        raise ValueError(
            f"the classifier has the classes 0 to {scores.shape[1] - 1}; got {sorted(set(y.tolist()))}. With "
            "classifier-free guidance (null class), nest it outside: ClassifierGuidance(ClassifierFree(...))"
        )


class ClassifierGuidance(GradientGuidance):
    """Steers a denoiser, conditional or not, towards class `cond["y"]` by s grad log p(y | x).

    Ancestral sampling shifts the mean by s Sigma g (Algorithm 1), other methods shift the noise by -s sigma g
    (Algorithm 2). Several classifiers act together by nesting, each with its own scale: their gradients add up.

    Args:
        denoiser: The denoiser to guide.
        classifier: A classifier, or a function (x, level, y) -> gradient of log p(y | x).
        scale: s, any number: 0 is no guidance, 1 is Bayes' rule for an unconditional model, larger values are sharper.
            The paper uses 1 for 64x64 and 256x256, 0.5 for 128x128, 4 for 512x512 (250 ancestral steps, conditional
            models) and 10 for the unconditional 256x256 model.
        at: Where the gradient is taken. "x_t" is the noisy image (the released code). "mean" is the mean of the reverse
            step (the paper's algorithm; ancestral sampling only). "x0" is the denoised image, classified as a clean
            one; the gradient is propagated to x_t through the network, which costs a backward pass. "x0" does not need
            a classifier of noisy images; near pure noise, where x0 is uninformative, it has little effect.
        condition: Name of the condition with the class indices [B]; several classifiers may use different names.
        normalize: Whether every image's gradient is scaled so that it moves the predicted noise by s (root mean
            square).
        schedule: See `Guided`.
        every: See `Guided`.
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
            raise ValueError(f"at must be one of {', '.join(PLACES)}; got {at!r}")
        super().__init__(denoiser, scale, at, (condition,), normalize, schedule, every)
        self.classify = classifier.gradient if isinstance(classifier, LevelClassifier) else classifier

    def gradient(self, x: Tensor, level: Level, cond: Condition) -> Tensor:
        """Returns the classifier's gradient [B, C, H, W]."""
        return self.classify(x, level, cond[self.names[0]])
