"""Models as pipeline folders of diffusers: names, settings and refusals here; numbers where diffusers is installed.

What a normal run compares the written names and weights with are those in `data/export_unet2d.json`, of networks whose
outputs were equal to diffusers' own (`test_diffusers_computes_the_same`, which checks that file too).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from support.export_models import SMALL, bare, model
from support.unet2d_cases import BASE
from support.unet2d_cases import CASES as CONFIGURATIONS
from tests.golden_numbers.test_layouts import CHECKPOINTS
from undiffuse.adapters import diffusers_unet, exporting, openai_flags
from undiffuse.adapters import export_diffusers as out
from undiffuse.checkpoints import weights_hash
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import load_model
from undiffuse.nets import ClassifierConfig, DDPMConfig, UNetConfig
from undiffuse.nets.blocks import multi_head_attention
from undiffuse.noise import NoiseSource
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM, DDPM

FROZEN = Path(__file__).parents[1] / "data" / "export_unet2d.json"
ADM: dict[str, Any] = {**SMALL, "out_channels": 6, "use_scale_shift_norm": True, "resblock_updown": True}
DEEP: dict[str, Any] = {**SMALL, "channel_mult": (1, 2, 3), "num_res_blocks": 2, "attention_resolutions": (1, 4)}
CASES: dict[str, tuple[Any, ProcessConfig]] = {
    "adm": (
        UNetConfig(**ADM, num_classes=10, num_head_channels=16, use_new_attention_order=True),
        ProcessConfig(schedule="cosine"),
    ),
    "adm, legacy order, null class": (
        UNetConfig(**ADM, num_classes=10, null_class=True, num_head_channels=32),
        ProcessConfig(),
    ),
    "additive, convolutions, one head": (
        UNetConfig(**{**DEEP, "image_size": 8}),
        ProcessConfig(variance="fixed_small", steps=100),
    ),
    "rescaled times": (
        UNetConfig(**{**SMALL, "out_channels": 6}, num_heads=4, use_scale_shift_norm=True),
        ProcessConfig(schedule="cosine", steps=4000, rescale_timesteps=True),
    ),
    "grey, v": (
        UNetConfig(**{**SMALL, "in_channels": 1, "out_channels": 1}),
        ProcessConfig(target="v", variance="fixed_large", steps=50),
    ),
    "betas, x0, not square, no attention": (
        UNetConfig(**{**SMALL, "image_size": (16, 8), "attention_resolutions": ()}, resblock_updown=True),
        ProcessConfig(betas=tuple(np.linspace(1e-3, 0.2, 40).tolist()), target="x0", variance="fixed_large"),
    ),
    "upsampler": (UNetConfig(**ADM, num_classes=3, num_head_channels=16, super_resolution=True), ProcessConfig()),
    "ddpm": (DDPMConfig(**SMALL), ProcessConfig(variance="fixed_large")),
}
# Networks that came from diffusers and go back: their names and settings are diffusers' own, so nothing is frozen.
RETURNING: dict[str, Any] = {
    "unet2d": (diffusers_unet.network_config({**BASE, "num_class_embeds": 3, "norm_num_groups": 4}),
               ProcessConfig(variance="fixed_small")),
    "unet2d, learned": (diffusers_unet.network_config({**BASE, **CONFIGURATIONS["adm"]}), ProcessConfig()),
    "unet2d, skip": (diffusers_unet.network_config({**BASE, **CONFIGURATIONS["skip"]}),
        ProcessConfig(variance="fixed_large")),
}  # fmt: skip


def fingerprint(folder: Path) -> str:
    """Hash of names, shapes and numbers of all tensors of a folder's U-Net."""
    return weights_hash(load_file(folder / "unet" / out.WEIGHTS))


def write(case: str, folder: Path) -> Any:
    given = model(*CASES[case])
    folder.mkdir()
    done = out.export_diffusers(given, folder)
    assert done.difference < 1e-5
    return given, done


def config_of(folder: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / part / name).read_text())


@pytest.mark.parametrize("case", CASES)
def test_a_folder_holds_what_was_compared_with_diffusers(case: str, tmp_path: Path) -> None:
    write(case, tmp_path / "m")
    frozen = json.loads(FROZEN.read_text())[case]
    assert fingerprint(tmp_path / "m") == frozen["sha256"]
    assert config_of(tmp_path / "m", "unet") == frozen["unet"]
    index = tmp_path / "m" / "model_index.json"
    assert index.is_file() == (case != "upsampler")
    if case != "upsampler":
        assert json.loads(index.read_text())["unet"] == ["diffusers", "UNet2DModel"]


