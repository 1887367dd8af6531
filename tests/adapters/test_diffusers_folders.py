"""Folders that diffusers writes: found, read with their schedulers, and sampled as diffusers samples them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from support.cli_runs import call
from support.foreign_files import layout_of
from support.golden_files import draw_weights
from support.unet2d_cases import BASE
from undiffuse import models
from undiffuse.adapters import diffusers_scheduler, diffusers_unet
from undiffuse.checkpoints import CheckpointError
from undiffuse.config.sampler import SamplerConfig
from undiffuse.denoiser import clip_function
from undiffuse.models import load_diffusion
from undiffuse.nets import UNet2DConfig
from undiffuse.noise_levels import respacing_indices

SETTINGS = {**BASE, "_class_name": "UNet2DModel", "_diffusers_version": "0.42.1", "norm_num_groups": 4}
SCHEDULER = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.42.1", "beta_schedule": "squaredcos_cap_v2"}
CONFIG = diffusers_unet.network_config(SETTINGS)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))


def weights(seed: int = 1, config: UNet2DConfig = CONFIG) -> dict[str, Tensor]:
    return draw_weights(layout_of(config), seed)


def write(folder: Path, settings: dict[str, Any], state: dict[str, Tensor], name: str = "") -> Path:
    """A model's folder as diffusers writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    file = folder / (name or "diffusion_pytorch_model.safetensors")
    save_file(state, file) if file.suffix == ".safetensors" else torch.save(state, file)
    return folder


