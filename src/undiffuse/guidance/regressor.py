"""Guidance by a regressor of noisy images: towards numbers, as a classifier guides towards a class."""

from __future__ import annotations

import torch
from torch import Tensor

from undiffuse.guidance.classifier import LevelClassifier
from undiffuse.noise_levels import Level

__all__ = ["LevelRegressor", "gaussian_log_prob", "split_outputs"]

LOG_VARIANCE = (-10.0, 4.0)
"""Limits of a predicted log variance, in normalised units."""


def split_outputs(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Splits a regressor's outputs [B, 2 K] into means and log variances [B, K], float32, the latter limited."""
    mean, log_variance = outputs.float().chunk(2, dim=1)
    return mean, log_variance.clamp(*LOG_VARIANCE)


def gaussian_log_prob(outputs: Tensor, numbers: Tensor) -> Tensor:
    """Returns log p(numbers | x) [B] without its constant, by a Gaussian for each number.

    Args:
        outputs: A regressor's outputs [B, 2 K].
        numbers: Normalised numbers [B, K]; NaN where one is not known, which then counts for nothing.
    """
    mean, log_variance = split_outputs(outputs)
    known = ~torch.isnan(numbers)
    error = torch.where(known, numbers, mean.detach()) - mean
    return -0.5 * torch.where(known, error.square() * (-log_variance).exp() + log_variance, 0.0).sum(dim=1)


class LevelRegressor(LevelClassifier):
    """Evaluates a regressor trained on a chain at noise levels: (x [B, C, H, W], level) -> outputs [B, 2 K].

    Its log probability is Gaussian, so that `ClassifierGuidance` steers towards numbers by the same formulas as towards
    a class (Dhariwal & Nichol 2021, section 4, with log p(c | x) of a continuous c).

    Args:
        network: The regressor: (x, times [B]) -> outputs.
        process: The process that it was trained on.
        temperature: T > 0 divides the log probability.
    """

    def log_prob(self, x: Tensor, level: Level, y: Tensor) -> Tensor:
        """Returns log p(y | x) [B] in float32, without its constant.

        Args:
            x: Noisy images [B, C, H, W].
            level: Their noise levels.
            y: Normalised numbers [B, K]; NaN where one does not guide.

        Raises:
            ValueError: There are not K numbers for each image.
        """
        return super().log_prob(x, level, y)

    def _log_prob(self, scores: Tensor, y: Tensor) -> Tensor:
        if y.shape != (scores.shape[0], scores.shape[1] // 2):
            raise ValueError(
                f"expected {scores.shape[1] // 2} numbers for each of the {scores.shape[0]} images; got shape "
                f"{list(y.shape)}"
            )
        return gaussian_log_prob(scores, y) / self.temperature

    def _check(self, x: Tensor, y: Tensor) -> None:
        """Numbers are checked with the outputs, which say how many there are."""

    def _check_outputs(self, scores: Tensor, y: Tensor) -> None:
        """Any number is possible."""
