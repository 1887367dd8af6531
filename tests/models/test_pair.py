"""Which classifiers can guide which models, and what is said of those that cannot: each difference once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from support.cli_runs import call, write_classifier, write_model
from support.foreign_files import CLASSIFIER, weights_of, write
from undiffuse.models import ClassifierModel, DiffusionModel, check_pair, load_classifier, load_diffusion
from undiffuse.nets import ClassifierConfig


@pytest.fixture
def pair(tmp_path: Path) -> tuple[DiffusionModel, ClassifierModel]:
    model, classifier = write_model(tmp_path / "m.safetensors"), write_classifier(tmp_path / "c.safetensors")
    return load_diffusion(model), load_classifier(classifier)


def other(classifier: ClassifierModel, labels: tuple[str, ...] | None, **changes: object) -> ClassifierModel:
    values = {name: getattr(classifier.net.config, name) for name in ClassifierConfig.__dataclass_fields__}
    net = ClassifierConfig(**{**values, **changes}).build()
    return ClassifierModel(net=net, process=classifier.process, labels=labels)


def test_each_difference_is_told_once(pair: tuple[DiffusionModel, ClassifierModel]) -> None:
    model, classifier = pair
    check_pair(model, classifier)
    with pytest.raises(ValueError) as error:
        check_pair(model, other(classifier, classifier.labels, in_channels=3, pool="attention", num_head_channels=8))
    assert str(error.value) == "this classifier does not fit the model: images of 1 channel against 3"
    with pytest.raises(ValueError) as error:
        check_pair(model, other(classifier, ("left", "right"), out_channels=2))
    assert str(error.value).endswith("model: classes left, right, top against left, right")
    with pytest.raises(ValueError) as error:
        check_pair(model, other(classifier, None, out_channels=2))
    assert str(error.value).endswith("model: 3 classes against 2")


@pytest.mark.parametrize("objective", [{"noise": False, "clean_fraction": 0.0}, {"noise": True, "clean_fraction": 1.0}])
def test_a_classifier_of_clean_images_guides_at_x0_only(
    pair: tuple[DiffusionModel, ClassifierModel], objective: dict[str, object]
) -> None:
    model, classifier = pair
    clean = replace(classifier, manifest={"objective": {"loss": "cross-entropy", **objective}})
    assert clean.clean_only and not classifier.clean_only
    check_pair(model, clean, "x0")
    for at in ("x_t", "mean"):
        check_pair(model, classifier, at)
        with pytest.raises(ValueError, match="trained on clean images alone.*guidance_at 'x0'"):
            check_pair(model, clean, at)
    half = replace(classifier, manifest={"objective": {"noise": True, "clean_fraction": 0.5}})
    check_pair(model, half)


def test_the_shipped_judge_is_no_guide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sample", "--count", 1, "--steps", 2, "--device", "cpu", "--classifier", "fashion-mnist-32-judge")
    assert call(*words, "--class", 1, "--out", tmp_path / "a") != 0
    assert "trained on clean images alone" in capsys.readouterr().err
    assert call(*words, "--class", 1, "--guidance-at", "x0", "--out", tmp_path / "b") == 0


def test_a_dump_that_says_not_noised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    file = write(tmp_path / "c.pt", weights_of(CLASSIFIER))
    said = "guided-diffusion --image_size 32 --noise_schedule cosine"
    assert not load_classifier(f"{file}@{said}").clean_only
    assert load_classifier(f"{file}@{said} --noised False").clean_only