def pipeline(folder: Path, scheduler: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A pipeline's folder."""
    settings = {**SETTINGS, **changes}
    write(folder / "unet", settings, weights(config=diffusers_unet.network_config(settings)))
    (folder / "scheduler").mkdir(exist_ok=True)
    told = SCHEDULER if scheduler is None else scheduler
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    return folder


def holds(reference: str | Path, seed: int = 1, which: str | None = None) -> bool:
    """Whether a model has these weights."""
    state = load_diffusion(reference, weights=which).net.state_dict()
    return all(value.equal(state[name]) for name, value in weights(seed).items())


def test_a_pipeline_is_a_model_with_process_and_advice(tmp_path: Path) -> None:
    model = load_diffusion(pipeline(tmp_path / "p"))
    assert model.net.config == CONFIG
    assert (model.process.schedule, model.process.target, model.process.variance) == ("cosine", "eps", "fixed_small")
    assert model.advice is not None
    settings = SamplerConfig().resolved(model.process, model.advice)
    assert (settings.solver, settings.steps, settings.grid, settings.clip) == (
        "ddpm",
        "1000",
        "chain:leading",
        "static",
    )
    models.save_model(tmp_path / "slim.safetensors", model)
    assert load_diffusion(tmp_path / "slim.safetensors").advice == model.advice


def shards(folder: Path, variant: str = "") -> None:
    state = weights()
    names = sorted(state)
    parts = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for name, keys in parts.items():
        save_file({key: state[key] for key in keys}, folder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def test_places_and_names_of_weights(tmp_path: Path) -> None:
    whole = pipeline(tmp_path / "p")
    assert holds(whole)
    assert holds(whole / "unet" / "diffusion_pytorch_model.safetensors")  # the file beside its config.json
    bare = write(tmp_path / "bare", SETTINGS, weights(), "diffusion_pytorch_model.bin")
    (bare / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    assert holds(bare)
    sharded = pipeline(tmp_path / "sharded")
    (sharded / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    shards(sharded / "unet")
    assert holds(sharded)
    next((sharded / "unet").glob("*-of-00002.safetensors")).unlink()
    with pytest.raises(ValueError, match="names missing files: diffusion_pytorch_model-00002-of-00002.safetensors"):
        load_diffusion(sharded)
    half = pipeline(tmp_path / "half")
    save_file({k: v.half() for k, v in weights().items()}, half / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert holds(half)
    (half / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    model = load_diffusion(half)
    assert model.net.conv_in.weight.equal(weights()["conv_in.weight"].half().float())
    assert model.weights == "fp16"


def test_checkpoints_of_a_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    averages = {"decay": 0.9999, "inv_gamma": 1.0, "power": 0.75, "optimization_step": 500, "min_decay": 0.0,
                "update_after_step": 0, "use_ema_warmup": True}  # fmt: skip
    for step in (500, 1500):
        write(run / f"checkpoint-{step}" / "unet", SETTINGS, weights(step))
        write(run / f"checkpoint-{step}" / "unet_ema", {**SETTINGS, **averages}, weights(step + 1))
    said = "beta_schedule=linear num_train_timesteps=1000 prediction_type=v_prediction"
    with pytest.raises(CheckpointError, match="no scheduler_config.json.*say beta_schedule, num_train_timesteps"):
        load_diffusion(run / "checkpoint-500")
    assert holds(f"{run}/checkpoint-500@{said}", 501)
    assert load_diffusion(f"{run}/checkpoint-500@{said}").process.target == "v"
    assert holds(f"{run}/checkpoint-500@{said}", 500, "unet")
    assert holds(f"{run}/checkpoint-500/unet@{said}", 500)
    (run / "scheduler").mkdir()
    (run / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    assert holds(run, 1501)  # the newest
    assert load_diffusion(run).weights == "unet_ema"


def test_what_is_said_of_a_folder(tmp_path: Path) -> None:
    folder = pipeline(tmp_path / "p", num_class_embeds=11)
    assert load_diffusion(folder).num_classes == 11
    model = load_diffusion(f"{folder}@null_class=True")
    assert (model.num_classes, model.null_class) == (10, 10)
    with pytest.raises(CheckpointError, match="takes the settings image_size.*not num_heads"):
        load_diffusion(f"{folder}@num_heads=4")
    with pytest.raises(CheckpointError, match="has its own configuration"):
        load_diffusion(f"{folder}@64x64_diffusion")
    doubled = pipeline(tmp_path / "q", out_channels=6)
    with pytest.raises(CheckpointError, match="say variance=learned_range"):
        load_diffusion(doubled)
    assert load_diffusion(f"{doubled}@variance=learned_range").process.variance == "learned_range"
    with pytest.raises(CheckpointError, match="as a condition are not read"):
        load_diffusion(pipeline(tmp_path / "r", in_channels=6))


def test_a_folder_with_only_weights(tmp_path: Path) -> None:
    model = load_diffusion(pipeline(tmp_path / "p"))
    run = tmp_path / "run"
    run.mkdir()
    models.save_model(run / "model.safetensors", model)
    assert load_diffusion(run).digest == model.digest
    shutil.copy(run / "model.safetensors", run / "other.safetensors")
    with pytest.raises(ValueError, match="several weights files, model.safetensors, other.safetensors"):
        load_diffusion(run)


def test_the_command_line_samples_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ddim = {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "clip_sample": True, "thresholding": True,
            "sample_max_value": 2.0, "steps_offset": 1, "set_alpha_to_one": False}  # fmt: skip
    folder = pipeline(tmp_path / "p", ddim)
    words = ("--count", 1, "--steps", 3, "--device", "cpu", "--out", tmp_path / "o")
    assert call("sample", "--model", folder, *words) == 0
    assert "note: this differs from diffusers: the last step goes to the clean image" in capsys.readouterr().out
    assert call("inspect", folder) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "as with set_alpha_to_one = true" in told
    assert "derived from the clipped image" in told
    assert call("inspect", tmp_path / "o") == 0
    out = capsys.readouterr().out
    assert "dynamic:0.995,2" in out, out
    assert "chain:leading+1" in out


ADVICE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ddpm": ({"_class_name": "DDPMScheduler"}, {"solver": "ddpm", "clip": "static", "grid": "chain:leading"}),
    "ddpm, unclipped": ({"_class_name": "DDPMScheduler", "clip_sample": False}, {"clip": "none"}),
    "ddpm, range": ({"_class_name": "DDPMScheduler", "clip_sample_range": 2.5}, {"clip": "static:2.5"}),
    "ddpm, thresholds of 1": ({"_class_name": "DDPMScheduler", "thresholding": True}, {"clip": "static"}),
    "ddpm, trailing": ({"_class_name": "DDPMScheduler", "timestep_spacing": "trailing"}, {"grid": "chain:trailing"}),
    "ddim": ({"_class_name": "DDIMScheduler", "steps_offset": 1}, {"solver": "ddim", "steps": "50",
                                                                   "grid": "chain:leading+1"}),
    "euler": ({"_class_name": "EulerDiscreteScheduler"}, {"solver": "ddim", "clip": "none", "grid": "uniform"}),
    "euler a": ({"_class_name": "EulerAncestralDiscreteScheduler"}, {"solver": "ddim", "eta": 1.0, "clip": "none"}),
    "heun": ({"_class_name": "HeunDiscreteScheduler", "use_karras_sigmas": True}, {"solver": "heun", "grid": "karras"}),
    "pndm": ({"_class_name": "PNDMScheduler", "skip_prk_steps": True},
             {"solver": "pndm", "solver_options": "warmup=plms"}),
    "unipc": ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"},
              {"solver": "unipc", "solver_options": "order=2,variant=bh1"}),
    "dpm 2m": ({"_class_name": "DPMSolverMultistepScheduler", "variance_type": None}, {"solver": "dpmpp-2m"}),
    "dpm 3m": ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, {"solver": "dpmpp-3m"}),
    "dpm sde": ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
                {"solver": "dpmpp-2m-sde"}),
    "dpm lu": ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, {"grid": "logsnr"}),
    "dpm trailing": ({"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "trailing"},
                     {"grid": "trailing"}),
    "dpm thresholds": ({"_class_name": "DPMSolverMultistepScheduler", "thresholding": True, "sample_max_value": 1.5,
                        "dynamic_thresholding_ratio": 0.9}, {"clip": "dynamic:0.9,1.5"}),
    "dpm single": ({"_class_name": "DPMSolverSinglestepScheduler"}, {"solver": "dpmpp-2s"}),
    "deis": ({"_class_name": "DEISMultistepScheduler"}, {"solver": "deis", "solver_options": "order=2"}),
    "lms": ({"_class_name": "LMSDiscreteScheduler"}, {"solver": "deis"}),
    "kdpm2": ({"_class_name": "KDPM2DiscreteScheduler"}, {"solver": "dpmpp-2s"}),
}  # fmt: skip


@pytest.mark.parametrize("name", ADVICE)
def test_schedulers_as_advice(name: str) -> None:
    settings, expected = ADVICE[name]
    schedule = diffusers_scheduler.read({"beta_schedule": "linear", **settings})
    assert {key: getattr(schedule.sampling, key) for key in expected} == expected
    resolved = SamplerConfig().resolved(schedule.process, schedule.sampling)
    assert resolved.solver == schedule.sampling.solver
    clip_function(resolved.clip or "")
    if schedule.sampling.clip:
        assert resolved.clip == schedule.sampling.clip
    assert SamplerConfig(clip="none", solver="ddim").resolved(schedule.process, schedule.sampling).clip == "none"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"set_alpha_to_one": False}, "set_alpha_to_one"),
        ({"final_sigmas_type": "sigma_min"}, "final_sigmas_type = 'sigma_min' is not followed"),
        ({"use_beta_sigmas": True}, "use_beta_sigmas = True is not followed"),
        ({"some_new_setting": 3}, "some_new_setting = 3 is not known"),
        ({"_class_name": "LMSDiscreteScheduler"}, "LMSDiscreteScheduler is not built here"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "predicts the noise"),
    ],
)
def test_what_is_done_otherwise_is_told(change: dict[str, Any], told: str) -> None:
    schedule = diffusers_scheduler.read({"_class_name": "DDIMScheduler", "beta_schedule": "linear", **change})
    assert any(told in note for note in schedule.notes), schedule.notes


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("diffusers", reason="compares with diffusers, which is not needed otherwise")


