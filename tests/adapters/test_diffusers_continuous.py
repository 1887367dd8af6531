"""Folders of diffusers whose schedulers have no chain: processes, and images equal to diffusers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.unet2d_cases import BASE, CASES
from tests.adapters.test_diffusers_folders import cache, pipeline, weights  # noqa: F401  (a fixture)
from tests.adapters.test_export_images import table
from undiffuse.adapters import diffusers_continuous, diffusers_unet
from undiffuse.checkpoints import CheckpointError
from undiffuse.config.sampler import SamplerConfig
from undiffuse.denoiser import ChainDenoiser
from undiffuse.grids import grid
from undiffuse.models import load_diffusion
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import Level
from undiffuse.sampling import generate
from undiffuse.solvers import build_solver

PLAIN = {**BASE, "norm_num_groups": 4}
FOURIER = {**CASES["ncsnpp"], "layers_per_block": 1}
NAMES = ("CMStochasticIterativeScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler",
         "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "ScoreSdeVpScheduler")  # fmt: skip
VE = ("ScoreSdeVeScheduler", "KarrasVeScheduler")


def test_processes_and_advice(tmp_path: Path) -> None:
    found = {}
    for name in (*NAMES, *VE):
        changes = FOURIER if name in VE else {}
        model = load_diffusion(pipeline(tmp_path / name, {"_class_name": name, "sigma_max": 90.0}, **changes))
        process, settings = model.process, SamplerConfig().resolved(model.process, model.advice)
        found[name] = (process.preconditioning, process.target, process.sigma_max, settings.solver, settings.clip)
    assert found == {
        "CMStochasticIterativeScheduler": ("edm", "consistency", 90, "consistency", "static"),
        "EDMEulerScheduler": ("edm", "edm", 90, "ddim", "none"),
        "EDMDPMSolverMultistepScheduler": ("edm", "edm", 90, "dpmpp-2m", "none"),
        "FlowMatchEulerDiscreteScheduler": ("flow", "velocity", 80, "ddim", "none"),
        "FlowMatchHeunDiscreteScheduler": ("flow", "velocity", 80, "heun", "none"),
        "ScoreSdeVpScheduler": ("vp", "eps", 80, "heun", "none"),
        "ScoreSdeVeScheduler": ("ve", "score", 180, "heun", "none"),
        "KarrasVeScheduler": ("ve", "score", 90, "heun", "none"),
    }


def test_the_page_has_every_scheduler() -> None:
    rows = [row[0].partition(" ")[0].strip("`") for row in table("continuous")]
    assert sorted(rows) == sorted(diffusers_continuous.NAMES)


@pytest.mark.parametrize(
    ("scheduler", "changes", "message"),
    [
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, {}, "use 'epsilon'"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 500},
            {},
            "network's time is 1000 t",
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"out_channels": 6}, "without a variance"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, {}, "shift = 0 is not possible"),
        ({"_class_name": "ScoreSdeVeScheduler"}, {}, "VeScheduler is supported for networks with Fourier"),
        ({"_class_name": "KarrasVeScheduler"}, {}, "KarrasVeScheduler is supported for networks with"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_max": "high"}, FOURIER, "sigma_max = 'high'; expected a number"),
    ],
)
def test_what_does_not_fit(scheduler: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_diffusion(pipeline(tmp_path / "p", scheduler, **changes))


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        ({"_class_name": "FlowMatchHeunDiscreteScheduler", "use_karras_sigmas": True}, "use_karras_sigmas = True"),
        ({"_class_name": "ScoreSdeVpScheduler"}, "it is 999 t, as in score_sde"),
        ({"_class_name": "CMStochasticIterativeScheduler", "rho": 5.0}, "rho = 5.0 is not followed"),
        ({"_class_name": "EDMEulerScheduler", "new_setting": 1}, "new_setting = 1 is not known"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "solver_order": 3}, "second order"),
    ],
)
def test_what_is_done_otherwise_is_said(scheduler: dict[str, Any], told: str, tmp_path: Path) -> None:
    model = load_diffusion(pipeline(tmp_path / "p", scheduler))
    assert any(told in fact for fact in model.manifest["source"]["facts"].values())


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("diffusers", reason="compares with diffusers, which is not needed otherwise")


def saved(library: Any, folder: Path, scheduler: Any, **changes: Any) -> tuple[Any, Any]:
    """diffusers' network with drawn weights, and ours from its folder."""
    settings = {**PLAIN, **changes}
    unet = library.UNet2DModel(**settings).eval()
    config = diffusers_unet.network_config({**settings, "_class_name": "UNet2DModel"})
    unet.load_state_dict(weights(config=config), strict=False)  # a Fourier embedding keeps a second name
    if config.time_type == "fourier":
        unet.time_proj.weight.data.copy_(weights(config=config)["time_proj.weight"])
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return unet, load_diffusion(folder)


