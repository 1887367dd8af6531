"""Models as files of guided-diffusion: flags, weights and arguments, read back by what reads the originals."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from support.export_models import SMALL, bare, model
from tests.golden_numbers.test_layouts import CHECKPOINTS, LAYOUTS, layout
from undiffuse.adapters import export_openai as out
from undiffuse.adapters import openai_flags
from undiffuse.adapters.exporting import example_inputs
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import load_model
from undiffuse.nets import ClassifierConfig, DDPMConfig, UNetConfig
from undiffuse.noise import NoiseSource
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM

ADM: dict[str, Any] = {
    "image_size": 64, "model_channels": 32, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 1, "out_channels": 6,
    "attention_resolutions": (4, 8), "num_head_channels": 32, "use_scale_shift_norm": True, "resblock_updown": True,
}  # fmt: skip
CLASSIFIER: dict[str, Any] = {
    "image_size": 64, "model_channels": 64, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 1, "out_channels": 1000,
    "attention_resolutions": (2, 4, 8), "num_head_channels": 64, "use_scale_shift_norm": True, "resblock_updown": True,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CHECKPOINTS))
def test_every_published_model_has_the_flags_it_was_published_with(name: str) -> None:
    """guided-diffusion's flags say every published model, improved-diffusion's included, and its layout is theirs."""
    entry = CHECKPOINTS[name]
    published, family = entry["flags"], entry["family"]
    if family.endswith("classifier"):
        known = bare(openai_flags.classifier_config(published), ProcessConfig())
    else:
        known = bare(openai_flags.unet_config(published, family), openai_flags.process_config(published, family))
    assert out.obstacles(known) == []
    flags, reasons = out.script_flags(known)
    assert reasons == []
    assert flags is not None
    for flag in set(flags) & set(published) - {"use_fp16", "channel_mult", "num_heads"}:
        assert str(flags[flag]) == str(published[flag]), flag
    if published.get("num_head_channels", 0) == -1:
        assert flags["num_heads"] == published["num_heads"]
    if "num_channels" in flags:
        assert openai_flags.unet_config(flags).channel_mult == openai_flags.unet_config(published, family).channel_mult
    if name in LAYOUTS:
        assert layout(known.net) == LAYOUTS[name]


FLAGGED = {
    "adm": (
        UNetConfig(**ADM, num_classes=1000, use_new_attention_order=True, conv_resample=False),  # which is not reached
        ProcessConfig(schedule="cosine"),
    ),
    "heads by number": (
        UNetConfig(**{**ADM, "num_head_channels": -1}, num_heads=4, num_heads_upsample=2),
        ProcessConfig(steps=4000, rescale_timesteps=True),
    ),
    "other size and widths, no attention": (
        UNetConfig(
            image_size=8, model_channels=32, channel_mult=(1, 1, 1, 2), num_res_blocks=1, attention_resolutions=()
        ),
        ProcessConfig(variance="fixed_large", target="x0"),
    ),
    "upsampler": (
        UNetConfig(**ADM, num_classes=1000, super_resolution=True, use_new_attention_order=True),
        ProcessConfig(),
    ),
    "classifier": (ClassifierConfig(**CLASSIFIER, use_new_attention_order=True), ProcessConfig(schedule="cosine")),
}


@pytest.mark.parametrize("case", FLAGGED)
def test_a_file_with_flags(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a bare state dict in float32; by the flags beside it, it is read as an original file is."""
    config, process = FLAGGED[case]
    given = model(config, process)
    path = tmp_path / "m.pt"
    done = out.export_openai(given, path)
    assert done.difference < 1e-5
    assert done.notes == ()
    state = torch.load(path, weights_only=True)
    assert {name: value.dtype for name, value in state.items()} == dict.fromkeys(given.net.state_dict(), torch.float32)
    about = json.loads((tmp_path / "m.pt.json").read_text())
    assert about["command_line"] in done.usage
    words = shlex.split(about["command_line"])
    assert dict(zip([w.removeprefix("--") for w in words[::2]], words[1::2], strict=True)) == {
        name: str(value) for name, value in about["flags"].items()
    }
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    again = load_model(f"{path}@guided-diffusion {about['command_line']}")
    inputs = {
        "x": torch.randn(2, 3, *config.size, generator=torch.Generator().manual_seed(1)),
        "t": torch.tensor([3.0, 990.0]),
    }
    if getattr(config, "num_classes", None) and case != "classifier":
        inputs["y"] = torch.tensor([1, 999])
    if case == "upsampler":
        inputs["low_res"] = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    expected = given.net(**inputs)
    assert (again.net(**inputs) - expected).abs().max() < 1e-5 * expected.abs().max()
    if case != "classifier":
        assert again.process == process


