"""Settings in older files: their names of fields and values are read as today's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from undiffuse import checkpoints
from undiffuse.checkpoints import with_current_names
from undiffuse.denoiser import VARIANCES, ProcessConfig
from undiffuse.frontiers import Frontier
from undiffuse.objectives import ObjectiveConfig
from undiffuse.prediction import KINDS
from undiffuse.training import TrainConfig

OLD: dict[str, Any] = {
    "kind": "diffusion",
    "net": {},
    "process": {"family": "edm", "target": "F", "variance": "posterior", "steps": 18},
    "train": {"levels": "lognormal", "steps": 1},
    "objective": {"weighting": "u"},
}


def test_a_checkpoint_of_an_earlier_version(tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    checkpoints.write(path, {"net.a": torch.zeros(1)}, OLD)
    manifest = checkpoints.read_manifest(path)
    process = ProcessConfig(**manifest["process"])
    assert (process.preconditioning, process.target, process.variance) == ("edm", "edm", "fixed_small")
    assert TrainConfig(**manifest["train"]).density == "lognormal"
    assert ObjectiveConfig(**manifest["objective"]).weighting == "velocity"
    assert checkpoints.read(path)[1] == manifest == checkpoints.load_weights(path)[1]


@pytest.mark.parametrize(
    ("field", "former", "possible"),
    [("variance", ("range", "direct", "beta", "posterior"), VARIANCES), ("target", ("u", "F", "mean"), KINDS)],
)
def test_every_former_kind_has_a_name_today(field: str, former: tuple[str, ...], possible: tuple[str, ...]) -> None:
    now = [with_current_names({"process": {field: word}})["process"][field] for word in former]
    assert len(set(now)) == len(former)
    assert set(now) <= set(possible)
    again = [with_current_names({"process": {field: word}})["process"][field] for word in possible]
    assert again == list(possible), "today's names stay"


@pytest.mark.parametrize("odd", [{"process": 3}, {"train": None}, {"process": {"target": ["F"]}}, {}])
def test_odd_manifests_pass_unchanged(odd: dict[str, Any]) -> None:
    assert with_current_names(odd) == odd


def test_a_frontier_of_an_earlier_version(tmp_path: Path) -> None:
    path = tmp_path / "old.frontier.json"
    path.write_text(
        '{"kind": "frontier", "format": 1, "model": "a", "metric": "FD", "rising": false, "about": {}, '
        '"references": [], "points": [{"solver": "ancestral", "steps": "5", "grid": "chain", "calls": 5, '
        '"value": 1.0}]}'
    )
    frontier = Frontier.load(path)
    point = frontier.points[0]
    assert (point.solver, point.nfe, frontier.higher_is_better) == ("ddpm", 5, False)
    frontier.save(tmp_path / "new.json")
    assert Frontier.load(tmp_path / "new.json") == frontier
