"""Training: one visible loop, counted in images, for diffusion models and classifiers alike (see `engine`)."""

from __future__ import annotations

from undiffuse.training.config import TrainConfig, learning_rate
from undiffuse.training.engine import NonFiniteError, Outcome, train
from undiffuse.training.randomness import seeded
from undiffuse.training.records import Listener, Record, format_progress, read_records
from undiffuse.training.tasks import ClassifierTask, DiffusionTask, Inputs, Task

__all__ = [
    "ClassifierTask",
    "DiffusionTask",
    "Inputs",
    "Listener",
    "NonFiniteError",
    "Outcome",
    "Record",
    "Task",
    "TrainConfig",
    "format_progress",
    "learning_rate",
    "read_records",
    "seeded",
    "train",
]
