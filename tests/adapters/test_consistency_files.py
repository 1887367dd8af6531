"""Files of consistency_models: recognised, never guessed, loaded exactly, and sampled as their authors do."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from support.cli_runs import call
from support.file_server import serving
from support.foreign_files import CLASSIFIER, DIFFUSION, weights_of, with_planes, write
from support.golden_files import NETWORKS, Golden, draw_weights, for_each
from undiffuse.adapters import importing, openai_flags, published
from undiffuse.adapters.interpretation import Like
from undiffuse.checkpoints import CheckpointError, weights_hash
from undiffuse.config import SamplerConfig, advice
from undiffuse.denoiser import ProcessConfig
from undiffuse.downloads import DownloadError
from undiffuse.models import load_diffusion
from undiffuse.nets import UNetConfig
from undiffuse.noise_levels import Level
from undiffuse.pictures import read_record

SMALL = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "attention_resolutions": "8",
    "num_head_channels": 16,
    "class_cond": True,
    "resblock_updown": True,
}
"""Flags of a network small enough for a test."""
NAMES = ("edm_imagenet64_ema", "cd_imagenet64_l2", "cd_imagenet64_lpips", "ct_imagenet64")
CD = published.get("cd_imagenet64_l2")
LINE = "--training_mode consistency_distillation " + " ".join(f"--{name} {value}" for name, value in SMALL.items())


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of ImageNet with a small network, which their authors' sampling and names go with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNDIFFUSE_OFFLINE", raising=False)
    monkeypatch.setattr("undiffuse.downloads.time.sleep", lambda seconds: None)
    for name in NAMES:
        entry = published.get(name)
        flags = {**SMALL, "training_mode": entry.flags["training_mode"]}
        monkeypatch.setitem(published.ENTRIES, name, replace(entry, flags=flags))  # type: ignore[arg-type]


def weights() -> dict[str, torch.Tensor]:
    """Drawn weights in the form of the original's files."""
    return with_planes(weights_of(published.get("cd_imagenet64_l2")))


def is_student(model: Any) -> bool:
    entry = published.get("cd_imagenet64_l2")
    return (model.net.config, model.process) == (entry.net, entry.process)


@for_each("consistency")
@pytest.mark.parametrize("planes", [True, False], ids=["conv2d", "conv1d"])
def test_golden_networks_and_denoisers_from_files(path: Path, planes: bool, tmp_path: Path) -> None:
    """The original's numbers, from a file and its flags; the form of its attention does not matter."""
    golden = Golden(path)
    meta, arguments = golden.meta, golden.meta["kwargs"]
    state = draw_weights(meta["state_dict"], meta["seed"])
    if not planes:
        state = {name: value.squeeze(-1) if ".qkv." in name or ".proj_out." in name else value
                 for name, value in state.items()}  # fmt: skip
    file = write(tmp_path / "w.pt", state)
    flags = f"--image_size {golden.take('x_start').shape[-1]} --num_head_channels {arguments['num_head_channels']}"
    sigma, x_t = golden.take("sigmas"), golden.take("x_t")
    cond = {"y": golden.take("y")} if "y" in golden else None
    level = Level(torch.ones_like(sigma).double(), sigma.double())
    for mode, target in (("edm", "edm"), ("consistency_training", "consistency")):
        model = load_diffusion(f"{file}@consistency_models --training_mode {mode} {flags}")
        golden.compare(f"{target}.denoised", model.denoiser("none")(x_t, level, cond).x0, NETWORKS)
    scaled = x_t / (sigma**2 + meta["sigma_data"] ** 2).sqrt().reshape(-1, 1, 1, 1)
    with torch.no_grad():
        golden.compare("network_output", model.net(scaled, 250 * sigma.log(), **(cond or {})), NETWORKS)
    assert not golden.failures, golden.failures


