"""`undiffuse nll --method flow|both`: the numbers of the library, beside the bound's, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli_runs import call, write_images, write_model
from undiffuse.cli.nll_flow import certain_pixel, flow_clip, summarise_flow
from undiffuse.data import DataConfig
from undiffuse.levels import named_chain
from undiffuse.likelihood import FlowConfig, flow_bits_per_dim, mean_and_error
from undiffuse.models import load_diffusion
from undiffuse.noise import NoiseSource
from undiffuse.pixels import from_uint8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", each=1)


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "bits.json").read_text())
    return content


def test_both_stand_beside_each_other(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("nll", images, "--model", model, "--terms", 4, "--seed", 5)
    flow_words = ("--method", "both", "--tol", 0.01, "--probes", 2, "--draws", 2)
    assert call(*words, *flow_words, "--out", tmp_path / "both", "--batch", 2) == 0
    both = report(tmp_path / "both")
    told = capsys.readouterr().out

    loaded = load_diffusion(model)
    dataset = DataConfig(path=str(images), size=8, channels=1).build(loaded.labels)
    x0 = from_uint8(np.stack([dataset.plain(i).image for i in range(3)]))
    cond = {"y": torch.tensor(dataset.source.labels)}
    config = FlowConfig(probes=2, draws=2, tol=0.01)
    loaded.net.requires_grad_(False).eval()
    flow = flow_bits_per_dim(loaded.denoiser("none"), x0, NoiseSource(5, range(3)), cond=cond, config=config)
    total, error = mean_and_error(flow.total)
    assert both["flow"]["bits_per_dim"] == pytest.approx(total, rel=1e-4)
    assert both["flow"]["standard_error"] == pytest.approx(error, rel=1e-2)
    assert both["flow"]["probe_error"] > 0
    assert both["flow"]["draw_error"] > 0
    assert both["bound_minus_flow"] == pytest.approx(both["bits_per_dim"] - total, rel=1e-3, abs=1e-4)
    assert f"{both['flow']['bits_per_dim']:.4f} +/- {both['flow']['standard_error']:.4f}" in told
    assert "of different models" in told
    assert "network calls an image" in told
    assert both["settings"]["method"] == "both"
    assert len(both["per_step"]["vb"]) == 20

    assert call(*words, "--out", tmp_path / "bound") == 0
    bound = report(tmp_path / "bound")
    assert both["bits_per_dim"] == pytest.approx(bound["bits_per_dim"], rel=1e-5)
    assert "method" not in bound["settings"]  # so that an earlier version's measurement still goes on
    assert "flow" not in bound


def test_the_flow_alone_goes_on_where_it_was_stopped(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from undiffuse.cli import nll

    words = ("nll", images, "--model", model, "--method", "flow", "--dequantise", "noise", "--tol", 0.02)
    assert call(*words, "--out", tmp_path / "whole") == 0
    calls: list[int] = []
    measure = nll.flow_bits_per_dim

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **keywords)

    monkeypatch.setattr(nll, "flow_bits_per_dim", interrupted)
    out = tmp_path / "parts"
    assert call(*words, "--out", out, "--batch", 1) == 130
    assert not (out / "bits.json").exists()
    assert call(*words, "--out", out, "--batch", 2) == 0
    assert calls == [1, 1, 2]
    whole, parts = report(tmp_path / "whole"), report(out)
    assert parts["bits_per_dim"] == pytest.approx(whole["bits_per_dim"], rel=1e-4)
    assert parts["bits_per_dim"] == parts["flow"]["bits_per_dim"]
    assert 0 < parts["flow"]["decoder"] < parts["bits_per_dim"]
    assert "per_step" not in parts
    assert not (out / "bits.png").exists()
    assert call("inspect", out / "bits.json") == 0
    capsys.readouterr()
    assert call(*words, "--out", out, "--probes", 2) == 2
    assert "holds another measurement (it differs in probes)" in capsys.readouterr().err
    assert call(*words, "--out", out, "--tol", 0.03, "--clip", "none", "--draws", 2) == 2
    assert "(it differs in draws, flow_clip, tol)" in capsys.readouterr().err
    assert len(calls) == 3


def test_the_flow_has_no_steps(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("nll", images, "--model", model, "--method", "flow", "--steps", "5")
    assert call(*words, "--out", tmp_path / "nll") == 2
    assert "leave it out" in capsys.readouterr().err
    assert not (tmp_path / "nll").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tol", 1e-3, "--probes", "all"), "--probes, --tol would do nothing"),
        (("--dequantise", "uniform"), "--method both"),
        (("--method", "flow", "--terms", "all"), "--terms are the bound's"),
        (("--method", "flow", "--tol", 1), "between 0 and 1"),
        (("--method", "flow", "--tol", 0), "above 0"),
        (("--method", "flow", "--probes", 0), "at least 1"),
        (("--method", "flow", "--draws", 0), "at least 1"),
    ],
)
def test_options_that_cannot_be_meant(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[object, ...], told: str
) -> None:
    assert call("nll", images, "--model", model, *words, "--out", tmp_path / "nll") == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "nll").exists()


def test_a_sub_chain_is_the_bounds_alone(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flow keeps the whole chain's cleanest level, and says so."""
    words = ("nll", images, "--model", model, "--tol", 0.1, "--steps", "at:5,19", "--method", "both", "--count", 1)
    assert call(*words, "--out", tmp_path / "uniform") == 0
    found = report(tmp_path / "uniform")
    clean = load_diffusion(model).denoiser().chain.level(0)
    assert found["flow"]["cleanest_level"] == pytest.approx(float(clean.sigma / clean.alpha))
    assert found["per_step"]["step"] == [5, 19]
    capsys.readouterr()
    assert call(*words, "--out", tmp_path / "noise", "--dequantise", "noise") == 0
    assert "the bound's is the sub-chain's" in capsys.readouterr().out


