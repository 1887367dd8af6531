"""Networks of other programs are used as our own are: made ready, in 16 bits, with gradients, exported, trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from support.cli_runs import call, write_images
from support.export_models import model
from support.unet2d_cases import BASE
from support.variants import few
from tests.adapters.test_diffusers_folders import pipeline
from undiffuse.adapters import diffusers_unet, export_openai
from undiffuse.adapters.export_graph import export_torch
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import load_diffusion
from undiffuse.nets import EDMUNetConfig, RMSUNetConfig
from undiffuse.nets.memory import activation_bytes
from undiffuse.nets.runner import prepare_for_inference

CONFIGS: dict[str, Any] = {
    "unet2d": diffusers_unet.network_config(BASE),
    "unet-rms": RMSUNetConfig(
        image_size=16, model_channels=16, channel_mult=(1, 2), full=(False, True), heads=(4, 4), head_channels=(32, 32)
    ),
    "edm": EDMUNetConfig(
        image_size=16, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2,)
    ),
}


@pytest.mark.parametrize("name", few(CONFIGS, count=1))
def test_a_network_is_made_ready_and_exported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    given = model(CONFIGS[name], ProcessConfig(variance="fixed_small"))
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([5.0, 900.0])
    cpu = torch.device("cpu")
    with torch.no_grad():
        expected = given.net(x, t)
        for precision, close in (("fp32", 1e-5), ("bf16", 0.05)):
            ready = prepare_for_inference(given.net, precision, cpu)
            assert (ready(x, t) - expected).abs().max() < close * expected.abs().max()
    leaf = x.clone().requires_grad_()
    prepare_for_inference(given.net, "fp32", cpu, gradient=True)(leaf, t).sum().backward()
    assert leaf.grad is not None and bool(torch.isfinite(leaf.grad).all())
    assert activation_bytes(CONFIGS[name]) > 2 * x[0].numel()
    assert "guided diffusion" in export_openai.obstacles(given)[0]
    export_torch(given, tmp_path / "m.pt2")
    assert load_diffusion(tmp_path / "m.pt2").digest == given.digest


@pytest.mark.slow
def test_a_model_of_diffusers_is_trained_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    folder = pipeline(tmp_path / "p", in_channels=1, out_channels=1)
    images = write_images(tmp_path / "images", size=(16, 16))
    words = ("--init-from", folder, "--images", 8, "--batch", 4, "--device", "cpu", "--out", tmp_path / "run")
    assert call("train", images, *words) == 0
    again, before = load_diffusion(tmp_path / "run"), load_diffusion(folder)
    assert again.net.config == replace(before.net.config, num_classes=3)
    assert again.labels == ("left", "right", "top")
    assert call("train", images, *words[:-1], tmp_path / "plain", "--unconditional") == 0
    assert load_diffusion(tmp_path / "plain").net.config == before.net.config
