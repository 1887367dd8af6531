"""What goes in and what comes out: refused features and images, estimates and their cards."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from undiffuse.metrics import Card, Estimate, MetricError, check_same_protocol
from undiffuse.metrics.checks import as_features, as_images

CARD = Card(protocol="adm", distance="FID", extractor="inception", layer="pool_3", dimension=2048)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3), "got float32 of shape"),
        (torch.zeros(3, 4, 1), "got float32 of shape"),
        (torch.zeros(3, 4, dtype=torch.int64), "got int64"),
        ([[0.0, 1.0]], "got list"),
        (torch.zeros(3, 0), "dimension 0"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), "image 0"),
        (np.array([[1.0, 2.0], [0.0, np.inf]]), "image 1"),
        (torch.tensor([[float("inf"), 0.0], [0.0, float("-inf")]]), "2 of 2"),
    ],
)
def test_wrong_features(features: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        as_features(features)


def test_features_lose_their_gradients_and_keep_their_numbers() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    assert not as_features(x).requires_grad
    assert as_features(torch.ones(2, 3, dtype=torch.bfloat16)).dtype == torch.float32
    assert as_features(np.ones((2, 3))[::-1]).dtype == torch.float64


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 8, 8, 3), "to_uint8"),
        (np.zeros((2, 8, 8, 3), np.float32), "to_uint8"),
        (np.zeros((2, 8, 8, 3), np.int64), "convert them to uint8"),
        (np.zeros((2, 8, 8, 3), np.uint16), "convert them to uint8"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "shape"),
        (torch.zeros(2, 0, 8, 3, dtype=torch.uint8), "shape"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "channels seem to come first"),
        (torch.zeros(2, 8, 8, 4, dtype=torch.uint8), "alpha"),
        (torch.zeros(2, 8, 8, 1, dtype=torch.uint8), "grey='repeat'"),
        (None, "NoneType"),
    ],
)
def test_wrong_images(images: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        as_images(images)


def test_grey_images_are_repeated_only_when_asked() -> None:
    grey = torch.arange(8, dtype=torch.uint8).reshape(1, 2, 4, 1)
    assert torch.equal(as_images(grey, grey="repeat"), grey.repeat(1, 1, 1, 3))
    assert torch.equal(as_images(grey, channels=1), grey)


def test_images_may_be_strided_arrays() -> None:
    images = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert torch.equal(as_images(images[::-1]), torch.from_numpy(images).flip(0))


def test_cards_survive_json_and_compare_without_details() -> None:
    card = CARD.with_details(seed=3, solver="ddim")
    back = Card.from_dict(json.loads(json.dumps(card.to_dict())))
    assert back == card == CARD
    assert back.details == {"seed": 3, "solver": "ddim"}
    with pytest.raises(MetricError, match="not a card"):
        Card.from_dict({"protocol": "adm"})
    with pytest.raises(MetricError, match="unknown fields colour"):
        Card.from_dict({**CARD.to_dict(), "colour": "red"})


@pytest.mark.parametrize(
    "change", ["protocol", "extractor", "weights_sha256", "layer", "resize", "normalisation", "dtype"]
)
def test_any_difference_in_preparation_is_an_error(change: str) -> None:
    other = replace(CARD, **{change: "another"})  # type: ignore[arg-type]
    with pytest.raises(MetricError, match=change):
        check_same_protocol(CARD, other)
    check_same_protocol(CARD, None)
    check_same_protocol(CARD, CARD.with_details(seed=1))


def test_an_estimate_is_a_number_with_its_error() -> None:
    estimate = Estimate(name="FID", value=3.25, stderr=0.0123, n=10, card=CARD, warnings=("few",))
    assert float(estimate) == 3.25
    assert str(estimate) == "FID 3.25 +- 0.012"
    assert str(replace(estimate, stderr=None)) == "FID 3.25"
    assert estimate.with_warnings(["jpeg"]).warnings == ("few", "jpeg")
    assert json.loads(json.dumps(estimate.to_dict()))["card"]["protocol"] == "adm"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_there_is_no_estimate_of_nothing(value: float) -> None:
    with pytest.raises(MetricError, match="not a number"):
        Estimate(name="FID", value=value, n=1)
