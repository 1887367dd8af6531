"""The teachers of consistency models (Song et al. 2023, arXiv:2303.01469): EDM's diffusion models of OpenAI's release.

Networks and processes are those of the published files `edm_*_ema`. Optimiser, batch, averages and density of the noise
levels are the flags of the release's script for training them; Karras et al.'s weighting is the error of F itself. The
release does not say how long they were trained, so the number of updates is ours. `undiffuse distill` makes
consistency models of what these recipes train.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from undiffuse.adapters import published
from undiffuse.nets import UNetConfig
from undiffuse.objectives import ObjectiveConfig
from undiffuse.recipes.base import NOT_RUN, Preparation, Recipe, advice_of, figures_of, paper_training

_DECAYS = (0.999, 0.9999, 0.9999432189950708)
# By recipe: the published file, what it shows, images per update, number of updates.
_TEACHERS: dict[str, tuple[str, str, int, int]] = {
    "edm-imagenet-64": ("edm_imagenet64_ema", "ImageNet 64x64, class-conditional, 296M parameters", 4096, 600_000),
    "edm-lsun-bedroom-256": ("edm_bedroom256_ema", "LSUN bedrooms 256x256, 526M parameters", 256, 1_000_000),
    "edm-lsun-cat-256": ("edm_cat256_ema", "LSUN cats 256x256, 526M parameters", 256, 1_000_000),
}


def _teacher(name: str) -> Recipe:
    file, shown, batch, updates = _TEACHERS[name]
    entry = published.get(file)
    assert isinstance(entry.net, UNetConfig)
    return Recipe(
        name=name,
        summary=f"EDM teacher of consistency models for {shown}",
        data=Preparation(size=entry.image_size, flip=True),
        net=replace(entry.net, dropout=0.1),
        process=entry.process,
        objective=ObjectiveConfig(),
        train=paper_training(
            batch=batch, steps=updates, lr=1e-4, precision="fp16", density="lognormal:-1.2,1.2", ema_decays=_DECAYS
        ),
        advice=advice_of(file),
        published=figures_of(file, "number of updates"),
        measured=NOT_RUN,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {name: partial(_teacher, name) for name in _TEACHERS}
