"""`likelihood.measure`: the numbers of the library over a data set, resumed, with nothing dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.cli_runs import write_images, write_model
from undiffuse.data import DataConfig
from undiffuse.likelihood import LikelihoodReport, bits_per_dim, mean_and_error, measure, measurement
from undiffuse.likelihood.report import grouped
from undiffuse.models import load_diffusion
from undiffuse.noise import NoiseSource
from undiffuse.pipelines import Pipeline
from undiffuse.pixels import from_uint8
from undiffuse.util.errors import ConfigError

Measure = Callable[..., LikelihoodReport]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", each=3)


@pytest.fixture
def run(model: Path, images: Path, tmp_path: Path) -> Measure:
    """`measure` into a folder of the test."""
    return lambda **more: measure(
        **{"model": model, "data": images, "out": tmp_path / "nll", "progress": False, "terms": 5, **more}
    )


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bits.json").read_text())
    return found


def test_the_numbers_are_those_of_the_library(model: Path, images: Path, run: Measure, tmp_path: Path) -> None:
    report = run(terms=None, seed=5, batch=4)
    loaded = load_diffusion(model)
    dataset = DataConfig(path=str(images), size=8, channels=1).build(loaded.labels)
    x0 = from_uint8(np.stack([dataset.plain(i).image for i in range(9)]))
    denoiser = loaded.denoiser()
    cond = {"y": torch.tensor(dataset.source.labels)}
    bound = bits_per_dim(denoiser, denoiser.chain, x0, NoiseSource(5, range(9)), cond=cond)
    total, error = mean_and_error(bound.total)
    assert report.bits_per_dim == pytest.approx(total, rel=1e-5)
    assert report.stderr == pytest.approx(error, rel=1e-4)
    result = content(tmp_path / "nll")
    assert result["bits_per_dim"] == report.bits_per_dim
    assert result["prior"] == pytest.approx(float(bound.prior.mean()), rel=1e-5)
    assert result["decoder"] == pytest.approx(float(bound.vb[:, 0].mean()), rel=1e-5)
    assert result["rate"] + result["decoder"] == pytest.approx(result["bits_per_dim"])
    assert result["per_step"]["vb"] == pytest.approx(bound.vb.mean(0).tolist(), rel=1e-4)
    assert result["per_step"]["mse"] == pytest.approx(bound.mse.mean(0).tolist(), rel=1e-4)
    assert sum(result["per_step"]["vb"]) + result["prior"] == pytest.approx(total, rel=1e-5)
    assert result["per_step"]["images"] == [9] * 20
    with Image.open(tmp_path / "nll" / "bits.png") as curve:
        assert curve.width > 300


def test_without_a_folder_nothing_is_written(run: Measure, tmp_path: Path) -> None:
    kept = run(seed=2)
    before = sorted(tmp_path.rglob("*"))
    free = run(seed=2, out=None)
    assert free.summary == kept.summary
    assert sorted(tmp_path.rglob("*")) == before


def test_arrays_and_pipelines_are_taken(model: Path, images: Path, run: Measure) -> None:
    """A guided pipeline too: guidance does not change the model."""
    plain = run()
    loaded = load_diffusion(model)
    dataset = DataConfig(path=str(images), size=8, channels=1).build(loaded.labels)
    array = np.stack([dataset.plain(i).image for i in range(9)])
    pipeline = Pipeline.from_pretrained(model, solver="ddim")
    found = run(model=pipeline, data=array, classes=[int(k) for k in dataset.source.labels], out=None)  # type: ignore[union-attr]
    assert found.bits_per_dim == pytest.approx(plain.bits_per_dim, rel=1e-6)


def test_an_estimate_counts_its_terms(run: Measure) -> None:
    report = run(terms=6, count=4)
    assert report.per_step is not None
    assert (report.summary["images"], report.summary["images_in_data"]) == (4, 9)
    assert sum(report.per_step["images"]) == 4 * 6
    assert report.per_step["images"][0] == 4
    assert [v is None for v in report.per_step["vb"]] == [n == 0 for n in report.per_step["images"]]


def test_it_resumes(run: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(out=tmp_path / "whole")
    calls: list[int] = []
    real = measurement.bits_per_dim

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(len(arguments[2]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(measurement, "bits_per_dim", interrupted)
    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        run(out=out, batch=2)
    assert not (out / "bits.json").exists()
    with open(out / "bits.partial.jsonl", "a") as file:
        file.write('{"images": [4, 5], "broken": [], "tot')  # cut short by a kill
    parts = run(out=out, batch=3)
    assert calls == [2, 2, 2, 3, 2]
    assert parts.bits_per_dim == pytest.approx(whole.bits_per_dim, rel=1e-5)
    assert parts.stderr == pytest.approx(whole.stderr, rel=1e-4)
    assert run(out=out).summary == parts.summary
    assert len(calls) == 5  # nothing was measured again
    with pytest.raises(ValueError, match="holds measurements made with other settings:\n  decoder: exact there, tanh"):
        run(out=out, decoder="tanh")
    assert run(out=out, decoder="tanh", overwrite=True).summary["settings"]["decoder"] == "tanh"


@pytest.mark.parametrize("name", ["bits.json", "bits.partial.jsonl"])
@pytest.mark.parametrize("text", ["{}", "[1]\n", "no record\n", "[" * 100_000 + "\n"])
def test_what_it_did_not_make_stays(run: Measure, tmp_path: Path, name: str, text: str) -> None:
    out = tmp_path / "nll"
    out.mkdir()
    (out / name).write_text(text)
    with pytest.raises(ValueError, match=r"without a record of how it was made|other settings"):
        run(count=1)
    assert (out / name).read_text() == text
    assert run(count=1, overwrite=True).summary["images"] == 1


def test_nothing_of_another_measurement_is_left(run: Measure, tmp_path: Path) -> None:
    """Its curve would stand beside a flow, which has none."""
    run(count=1)
    assert (tmp_path / "nll" / "bits.png").exists()
    run(count=1, method="flow", overwrite=True)
    assert not (tmp_path / "nll" / "bits.png").exists()


def test_images_are_prepared_alike_when_it_resumes(run: Measure, tmp_path: Path) -> None:
    data = write_images(tmp_path / "wide", each=1, size=(12, 8))
    assert run(data=data, fit="crop").shape == (8, 8, 1)
    with pytest.raises(ValueError, match="fit: crop there, pad now"):
        run(data=data, fit="pad")


def test_the_curve_shows_measurements_not_chance() -> None:
    whole = grouped([0, 5, 9], [2, 2, 2], [1.0, 2.0, 3.0], 2)
    assert whole == [(0, 1), (5, 2), (9, 3)]
    few = grouped([0, 1, 2, 3, 4, 5], [2, 1, 0, 1, 1, 0], [1.0, 2.0, None, 4.0, 5.0, None], 2)
    assert few == [(0, 1), (2, 3), (4, 5)]


def test_a_sub_chain_has_its_own_bound(run: Measure) -> None:
    report = run(terms=None, steps="at:0,5,19")
    assert report.per_step is not None
    assert report.per_step["step"] == [0, 5, 19]
    assert report.steps == (3, 20)


def test_broken_images_are_refused_or_listed(images: Path, run: Measure) -> None:
    (images / "top" / "zz.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="top/zz.png"):
        run()
    report = run(on_broken="skip")
    assert report.summary["images"] == 9
    assert any("top/zz.png" in item for item in report.summary["not_readable"])


def test_labels_of_other_classes(images: Path, run: Measure) -> None:
    (images / "top").rename(images / "bottom")
    with pytest.raises(ConfigError, match="not in the class table: bottom") as error:
        run()
    assert error.value.field == "classes"
    assert run(classes="left").summary["images"] == 9


def test_settings_that_do_nothing_are_refused(run: Measure, tmp_path: Path) -> None:
    for more, field in (
        ({"method": "nothing"}, "method"),
        ({"flow": measurement.FlowConfig()}, "method"),
        ({"method": "flow", "steps": "5"}, "steps"),
    ):
        with pytest.raises(ConfigError) as error:
            run(**more)
        assert error.value.field == field
    assert not (tmp_path / "nll").exists()
