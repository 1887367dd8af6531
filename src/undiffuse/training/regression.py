"""Training of regressors of noisy images, which guide towards numbers as classifiers guide towards classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.conditions import ModelConditions
from undiffuse.denoiser import ProcessConfig
from undiffuse.guidance.regressor import gaussian_log_prob, split_outputs
from undiffuse.nets import NetworkSpec
from undiffuse.recipes import Recipe
from undiffuse.training.request import TrainRequest
from undiffuse.training.tasks import ClassifierTask, ForwardFn, Inputs

__all__ = ["RegressorTask", "classifier_task"]


def classifier_task(
    net: nn.Module,
    recipe: Recipe,
    request: TrainRequest,
    labels: Sequence[str] | None,
    conditions: ModelConditions,
) -> ClassifierTask:
    """Returns the task of a classifier, or of a regressor if it predicts numbers.

    Args:
        net: The network.
        recipe: The recipe of the run.
        request: Says whether it is trained on clean images, and on which share of them.
        labels: Names of the classes.
        conditions: The numbers of a regressor; empty for a classifier.
    """
    share = recipe.clean_fraction if request.clean_fraction is None else request.clean_fraction
    how: dict[str, Any] = {"noise": not request.clean, "clean_fraction": share}
    if conditions:
        return RegressorTask(net, recipe.process, conditions=conditions, **how)
    how |= {"shift": recipe.shift, "erase": recipe.erase, "smoothing": recipe.smoothing}
    return ClassifierTask(net, recipe.process, labels=labels, **how)


class RegressorTask(ClassifierTask):
    """Trains a regressor of noisy images by the Gaussian log likelihood of normalised numbers.

    The network returns a mean and a log variance for each number, so that it can say how little very noisy images tell.
    It reports "loss", and "mse", the squared error of the means: 1 is that of the mean of the training images.

    Args:
        net: A network that returns [B, 2 K].
        process: The diffusion process that makes the noisy images.
        conditions: The K numbers.
        noise: See `ClassifierTask`.
        clean_fraction: See `ClassifierTask`.
        image_shape: See `ClassifierTask`.

    Raises:
        ValueError: The network and the numbers do not fit together.
    """

    def __init__(
        self,
        net: nn.Module,
        process: ProcessConfig,
        *,
        conditions: ModelConditions,
        noise: bool = True,
        clean_fraction: float = 0.0,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        if conditions.numbers is None or conditions.keywords != ("numbers",):
            raise ValueError(f"a regressor predicts numbers and nothing else; got {conditions.text() or 'none'}")
        self._wanted = conditions.widths["num_numbers"]
        super().__init__(net, process, noise=noise, clean_fraction=clean_fraction, image_shape=image_shape)
        self.conditions = conditions
        self.labels_count = None

    def _check_outputs(self, spec: NetworkSpec) -> None:
        if spec.out_channels not in (None, 2 * self._wanted):
            raise ValueError(
                f"a regressor of {self._wanted} numbers has {2 * self._wanted} outputs, not {spec.out_channels}"
            )

    def losses(self, forward: ForwardFn, inputs: Inputs) -> dict[str, Tensor]:
        """Returns per-image terms [b]; a number that is not known (NaN) counts for nothing."""
        if "numbers" not in inputs.cond:
            raise ValueError("a regressor needs numbers, and the data has none")
        outputs, numbers = self._outputs(forward, inputs), inputs.cond["numbers"]
        known = ~torch.isnan(numbers)
        mean = split_outputs(outputs.detach())[0]
        squared = torch.where(known, (numbers - mean).square(), 0.0).sum(dim=1) / known.sum(dim=1).clamp(min=1)
        return {"loss": -gaussian_log_prob(outputs, numbers), "mse": squared}

    def manifest(self) -> dict[str, Any]:
        """Returns what a checkpoint must say for the regressor to be built again."""
        about = super().manifest()
        return {
            **about,
            "objective": {**about["objective"], "loss": "gaussian"},
            "conditions": self.conditions.to_dict(),
        }