@pytest.mark.parametrize("centred", [True, False])
def test_the_score_of_ncsnpp_is_that_of_diffusers(library: Any, centred: bool, tmp_path: Path) -> None:
    scheduler = library.ScoreSdeVeScheduler(sigma_max=50.0)
    unet, model = saved(library, tmp_path / "p", scheduler, **{**FOURIER, "center_input_sample": centred})
    sigma = torch.tensor([0.3, 20.0])  # of images in [0, 1]
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    s = 2 * sigma.double()
    norm = (1 + s**2).sqrt()
    with torch.no_grad():
        unit = (x.double() * norm[:, None, None, None] + 1) / 2
        score = unet(unit.float(), sigma).sample
        found = ChainDenoiser(model.net, model.process, "none")(x, Level(1 / norm, s / norm))
    expected = -score * sigma[:, None, None, None]
    assert (found.eps - expected).abs().max() < 2e-5 * expected.abs().max()


def test_karras_ve_and_vp_are_their_schedulers(library: Any, tmp_path: Path) -> None:
    """What their pipelines make of a network's output: the denoised image, and the score."""
    from diffusers.schedulers.deprecated.scheduling_karras_ve import KarrasVeScheduler
    from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler

    sigma = 3.0  # of images in [-1, 1]
    unet, model = saved(library, tmp_path / "ve", KarrasVeScheduler(), **FOURIER)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        # A tensor: UNet2DModel cuts times that are Python numbers down to whole ones.
        output = sigma / 2 * unet((x * sigma + 1) / 2, torch.tensor(sigma / 2)).sample
        theirs = KarrasVeScheduler().step(output, sigma, 0.0, x * sigma).pred_original_sample
        norm = torch.tensor([(1 + sigma**2) ** 0.5], dtype=torch.float64)
        found = ChainDenoiser(model.net, model.process, "none")(x * sigma / norm.float(), Level(1 / norm, sigma / norm))
    assert (found.x0 - theirs).abs().max() < 1e-4 * theirs.abs().max()
    scheduler = ScoreSdeVpScheduler(beta_max=12.0)
    unet, model = saved(library, tmp_path / "vp", scheduler)
    t = torch.tensor([0.4])
    level = model.process.build_preconditioning().level(t * model.process.steps - 1)
    scheduler.set_timesteps(1000)
    with torch.no_grad():
        _, mean = scheduler.step_pred(unet(x, 999 * t).sample, x, t)
        score = -ChainDenoiser(model.net, model.process, "none")(x, level).eps / level.sigma.float()
    beta = 0.1 + 0.4 * 11.9
    assert (mean - (x + (0.5 * beta * x + beta * score) / 1000)).abs().max() < 1e-5 * mean.abs().max()


IMAGES: dict[str, tuple[Callable[[Any], Any], int]] = {
    "consistency": (lambda d: d.CMStochasticIterativeScheduler(), 1),
    "edm": (lambda d: d.EDMEulerScheduler(), 8),
    "edm dpm": (lambda d: d.EDMDPMSolverMultistepScheduler(), 8),
    "flow": (lambda d: d.FlowMatchEulerDiscreteScheduler(), 8),
    "flow, shifted": (lambda d: d.FlowMatchEulerDiscreteScheduler(shift=3.0), 8),
    "flow, shifted the other way": (lambda d: d.FlowMatchEulerDiscreteScheduler(shift=0.4), 5),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_those_of_diffusers(library: Any, name: str, tmp_path: Path) -> None:
    """By the scheduler's advice, from the same noise."""
    make, count = IMAGES[name]
    scheduler = make(library)
    unet, model = saved(library, tmp_path / "p", scheduler)
    settings = SamplerConfig(steps=str(count)).resolved(model.process, model.advice)
    assert settings.solver and settings.steps and settings.grid and settings.clip
    denoiser = ChainDenoiser(model.net, model.process, settings.clip)
    path = grid(denoiser.chain, settings.steps, settings.grid)
    start = NoiseSource(0, range(2)).normal((3, 16, 16), 0, "x_T")
    with torch.no_grad():
        image = generate(denoiser, path, build_solver(settings.solver, True), NoiseSource(0, range(2)), (3, 16, 16),
                         x_T=start)  # fmt: skip
        scheduler.set_timesteps(count)
        noisiest = path.transition(path.steps - 1).source
        x = start if name.startswith("flow") else start / noisiest.alpha.float()  # the scheduler's x is at alpha = 1
        for t in scheduler.timesteps:
            seen = x if name.startswith("flow") else scheduler.scale_model_input(x, t)
            x = scheduler.step(unet(seen, t.float().reshape(1)).sample, t, x).prev_sample
    assert (image - x).abs().max() < 2e-3 * max(1.0, float(x.abs().max()))
