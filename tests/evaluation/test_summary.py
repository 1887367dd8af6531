"""Reference files and OpenAI's npz: what comes back is what went in, and nothing comes back from damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from support.evaluation_sets import DIMENSION, SPATIAL, Toy, images, save_npz
from undiffuse.evaluation import Summary, extract, is_reference, npz_statistics, open_images, read_reference
from undiffuse.evaluation import write_reference as write
from undiffuse.metrics import MetricError
from undiffuse.util.errors import ConfigError


@pytest.fixture
def summaries(tmp_path: Path) -> list[Summary]:
    stored = open_images(save_npz(tmp_path / "a.npz", images(60), arr_1=np.arange(60) % 3))
    return [Summary.of(features) for features in extract(stored, [Toy(), Toy("other")])]


def statistics(**changes: Any) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    out = {}
    for mean, covariance, dimension in (("mu", "sigma", DIMENSION), ("mu_s", "sigma_s", SPATIAL)):
        rows = generator.normal(size=(50, dimension))
        out[mean], out[covariance] = rows.mean(axis=0), np.cov(rows, rowvar=False)
    return {name: array for name, array in {**out, **changes}.items() if array is not None}


def test_statistics_are_the_two_pass_ones(summaries: list[Summary]) -> None:
    summary = summaries[0]
    assert summary.features is not None
    rows = summary.features.double()
    assert summary.statistics is not None
    assert torch.allclose(summary.statistics.mean, rows.mean(dim=0), atol=1e-14)
    assert torch.allclose(summary.statistics.covariance, torch.cov(rows.T), atol=1e-14)
    assert summary.statistics.n == 60
    assert summary.own_statistics


def test_a_reference_file_gives_back_everything(summaries: list[Summary], tmp_path: Path) -> None:
    path = write(tmp_path / "r.safetensors", summaries)
    assert is_reference(path)
    for before, after in zip(summaries, read_reference(path), strict=True):
        assert after.card == before.card
        assert after.spatial_card == before.spatial_card
        for name in ("statistics", "spatial"):
            ours, theirs = getattr(before, name), getattr(after, name)
            assert torch.equal(ours.mean, theirs.mean)
            assert torch.equal(ours.covariance, theirs.covariance)
            assert ours.n == theirs.n == 60
        assert before.features is not None
        assert after.features is not None
        assert torch.equal(before.features, after.features)
        assert after.about["sha256"] == before.about["sha256"]
        assert after.about["class_counts"] == [20, 20, 20]


def test_only_some_features_are_kept_evenly_and_statistics_are_of_all(summaries: list[Summary], tmp_path: Path) -> None:
    after = read_reference(write(tmp_path / "r.safetensors", summaries[:1], keep=20))[0]
    assert summaries[0].features is not None
    assert after.features is not None
    assert torch.equal(after.features, summaries[0].features[::3])
    assert after.statistics is not None
    assert after.statistics.n == 60
    assert not after.own_statistics  # their error is not that of the statistics
    assert read_reference(write(tmp_path / "n.safetensors", summaries[:1], keep=0))[0].features is None


def test_nothing_is_overwritten_and_nothing_half_written(summaries: list[Summary], tmp_path: Path) -> None:
    path = write(tmp_path / "r.safetensors", summaries[:1])
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        write(path, summaries)
    assert path.read_bytes() == before
    write(path, summaries, overwrite=True)
    assert len(read_reference(path)) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "r.safetensors"]


def test_damaged_and_foreign_files_are_refused(summaries: list[Summary], tmp_path: Path) -> None:
    path = write(tmp_path / "r.safetensors", summaries[:1])
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    (tmp_path / "bit.safetensors").write_bytes(bytes(data))
    with pytest.raises(MetricError, match="damaged"):
        read_reference(tmp_path / "bit.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(bytes(data[:-100]))
    with pytest.raises(MetricError):
        read_reference(tmp_path / "cut.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert not is_reference(tmp_path / "other.safetensors")
    with pytest.raises(MetricError, match="no reference file"):
        read_reference(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    assert not is_reference(tmp_path / "text.safetensors")
    assert not is_reference(tmp_path / "missing.safetensors")


def test_a_manifest_that_lies_is_refused(summaries: list[Summary], tmp_path: Path) -> None:
    import safetensors

    path = write(tmp_path / "r.safetensors", summaries[:1])
    with safetensors.safe_open(str(path), framework="pt") as file:
        manifest = json.loads(file.metadata()["undiffuse"])
    manifest["extractors"][0]["card"]["dimension"] = 9
    for said in ("does not have the hash it carries", "9 features"):  # the second is a file of an older version
        save_file(load_file(path), tmp_path / "lie.safetensors", metadata={"undiffuse": json.dumps(manifest)})
        with pytest.raises(MetricError, match=said):
            read_reference(tmp_path / "lie.safetensors")
        manifest.pop("manifest_sha256", None)


def test_statistics_of_an_npz_take_the_place_of_the_images_own(tmp_path: Path) -> None:
    given = statistics()
    path = save_npz(tmp_path / "ref.npz", images(30), **given)
    found, has_images = npz_statistics(path, "toy")
    assert has_images
    features = extract(open_images(path), [Toy()])[0]
    summary = Summary.of(features, found)
    assert summary.statistics is not None
    assert summary.spatial is not None
    assert np.allclose(summary.statistics.mean.numpy(), given["mu"])
    assert np.allclose(summary.spatial.covariance.numpy(), given["sigma_s"])
    assert summary.features is not None
    assert len(summary.features) == 30  # precision and recall are of the images
    assert not summary.own_statistics


def test_openai_layout_is_known_by_its_names_and_others_must_say_their_protocol(tmp_path: Path) -> None:
    np.savez(tmp_path / "openai.npz", **statistics())
    found, has_images = npz_statistics(tmp_path / "openai.npz")
    assert found is not None
    assert not has_images
    assert found.protocol == "adm"
    with pytest.raises(MetricError, match=r"protocol 'adm', the samples' features of 'toy'"):
        found.main(Toy().card)
    np.savez(tmp_path / "plain.npz", **statistics(mu_s=None, sigma_s=None))
    found, _ = npz_statistics(tmp_path / "plain.npz")
    assert found is not None
    with pytest.raises(ConfigError, match="^protocol: .* does not say how"):
        found.main(Toy().card)
    found, _ = npz_statistics(tmp_path / "plain.npz", "toy")
    assert found is not None
    assert found.main(Toy().card).n is None
    assert found.spatial(Toy().spatial_card) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": None}, "no sigma"),
        ({"sigma_s": None}, "no sigma_s"),
        ({"mu": None, "sigma": None}, "no mu and sigma"),
        ({"mu": np.arange(DIMENSION)}, "int64"),
        ({"mu": np.zeros(5)}, "no statistics of toy"),
        ({"sigma": np.full((DIMENSION, DIMENSION), np.nan)}, "NaN"),
        ({"sigma": -np.eye(DIMENSION)}, "not a covariance"),
    ],
)  # fmt: skip
def test_incomplete_and_impossible_statistics_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "bad.npz", **statistics(**changes))
    with pytest.raises(MetricError, match=message):
        found, _ = npz_statistics(tmp_path / "bad.npz", "toy")
        assert found is not None
        found.main(Toy().card)


def test_one_image_has_no_statistics(tmp_path: Path) -> None:
    summary = Summary.of(extract(open_images(save_npz(tmp_path / "one.npz", images(1))), [Toy()])[0])
    assert summary.statistics is None
    assert any("single image" in text for text in summary.warnings)
    with pytest.raises(MetricError, match="at least 2"):
        write(tmp_path / "r.safetensors", [summary])
