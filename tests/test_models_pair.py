"""Which classifiers can guide which models, and what is said of those that cannot: each difference once."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_runs import write_classifier, write_model
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
