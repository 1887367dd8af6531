"""DDPM's U-Net, its process and its sampling against diffusers itself; skipped where that package is not installed.

What a normal run checks instead are the numbers frozen in `data/ddpm_unet2d.safetensors` (test_ddpm_network.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support.golden_files import draw_weights
from undiffuse.adapters import ddpm_weights, diffusers_config, diffusers_scheduler
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.nets import DDPMConfig
from undiffuse.noise import NoiseSource
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM

diffusers = pytest.importorskip("diffusers", reason="compares with diffusers, which is not needed otherwise")

CLOSE = 1e-5
DOWN, UP = {False: "DownBlock2D", True: "AttnDownBlock2D"}, {False: "UpBlock2D", True: "AttnUpBlock2D"}


def reference(size: int, widths: tuple[int, ...], attention: tuple[int, ...], layers: int, channels: int = 3) -> Any:
    """A UNet2DModel as google/ddpm-* are, with the golden recipe's weights; `attention`: levels that have it."""
    attends = [level in attention for level in range(len(widths))]
    net = diffusers.UNet2DModel(
        sample_size=size, in_channels=channels, out_channels=channels, layers_per_block=layers,
        block_out_channels=widths, down_block_types=tuple(DOWN[a] for a in attends),
        up_block_types=tuple(UP[a] for a in reversed(attends)), **diffusers_config.DDPM_SETTINGS,
    )  # fmt: skip
    layout = {name: list(value.shape) for name, value in net.state_dict().items()}
    net.load_state_dict(draw_weights(layout, seed=size))
    return net.eval()


def ours(folder: Path) -> tuple[DDPMConfig, ProcessConfig, torch.nn.Module]:
    found = diffusers_config.find(folder)
    assert found is not None
    state = load_file(found.weights)
    config, process, converted = ddpm_weights.convert(state, unet=found.unet, scheduler=found.scheduler)
    net = config.build().eval()
    net.load_state_dict(converted)
    return config, process, net


@pytest.mark.parametrize(
    "arguments",
    [
        (16, (32, 64, 64, 64), (1,), 2),
        (64, (32, 32, 64, 64, 96, 96), (4,), 2),
        (16, (64,), (), 1),
        (8, (32, 96), (0, 1), 3, 1),
    ],
)
def test_outputs_and_gradients_are_those_of_unet2dmodel(arguments: Any, tmp_path: Path) -> None:
    theirs = reference(*arguments)
    theirs.save_pretrained(tmp_path)
    config, process, net = ours(tmp_path)
    size, channels = config.size[0], config.in_channels
    assert process == ProcessConfig(variance="fixed_large")
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([3.0, 977.0])
    results = []
    for network in (lambda x: theirs(x, t).sample, lambda x: net(x, t)):
        leaf = x.clone().requires_grad_()
        output = network(leaf)
        results.append((output.detach(), torch.autograd.grad(output.square().sum(), leaf)[0]))
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() < CLOSE * a.abs().max()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"variance_type": "fixed_large"},
        {"beta_schedule": "scaled_linear", "beta_start": 1e-3, "beta_end": 0.01},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
        {"num_train_timesteps": 100},
        {"trained_betas": [0.01, 0.02, 0.05, 0.3]},
    ],
)
def test_processes_are_those_of_the_schedulers(arguments: dict[str, Any]) -> None:
    scheduler = diffusers.DDPMScheduler(**arguments)
    config = {name: value for name, value in scheduler.config.items() if not name.startswith("_use")}
    process = diffusers_scheduler.process_config(config)
    chain = process.chain()  # in float64, where the scheduler is in float32
    np.testing.assert_allclose(chain.betas, scheduler.betas.double().numpy(), rtol=1e-6)
    np.testing.assert_allclose(chain.alphas_cumprod, scheduler.alphas_cumprod.double().numpy(), rtol=1e-4)
    variance = chain.betas if process.variance == "fixed_large" else chain.posterior_variance
    for step in range(1, chain.steps, max(1, chain.steps // 7)):
        assert scheduler._get_variance(step).item() == pytest.approx(variance[step], rel=1e-3)


def test_a_pipeline_samples_the_same_images(tmp_path: Path) -> None:
    """DDIM without noise from the same start: the whole way from a pipeline's folder to an image."""
    scheduler = diffusers.DDIMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=True, set_alpha_to_one=True,
        timestep_spacing="leading",
    )  # fmt: skip
    theirs = reference(16, (32, 64), (1,), 1)
    diffusers.DDIMPipeline(unet=theirs, scheduler=scheduler).save_pretrained(tmp_path)
    config, process, net = ours(tmp_path)
    assert process == ProcessConfig(variance="fixed_small")
    noise = NoiseSource(0, range(2))
    start = noise.normal((3, 16, 16), 0, "x_T")
    chain = process.chain().respaced("ddim10")
    with torch.no_grad():
        image = generate(ChainDenoiser(net, process), chain, DDIM(), noise, (3, *config.size), x_T=start)
        x = start
        scheduler.set_timesteps(10)
        for t in scheduler.timesteps:
            x = scheduler.step(theirs(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
    assert (image - x).abs().max() < 1e-4


@pytest.mark.parametrize("change", [lambda c: c.update(flip_sin_to_cos=True), lambda c: c.update(norm_eps=1e-5)])
def test_a_unet2dmodel_of_other_settings_is_refused(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    theirs = reference(16, (32,), (), 1)
    settings = dict(theirs.config)
    change(settings)
    diffusers.UNet2DModel(**{k: v for k, v in settings.items() if not k.startswith("_")}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not DDPM's U-Net"):
        ours(tmp_path)
