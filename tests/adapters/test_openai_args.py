"""Flags as people keep them: of usual length, in text files, in logs, and beside the weights; and models of papers."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.cli_runs import call, write_images
from support.foreign_files import CLASSIFIER, DIFFUSION, layout_of, outputs, weights_of, write
from tests.adapters.test_export_images import table
from undiffuse.adapters import openai_args, published
from undiffuse.adapters.interpretation import Like, interpret
from undiffuse.adapters.openai_weights import recognise
from undiffuse.checkpoints import CheckpointError
from undiffuse.models import load_classifier, load_diffusion, load_model
from undiffuse.nets import UNetConfig
from undiffuse.nets.meta import build_on_meta

ADM_256 = (
    "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --image_size 256 --learn_sigma True "
    "--noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2 --resblock_updown True "
    "--use_fp16 True --use_scale_shift_norm True --batch_size 4 --num_samples 100 --timestep_respacing 250"
)
"""The flags of ADM's 256x256 model as its README gives them."""
FLAGS = {
    "image_size": "32", "num_channels": "32", "num_res_blocks": "1", "channel_mult": "1,2", "class_cond": "True",
    "attention_resolutions": "16", "num_head_channels": "16", "learn_sigma": "True", "resblock_updown": "True",
    "use_new_attention_order": "True", "noise_schedule": "cosine", "diffusion_steps": "20",
    "rescale_timesteps": "False",
}  # fmt: skip
"""Those of the small network DIFFUSION."""
LONG = (
    "guided-diffusion "
    + " ".join(f"--{name} {value}" for name, value in FLAGS.items())
    + (" --use_fp16 False --sigma_small False --use_checkpoint False --dropout 0.0 --use_kl False")
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "w.pt", weights_of(DIFFUSION))


def right(model: Any) -> bool:
    net = DIFFUSION.net.build()
    net.load_state_dict(weights_of(DIFFUSION))
    expected = outputs(net.eval(), 1000)
    return bool((outputs(model.net, 1000) - expected).abs().max() < 1e-4 * expected.abs().max())


