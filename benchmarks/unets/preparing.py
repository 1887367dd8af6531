"""Weights for everyone: drawn once by the original's names, and converted for diffusers. FOLDER [NAME...]."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from unets.models import MODELS, Model, drawn, find

from undiffuse.adapters import export_diffusers
from undiffuse.nets import ClassifierConfig, UNet, UNetConfig
from undiffuse.nets.meta import build_on_meta

Draw = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def main(folder: Path, models: Iterable[Model] = MODELS.values(), draw: Draw = drawn, diffusers: bool = True) -> None:
    """Makes the files of these models that are missing, with the weights that `draw` gives for names and shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    for model in models:
        done = folder / f"{model.name}.ready"
        asked = repr(model)
        if done.exists() and done.read_text() == asked:
            continue
        config = (ClassifierConfig if model.classifier else UNetConfig)(**model.arguments)
        weights = draw(build_on_meta(config.build).state_dict())
        save_file(weights, model.weights(folder))
        if diffusers and not model.classifier:
            net = build_on_meta(UNetConfig(**model.arguments).build)
            assert isinstance(net, UNet)
            net.load_state_dict(weights, assign=True)
            save_file(export_diffusers.state_dict(net), model.weights(folder, "diffusers"))
            settings = export_diffusers.unet_config(net)
            (folder / f"{model.name}.diffusers.json").write_text(json.dumps(settings))
        done.write_text(asked)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [find(name) for name in sys.argv[2:]] or MODELS.values())
