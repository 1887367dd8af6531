"""Later processes from `undiffuse train` to `undiffuse sample`, and runs begun before they existed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from support.cli_runs import call, one_thread, write_images
from support.training_runs import run, tiny_task, told
from support.variants import few
from tests.cli.test_train import TINY, plan_of
from undiffuse import checkpoints
from undiffuse.adapters.export_diffusers import scheduler_config
from undiffuse.adapters.exporting import level_obstacles
from undiffuse.config import SamplerConfig
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.models import DiffusionModel, load_diffusion, save_model
from undiffuse.noise import NoiseSource
from undiffuse.recipes import get
from undiffuse.sampling import generate
from undiffuse.solvers import DDPM
from undiffuse.training import read_events
from undiffuse.training.finetune import find_init

FIXED = ("process.variance=fixed_small", "objective.loss=simple")
WAYS: dict[str, tuple[str, ...]] = {
    "v": ("process.target=v", "objective.weighting=min-snr:5"),
    "zero-terminal": ("process.target=v", "process.schedule=linear+zero-terminal", *FIXED),
    "shifted": ("process.schedule=cosine+shift:0.5", "train.density=lognormal:0,1.5", "objective.weighting=p2"),
    "edm": ("process.preconditioning=edm", "process.target=edm", *FIXED, "train.density=lognormal"),
    "flow": ("process.preconditioning=flow", "process.target=velocity", *FIXED, "train.density=logitnormal"),
}


def sets(*fields: str) -> list[Any]:
    return [word for field in fields for word in ("--set", field)]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    with one_thread():
        yield


@pytest.mark.parametrize("way", few(WAYS, count=0, first=(0, 3, 4)))
def test_trains_improves_resumes_and_samples(way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "photos", each=8)
    words = ["train", images, *TINY, *sets(*WAYS[way]), "--lr", "4e-3", "--batch", 8, "--out", tmp_path / "run"]
    words += sets("train.preview_steps=2", "train.preview_count=2", "train.warmup_images=1", "train.log_every=80")
    words += sets("train.lr_decay=none", "net.dropout=0")
    assert call(*words, "--images", 80) == 0
    assert call(*words, "--images", 480) == 0  # the same run, longer
    run_dir = tmp_path / "run"
    errors = [r["mse"] for r in read_events(run_dir / "metrics.jsonl") if r["kind"] == "train"]
    assert len(errors) == 6
    assert errors[-1] < 0.8 * errors[0]
    assert (run_dir / "previews").is_dir()
    model = load_diffusion(run_dir / "model.safetensors")
    written = json.loads((run_dir / "config.json").read_text())
    assert written["process"]["target"] == model.process.target
    assert written["process"]["preconditioning"] == model.process.preconditioning
    out = tmp_path / "samples"
    for solver in ("ddim", "ddpm"):
        assert call("sample", run_dir, "--solver", solver, "--count", 3, "--steps", 5, "--out", out / solver) == 0
    picture = sorted((out / "ddim").rglob("*.png"))
    assert picture
    assert call("nll", images, "--model", run_dir, "--count", 2, "--terms", 3, "--out", tmp_path / "nll") == 0
    assert call("inspect", run_dir) == 0
    told = capsys.readouterr().out
    assert f"predicts {model.process.target}" in told
    for form in ("openai", "diffusers", "onnx", "torch"):
        if model.process.continuous:
            assert call("export", run_dir, "--to", form, "--out", tmp_path / form) != 0
            assert not (tmp_path / form).exists()


def test_the_discrete_view_samples_like_its_model(tmp_path: Path) -> None:
    """All that needs a chain (ancestral sampling, strides, the bound) takes a continuous model's own view."""
    process = get("general-32-edm").process
    chain = process.chain().respaced("7")
    denoiser = of_one_image(process)
    shape = (1, 2, 2)
    x = generate(denoiser, chain, DDPM(), NoiseSource(0, range(4)), shape)
    torch.testing.assert_close(x, torch.full_like(x, 0.25), rtol=0, atol=1e-5)


def of_one_image(process: ProcessConfig) -> ChainDenoiser:
    """A denoiser of the family "edm" for data that is always 0.25."""

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        s = (4 * t.double()).exp().reshape(-1, 1, 1, 1)
        d = process.sigma_data
        seen = x * (s**2 + d**2).sqrt()
        return ((0.25 - d**2 / (s**2 + d**2) * seen) * (s**2 + d**2).sqrt() / (s * d)).to(x.dtype)

    return ChainDenoiser(network, process)


def test_sampling_begins_where_training_ended() -> None:
    """At the last level for chains that end in pure noise and for continuous levels; ADM's chains a little earlier."""
    for process, steps in (
        (ProcessConfig(schedule="cosine"), "ddim50"),
        (ProcessConfig(schedule="cosine+zero-terminal", target="v"), "50"),
        (get("general-32-edm").process, "50"),
        (get("general-32-flow").process, "50"),
    ):
        resolved = SamplerConfig(solver="ddim").resolved(process)
        assert resolved.steps == steps
        assert (process.chain().respaced(steps).indices[-1] == process.steps - 1) == (steps == "50")


