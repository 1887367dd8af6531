"""Weights for everyone: drawn once by the original's names, and converted for diffusers. A program: FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from unets.models import MODELS, drawn

from undiffuse.adapters import export_diffusers
from undiffuse.nets import ClassifierConfig, UNet, UNetConfig


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for model in MODELS.values():
        done = folder / f"{model.name}.ready"
        asked = repr(model)
        if done.exists() and done.read_text() == asked:
            continue
        config = (ClassifierConfig if model.classifier else UNetConfig)(**model.arguments)
        with torch.device("meta"):
            shapes = config.build().state_dict()
        weights = drawn(shapes)
        save_file(weights, model.weights(folder))
        if not model.classifier:
            net = UNetConfig(**model.arguments).build()
            assert isinstance(net, UNet)
            net.load_state_dict(weights)
            save_file(export_diffusers.state_dict(net), model.weights(folder, "diffusers"))
            settings = export_diffusers.unet_config(net)
            (folder / f"{model.name}.diffusers.json").write_text(json.dumps(settings))
        done.write_text(asked)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