@pytest.mark.parametrize("new_order", [False, True])
def test_rows_of_qkv_are_split_into_what_attends(new_order: bool) -> None:
    """q, k and v computed apart from the split rows, heads outermost, are those our attention computes together."""
    generator = torch.Generator().manual_seed(0)
    heads, d = 2, 4
    weight, tokens = torch.randn(24, 8, generator=generator), torch.randn(1, 5, 8, generator=generator)
    q, k, v = ((tokens @ rows.T).unflatten(-1, (heads, d)).transpose(1, 2) for rows in out._split(weight, 2, new_order))
    apart = (torch.softmax(q @ k.transpose(2, 3) / d**0.5, -1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(multi_head_attention(tokens @ weight.T, heads, new_order), apart)


def test_schedulers() -> None:
    """The chain, what is predicted and the variance in diffusers' words."""
    linear = out.scheduler_config(ProcessConfig())
    assert (linear["beta_schedule"], linear["beta_start"], linear["beta_end"]) == ("linear", 1e-4, 0.02)
    assert (linear["prediction_type"], linear["variance_type"]) == ("epsilon", "learned_range")
    assert (linear["num_train_timesteps"], linear["trained_betas"], linear["clip_sample"]) == (1000, None, True)
    short = out.scheduler_config(ProcessConfig(steps=100, target="v", variance="fixed_small"))
    assert (short["beta_start"], short["beta_end"]) == pytest.approx((1e-3, 0.2))
    assert (short["prediction_type"], short["variance_type"]) == ("v_prediction", "fixed_small")
    cosine = out.scheduler_config(ProcessConfig(schedule="cosine", target="x0", variance="fixed_large"))
    assert (cosine["beta_schedule"], cosine["prediction_type"]) == ("squaredcos_cap_v2", "sample")
    assert (cosine["variance_type"], cosine["trained_betas"]) == ("fixed_large", None)
    given = out.scheduler_config(ProcessConfig(betas=(0.1, 0.2)))
    assert (given["trained_betas"], given["num_train_timesteps"], given["beta_schedule"]) == ([0.1, 0.2], 2, "linear")


def test_rescaled_times_become_whole_numbers() -> None:
    """The network is told k * 1000 / 4000: a thousand of its steps are told whole numbers, with their noise levels."""
    process = ProcessConfig(schedule="cosine", steps=4000, rescale_timesteps=True)
    told = out.scheduler_config(process)
    assert told["num_train_timesteps"] == len(told["trained_betas"]) == 1000
    kept = process.chain().alphas_cumprod[::4]
    np.testing.assert_allclose(np.cumprod(1 - np.array(told["trained_betas"])), kept, rtol=1e-9, atol=1e-15)
    thousand = ProcessConfig(schedule="cosine", rescale_timesteps=True)
    assert out.scheduler_config(thousand)["trained_betas"] is None


REFUSED = {
    "classifier": (ClassifierConfig(**SMALL, pool="adaptive"), None, "classifier of noisy images"),
    "groups": (UNetConfig(**{**SMALL, "model_channels": 48}), None, r"norms have 12, 32, 36 groups"),
    "heads": (UNetConfig(**DEEP, num_heads=2), None, "heads have 16, 48 channels"),
    "first width": (
        UNetConfig(**{**SMALL, "model_channels": 64, "channel_mult": (0.5, 1)}), None,
        "time embedding has 64 channels and its first level 32"),
    "residuals": (UNetConfig(**SMALL, rescale_residual=True), None, "rescale_residual"),
    "pooling": (UNetConfig(**SMALL, conv_resample=False), None, "without convolutions"),
    "previous_mean": (UNetConfig(**SMALL), ProcessConfig(target="previous_mean", variance="fixed_large"),
        "predicts the mean"),
    "learned": (
        UNetConfig(**{**SMALL, "out_channels": 6}), ProcessConfig(variance="learned"), "learned as a logarithm"),
    "times": (
        UNetConfig(**SMALL), ProcessConfig(steps=1500, rescale_timesteps=True, variance="fixed_large"),
        "k . 1000 / 1500"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_diffusers_would_compute_differently_is_refused(case: str, tmp_path: Path) -> None:
    config, process, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"diffusers cannot express this model: .*{message}"):
        out.export_diffusers(model(config, process), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_all_reasons_are_told() -> None:
    config = UNetConfig(**DEEP, num_heads=2, rescale_residual=True, conv_resample=False)
    assert len(out.obstacles(bare(config, ProcessConfig(target="previous_mean", variance="learned")))) == 5


def test_which_published_models_diffusers_can_express() -> None:
    """Of 19 networks 13: not those with heads of several widths, nor the one of half a width at 512 pixels."""
    refused = {}
    for name, entry in CHECKPOINTS.items():
        if not entry["family"].endswith("classifier"):
            config = openai_flags.unet_config(entry["flags"], entry["family"])
            refused[name] = out.obstacles(bare(config, openai_flags.process_config(entry["flags"], entry["family"])))
    heads = {"128x128_diffusion", "64_256_upsampler", "imagenet64_uncond_100M_1500K", "imagenet64_cond_270M_250K",
             "imagenet64_uncond_vlb_100M_1500K"}  # fmt: skip
    assert {name for name, reasons in refused.items() if any("heads" in reason for reason in reasons)} == heads
    assert {name for name, reasons in refused.items() if reasons} == heads | {"512x512_diffusion"}


def test_notes_and_usage_fit_the_model(tmp_path: Path) -> None:
    plain = write("ddpm", tmp_path / "a")[1]
    assert len(plain.notes) == 1
    assert plain.notes[0].startswith("for DDIM use DDIMScheduler.from_config(scheduler.config, timestep_spacing=")
    assert "use_clipped_model_output=True" in plain.notes[0]
    assert plain.usage.splitlines()[1] == 'pipe = DDPMPipeline.from_pretrained("a")'
    conditional = write("adm", tmp_path / "b")[1]
    assert "class labels" in conditional.notes[0]
    assert "the first 3 channels (without the variance) and step(..., use_clipped" in conditional.notes[1]
    assert "unet(x, t, y)" in conditional.usage
    upsampler = write("upsampler", tmp_path / "c")[1]
    assert "unet(torch.cat([x, low], 1), t, y)" in upsampler.usage
    rescaled = write("rescaled times", tmp_path / "d")[1]
    assert any("every 4th step, 1000 in total" in note for note in rescaled.notes)


def test_an_upsampler_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a pipeline's index."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    given = write("upsampler", tmp_path / "m")[0]
    again = load_model(tmp_path / "m")
    assert (again.net.config, again.process, again.digest) == (given.net.config, given.process, given.digest)


@pytest.mark.parametrize("case", [*(name for name in CASES if name != "upsampler"), *RETURNING])
def test_what_went_out_comes_back(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out to diffusers and in again: the same network, process, classes and weights."""
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    given = model(*{**CASES, **RETURNING}[case])
    (tmp_path / "m").mkdir()
    out.export_diffusers(given, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert (again.net.config, again.process, again.digest) == (given.net.config, given.process, given.digest)
    assert (again.num_classes, again.labels) == (given.net.config.num_classes, given.labels)
    about = json.loads((tmp_path / "m" / "undiffuse.json").read_text())
    (tmp_path / "m" / "undiffuse.json").write_text(json.dumps({**about, "sha256": "0" * 64}))
    if case != "rescaled times":  # other weights than it says: what diffusers' own files say counts
        changed = load_model(tmp_path / "m")
        inputs = exporting.example_inputs(given, 2)
        with torch.no_grad():
            expected = given.net(**inputs)
            assert (changed.net(**inputs) - expected).abs().max() < 1e-4 * expected.abs().max()
        np.testing.assert_allclose(
            changed.process.chain().alphas_cumprod, given.process.chain().alphas_cumprod, rtol=1e-9
        )


class Replayed:
    """The noise that diffusers draws from a generator: the start, then once a step."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.generator = count, torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.count

    def normal(self, shape: Any, step: int = 0, purpose: str = "", device: Any = "cpu") -> torch.Tensor:
        return torch.randn((self.count, *shape), generator=self.generator)


@pytest.mark.parametrize("case", CASES)
def test_diffusers_computes_the_same(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network, noise levels, ten steps of DDPM and of DDIM, and the code that is shown to users."""
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers, which is not needed otherwise")
    given, done = write(case, tmp_path / "m")
    assert diffusers.__version__ in done.checked
    frozen = json.loads(FROZEN.read_text())[case]
    assert fingerprint(tmp_path / "m") == frozen["sha256"]
    config, process = CASES[case]
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "m", subfolder="unet").eval()
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "m", subfolder="scheduler")
    stride = process.steps // 1000 if process.rescale_timesteps else 1
    chain = process.chain()
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), chain.alphas_cumprod[::stride], rtol=1e-3, atol=1e-6)
    if case == "upsampler":
        return
    shape = (config.in_channels, *config.size)
    cond = {"y": torch.tensor([1, 7])} if config.num_classes else {}

    def loop(scheduler: Any, **options: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        x = torch.randn((2, *shape), generator=generator)
        scheduler.set_timesteps(10)
        with torch.no_grad():
            for t in scheduler.timesteps:
                output = unet(x, t, cond.get("y")).sample
                if options:
                    output = output[:, : shape[0]]
                x = scheduler.step(output, t, x, generator=generator, **options).prev_sample
        return x

    steps = process.steps // stride
    spread = [round(float(k)) * stride for k in np.linspace(0, steps - 1, 10)]
    ours = generate(given.denoiser(), chain.respaced(spread), DDPM(), Replayed(2, 3), shape, cond=cond)
    assert (loop(scheduler) - ours).abs().max() < 1e-3
    ddim = diffusers.DDIMScheduler.from_config(scheduler.config, timestep_spacing="leading")
    leading = list(range(0, process.steps, steps // 10 * stride))
    start = torch.randn((2, *shape), generator=torch.Generator().manual_seed(3))
    noise = NoiseSource(0, range(2))
    ours = generate(given.denoiser(), chain.respaced(leading), DDIM(), noise, shape, cond=cond, x_T=start)
    assert (loop(ddim, use_clipped_model_output=True) - ours).abs().max() < 1e-3
    monkeypatch.chdir(tmp_path)
    if process.steps <= 100:  # what is shown takes min(250, steps) steps
        exec(done.usage, {})