def test_weights_alone_do_not_tell_a_consistency_model_from_its_teacher(tmp_path: Path) -> None:
    file = write(tmp_path / "w.pt", weights())
    with pytest.raises(CheckpointError) as caught:
        load_diffusion(file)
    text = str(caught.value)
    for word in (
        "do not tell image_size (pixels), num_head_channels or num_heads, training_mode (edm, consistency_distillation",
        "several published files have its shapes", *NAMES, "consistency_models --image_size",
        "as in consistency_models",
    ):  # fmt: skip
        assert word in text
    for word in ("noise_schedule", "use_new_attention_order"):  # flags that its release does not have, or does not read
        assert word not in text


def test_in_the_form_of_guided_diffusion_they_are_not_guessed_either(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="do not tell .*training_mode"):
        load_diffusion(write(tmp_path / "w.pt", weights_of(published.get("cd_imagenet64_l2"))))


def test_what_tells_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's name, its hash, a published model, flags of the training, and arguments saved beside the weights."""
    file = write(tmp_path / "w.pt", weights())
    flags = tmp_path / "flags.txt"
    flags.write_text(f"python cm_train.py {LINE} --target_ema_mode fixed --start_ema 0.95 --loss_norm l2 --steps 40\n")
    arguments = {**SMALL, "training_mode": "consistency_distillation", "steps": 40, "start_scales": 40, "lr": 1e-4}
    beside = write(tmp_path / "beside.pt", {"model": weights(), "args": argparse.Namespace(**arguments)})
    named = write(tmp_path / "cd_imagenet64_l2.pt", weights())
    for reference, by in (
        (named, "name"),
        (f"{file}@cd_imagenet64_l2", "like"),
        (f"{file}@{LINE}", None),
        (f"{file}@consistency_models {LINE} --weight_schedule uniform", None),
        (f"{file}@{flags}", None),
        (beside, None),
    ):
        model = load_diffusion(reference)
        assert is_student(model), reference
        assert model.manifest["source"]["known_by"] == by
        assert (model.published is not None) == (by is not None)
    entry = published.get("cd_imagenet64_l2")
    monkeypatch.setitem(published.ENTRIES, entry.name, replace(entry, sha256=importing.content_hash(file)))  # type: ignore[arg-type]
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "other"))
    assert load_diffusion(file).manifest["source"]["known_by"] == "hash"
    teacher = load_diffusion(f"{file}@edm_imagenet64_ema")
    assert teacher.process.target == "edm"
    assert weights_hash(teacher.net.state_dict()) == weights_hash(load_diffusion(named).net.state_dict())


def test_two_models_of_one_meaning_keep_their_own_advice(tmp_path: Path) -> None:
    """Conversions of one file are apart where they differ in nothing but the published model they are taken for."""
    file = write(tmp_path / "w.pt", weights())
    for name in ("ct_imagenet64", "cd_imagenet64_lpips"):
        model = load_diffusion(f"{file}@{name}")
        assert (model.published, model.advice) == (published.get(name), published.get(name).sampling)


@pytest.mark.parametrize(
    ("like", "told"),
    [
        ("consistency_models --image_size 16 --num_head_channels 16", "do not tell training_mode"),
        ("consistency_models --image_size 16 --training_mode lcm", "one of edm, consistency_distillation.*got 'lcm'"),
        ("consistency_models --image_size 16 --training_mode edm --noise_schedule linear", "unknown.*noise_schedule"),
        ("consistency_models --image_size 16 --training_mode edm --learn_sigma True", "learn_sigma True"),
        ("consistency_models --image_size 16 --training_mode edm --sigma_min 90", "sigma_min"),
        ("edm_bedroom256_ema", "model_channels 32, there 256"),
    ],
)
def test_what_does_not_fit_is_refused(like: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=told):
        load_diffusion(f"{write(tmp_path / 'w.pt', weights())}@{like}")


