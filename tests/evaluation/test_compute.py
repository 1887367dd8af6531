"""All metrics of two sides: each equals its own function, what cannot be computed is said, cards tell everything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from support.evaluation_sets import Toy, images, save_npz
from undiffuse.evaluation import METRICS, MetricOptions, Report, Summary, compute_metrics, extract, open_images
from undiffuse.metrics import (
    ClassAccuracy,
    InceptionScore,
    MetricError,
    VendiScore,
    c2st,
    cmmd,
    frechet_distance,
    kid,
    manifold_metrics,
)

CLASSES = np.array(["a", "b", "c"])


def side(folder: Path, name: str, count: int, seed: int) -> Summary:
    path = save_npz(folder / f"{name}.npz", images(count, seed), arr_1=np.arange(count) % 3, label_names=CLASSES)
    return Summary.of(extract(open_images(path), [Toy()])[0])


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Summary, Summary]:
    return side(tmp_path, "samples", 90, 1), side(tmp_path, "reference", 80, 2)


def test_every_metric_is_its_own_function_of_the_features(sides: tuple[Summary, Summary]) -> None:
    samples, reference = sides
    x, y = samples.features, reference.features
    assert x is not None
    assert y is not None
    names = [name for name in METRICS if name not in ("memorisation", "fd-infinity")]
    found = {e.name: e for e in compute_metrics(samples, reference, names).estimates}
    assert samples.statistics is not None
    assert reference.statistics is not None
    assert samples.spatial is not None
    assert reference.spatial is not None
    manifold = manifold_metrics(x, y)
    assert samples.scores is not None
    scores = samples.scores(x)
    assert scores is not None
    expected = {
        "FD-toy": frechet_distance(samples.statistics, reference.statistics),
        "sFD-toy": frechet_distance(samples.spatial, reference.spatial),
        "IS-toy": InceptionScore().update(scores).compute().value,
        "KD-toy": kid(x, y).value,
        "MMD-toy": cmmd(x, y).value,
        "C2ST-toy": c2st(x, y).value,
        "Vendi": VendiScore().update(x).compute().value,
        "accuracy (toy)": ClassAccuracy().update(scores, np.arange(90) % 3).compute().value,
        **{name: estimate.value for name, estimate in manifold.items()},
    }
    assert {name: e.value for name, e in found.items()} == pytest.approx(expected, rel=1e-12)
    assert all(found[name].stderr is not None for name in expected if name != "Vendi")


def test_options_reach_their_metrics(sides: tuple[Summary, Summary]) -> None:
    samples, reference = sides
    options = MetricOptions(k=5, k_density=3, distances="float64", chunk=30, kid_subset=20, splits=0)
    found = {e.name: e for e in compute_metrics(samples, reference, None, options).estimates}
    assert samples.features is not None
    assert reference.features is not None
    manifold = manifold_metrics(samples.features, reference.features, k=5, k_density=3, precision="float64")
    assert found["recall"].value == manifold["recall"].value
    assert found["density"].value == manifold["density"].value
    assert found["IS-toy"].extra["chunks"] == 3
    assert found["KD-toy"].extra["subsets"] == 4
    assert "two_halves" not in found["FD-toy"].extra


def test_a_reference_without_features_leaves_out_what_needs_them_and_says_so(sides: tuple[Summary, Summary]) -> None:
    samples, reference = sides
    bare = replace(reference, features=None)
    found = compute_metrics(samples, bare)
    assert [e.name for e in found.estimates] == ["FD-toy", "sFD-toy", "IS-toy", "accuracy (toy)"]
    assert set(found.skipped) == {"pr", "dc", "kid"}
    assert "statistics only" in found.skipped["pr"]
    with pytest.raises(MetricError, match=r"pr \(improved precision and recall\) cannot be computed: the reference"):
        compute_metrics(samples, bare, ["pr"])


def test_unknown_names_other_protocols_and_missing_classes_are_refused(sides: tuple[Summary, Summary]) -> None:
    samples, reference = sides
    with pytest.raises(MetricError, match="no metric fid2; there are"):
        compute_metrics(samples, reference, ["fid2"])
    other = replace(reference, card=replace(reference.card, resize="half-pixel"))
    with pytest.raises(MetricError, match="resize 'none' against 'half-pixel'"):
        compute_metrics(samples, other)
    with pytest.raises(MetricError, match="samples have no classes"):
        compute_metrics(replace(samples, labels=None), reference, ["accuracy"])
    assert "accuracy (toy)" not in [e.name for e in compute_metrics(replace(samples, labels=None), reference).estimates]
    with pytest.raises(MetricError, match="the model was trained on are not given"):
        compute_metrics(samples, reference, ["memorisation"])


def test_memorisation_finds_copies(tmp_path: Path, sides: tuple[Summary, Summary]) -> None:
    samples, reference = sides
    copies = {
        e.name: e.value for e in compute_metrics(samples, reference, ["memorisation"], training=samples).estimates
    }
    assert copies["copies"] == 1
    assert copies["authentic"] == 0
    fresh = side(tmp_path, "training", 90, 7)
    free = {e.name: e.value for e in compute_metrics(samples, reference, ["memorisation"], training=fresh).estimates}
    assert free["copies"] == 0
    assert 0.2 < free["authentic"] < 0.9
    assert 0.2 < free["closer_to_train"] < 0.8


def test_warnings_of_both_sides_stand_at_every_value(sides: tuple[Summary, Summary]) -> None:
    samples, reference = sides
    warned = replace(samples, warnings=("lossy",))
    found = compute_metrics(warned, replace(reference, warnings=("odd",)))
    for estimate in found.estimates:
        assert {"samples: lossy", "reference: odd"} <= set(estimate.warnings)
    same = compute_metrics(samples, samples, ["fd"]).estimates[0]
    assert "samples and reference are the same images" in same.warnings
    assert abs(same.value) < 1e-9


def test_real_against_real_is_zero_within_its_corrected_error(tmp_path: Path) -> None:
    values, errors = [], []
    for seed in range(8):
        found = compute_metrics(
            side(tmp_path, f"x{seed}", 300, 10 + seed), side(tmp_path, f"y{seed}", 300, 50 + seed), ["fd"]
        )
        estimate = found.estimates[0]
        assert estimate.bias is not None
        values.append(estimate.value - estimate.bias)
        errors.append(estimate.bias)
    assert abs(float(np.mean(values))) < 3 * float(np.std(values)) / 8**0.5 + 0.2 * float(np.mean(errors))


def test_a_report_says_everything_and_comes_back(sides: tuple[Summary, Summary], tmp_path: Path) -> None:
    samples, reference = sides
    report = Report.of("run", [(samples, reference, compute_metrics(samples, reference))], {"samples: features": 1.5})
    path = report.save(tmp_path / "r.json")
    values = json.loads(path.read_text())
    for metric in values["metrics"]:
        card = metric["card"]
        assert card["extractor"] == "toy"
        assert card["weights_sha256"]
        for whose, summary in (("samples", samples), ("reference", reference)):
            about = card["details"][whose]
            assert about["sha256"] == summary.about["sha256"]
            assert about["n"] == len(summary.features)  # type: ignore[arg-type]
    assert values["environment"]["torch"] == torch.__version__
    back = Report.load(path)
    assert json.loads(json.dumps(back.to_dict())) == json.loads(json.dumps(report.to_dict())) == values
    assert back.comparable == report.comparable
    with pytest.raises(FileExistsError):
        report.save(path)


def test_two_extractors_names_do_not_collide(sides: tuple[Summary, Summary]) -> None:
    samples, reference = sides
    second = [replace(s, card=replace(s.card, protocol="b", distance="FD-b")) for s in sides]
    parts = [(samples, reference, compute_metrics(samples, reference)), (*second, compute_metrics(*second))]
    names = [e.name for e in Report.of("r", parts, {}).estimates]
    assert len(set(names)) == len(names)
    assert {"precision", "precision (b)", "FD-toy", "FD-b"} <= set(names)


def test_reports_against_other_references_do_not_compare(sides: tuple[Summary, Summary], tmp_path: Path) -> None:
    samples, reference = sides
    other = side(tmp_path, "third", 80, 9)
    first, second = (
        Report.of("r", [(samples, y, compute_metrics(samples, y, ["fd"]))], {}) for y in (reference, other)
    )
    assert first.comparable != second.comparable


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "evaluation", "format": 1}', '{"kind": "bits"}'])
def test_files_that_are_no_reports_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(MetricError, match="no evaluation"):
        Report.load(tmp_path / "x.json")