def test_other_programs_are_told_the_betas_of_later_schedules() -> None:
    process = ProcessConfig(schedule="cosine+zero-terminal", target="v", variance="fixed_small")
    told = scheduler_config(process)
    assert told["prediction_type"] == "v_prediction"
    assert told["trained_betas"] == process.chain().betas.tolist()
    assert scheduler_config(ProcessConfig(schedule="cosine"))["trained_betas"] is None
    assert level_obstacles(ProcessConfig(target="edm"))
    assert level_obstacles(get("general-32-flow").process)
    assert not level_obstacles(process)


@pytest.mark.parametrize("name", [f"general-{size}-{way}" for size in (32, 64) for way in ("v", "edm", "flow")])
def test_recipes_are_of_one_piece(name: str) -> None:
    recipe = get(name)
    assert recipe.name == name
    assert recipe.net.out_channels == recipe.process.out_channels(recipe.net.in_channels)
    assert recipe.objective is not None
    assert (recipe.objective.loss == "hybrid") == recipe.process.learns_variance
    assert recipe.train.posthoc_widths == (0.05, 0.1)


def test_a_model_to_begin_with_brings_its_density(tmp_path: Path) -> None:
    """How often each level is drawn belongs to a process, and goes on with it."""
    path, train = tmp_path / "model.safetensors", {"density": "lognormal:-1,1"}
    for manifest, expected in (({"train": train}, "lognormal:-1,1"), ({}, "uniform")):
        task = tiny_task()
        save_model(path, DiffusionModel(net=task.net, process=task.process, labels=task.labels, manifest=manifest))
        start = find_init(str(path), "diffusion", tmp_path / "run")
        assert start is not None
        assert start.into(get("general-32-flow"), (8, 8)).train.density == expected


def test_runs_from_before_these_settings_go_on(tmp_path: Path) -> None:
    """A checkpoint that knows nothing of families, weightings, densities or snapshots."""
    run(tmp_path / "whole", images=32)
    run(tmp_path / "old", images=16)
    path = checkpoints.checkpoints(tmp_path / "old")[-1]
    tensors, manifest = checkpoints.read(path)
    for section, names in (
        ("process", ("preconditioning", "sigma_min", "sigma_max", "sigma_data")),
        ("objective", ("weighting",)),
        ("train", ("density", "posthoc_widths", "posthoc_every")),
    ):
        for name in names:
            del manifest[section][name]
    checkpoints.write(path, tensors, manifest)
    assert load_diffusion(tmp_path / "old").process == tiny_task().process
    assert run(tmp_path / "old", images=32).complete
    ours, theirs = (checkpoints.read(checkpoints.checkpoints(tmp_path / part)[-1])[0] for part in ("whole", "old"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert told(tmp_path / "whole")[-1] == told(tmp_path / "old")[-1]
    with pytest.raises(ValueError, match=r"train.density: 'uniform' -> 'lognormal'"):
        run(tmp_path / "old", images=48, density="lognormal")


@pytest.mark.parametrize("name", ["general-32-v", "general-32-edm", "general-32-flow"])
def test_a_general_recipe_takes_pictures_as_they_are(name: str, tmp_path: Path) -> None:
    """Grey pictures make a network of one channel, whether the recipe is named or chosen; --channels says otherwise."""
    data = write_images(tmp_path / "photos", each=8)
    for more, channels in (((), 1), (("--channels", 3), 3)):
        plan = plan_of("train", data, "--recipe", name, *more)
        assert plan.dataset.shape == (32, 32, channels)
        assert plan.recipe.net.in_channels == channels
        assert plan.recipe.net.out_channels == plan.recipe.process.out_channels(channels)
    published = plan_of("train", data, "--recipe", "improved-cifar10-32", "--unconditional")
    assert published.dataset.shape == (32, 32, 3), "a published network stays as it was published"


def test_a_run_made_short_still_keeps_snapshots(tmp_path: Path) -> None:
    data = write_images(tmp_path / "photos", each=8)
    words = ("train", data, "--recipe", "general-32-v", "--batch", 8)
    assert plan_of(*words).recipe.train.posthoc_every == 100_000
    assert plan_of(*words, "--images", 8000).recipe.train.posthoc_every == 200
    assert plan_of(*words, "--steps", 5).recipe.train.posthoc_every == 8, "one an update at most"
    assert plan_of(*words, "--images", 8000, "--set", "train.posthoc_every=700").recipe.train.posthoc_every == 700
    assert plan_of(*words, "--images", 8_000_000).recipe.train.posthoc_every == 100_000