@pytest.mark.parametrize("count", [1, 7, 10, 50, 999, 1000])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)])
def test_spacings_are_those_of_diffusers(library: Any, spacing: str, offset: int, count: int) -> None:
    scheduler = library.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(count)
    spec = f"{spacing}{count}" + (f"+{offset}" if offset else "")
    if spacing == "leading" and scheduler.timesteps.max() > 999:
        with pytest.raises(ValueError, match="exceeds the last of 1000 steps"):
            respacing_indices(1000, spec)
    else:
        assert respacing_indices(1000, spec) == scheduler.timesteps.flip(0).tolist()


PROCESSES: dict[str, dict[str, Any]] = {
    "linear": {},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.01},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "short": {"num_train_timesteps": 100, "beta_end": 0.1},
    "given": {"trained_betas": [0.01, 0.02, 0.05, 0.3]},
    "zero": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "zero cosine": {
        "rescale_betas_zero_snr": True, "prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2",
    },
    "zero scaled": {
        "rescale_betas_zero_snr": True, "prediction_type": "sample", "beta_schedule": "scaled_linear",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSES)
def test_levels_are_those_of_diffusers(library: Any, name: str) -> None:
    scheduler = library.DDPMScheduler(**PROCESSES[name])
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_use")}
    chain = diffusers_scheduler.process_config(config).chain()  # in float64, where the scheduler is in float32
    theirs = scheduler.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(chain.alphas_cumprod, theirs, rtol=2e-4, atol=1e-9)


