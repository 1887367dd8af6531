"""Levels tuned to a pipeline: what they depend on, where they are kept, and what is said of their gain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.cli_runs import write_classifier, write_model
from undiffuse.config import SamplerConfig
from undiffuse.pipelines import Pipeline
from undiffuse.tuning import Measured, Tuned
from undiffuse.tuning import cache as tuned
from undiffuse.tuning.cache import cached_levels, tuned_images, verdict

FAKE = Tuned("logsnr", {"logsnr": Measured(0.1, 0.1, 0.01)}, 3)
CHANGED = [
    {"model": "second.safetensors"}, {"solver": "unipc"}, {"precision": "bf16"}, {"clip": "none"},
    {"classifier": "judge.safetensors", "guidance": 1.0}, {"classifier": "judge.safetensors", "guidance": 2.0},
]  # fmt: skip
OTHERS = [(4, 4, 0, None), (3, 5, 0, None), (3, 4, 1, None), (3, 4, 0, ["1"])]


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of steps that levels are chosen for."""
    found: list[int] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))

    def choose(pipeline: Pipeline, steps: int, images: int, *rest: object) -> tuple[Tuned, int]:
        found.append(steps)
        return FAKE, images

    monkeypatch.setattr(tuned, "tune_pipeline", choose)
    write_model(tmp_path / "model.safetensors")
    write_model(tmp_path / "second.safetensors", seed=1)
    write_classifier(tmp_path / "judge.safetensors")
    return found


def test_what_the_tuned_levels_depend_on(asked: list[int]) -> None:
    """Each of these has levels of its own in the cache; the same again has not."""
    usual = SamplerConfig(model="model.safetensors", solver="dpmpp-2m", steps="3", grid="logsnr")
    plain = Pipeline.load(usual, "cpu")
    cases = [(plain, case) for case in [(3, 4, 0, None), *OTHERS]]
    cases += [(Pipeline.load(usual.replace(**changes), "cpu"), (3, 4, 0, None)) for changes in CHANGED]  # type: ignore[arg-type]
    for count, (pipeline, case) in enumerate(cases, 1):
        assert cached_levels(pipeline, *case) == FAKE
        assert len(asked) == count, case
        assert cached_levels(pipeline, *case) == FAKE
        assert len(asked) == count, case
    cached_levels(Pipeline.load(replace(usual, steps="9", grid="karras"), "cpu"), 3, 4, 0, None)
    assert len(asked) == len(cases)  # neither the pipeline's own grid nor its steps matter


@pytest.mark.parametrize(
    ("spec", "images"), [("tuned", 32), ("tuned:images=4", 4), ("logsnr", None), ("karras:rho=3", None)]
)
def test_the_images_of_a_tuned_grid(spec: str, images: int | None) -> None:
    assert tuned_images(spec) == images


def test_a_gain_within_the_errors_is_called_none() -> None:
    usual, ours = Measured(0.2, 0.2, 0.02), Measured(0.1, 0.1, 0.02)
    assert "2.00 times less" in verdict(Tuned("at:1", {"at:1": ours, "logsnr": usual}, 9), "unipc")
    close = Measured(0.1, 0.16, 0.02)
    assert "nothing gained for certain" in verdict(Tuned("at:1", {"at:1": close, "logsnr": usual}, 9), "unipc")
    assert "was better" in verdict(Tuned("at:1", {"at:1": Measured(0.1, 0.3, 0.02), "logsnr": usual}, 9), "unipc")
    assert "was the best of all" in verdict(Tuned("logsnr", {"logsnr": usual}, 9), "unipc")
    assert "does not exist" in verdict(Tuned("at:1", {"at:1": ours}, 9), "ddim")