def test_guided_diffusion_with_their_form_of_attention_is_read_by_its_flags(tmp_path: Path) -> None:
    """A fork whose flags are complete; the form alone decides nothing."""
    said = " ".join(f"{name}={value}" for name, value in SMALL.items())
    said += " noise_schedule=cosine diffusion_steps=1000 use_new_attention_order=False"
    model = load_diffusion(f"{write(tmp_path / 'w.pt', weights())}@{said}")
    assert isinstance(model.net.config, UNetConfig)
    assert not model.net.config.use_new_attention_order
    assert model.process == ProcessConfig(schedule="cosine", variance="fixed_large")


def test_flags_of_the_release() -> None:
    """Its defaults differ from guided diffusion's, and the order of qkv does not depend on the flag."""
    usual = openai_flags.unet_config({}, "consistency_models")
    assert (usual.attention_resolutions, usual.channel_mult, usual.out_channels) == ((2, 4, 8), (1, 2, 3, 4), 3)
    assert usual.use_new_attention_order
    assert openai_flags.unet_config({"use_new_attention_order": "False"}, "consistency_models") == usual
    targets = {mode: openai_flags.process_config({"training_mode": mode}, "consistency_models").target
               for mode in openai_flags.MODES}  # fmt: skip
    assert targets == {
        "edm": "edm", "consistency_distillation": "consistency", "consistency_training": "consistency",
        "progdist": "edm",
    }  # fmt: skip
    process = openai_flags.process_config({"training_mode": "edm", "sigma_max": "50", "sigma_min": 0.01},
                                          "consistency_models")  # fmt: skip
    assert (process.preconditioning, process.sigma_min, process.sigma_max, process.sigma_data) == ("edm", 0.01, 50, 0.5)
    assert Like.parse("consistency_models --training_mode edm --ts 0,22,39 --sampler heun").flags == {
        "training_mode": "edm"
    }


def test_levels_of_karras_grid_by_number() -> None:
    """sigma_i = (80^(1/7) + i / 39 (0.002^(1/7) - 80^(1/7)))^7, as log-SNRs."""
    numbers = [float(part) for part in advice.levels_of((0, 22, 39), 40).removeprefix("at:").split(",")]
    sigmas = [float(torch.tensor(-number / 2).exp()) for number in numbers]
    between = (80 ** (1 / 7) + 22 / 39 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigmas == pytest.approx([80.0, between, 0.002], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("cd_imagenet64_l2", {}, ("consistency", "2", CD.sampling.grid)),  # type: ignore[union-attr]
        ("cd_imagenet64_l2", {"steps": "2"}, ("consistency", "2", CD.sampling.grid)),  # type: ignore[union-attr]
        ("cd_imagenet64_l2", {"steps": "1"}, ("consistency", "1", "trailing")),
        ("cd_imagenet64_l2", {"steps": "5"}, ("consistency", "5", "trailing")),
        ("cd_imagenet64_l2", {"grid": "karras", "steps": "3"}, ("consistency", "3", "karras")),
        ("cd_cat256_lpips", {}, ("consistency", "1", "trailing")),
        ("edm_imagenet64_ema", {}, ("heun", "40", "karras")),
        ("edm_imagenet64_ema", {"steps": "10"}, ("heun", "10", "karras")),
    ],
)
def test_any_number_of_steps_by_the_authors_solver(name: str, given: Mapping[str, str], expected: Any) -> None:
    entry = published.get(name)
    resolved = SamplerConfig(**given).resolved(entry.process, entry.sampling)  # type: ignore[arg-type]
    assert (resolved.solver, resolved.steps, resolved.grid) == expected


def test_the_command_samples_them_in_one_and_two_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a file and --like; one step is f(x_T) at sigma_max, and the picture's record repeats it."""
    file = write(tmp_path / "w.pt", weights())
    for steps, more in (("1", ("--steps", 1)), ("2", ())):
        words = ("sample", file, "--like", "cd_imagenet64_l2", "--class", 3, "--count", 1, *more, "--out", f"s{steps}")
        assert call(*words) == 0, capsys.readouterr().err
        (picture,) = (path for path in Path(f"s{steps}").glob("*.png") if path.name != "grid.png")
        record = read_record(picture)
        assert (record["solver"], record["steps"]) == ("consistency", steps)
        assert record["grid"] == ("trailing" if steps == "1" else CD.sampling.grid)  # type: ignore[union-attr]
        assert call("sample", "--from-record", picture, "--out", f"again{steps}.png") == 0
        assert "identical to the original" in capsys.readouterr().out


