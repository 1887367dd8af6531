"""`likelihood.measure` by the flow: the numbers of the library, beside the bound's, resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.cli_runs import write_images, write_model
from undiffuse.data import DataConfig
from undiffuse.likelihood import (
    FlowConfig,
    LikelihoodReport,
    flow_bits_per_dim,
    mean_and_error,
    measure,
    measurement,
)
from undiffuse.likelihood.report import certain_pixel, summarize_flow
from undiffuse.models import load_diffusion
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import named_schedule
from undiffuse.pixels import from_uint8

Measure = Callable[..., LikelihoodReport]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images", each=1)


@pytest.fixture
def run(model: Path, images: Path) -> Measure:
    return lambda **more: measure(**{"model": model, "data": images, "progress": False, "terms": 4, **more})


def test_both_stand_beside_each_other(model: Path, images: Path, run: Measure) -> None:
    config = FlowConfig(probes=2, draws=2, tol=0.01)
    both = run(method="both", flow=config, seed=5, batch=2)
    loaded = load_diffusion(model)
    dataset = DataConfig(path=str(images), size=8, channels=1).build(loaded.labels)
    x0 = from_uint8(np.stack([dataset.plain(i).image for i in range(3)]))
    cond = {"y": torch.tensor(dataset.source.labels)}
    loaded.net.requires_grad_(False).eval()
    flow = flow_bits_per_dim(loaded.denoiser("none"), x0, NoiseSource(5, range(3)), cond=cond, config=config)
    total, error = mean_and_error(flow.total)
    found = both.summary["flow"]
    assert found["bits_per_dim"] == pytest.approx(total, rel=1e-4)
    assert found["standard_error"] == pytest.approx(error, rel=1e-2)
    assert found["probe_error"] > 0
    assert found["draw_error"] > 0
    assert both.summary["bound_minus_flow"] == pytest.approx(both.bits_per_dim - total, rel=1e-3, abs=1e-4)
    assert both.summary["settings"]["method"] == "both"
    assert "of different models" in both.comparison()
    assert both.per_step is not None
    assert len(both.per_step["vb"]) == 20
    bound = run(seed=5)
    assert both.bits_per_dim == pytest.approx(bound.bits_per_dim, rel=1e-5)
    assert "method" not in bound.summary["settings"]  # as in measurements of earlier versions
    assert "flow" not in bound.summary
    assert bound.comparison() == ""


def test_the_flow_alone_resumes(run: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = FlowConfig(dequantise="noise", tol=0.02)
    whole = run(method="flow", flow=config, out=tmp_path / "whole")
    calls: list[int] = []
    real = measurement.flow_bits_per_dim

    def interrupted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(measurement, "flow_bits_per_dim", interrupted)
    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        run(method="flow", flow=config, out=out, batch=1)
    assert not (out / "bits.json").exists()
    parts = run(method="flow", flow=config, out=out, batch=2)
    assert calls == [1, 1, 2]
    assert parts.bits_per_dim == pytest.approx(whole.bits_per_dim, rel=1e-4)
    assert parts.bits_per_dim == parts.summary["flow"]["bits_per_dim"]
    assert 0 < parts.summary["flow"]["decoder"] < parts.bits_per_dim
    assert parts.per_step is None
    assert not (out / "bits.png").exists()
    with pytest.raises(ValueError, match="probes: 1 there, 2 now"):
        run(method="flow", flow=FlowConfig(dequantise="noise", tol=0.02, probes=2), out=out)
    other = FlowConfig(dequantise="noise", tol=0.03, draws=2)
    with pytest.raises(ValueError, match=r"(?s)draws: 1 there.*flow_clip: static there, none now.*tol: 0\.02 there"):
        run(method="flow", flow=other, clip="none", out=out)
    assert len(calls) == 3


def test_a_sub_chain_is_the_bounds_alone(model: Path, run: Measure) -> None:
    """The flow keeps the whole chain's cleanest level, and says so."""
    more = {"method": "both", "steps": "at:5,19", "count": 1}
    found = run(flow=FlowConfig(tol=0.1), **more)
    clean = load_diffusion(model).denoiser().chain.level(0)
    assert found.summary["flow"]["cleanest_level"] == pytest.approx(float(clean.sigma / clean.alpha))
    assert found.per_step is not None
    assert found.per_step["step"] == [5, 19]
    assert "the bound's is the sub-chain's" in run(flow=FlowConfig(tol=0.1, dequantise="noise"), **more).comparison()


def test_the_flow_is_clipped_by_its_dequantization(run: Measure) -> None:
    more = {"method": "both", "flow": FlowConfig(tol=0.1)}
    found = {clip: run(clip=clip, **more).summary for clip in ("none", "static", None)}
    assert found[None]["flow"] == found["none"]["flow"] != found["static"]["flow"]
    assert found[None]["bits_per_dim"] == found["static"]["bits_per_dim"] != found["none"]["bits_per_dim"]
    assert [found[clip]["settings"]["flow_clip"] for clip in found] == ["none", "static", "none"]
    shared = run(method="both", flow=FlowConfig(tol=0.1, dequantise="noise"), count=1)
    assert shared.summary["settings"]["flow_clip"] == "static"  # as the bound, whose decoder it shares


def test_errors_tell_what_chance_adds() -> None:
    """Drawn values with known spreads: of images 1, of draws 0.5, of probes 0.3; 2000 images, 2 draws, 4 probes."""
    g = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    values = 3 + drawn(2000, 1, 1) + 0.5 * drawn(2000, 2, 1) + 0.3 * drawn(2000, 2, 4)
    row = {"values": values.tolist(), "decoder": [0.0] * 2000, "nfe": [61] * 2000, "forced": [0] * 1999 + [2]}
    found = summarize_flow([row], named_schedule("linear", 1000), FlowConfig(probes=4, draws=2))
    assert found["probe_error"] == pytest.approx(0.3 / (2000 * 8) ** 0.5, rel=0.05)
    assert found["draw_error"] == pytest.approx(((0.25 + 0.09 / 4) / 4000) ** 0.5, rel=0.05)
    whole = (1 + 0.25 / 2 + 0.09 / 8) ** 0.5 / 2000**0.5
    assert found["standard_error"] == pytest.approx(whole, rel=0.05)
    assert found["images_with_forced_steps"] == 1
    single = {**row, "values": values[:, :1, :1].tolist()}
    alone = summarize_flow([single], named_schedule("linear", 1000), FlowConfig())
    assert alone["probe_error"] is None
    assert alone["draw_error"] is None
    assert certain_pixel(found["cleanest_level"]) == pytest.approx(1.72, abs=0.01)