COMMANDS: dict[str, tuple[str, ...]] = {
    "sample": ("--model", "M", "--count", "1", "--steps", "2", "--class", "1", "--out", "OUT"),
    "inspect": ("M",),
    "export": ("M", "--to", "safetensors", "--out", "OUT.safetensors"),
    "evaluate": ("M", "IMAGES", "--count", "4", "--extractor", "efflite", "--steps", "2", "--out", "OUT.json"),
    "restore": ("IMAGES", "--model", "M", "--steps", "2", "--count", "1", "--class", "1", "--out", "OUT"),
    "inpaint": (
        "IMAGES",
        "--model",
        "M",
        "--hole",
        "4,4,8,8",
        "--method",
        "dps",
        "--steps",
        "2",
        "--count",
        "1",
        "--class",
        "1",
        "--out",
        "OUT",
    ),
    "vary": ("IMAGES", "--model", "M", "--steps", "2", "--count", "1", "--class", "1", "--out", "OUT"),
    "encode": ("IMAGES", "--model", "M", "--steps", "2", "--count", "1", "--class", "1", "--out", "OUT.safetensors"),
    "nll": ("IMAGES", "--model", "M", "--count", "1", "--out", "OUT"),
    "interpolate": ("--seeds", "1,2", "--model", "M", "--steps", "2", "--frames", "3", "--class", "1", "--out", "OUT"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_flags_of_usual_length(
    command: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None says "File name too long": the names of files have at most 255 bytes."""
    assert len(LONG) > 278 and len(ADM_256) > 255
    monkeypatch.chdir(tmp_path)
    words = [f"{file}@{LONG}" if word == "M" else word for word in COMMANDS[command]]
    words = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    if "IMAGES" in words:
        images = write_images(tmp_path / "images", size=(32, 32))
        words = [str(images) if word == "IMAGES" else word for word in words]
    status = call(command, *words)
    told = capsys.readouterr()
    assert "too long" not in told.err + told.out
    if command in ("sample", "inspect", "export", "vary", "interpolate"):
        assert status == 0, told.err


def test_like_as_an_option(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--count", 1, "--steps", 2, "--class", 1, "--device", "cpu")
    assert call("sample", "--model", file, "--like", LONG, *words, "--out", tmp_path / "a") == 0
    (tmp_path / "flags.txt").write_text(LONG)
    assert call("sample", "--model", file, "--like", tmp_path / "flags.txt", *words, "--out", tmp_path / "b") == 0
    assert (tmp_path / "a" / "00000.png").exists() == (tmp_path / "b" / "00000.png").exists()


TEXTS: dict[str, str] = {
    "flags": " ".join(f"--{name} {value}" for name, value in FLAGS.items()),
    "command": "mpiexec -n 8 python scripts/image_train.py --data_dir x \\\n  "
    + " \\\n  ".join(f"--{name}={value}" for name, value in FLAGS.items()) + " --lr 1e-4\n",
    "variables": 'MODEL_FLAGS="'
    + " ".join(f"--{name} {value}" for name, value in list(FLAGS.items())[:6])
    + '"\nDIFFUSION_FLAGS="' + " ".join(f"--{name} {value}" for name, value in list(FLAGS.items())[6:]) + '"\n',
    "namespace": "Logging to /tmp/x\n" + repr(argparse.Namespace(**FLAGS, lr=1e-4, data_dir="/x (y)", val=None))
    + "\ncreating model...\n| loss | 0.1 |\n",
    "dictionary": "args: " + repr({**FLAGS, "lr": 1e-4}) + "\n",
    "json": json.dumps({**FLAGS, "class_cond": True, "image_size": 32, "channel_mult": [1, 2]}),
    "yaml": "# settings\n" + "".join(f'{k}: "{v}"\n' if "," in v else f"{k}: {v}  # x\n" for k, v in FLAGS.items()),
    "ini": "".join(f"{name} = {value}\n" for name, value in FLAGS.items()),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_forms_of_text_files(name: str, tmp_path: Path, file: Path) -> None:
    path = tmp_path / "flags.txt"
    path.write_text(TEXTS[name])
    assert openai_args.read_file(path) == FLAGS
    model = load_diffusion(f"{file}@{path}")
    assert right(model)
    assert model.process.steps == 20


def test_files_that_hold_no_flags(tmp_path: Path, file: Path) -> None:
    own = "Logging to /tmp/openai\ncreating model and diffusion...\n----\n| grad_norm | 0.3 |\n| loss | 0.1 |\n"
    (tmp_path / "log.txt").write_text(own)
    with pytest.raises(ValueError, match="contains no flags.*log.txt contains only losses"):
        load_model(f"{file}@{tmp_path / 'log.txt'}")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xd8\xff\x00")
    with pytest.raises(ValueError, match="is not text"):
        load_model(f"{file}@{tmp_path / 'picture.txt'}")
    with pytest.raises(ValueError, match=r"there is no file .*missing\.txt"):
        load_model(f"{file}@{tmp_path / 'missing.txt'}")


def test_a_dump_serves_model_and_classifier(tmp_path: Path, file: Path) -> None:
    """What `classifier_sample` is called with holds flags of both networks."""
    both = {**FLAGS, "classifier_width": "64", "classifier_depth": "1", "classifier_attention_resolutions": "8",
            "classifier_scale": "1.0", "classifier_path": "x.pt"}  # fmt: skip
    (tmp_path / "both.txt").write_text(" ".join(f"--{name} {value}" for name, value in both.items()))
    assert right(load_diffusion(f"{file}@{tmp_path / 'both.txt'}"))
    classifier = write(tmp_path / "c.pt", weights_of(CLASSIFIER))
    found = load_classifier(f"{classifier}@{tmp_path / 'both.txt'}")
    assert (found.net.config, found.process.schedule) == (CLASSIFIER.net, "cosine")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", ["namespace", "dictionary", "beside numpy"])
def test_arguments_beside_the_weights_are_read_as_data(tmp_path: Path, kind: str, legacy: bool) -> None:
    arguments: Any = {**FLAGS, "image_size": 32, "learn_sigma": True, "lr": 1e-4}
    content: dict[str, Any] = {"model": weights_of(DIFFUSION), "step": 3}
    content["args"] = argparse.Namespace(**arguments) if kind == "namespace" else arguments
    if kind == "beside numpy":
        content |= {"rng": np.random.RandomState(0).get_state(), "best": np.float64(0.5), "ids": np.arange(3)}
    file = write(tmp_path / "w.pt", content, legacy)
    model = load_diffusion(file)
    assert right(model)
    assert model.process.schedule == "cosine"
    with pytest.raises(CheckpointError, match="w.pt does not match num_channels 64: "):
        load_diffusion(f"{file}@guided-diffusion --image_size 32 --num_channels 64")


@pytest.mark.parametrize("prefix", ["module.", "model.", "ema_model.", "module.model.", "_orig_mod."])
def test_prefixes_of_forks(tmp_path: Path, prefix: str) -> None:
    weights = {f"{prefix}{name}": value for name, value in weights_of(DIFFUSION).items()}
    file = write(tmp_path / "w.pt", {**weights, "step": torch.tensor(3)})
    assert right(load_diffusion(f"{file}@{LONG}"))
    assert right(load_diffusion(f"{write(tmp_path / 'v.pt', {'net': weights, 'epoch': 3})}@{LONG}"))


def test_two_networks_in_one_state_dict(tmp_path: Path) -> None:
    both = {f"model.{name}": value for name, value in weights_of(DIFFUSION, 6).items()}
    both |= {f"ema_model.{name}": value for name, value in weights_of(DIFFUSION).items()}
    file = write(tmp_path / "w.pt", both)
    with pytest.raises(CheckpointError, match="several networks, model, ema_model"):
        load_model(f"{file}@{LONG}")
    assert right(load_model(f"{file}@{LONG}", weights="ema_model"))


DPS = {
    "model_config.yaml": "# Defaults for image training.\n\nimage_size: 256\nnum_channels: 128\nnum_res_blocks: 1\n"
    'channel_mult: ""\nlearn_sigma: True\nclass_cond: False\nuse_checkpoint: False\nattention_resolutions: 16\n'
    "num_heads: 4\nnum_head_channels: 64\nnum_heads_upsample: -1\nuse_scale_shift_norm: True\ndropout: 0.0\n"
    "resblock_updown: True\nuse_fp16: False\nuse_new_attention_order: False\n\nmodel_path: models/ffhq_10m.pt\n",
    "diffusion_config.yaml": "sampler: ddpm\nsteps: 1000\nnoise_schedule: linear\nmodel_mean_type: epsilon \n"
    "model_var_type: learned_range\ndynamic_threshold: False\nclip_denoised: True\nrescale_timesteps: False\n"
    "timestep_respacing: 1000\n",
}
FFHQ = UNetConfig(
    image_size=256, model_channels=128, out_channels=6, num_res_blocks=1, channel_mult=(1, 1, 2, 2, 4, 4),
    attention_resolutions=(16,), num_heads=4, num_head_channels=64, use_scale_shift_norm=True, resblock_updown=True,
)  # fmt: skip


REPAINT = replace(FFHQ, model_channels=256, num_res_blocks=2, attention_resolutions=(8, 16, 32))


def test_the_models_of_papers_by_the_lines_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes of FFHQ's model of DPS, by the documented line and by DPS's own files of settings."""
    rows = {row[0].split("`")[1]: row[1] for row in table("papers") if "`" in row[0]}
    assert {"ffhq_10m.pt", "imagenet256.pt", "celeba256_250000.pt", "places256_300000.pt"} <= set(rows)
    assert rows["imagenet256.pt"] in published.ENTRIES
    shapes = {name: tuple(value.shape) for name, value in build_on_meta(FFHQ.build).state_dict().items()}
    for name, text in DPS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    for like in (rows["ffhq_10m.pt"], "model_config.yaml diffusion_config.yaml",
                 "guided-diffusion model_config.yaml"):  # fmt: skip
        found = interpret(recognise(shapes), tmp_path / "ffhq_10m.pt", "", Like.parse(like))
        heads = {"num_heads": found.config.num_heads}  # which is not looked at where the width of a head is known
        assert found.config == UNetConfig(**{**{k: getattr(FFHQ, k) for k in FFHQ.__dataclass_fields__}, **heads})
        assert (found.process.schedule, found.process.steps, found.process.variance) == (
            "linear",
            1000,
            "learned_range",
        )
    shapes = {name: tuple(value.shape) for name, value in build_on_meta(REPAINT.build).state_dict().items()}
    for name in ("celeba256_250000.pt", "places256_300000.pt", "imagenet256.pt"):
        found = interpret(recognise(shapes), tmp_path / name, "", Like.parse(rows[name]))
        assert replace(found.config, num_heads=4) == REPAINT, name
        assert (found.process.schedule, found.process.steps) == ("linear", 1000)
    assert layout_of(FFHQ)["input_blocks.0.0.weight"] == [128, 3, 3, 3]
