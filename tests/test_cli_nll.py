"""`undiffuse nll`: the numbers of the library, resumed, with nothing dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cli_runs import call, write_images, write_model
from undiffuse.cli.nll import grouped
from undiffuse.data import DataConfig
from undiffuse.likelihood import bits_per_dim, mean_and_error
from undiffuse.models import load_diffusion
from undiffuse.noise import NoiseSource
from undiffuse.pixels import from_uint8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", each=3)


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "bits.json").read_text())
    return content


def test_it_prints_what_the_library_computes(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "nll"
    assert call("nll", images, "--model", model, "--terms", "all", "--out", out, "--seed", 5, "--batch", 4) == 0
    result = report(out)
    loaded = load_diffusion(model)
    dataset = DataConfig(path=str(images), size=8, channels=1).build(loaded.labels)
    x0 = from_uint8(np.stack([dataset.plain(i).image for i in range(9)]))
    denoiser = loaded.denoiser()
    cond = {"y": torch.tensor(dataset.source.labels)}
    bound = bits_per_dim(denoiser, denoiser.chain, x0, NoiseSource(5, range(9)), cond=cond)
    total, error = mean_and_error(bound.total)
    assert result["bits_per_dim"] == pytest.approx(total, rel=1e-5)
    assert result["standard_error"] == pytest.approx(error, rel=1e-4)
    assert result["prior"] == pytest.approx(float(bound.prior.mean()), rel=1e-5)
    assert result["decoder"] == pytest.approx(float(bound.vb[:, 0].mean()), rel=1e-5)
    assert result["rate"] + result["decoder"] == pytest.approx(result["bits_per_dim"])
    assert result["per_step"]["vb"] == pytest.approx(bound.vb.mean(0).tolist(), rel=1e-4)
    assert result["per_step"]["mse"] == pytest.approx(bound.mse.mean(0).tolist(), rel=1e-4)
    assert sum(result["per_step"]["vb"]) + result["prior"] == pytest.approx(total, rel=1e-5)
    assert result["per_step"]["images"] == [9] * 20
    told = capsys.readouterr().out
    assert f"{total:.4f} +/- {error:.4f}" in told
    assert "every step" in told
    with Image.open(out / "bits.png") as curve:
        assert curve.width == 960


def test_an_estimate_says_so(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "nll"
    assert call("nll", images, "--model", model, "--terms", 6, "--out", out, "--count", 4) == 0
    told = capsys.readouterr().out
    assert "6 of 20 steps for each image (unbiased)" in told
    assert "4 of 9, evenly spaced" in told
    result = report(out)
    assert sum(result["per_step"]["images"]) == 4 * 6
    assert result["per_step"]["images"][0] == 4
    assert [v is None for v in result["per_step"]["vb"]] == [n == 0 for n in result["per_step"]["images"]]


def test_it_goes_on_where_it_was_stopped(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from undiffuse.cli import nll

    words = ("nll", images, "--model", model, "--terms", 5)
    assert call(*words, "--out", tmp_path / "whole") == 0
    calls: list[int] = []
    measure = nll.bits_per_dim

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(len(arguments[2]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments, **keywords)

    monkeypatch.setattr(nll, "bits_per_dim", interrupted)
    out = tmp_path / "parts"
    assert call(*words, "--out", out, "--batch", 2) == 130
    assert not (out / "bits.json").exists()
    with open(out / "bits.partial.jsonl", "a") as file:
        file.write('{"images": [4, 5], "broken": [], "tot')  # cut short by a kill
    assert call(*words, "--out", out, "--batch", 3) == 0
    assert calls == [2, 2, 2, 3, 2]
    whole, parts = report(tmp_path / "whole"), report(out)
    assert parts["bits_per_dim"] == pytest.approx(whole["bits_per_dim"], rel=1e-5)
    assert parts["standard_error"] == pytest.approx(whole["standard_error"], rel=1e-4)
    assert call(*words, "--out", out) == 0
    assert len(calls) == 5  # nothing was measured again
    capsys.readouterr()
    assert call(*words, "--out", out, "--decoder", "tanh") == 2
    assert "holds another measurement (it differs in decoder)" in capsys.readouterr().err
    assert call(*words, "--out", out, "--decoder", "tanh", "--overwrite") == 0


@pytest.mark.parametrize("name", ["bits.json", "bits.partial.jsonl"])
@pytest.mark.parametrize("content", ["{}", "[1]\n", "no record\n"])
def test_what_it_did_not_make_stays(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    out = tmp_path / "nll"
    out.mkdir()
    (out / name).write_text(content)
    words = ("nll", images, "--model", model, "--terms", 2, "--count", 1, "--out", out)
    assert call(*words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (out / name).read_text() == content
    assert call(*words, "--overwrite") == 0
    assert report(out)["images"] == 1


def test_nothing_of_another_measurement_is_left(model: Path, images: Path, tmp_path: Path) -> None:
    """Its curve would stand beside a flow, which has none."""
    words = ("nll", images, "--model", model, "--count", 1, "--out", tmp_path / "nll")
    assert call(*words) == 0
    assert (tmp_path / "nll" / "bits.png").exists()
    assert call(*words, "--method", "flow", "--tol", 0.1, "--overwrite") == 0
    assert not (tmp_path / "nll" / "bits.png").exists()


def test_images_are_prepared_alike_when_it_goes_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", each=1, size=(12, 8))
    words = ("nll", images, "--model", model, "--terms", 2, "--out", tmp_path / "nll")
    assert call(*words, "--fit", "crop") == 0
    assert "each as 8x8" in " ".join(capsys.readouterr().out.split())
    assert call(*words, "--fit", "pad") == 2
    assert "differs in fit" in capsys.readouterr().err


def test_the_curve_shows_measurements_not_chance() -> None:
    whole = grouped([0, 5, 9], [2, 2, 2], [1.0, 2.0, 3.0], 2)
    assert whole == [(0, 1), (5, 2), (9, 3)]
    few = grouped([0, 1, 2, 3, 4, 5], [2, 1, 0, 1, 1, 0], [1.0, 2.0, None, 4.0, 5.0, None], 2)
    assert few == [(0, 1), (2, 3), (4, 5)]


def test_a_sub_chain_has_its_own_bound(model: Path, images: Path, tmp_path: Path) -> None:
    words = ("nll", images, "--model", model, "--terms", "all")
    assert call(*words, "--steps", "at:0,5,19", "--out", tmp_path / "strided") == 0
    assert report(tmp_path / "strided")["per_step"]["step"] == [0, 5, 19]


def test_broken_images_are_refused_or_told(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "top" / "zz.png").write_bytes(b"no picture")
    words = ("nll", images, "--model", model, "--terms", 3, "--out", tmp_path / "nll")
    assert call(*words) == 2
    assert "top/zz.png" in capsys.readouterr().err
    assert call(*words, "--on-broken", "skip") == 0
    assert "top/zz.png" in capsys.readouterr().out
    result = report(tmp_path / "nll")
    assert result["images"] == 9
    assert any("top/zz.png" in item for item in result["not_readable"])


def test_labels_of_other_classes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images", each=1)
    (images / "top").rename(images / "bottom")
    words = ("nll", images, "--model", model, "--terms", 3, "--out", tmp_path / "nll")
    assert call(*words) == 2
    assert "Give --class" in capsys.readouterr().err
    assert call(*words, "--class", "left") == 0
