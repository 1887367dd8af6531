"""Arms and the GAN really train, from one seed to one result, at a size where that takes seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from support.cli_runs import one_thread
from undiffuse.data.fashion import fashion_mnist
from undiffuse.reproduce import arms
from undiffuse.reproduce.gan import Discriminator, Generator, gan_samples, train_gan, width_for
from undiffuse.reproduce.methods.trained import contrasts, gradient_noise, sampling_time
from undiffuse.reproduce.methods.trained_guidance import classifier_crops, conditioning, noisy_or_clean, stacked
from undiffuse.reproduce.run import Run

TINY = replace(arms.SCALES["small"], size=8, width=8, images=32, batch=8, precision="fp32")


def _data() -> bool:
    try:
        fashion_mnist("test")
    except (OSError, ValueError):
        return False
    return True


needs_data = pytest.mark.skipif(not _data(), reason="Fashion-MNIST is not installed")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setitem(arms.SCALES, "small", TINY)
    with one_thread():
        yield


def test_the_networks_of_the_gan_fit_each_other() -> None:
    for size in (8, 16, 32):
        images = Generator(size, 4)(torch.zeros(2, 64))
        assert images.shape == (2, 1, size, size)
        assert Discriminator(size, 4)(images).shape == (2,)
    assert width_for(16, 400_000) > width_for(16, 100_000)


@needs_data
def test_the_gan_learns_and_depends_on_its_seed_alone(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_gan(TINY, seed, tmp_path / name, "fashion-mnist:test", "cpu", parameters=20_000)
    a, b, c = (gan_samples(tmp_path / name, TINY, 16, seed=5).numpy() for name in "abc")
    assert a.shape == (16, 8, 8, 1)
    assert a.dtype == np.uint8
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    longer = replace(TINY, images=400)
    train_gan(longer, 0, tmp_path / "long", "fashion-mnist:test", "cpu", parameters=20_000)
    made = gan_samples(tmp_path / "long", longer, 64, seed=5).numpy()
    # Most of a picture's border is black: an untrained generator is grey everywhere.
    assert made[:, 0, 0].mean() < 85 < a[:, 0, 0].mean()
    assert made.std(0).mean() > 5


@needs_data
def test_arms_are_trained_once_and_compared(tmp_path: Path) -> None:
    run = Run(tmp_path, "cpu", "fashion-mnist:test")
    effects = {
        "loss": ["loss", "base", "added"], "bits": ["bits", "base", "added"], "samples": ["fd", "base", "gan"],
        "average": ["loss", "base@net", "base"],
    }  # fmt: skip
    given = {"judge": "fashion", "samples": 8, "reference": 20, "images": 8, "times": 2, "terms": 3, "steps": "2"}
    found = contrasts(run, 1, "small", effects, **given)
    assert set(found["effects"]) == set(effects)
    assert all(np.isfinite(list(found["effects"].values())))
    assert {path.name for path in (tmp_path / "trained").iterdir()} == {"base-small-1", "added-small-1", "gan-small-1"}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "trained").rglob("*")}
    assert contrasts(run, 1, "small", effects, **given) == found
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "trained").rglob("*")} == stamps


@needs_data
@pytest.mark.slow
def test_guided_arms_stacks_and_classifiers_are_compared(tmp_path: Path) -> None:
    run = Run(tmp_path, "cpu", "fashion-mnist:test")
    given = {"judge": "fashion", "count": 10, "reference": 20, "steps": 2}
    found = conditioning(run, 1, "small", scales=[1.0, 2.0], **given)
    assert found["numbers"]["accuracy"].keys() == {"conditional", "base", "conditional, guided", "base, guided"}
    assert "accuracy" in noisy_or_clean(run, 1, "small", guidance=2.0, **given)["effects"]
    assert -1 <= classifier_crops(run, 1, "small", count=10)["effects"]["accuracy"] <= 1
    found = stacked(run, 1, "small", guidance=2.0, **given)
    assert all(np.isfinite(list(found["effects"].values())))
    assert gradient_noise(run, 1, "small", points=4, images=4)["numbers"]["noise scale"]["hybrid"] > 0
    assert sampling_time(run, 1, "small", steps=2, count=4)["numbers"]["seconds per image"]["gan"] > 0