def test_the_flow_is_not_clipped_unless_that_is_asked_for(model: Path, images: Path, tmp_path: Path) -> None:
    found = {}
    for clip in ("none", "static", None):
        out = tmp_path / str(clip)
        given = () if clip is None else ("--clip", clip)
        words = ("--method", "both", "--tol", 0.1, "--terms", 4, *given, "--out", out)
        assert call("nll", images, "--model", model, *words) == 0
        found[clip] = report(out)
    assert found[None]["flow"] == found["none"]["flow"] != found["static"]["flow"]
    assert found[None]["bits_per_dim"] == found["static"]["bits_per_dim"] != found["none"]["bits_per_dim"]
    assert [found[clip]["settings"]["flow_clip"] for clip in found] == ["none", "static", "none"]


def test_with_the_bounds_decoder_the_flow_is_clipped_as_the_bound() -> None:
    from argparse import Namespace

    shared = FlowConfig(dequantise="noise")
    assert flow_clip(Namespace(), shared) == "static"
    assert flow_clip(Namespace(clip="none"), shared) == "none"
    assert flow_clip(Namespace(), FlowConfig()) == "none"


def test_errors_tell_what_chance_adds() -> None:
    """Drawn values with known spreads: of images 1, of draws 0.5, of probes 0.3; 2000 images, 2 draws, 4 probes."""
    g = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    values = 3 + drawn(2000, 1, 1) + 0.5 * drawn(2000, 2, 1) + 0.3 * drawn(2000, 2, 4)
    row = {"values": values.tolist(), "decoder": [0.0] * 2000, "calls": [61] * 2000, "forced": [0] * 1999 + [2]}
    found = summarise_flow([row], named_chain("linear", 1000), FlowConfig(probes=4, draws=2))
    assert found["probe_error"] == pytest.approx(0.3 / (2000 * 8) ** 0.5, rel=0.05)
    assert found["draw_error"] == pytest.approx(((0.25 + 0.09 / 4) / 4000) ** 0.5, rel=0.05)
    whole = (1 + 0.25 / 2 + 0.09 / 8) ** 0.5 / 2000**0.5
    assert found["standard_error"] == pytest.approx(whole, rel=0.05)
    assert found["images_with_forced_steps"] == 1
    single = {**row, "values": values[:, :1, :1].tolist()}
    alone = summarise_flow([single], named_chain("linear", 1000), FlowConfig())
    assert alone["probe_error"] is None
    assert alone["draw_error"] is None
    assert certain_pixel(found["cleanest_level"]) == pytest.approx(1.72, abs=0.01)
