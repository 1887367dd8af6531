"""The golden directory itself: every file in it is of a kind that some test knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from support.golden_files import Golden, directory, draw_weights, for_each, kind_of

IGNORED_FOLDERS = {"evaluation", "full"}  # they belong to the evaluator and to the published checkpoints


def test_every_file_is_of_a_known_kind() -> None:
    folder = directory()
    assert folder.is_dir(), f"UNDIFFUSE_GOLDEN names {folder}, which is not a directory"
    unknown = [
        p.name
        for p in sorted(folder.iterdir())
        if not (p.name.startswith((".", "README")) or (p.is_dir() and p.name in IGNORED_FOLDERS) or kind_of(p.name))
    ]
    assert not unknown, f"{folder} holds what no golden test knows: {', '.join(unknown)}"


def test_there_is_something_to_compare() -> None:
    assert any(kind_of(p.name) for p in directory().iterdir())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("unet_adm_deep.safetensors", "unet"),
        ("unet_x.safetensors", "unet"),
        ("unet.safetensors", "unet"),
        ("unets.safetensors", None),
        ("schedules.safetensors", "schedules"),
        ("schedules_2.safetensors", "schedules"),
        ("published_layouts.json.gz", "published_layouts"),
        ("published.json", None),
        ("edm_unet.safetensors", None),
    ],
)
def test_kind_is_the_prefix(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_drawn_weights_follow_the_recipe() -> None:
    """Matrices scaled by 1/sqrt(fan-in), weights of norms around one, biases small: first numbers of three tensors."""
    drawn = draw_weights({"a.weight": [2, 8], "b.weight": [3], "b.bias": [3]}, seed=7)
    expected = {
        "a.weight": [0.179573193192482, 0.38310080766677856, 0.28346875309944153],
        "b.weight": [1.089773178100586, 1.1180983781814575, 0.8324400186538696],
        "b.bias": [0.059828467667102814, -0.05069344863295555, 0.06171733886003494],
    }
    for name, first in expected.items():
        assert drawn[name].dtype == torch.float32
        assert drawn[name].flatten()[:3].tolist() == first


@for_each("unet", "superres", "classifier", "schedules", "gaussian_process", "trajectories", "loss_second_moment")
def test_unchecked_and_wrong_tensors_are_reported(path: Path) -> None:
    golden = Golden(path)
    first, *rest = golden.names()
    with pytest.raises(AssertionError, match="never checked"):
        golden.finish()
    golden.compare(first, 2 * golden.take(first).double() + 1, 1e-6)
    for key in rest:
        golden.take(key)
    with pytest.raises(AssertionError, match=rf"(?s){re.escape(first)}: differs by"):
        golden.finish()