SAMPLED: dict[str, Callable[[Any], Any]] = {
    "ddim": lambda d: d.DDIMScheduler(clip_sample=False),
    "ddim, offset": lambda d: d.DDIMScheduler(clip_sample=False, steps_offset=1),
    "ddim, range": lambda d: d.DDIMScheduler(clip_sample=True, clip_sample_range=0.4),
    "ddim, thresholds": lambda d: d.DDIMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.7, sample_max_value=1.5
    ),
    "ddim, trailing v": lambda d: d.DDIMScheduler(
        clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction", rescale_betas_zero_snr=True
    ),
    "ddim, x0": lambda d: d.DDIMScheduler(clip_sample=False, prediction_type="sample"),
    "euler": lambda d: d.EulerDiscreteScheduler(timestep_spacing="leading"),
    "dpm 2m": lambda d: d.DPMSolverMultistepScheduler(timestep_spacing="trailing"),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_images_are_those_of_diffusers(library: Any, name: str, tmp_path: Path) -> None:
    """From a pipeline's folder to an image by its scheduler's advice, from the same noise."""
    from undiffuse.denoiser import ChainDenoiser
    from undiffuse.grids import grid
    from undiffuse.noise import NoiseSource
    from undiffuse.sampling import generate
    from undiffuse.solvers import build_solver
    from undiffuse.solvers.registry import read_options

    unet = library.UNet2DModel(**{**BASE, "norm_num_groups": 4}).eval()
    unet.load_state_dict(weights())
    scheduler = SAMPLED[name](library)
    library.DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(tmp_path / "p")
    model = load_diffusion(tmp_path / "p")
    settings = SamplerConfig(steps="10").resolved(model.process, model.advice)
    assert settings.solver and settings.steps and settings.grid and settings.clip
    denoiser = ChainDenoiser(model.net, model.process, settings.clip)
    path = grid(denoiser.chain, settings.steps, settings.grid)
    options = {"eta": settings.eta} if settings.solver == "ddim" else {}
    solver = build_solver(settings.solver, True, **options, **read_options(settings.solver, settings.solver_options))
    noise = NoiseSource(0, range(2))
    start = noise.normal((3, 16, 16), 0, "x_T")
    scheduler.set_timesteps(10)
    with torch.no_grad():
        image = generate(denoiser, path, solver, noise, (3, 16, 16), x_T=start)
        x = start
        if name == "euler":  # which holds x / alpha
            x = start * float((scheduler.sigmas[0] ** 2 + 1) ** 0.5)
        more = {"use_clipped_model_output": True} if name.startswith("ddim") else {}
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t)
            x = scheduler.step(unet(seen, t).sample, t, x, **more).prev_sample
    close = 1e-4 if name.startswith("ddim") else 3e-3
    assert (image - x).abs().max() < close * max(1.0, float(x.abs().max()))


def test_averages_and_shards_that_diffusers_writes(library: Any, tmp_path: Path) -> None:
    from diffusers.training_utils import EMAModel

    unet = library.UNet2DModel(**{**BASE, "norm_num_groups": 4}).eval()
    unet.load_state_dict(weights())
    EMAModel(unet.parameters(), decay=0.99, model_cls=library.UNet2DModel, model_config=unet.config).save_pretrained(
        tmp_path / "run" / "checkpoint-3" / "unet_ema"
    )
    library.DDPMScheduler().save_pretrained(tmp_path / "run" / "scheduler")
    assert holds(tmp_path / "run")
    unet.save_pretrained(tmp_path / "s" / "unet", max_shard_size="100KB")
    library.DDPMScheduler().save_pretrained(tmp_path / "s" / "scheduler")
    assert len(list((tmp_path / "s" / "unet").glob("*.safetensors"))) > 1
    assert holds(tmp_path / "s")
    unet.half().save_pretrained(tmp_path / "h" / "unet", variant="fp16", max_shard_size="100KB")
    library.DDPMScheduler().save_pretrained(tmp_path / "h" / "scheduler")
    assert load_diffusion(tmp_path / "h").weights == "fp16"
