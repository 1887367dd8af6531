"""`undiffuse nll`: what it prints, and options that would do nothing. `likelihood.measure` has tests of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.cli_runs import call, write_images, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", each=2)


def test_the_page(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("nll", images, "--model", model, "--count", 4, "--terms", 6, "--out", tmp_path / "nll")
    assert call(*words) == 0
    page = " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "nll" / "bits.json").read_text())
    assert f"{result['bits_per_dim']:.4f} +/- {result['standard_error']:.4f}" in page
    assert "6 of 20 steps per image (unbiased)" in page
    assert "4 of 6, evenly spaced" in page
    assert "each as 8x8" in page
    assert "bits.png" in page
    assert call("inspect", tmp_path / "nll" / "bits.json") == 0
    assert call(*words, "--terms", "all", "--seed", 3, "--overwrite") == 0
    assert "all steps" in capsys.readouterr().out


def test_the_page_of_both(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("nll", images, "--model", model, "--count", 2, "--terms", 4, "--method", "both", "--tol", 0.1)
    assert call(*words, "--probes", 2, "--out", tmp_path / "nll") == 0
    page = " ".join(capsys.readouterr().out.split())
    flow = json.loads((tmp_path / "nll" / "bits.json").read_text())["flow"]
    assert f"{flow['bits_per_dim']:.4f} +/- {flow['standard_error']:.4f}" in page
    assert "network calls an image" in page
    assert "of different models" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tol", 1e-3, "--probes", "all"), "--probes, --tol have no effect"),
        (("--dequantise", "uniform"), "--method both"),
        (("--method", "flow", "--terms", "all"), "--terms has no effect on the flow"),
        (("--method", "flow", "--steps", "5"), "--steps: a sub-chain is for the bound"),
        (("--method", "flow", "--tol", 1), "between 0 and 1"),
        (("--method", "flow", "--tol", 0), "above 0"),
        (("--method", "flow", "--probes", 0), "at least 1"),
        (("--method", "flow", "--draws", 0), "at least 1"),
    ],
)
def test_options_that_cannot_be_meant(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[object, ...],
    message: str,
) -> None:  # fmt: skip
    assert call("nll", images, "--model", model, *words, "--out", tmp_path / "nll") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "nll").exists()
