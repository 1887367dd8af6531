"""Fine-tuning: a training that starts from a model's weights, with its architecture and process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from undiffuse import checkpoints
from undiffuse.conditions import ModelConditions
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import ClassifierModel, DiffusionModel, load_classifier, load_diffusion, split_reference
from undiffuse.nets import config_from_dict
from undiffuse.nets.runner import is_own
from undiffuse.objectives import LOSSES, ObjectiveConfig
from undiffuse.recipes import Recipe
from undiffuse.training.initialisation import FREE, initialise
from undiffuse.util.errors import ConfigError

__all__ = ["PretrainedInit", "default_folder", "find_init"]


@dataclass
class PretrainedInit:
    """The model that a run starts from.

    Attributes:
        reference: Name, file or folder of the model.
        net: Configuration of its network.
        process: Its process.
        objective: The objective in the model's manifest.
        model: The model, until its weights have been taken over; None for a run that resumes.
        init: What became of its weights, as in the checkpoints of the run; None until that is known.
        levels: The density of noise levels it was trained with, which belongs to its process.
        conditions: What it is conditioned on besides the class.
    """

    reference: str
    net: Any
    process: ProcessConfig
    objective: Mapping[str, Any] = field(default_factory=dict)
    model: DiffusionModel | ClassifierModel | None = None
    init: Mapping[str, Any] | None = None
    levels: str = "uniform"
    conditions: ModelConditions = ModelConditions()

    @property
    def size(self) -> int | tuple[int, int]:
        """Size of the images it was trained on, one number or (height, width)."""
        height, width = self.net.size
        return int(height) if height == width else (height, width)

    def into(self, recipe: Recipe, size: tuple[int, int]) -> Recipe:
        """Returns a recipe with the network, process and loss of the model; data and training stay the recipe's.

        Args:
            recipe: The recipe.
            size: (height, width) of the images. An upsampler enlarges to it by the factor it was trained for.
        """
        objective = None if recipe.objective is None else self._loss()
        train = replace(recipe.train, density=self.levels)
        low_size = self._low_size(size)
        return replace(recipe, net=self.net, process=self.process, objective=objective, train=train, low_size=low_size)

    def check(self, overrides: Mapping[str, Any]) -> None:
        """Checks that no override changes the architecture.

        Raises:
            ConfigError: One does.
        """
        for path in overrides:
            section, _, name = path.partition(".")
            if section == "net" and name not in FREE and hasattr(self.net, name):
                raise ConfigError(
                    path,
                    f"the network is that of {self.reference}, which the run starts from; of its fields only "
                    f"{', '.join(f'net.{name}' for name in FREE)} can be changed",
                )

    def begin(self, net: nn.Module, process: ProcessConfig, labels: list[str] | None) -> Mapping[str, Any]:
        """Copies the weights into the network of a new run; a run that resumes has its own.

        Args:
            net: The network.
            process: The process it will be trained on.
            labels: Names of its classes, None without classes.

        Returns:
            What became of the weights, for the checkpoints of the run.
        """
        if self.model is not None:
            name = Path(split_reference(self.reference)[0]).name
            report = initialise(net, self.model, process, labels, name)
            self.init = {"from": self.reference, **report.to_dict(), "origin": self._origin(self.model.manifest)}
            self.model = None  # its memory is needed
        assert self.init is not None
        return self.init

    @staticmethod
    def _origin(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
        """Where the weights came from originally, as a converted file and all models trained from it record."""
        source = manifest.get("source") or (manifest.get("init") or {}).get("origin") or {}
        return {name: source[name] for name in ("published", "url", "sha256", "licence") if source.get(name)} or None

    def _loss(self) -> ObjectiveConfig:
        known = {f.name: self.objective[f.name] for f in fields(ObjectiveConfig) if f.name in self.objective}
        if known.get("loss") in LOSSES:
            return ObjectiveConfig(**known)
        return ObjectiveConfig(loss="hybrid" if self.process.learns_variance else "simple")

    def _low_size(self, size: tuple[int, int]) -> int | None:
        """Shorter side of the images that an upsampler enlarges to `size`; None for other models."""
        if not getattr(self.net, "super_resolution", False):
            return None
        low = self.objective.get("low_size")
        if not low:
            raise ConfigError("init_from", f"{self.reference} is an upsampler that does not say what size it enlarges")
        return max(1, min(low) * min(size) // min(self.net.size))


def find_init(reference: str, kind: str, run_dir: Path) -> PretrainedInit:
    """Opens the model that a run starts from.

    A run in the folder that started from the same model resumes with its own weights: the model is not read then, and
    may be gone.

    Args:
        reference: Name, file or folder of the model.
        kind: "diffusion" or "classifier", what is trained.
        run_dir: Folder of the run, which may exist already.

    Raises:
        ValueError: There is no such model, or it is of the other kind.
    """
    for path in reversed(checkpoints.checkpoints(run_dir)):
        try:
            manifest = checkpoints.read_manifest(path)
        except checkpoints.CheckpointError:
            continue  # an older one may be sound
        if (manifest.get("init") or {}).get("from") == reference and manifest.get("kind") == kind:
            net = config_from_dict(manifest["net"], kind)
            process = ProcessConfig(**manifest["process"])
            objective, levels = manifest.get("objective") or {}, _levels(manifest)
            held = ModelConditions.from_dict(manifest.get("conditions"))
            return PretrainedInit(reference, net, process, objective, None, manifest["init"], levels, held)
        break
    model = load_classifier(reference) if kind == "classifier" else load_diffusion(reference)
    if not is_own(model.net):
        raise ConfigError(
            "init_from",
            f"the network of {reference}, a {type(model.net).__name__}, is none of this library's: train it from "
            "Python with model=load_model(...).net",
        )
    objective = model.manifest.get("objective") or {}
    levels, held = _levels(model.manifest), ModelConditions.from_dict(model.manifest.get("conditions"))
    return PretrainedInit(reference, model.net.config, model.process, objective, model, None, levels, held)


def _levels(manifest: Mapping[str, Any]) -> str:
    """The density that a model was trained with; "uniform" where its manifest has none."""
    return str((manifest.get("train") or {}).get("density", "uniform"))


def default_folder(data: str, reference: str) -> Path:
    """Returns the default folder of a run that starts from a model: runs/DATA-from-MODEL."""
    path = Path(data).expanduser().resolve()
    stem = path.name if path.is_dir() else path.stem if path.exists() else data.partition(":")[0]
    model = Path(split_reference(reference)[0])
    if model.exists():
        model = model.resolve()
        if model.stem == "model" or model.parent.name == checkpoints.FOLDER:  # a file of a run: the name of the run
            model = model.parent if model.stem == "model" else model.parent.parent
    name = model.name if model.is_dir() else model.name.removesuffix(".safetensors").removesuffix(".pt")
    return Path("runs") / f"{stem}-from-{name}"
