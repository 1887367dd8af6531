"""Training: one visible loop, counted in images, for diffusion models and classifiers alike (see `engine`).

`undiffuse.train` (in `face`) goes from data to a model in one call. `train` here takes a task, data and settings.
"""

from __future__ import annotations

from undiffuse.train_config import TrainConfig, learning_rate
from undiffuse.training.custom import Custom
from undiffuse.training.engine import NonFiniteError, Outcome, train
from undiffuse.training.events import Event, Listener, format_progress, read_events
from undiffuse.training.plan import TrainPlan, plan
from undiffuse.training.randomness import seeded
from undiffuse.training.request import TrainRequest
from undiffuse.training.tasks import ClassifierTask, DiffusionTask, Inputs, LossFn, Task

__all__ = [
    "ClassifierTask",
    "Custom",
    "DiffusionTask",
    "Inputs",
    "Listener",
    "LossFn",
    "NonFiniteError",
    "Outcome",
    "Event",
    "Task",
    "TrainConfig",
    "TrainPlan",
    "TrainRequest",
    "format_progress",
    "learning_rate",
    "plan",
    "read_events",
    "seeded",
    "train",
]