def test_a_teacher_of_ones_own_is_sampled_by_heuns_method(tmp_path: Path) -> None:
    """The advice of published teachers holds for every network that the release trained, whatever it is called."""
    file = write(tmp_path / "w.pt", weights())
    own = load_diffusion(f"{file}@{LINE.replace('consistency_distillation', 'edm')}")
    assert own.published is None
    assert own.advice == published.get("edm_imagenet64_ema").sampling
    assert load_diffusion(f"{file}@{LINE}").advice is None


def served(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_a_name_is_downloaded_checked_and_used_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert str(CD.url) == "https://openaipublic.blob.core.windows.net/consistency/cd_imagenet64_l2.pt"
    with serving() as server:
        for name in NAMES:
            entry = replace(published.get(name), url=server.url)
            monkeypatch.setitem(published.ENTRIES, name, entry)  # type: ignore[arg-type]
        server.content = served(weights_of(DIFFUSION))
        with pytest.raises(DownloadError, match="not like ct_imagenet64: its shapes say"):
            load_diffusion("ct_imagenet64")
        server.content = served(weights_of(CLASSIFIER))
        with pytest.raises(DownloadError, match="holds a classifier"):
            load_diffusion("ct_imagenet64")
        server.content = served(weights())
        targets = {name: load_diffusion(name).process.target for name in NAMES}
        assert targets == dict(zip(NAMES, ("edm", *["consistency"] * 3), strict=True))
        requests = len(server.ranges)
        monkeypatch.setenv("UNDIFFUSE_OFFLINE", "1")
        model = load_diffusion("cd_imagenet64_l2")
        assert len(server.ranges) == requests
        teacher = load_diffusion("edm_imagenet64_ema").manifest
    assert teacher["objective"] == {"loss": "simple", "weighting": "edm"}
    assert "objective" not in model.manifest  # of a training that regresses on images
    assert model.advice == CD.sampling
    assert model.published is not None
    assert len(model.labels or ()) == 1000
    assert "250" not in json.dumps(model.manifest["source"])  # nothing of a chain is said of it
    assert "EDM, noise 0.002 to 80" in json.dumps(model.manifest["source"])


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"solver": "heun", "steps": "40", "grid": "karras", "clip": "none"},
         SamplerConfig(solver="heun", steps="40", grid="karras", clip="none")),
        ({"solver": "ddim", "steps": "50", "guidance": 0.0, "spacing": "leading+1", "grid": None, "clip": "static",
          "eta": 0.5, "options": ""},
         SamplerConfig(solver="ddim", steps="50", grid="chain:leading+1", clip="static", eta=0.5)),
        ({"solver": "pndm", "steps": None, "guidance": 0.0, "spacing": "", "grid": "uniform", "clip": "none",
          "eta": 0.0, "options": "warmup=plms"},
         SamplerConfig(solver="pndm", grid="uniform", clip="none", solver_options="warmup=plms")),
        ({"solver": "ancestral", "steps": "100", "of the future": 1}, SamplerConfig(solver="ddpm", steps="100")),
    ],
)  # fmt: skip
def test_advice_in_older_files_is_read(saved: Mapping[str, Any], expected: SamplerConfig) -> None:
    assert advice.from_manifest(saved) == expected


@pytest.mark.parametrize("name", published.ENTRIES)
def test_advice_survives_a_manifest(name: str) -> None:
    for config in filter(None, (published.get(name).sampling, *published.get(name).also)):
        assert advice.from_manifest(json.loads(json.dumps(advice.to_manifest(config)))) == config