@pytest.mark.parametrize("case", FLAGGED)
def test_the_original_loads_it(case: str, tmp_path: Path) -> None:
    """OpenAI's own parser, model and sampler: strict loading, equal outputs, the same images after five DDIM steps."""
    why = "compares with OpenAI's code: pip install --no-deps guided-diffusion-sdk"
    original = pytest.importorskip("guided_diffusion.script_util", reason=why)
    config, process = FLAGGED[case]
    given = model(config, process)
    out.export_openai(given, tmp_path / "m.pt")
    words = json.loads((tmp_path / "m.pt.json").read_text())["command_line"].split()
    prefix = {"upsampler": "sr_model", "classifier": "classifier"}.get(case, "model")
    defaults = getattr(original, f"{prefix}_and_diffusion_defaults")()
    parser = argparse.ArgumentParser()
    original.add_dict_to_argparser(parser, {**defaults, "timestep_respacing": "ddim5"})
    flags = original.args_to_dict(parser.parse_args(words), defaults)
    names = {"upsampler": "sr_create_model", "classifier": "create_classifier"}
    net, diffusion = getattr(original, f"{names.get(case, 'create_model')}_and_diffusion")(**flags)
    net.load_state_dict(torch.load(tmp_path / "m.pt"))
    net.eval()
    inputs = example_inputs(given, 2)
    expected = given.net(**inputs)
    output = net(**{("timesteps" if name == "t" else name): value for name, value in inputs.items()})
    assert (output - expected).abs().max() < 1e-5 * expected.abs().max()
    if case == "classifier":
        return
    x, cond = inputs["x"], {name: value for name, value in inputs.items() if name in ("y", "low_res")}
    images = diffusion.ddim_sample_loop(net, x.shape, noise=x, model_kwargs=cond, device="cpu")
    chain = process.chain().respaced("ddim5")
    noise = NoiseSource(0, range(2))
    ours = generate(given.denoiser(), chain, DDIM(), noise, x.shape[1:], cond=cond, x_T=x)
    assert (images - ours).abs().max() < 1e-3  # random weights magnify rounding at every step


WITHOUT_FLAGS = {
    "grey, ten classes and none": (
        UNetConfig(**{**SMALL, "in_channels": 1, "out_channels": 1}, num_classes=10, null_class=True),
        ["in_channels = 1", "out_channels = 1", "num_classes = 10", "null_class = True"],
        ("UNetModel", {"in_channels": 1, "num_classes": 11, "attention_resolutions": [2], "channel_mult": [1, 2]}),
    ),
    "fraction": (
        UNetConfig(**{**SMALL, "model_channels": 64, "channel_mult": (0.5, 1)}),
        ["channel_mult = [0.5, 1]"],
        ("UNetModel", {"channel_mult": [0.5, 1], "model_channels": 64}),
    ),
    "pooled": (
        UNetConfig(**{**SMALL, "image_size": (16, 32)}, conv_resample=False),
        ["image_size = [16, 32]", "conv_resample = False"],
        ("UNetModel", {"conv_resample": False, "image_size": 16}),
    ),
    "upsampler": (
        UNetConfig(**SMALL, super_resolution=True),
        ["image_size = 16 (only 64, 256, 512)"],
        ("SuperResModel", {"in_channels": 3}),
    ),
    "classifier": (
        ClassifierConfig(**{**SMALL, "out_channels": 5}, pool="spatial", num_heads=2),
        ["image_size = 16 (only 64, 128, 256, 512)"],
        ("EncoderUNetModel", {"out_channels": 5, "pool": "spatial", "num_heads": 2}),
    ),
}


