"""`--init-from MODEL`: a training that begins with a model's weights, and with its architecture and process."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from undiffuse import checkpoints
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import ClassifierModel, DiffusionModel, load_classifier, load_diffusion, split_reference
from undiffuse.nets import config_from_dict
from undiffuse.nets.runner import is_own
from undiffuse.objectives import LOSSES, ObjectiveConfig
from undiffuse.recipes import Recipe
from undiffuse.training.initialisation import FREE, initialise


@dataclass
class Start:
    """What a run begins with. `net` and `process` are configurations, `objective` is what the model's manifest says.

    `model`  the model, until its weights have been taken over; None for a run that goes on
    `levels` the density of noise levels it was trained with, which belongs to its process
    `init`   what became of its weights, as in the run's checkpoints; None until that is known
    """

    reference: str
    net: Any
    process: ProcessConfig
    objective: Mapping[str, Any] = field(default_factory=dict)
    model: DiffusionModel | ClassifierModel | None = None
    init: Mapping[str, Any] | None = None
    levels: str = "uniform"

    @property
    def size(self) -> int | tuple[int, int]:
        """Size of the pictures it was trained on."""
        height, width = self.net.size
        return int(height) if height == width else (height, width)

    def into(self, recipe: Recipe, size: tuple[int, int]) -> Recipe:
        """A recipe with the model's network, process and loss; of the recipe's own, data and training remain.

        `size` is (height, width) of the pictures; an upsampler enlarges them by the factor it was trained for.
        """
        objective = None if recipe.objective is None else self._loss()
        train = replace(recipe.train, levels=self.levels)
        low_size = self._low_size(size)
        return replace(recipe, net=self.net, process=self.process, objective=objective, train=train, low_size=low_size)

    def check(self, sets: list[tuple[str, str]]) -> None:
        """ValueError for a --set that would make another network of it."""
        for path, _ in sets:
            section, _, name = path.partition(".")
            if section == "net" and name not in FREE and hasattr(self.net, name):
                raise ValueError(
                    f"--set {path}: the network is that of {self.reference}, whose weights it begins with; of its "
                    f"fields only {', '.join(f'net.{name}' for name in FREE)} can be changed"
                )

    def begin(self, net: nn.Module, process: ProcessConfig, labels: list[str] | None) -> Mapping[str, Any]:
        """Gives a new run's network the weights; what became of them, for the run's checkpoints.

        A run that goes on has weights of its own, and this tells what its checkpoints say.
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
        """Whose weights they were before: what a converted file, or one that began with such, remembers of that."""
        source = manifest.get("source") or (manifest.get("init") or {}).get("origin") or {}
        return {name: source[name] for name in ("published", "url", "sha256", "licence") if source.get(name)} or None

    def _loss(self) -> ObjectiveConfig:
        told = {f.name: self.objective[f.name] for f in fields(ObjectiveConfig) if f.name in self.objective}
        if told.get("loss") in LOSSES:
            return ObjectiveConfig(**told)
        return ObjectiveConfig(loss="hybrid" if self.process.learns_variance else "simple")

    def _low_size(self, size: tuple[int, int]) -> int | None:
        """Shorter side of the pictures that an upsampler enlarges to `size`; None for other models."""
        if not getattr(self.net, "super_resolution", False):
            return None
        low = self.objective.get("low_size")
        if not low:
            raise ValueError(f"{self.reference} is an upsampler that does not say what size it enlarges")
        return max(1, min(low) * min(size) // min(self.net.size))


def find_start(args: argparse.Namespace, kind: str) -> Start | None:
    """The model of --init-from, None without; `kind` is what is trained.

    A run in the folder that began with the same model goes on with its own weights: the model is not even read, and
    may be gone. ValueError (CheckpointError) if there is no such model or if it is of the other kind.
    """
    reference = args.init_from
    if reference is None:
        return None
    for path in reversed(checkpoints.checkpoints(folder(args))):
        try:
            manifest = checkpoints.read_manifest(path)
        except checkpoints.CheckpointError:
            continue  # an older one may be sound
        if (manifest.get("init") or {}).get("from") == reference and manifest.get("kind") == kind:
            net = config_from_dict(manifest["net"], kind)
            process = ProcessConfig(**manifest["process"])
            levels = _levels(manifest)
            return Start(reference, net, process, manifest.get("objective") or {}, None, manifest["init"], levels)
        break
    model = load_classifier(reference) if kind == "classifier" else load_diffusion(reference)
    if not is_own(model.net):
        raise ValueError(
            f"--init-from {reference}: its network, a {type(model.net).__name__}, is not of this library's; "
            "train it from Python, beginning with load_model(...).net"
        )
    objective = model.manifest.get("objective") or {}
    return Start(reference, model.net.config, model.process, objective, model, levels=_levels(model.manifest))


def _levels(manifest: Mapping[str, Any]) -> str:
    """The density that a model was trained with; the usual one where it does not say."""
    return str((manifest.get("train") or {}).get("levels", "uniform"))


def folder(args: argparse.Namespace) -> Path:
    """The folder of a run that begins with a model: runs/DATA-from-MODEL."""
    if args.out:
        return Path(args.out)
    data = Path(str(args.data)).expanduser().resolve()
    stem = data.name if data.is_dir() else data.stem if data.exists() else str(args.data).partition(":")[0]
    model = Path(split_reference(args.init_from)[0])
    if model.exists():
        model = model.resolve()
        if model.stem == "model" or model.parent.name == checkpoints.FOLDER:  # a file of a run: the run's name
            model = model.parent if model.stem == "model" else model.parent.parent
    name = model.name if model.is_dir() else model.name.removesuffix(".safetensors").removesuffix(".pt")
    return Path("runs") / f"{stem}-from-{name}"