@pytest.mark.parametrize("case", WITHOUT_FLAGS)
def test_a_file_that_flags_cannot_express(case: str, tmp_path: Path) -> None:
    """What the original's classes hold is written, with the reasons and with the classes' arguments."""
    config, reasons, (name, arguments) = WITHOUT_FLAGS[case]
    done = out.export_openai(model(config), tmp_path / "m.pt")
    assert done.difference < 1e-5
    about = json.loads((tmp_path / "m.pt.json").read_text())
    assert (about["flags"], about["command_line"]) == (None, None)
    assert about["without_flags"] == reasons
    assert all(reason in done.notes[0] for reason in reasons)
    assert about["model"]["class"] == f"guided_diffusion.unet.{name}"
    assert about["model"]["arguments"].items() >= arguments.items()
    assert not {"null_class", "super_resolution", "rescale_residual"} & set(about["model"]["arguments"])


def test_a_process_without_flags_is_described_by_the_originals_class(tmp_path: Path) -> None:
    process = ProcessConfig(betas=(0.1, 0.2, 0.3), target="previous_mean", variance="fixed_small")
    out.export_openai(model(UNetConfig(**SMALL), process), tmp_path / "m.pt")
    about = json.loads((tmp_path / "m.pt.json").read_text())
    assert about["without_flags"] == ["betas = [0.1, 0.2, 0.3]", "target = previous_mean", "variance = fixed_small"]
    told = about["diffusion"]
    assert (told["betas"], told["use_timesteps"]) == ([0.1, 0.2, 0.3], "range(3)")
    assert told["model_mean_type"] == "ModelMeanType.PREVIOUS_X"
    assert told["model_var_type"] == "ModelVarType.FIXED_SMALL"


IMPOSSIBLE = {
    "groups": (
        UNetConfig(**{**SMALL, "model_channels": 48}), None,
        "not all of its group norms have 32 groups .12 for 48 channels."),
    "rescaled": (UNetConfig(**SMALL, rescale_residual=True), None, "rescale_residual"),
    "v": (UNetConfig(**SMALL), ProcessConfig(target="v", variance="fixed_large"), "it predicts v"),
    "not square": (
        ClassifierConfig(**{**SMALL, "image_size": (16, 32)}, num_head_channels=32), None, "16x32, not square"),
    "DDPM's own": (DDPMConfig(**SMALL), None, "DDPMUNet"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_the_original_cannot_hold_is_refused(case: str, tmp_path: Path) -> None:
    config, process, message = IMPOSSIBLE[case]
    with pytest.raises(ValueError, match=f"guided-diffusion cannot express this model: .*{message}"):
        out.export_openai(model(config, process), tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_is_not_asked_for_what_it_does_not_have(tmp_path: Path) -> None:
    """What a classifier's process says of predictions and variances is nobody's business."""
    process = ProcessConfig(target="v", variance="fixed_small", schedule="cosine")
    done = out.export_openai(model(ClassifierConfig(**CLASSIFIER), process), tmp_path / "m.pt")
    assert done.notes == ()
    assert "--noise_schedule cosine" in done.usage


def test_legacy_order_of_qkv() -> None:
    """Rows of q, k and v of head 0, then of head 1."""
    rows = torch.tensor([f"{part}{head}{row}".__hash__() for part in "qkv" for head in (0, 1) for row in (0, 1)])
    new = [f"{part}{head}{row}" for part in "qkv" for head in (0, 1) for row in (0, 1)]
    legacy = [f"{part}{head}{row}" for head in (0, 1) for part in "qkv" for row in (0, 1)]
    assert out.legacy_order(rows, 2).tolist() == [rows[new.index(name)].item() for name in legacy]


def test_a_wrong_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the order of qkv left as it is, the file would load without a word and compute something else."""
    monkeypatch.setattr(out, "legacy_order", lambda rows, heads: rows)
    config = UNetConfig(**{**ADM, "num_head_channels": 16}, super_resolution=True, use_new_attention_order=True)
    with pytest.raises(
        RuntimeError, match="the output of m.pt differs from the model's .*, so the export was discarded"
    ):
        out.export_openai(model(config), tmp_path / "m.pt")
