"""DDPM's own U-Net: the numbers of diffusers' UNet2DModel, and that it samples, trains and is saved like any network.

`data/ddpm_unet2d.safetensors` holds outputs of UNet2DModel (the version is in its metadata) for two small networks
shaped as google/ddpm-cifar10-32 and google/ddpm-*-256 are, with the weights of the golden files' recipe.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from support.cli_runs import call
from support.golden_files import Golden, draw_weights
from support.training_runs import run
from undiffuse import checkpoints
from undiffuse.adapters import ddpm_weights
from undiffuse.denoiser import ProcessConfig
from undiffuse.models import DiffusionModel, load_diffusion, save_model
from undiffuse.nets import ClassifierConfig, DDPMConfig, UNetConfig, config_from_dict, ddpm
from undiffuse.objectives import ObjectiveConfig
from undiffuse.pictures import read_record, read_samples
from undiffuse.training import DiffusionTask, seeded

GOLDEN = Path(__file__).parents[1] / "data" / "ddpm_unet2d.safetensors"
CLOSE = 1e-5  # of the largest magnitude
NETWORKS = ("cifar", "large")
TINY = DDPMConfig(
    image_size=8, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1, 2), num_res_blocks=1,
    attention_resolutions=(2,), dropout=0.1,
)  # fmt: skip


def golden_net(golden: Golden, name: str, **changes: Any) -> torch.nn.Module:
    about = golden.meta["networks"][name]
    config, _, state = ddpm_weights.convert(draw_weights(about["layout"], about["seed"]), unet=about["config"])
    net = replace(config, **changes).build().eval()
    net.load_state_dict(state)
    return net


def error(golden: Golden, name: str, net: torch.nn.Module, channels_last: bool = False) -> float:
    """Largest difference from the golden output, in units of its largest magnitude."""
    x, t, expected = (golden.take(f"{name}.{what}") for what in ("x", "t", "output"))
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    output = net(x, t).detach()
    return ((output - expected).abs().max() / expected.abs().max()).item()


def tiny_net(seed: int = 0, config: DDPMConfig = TINY) -> ddpm.DDPMUNet:
    with seeded(seed):
        net = config.build()
        for parameter in net.parameters():
            # The zero-initialised layers would hide most of the network.
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return net


@pytest.mark.parametrize("name", NETWORKS)
def test_output_is_that_of_the_reference(name: str) -> None:
    golden = Golden(GOLDEN)
    with torch.no_grad():
        assert error(golden, name, golden_net(golden, name)) < CLOSE
        last = golden_net(golden, name).to(memory_format=torch.channels_last)
        assert error(golden, name, last, channels_last=True) < CLOSE
    # Under use_checkpoint the recomputing path runs only where gradients are recorded.
    assert error(golden, name, golden_net(golden, name, use_checkpoint=True)) < CLOSE


def cosines_first(t: torch.Tensor, width: int) -> torch.Tensor:
    sines, cosines = ORIGINAL_EMBEDDING(t, width).chunk(2, dim=1)
    return torch.cat([cosines, sines], dim=1)


def denominator_half(t: torch.Tensor, width: int) -> torch.Tensor:
    angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))[None]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


ORIGINAL_EMBEDDING = ddpm.time_embedding
DIFFERENT: dict[str, tuple[Any, str, Any]] = {
    "cosines first": (ddpm, "time_embedding", cosines_first),
    "half instead of half - 1": (ddpm, "time_embedding", denominator_half),
    "eps 1e-5": (ddpm, "EPS", 1e-5),
    "padding on both sides": (
        ddpm.Downsample, "forward", lambda self, x: F.conv2d(x, self.conv.weight, self.conv.bias, 2, 1)
    ),
    "several heads": (
        ddpm, "multi_head_attention", lambda qkv, heads, new_order: ORIGINAL_ATTENTION(qkv, 4, new_order)
    ),
}  # fmt: skip
ORIGINAL_ATTENTION = ddpm.multi_head_attention


@pytest.mark.parametrize("difference", DIFFERENT)
def test_every_difference_from_the_other_unet_is_noticed(difference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: with any one detail as in Improved DDPM's network the numbers are others."""
    golden = Golden(GOLDEN)
    monkeypatch.setattr(*DIFFERENT[difference])
    with torch.no_grad():
        assert error(golden, "cifar", golden_net(golden, "cifar")) > 20 * CLOSE


def test_time_embedding() -> None:
    t = np.array([0, 1, 37.5, 999])
    angles = t[:, None] * 10_000.0 ** (-np.arange(4) / 3)
    expected = np.concatenate([np.sin(angles), np.cos(angles), np.zeros((4, 1))], axis=1)
    np.testing.assert_allclose(ddpm.time_embedding(torch.tensor(t), 9).numpy(), expected, atol=1e-4)
    assert ddpm.time_embedding(torch.tensor(t), 8).shape == (4, 8)


def test_sizes_of_the_published_networks() -> None:
    """35.7 and 114 million parameters, as the paper says (Appendix B)."""
    cifar = DDPMConfig(dropout=0.1)
    large = DDPMConfig(image_size=256, channel_mult=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,))
    for config, count in ((cifar, 35_746_307), (large, 113_673_219)):
        assert sum(math.prod(shape) for shape in ddpm_weights.config_names(config).values()) == count


def test_a_fresh_network_says_nothing_and_is_initialised_as_the_authors_did() -> None:
    with seeded(1):
        net = replace(TINY, model_channels=64).build()
    assert not net(torch.ones(2, 1, 8, 8), torch.tensor([0.0, 9.0])).any()
    weight = net.get_parameter("mid.block_1.conv1.weight")
    variance = 2 / (9 * weight.shape[0] + 9 * weight.shape[1])
    assert weight.var().item() == pytest.approx(variance, rel=0.02)
    assert weight.abs().max().item() <= math.sqrt(3 * variance)
    assert not net.get_parameter("mid.block_1.conv1.bias").any()
    zero = {name for name, parameter in net.named_parameters() if name.endswith(".weight") and not parameter.any()}
    assert zero == {f"{name}.weight" for name, _ in net.named_modules() if name.endswith((".conv2", ".proj_out"))} | {
        "conv_out.weight"
    }


def test_other_sizes_and_what_does_not_fit() -> None:
    net = tiny_net().eval()
    assert net(torch.zeros(2, 1, 6, 10), torch.tensor([0.5, 9.0])).shape == (2, 1, 6, 10)
    with pytest.raises(ValueError, match="multiples of 2"):
        net(torch.zeros(1, 1, 7, 8), torch.zeros(1))
    with pytest.raises(ValueError, match=r"expected images \[batch, 1"):
        net(torch.zeros(1, 3, 8, 8), torch.zeros(1))
    with pytest.raises(ValueError, match="one time for each"):
        net(torch.zeros(2, 1, 8, 8), torch.zeros(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_channels": 2}, "no variance"),
        ({"architecture": "dit"}, "not of 'dit'"),
        ({"model_channels": 3}, "at least 4"),
        ({"image_size": 9}, "multiples of 2"),
    ],
)
def test_configurations_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_gradients_reach_everything_and_do_not_depend_on_checkpointing() -> None:
    gradients, calls = [], []
    for use_checkpoint in (False, True):
        net = tiny_net(config=replace(TINY, use_checkpoint=use_checkpoint, dropout=0.3)).train()
        for name in ("mid.block_1.conv1", "mid.attn_1.q"):
            net.get_submodule(name).register_forward_pre_hook(lambda *_: calls.append(use_checkpoint))  # noqa: B023
        x = torch.linspace(-1, 1, 128).reshape(2, 1, 8, 8).requires_grad_()
        with seeded(5):
            loss = net(x, torch.tensor([3.0, 700.0])).square().sum()
            gradients.append(torch.autograd.grad(loss, [x, *net.parameters()]))
    assert calls == [False] * 2 + [True] * 4  # computed again in the backward pass
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-6 * plain.abs().max().item())


def test_dropout_is_drawn_in_training_only() -> None:
    net = tiny_net(config=replace(TINY, dropout=0.5))
    x, t = torch.ones(1, 1, 8, 8), torch.zeros(1)

    def outputs() -> list[torch.Tensor]:
        drawn = []
        for seed in (1, 1, 2):
            with seeded(seed), torch.no_grad():
                drawn.append(net(x, t))
        return drawn

    first, again, other = outputs()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    net.eval()
    assert all(torch.equal(output, net(x, t).detach()) for output in outputs())


def test_half_precision_gives_single_precision_close_by() -> None:
    golden = Golden(GOLDEN)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        net = golden_net(golden, "large")
        assert net(golden.take("large.x"), golden.take("large.t")).dtype == torch.float32
        assert 1e-5 < error(golden, "large", net) < 0.05


def test_dictionaries_become_the_configurations_they_came_from() -> None:
    for config in (TINY, UNetConfig(num_classes=3), UNetConfig(image_size=(32, 64))):
        assert config_from_dict(asdict(config)) == config
    classifier = ClassifierConfig(out_channels=5, num_head_channels=64)
    assert config_from_dict(asdict(classifier), "classifier") == classifier
    assert "architecture" not in asdict(UNetConfig())  # files of earlier versions have no such key
    assert asdict(TINY)["architecture"] == "ddpm"
    with pytest.raises(ValueError, match="unknown architecture 'dit'"):
        config_from_dict({"architecture": "dit"})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ddpm") / "ddpm.safetensors"
    save_model(path, DiffusionModel(net=tiny_net(), process=ProcessConfig(steps=40, variance="fixed_large")))
    return path


def test_a_saved_model_is_the_same_model(model: Path) -> None:
    about = checkpoints.read_manifest(model)["net"]
    assert about["architecture"] == "ddpm"
    loaded = load_diffusion(model)
    assert loaded.net.config == TINY
    assert loaded.num_classes is None
    assert loaded.image_shape == (1, 8, 8)
    x, t = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8), torch.tensor([7.0])
    with torch.no_grad():
        torch.testing.assert_close(loaded.net(x, t), tiny_net().eval()(x, t))


def test_a_file_of_an_unknown_architecture_is_refused(model: Path, tmp_path: Path) -> None:
    tensors, manifest = checkpoints.read(model)
    checkpoints.write(tmp_path / "a.safetensors", tensors, {**manifest, "net": {"architecture": "dit"}})
    with pytest.raises(ValueError, match="unknown architecture 'dit'"):
        load_diffusion(tmp_path / "a.safetensors")


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_the_command_line_samples_from_it(solver: str, model: Path, tmp_path: Path) -> None:
    words = ("--count", 2, "--steps", 4, "--solver", solver, "--device", "cpu", "--out", tmp_path)
    assert call("sample", "--model", model, *words) == 0
    samples = read_samples(tmp_path)
    assert samples.images.shape == (2, 8, 8, 1)
    assert samples.images[0].tobytes() != samples.images[1].tobytes()
    assert read_record(tmp_path / "grid.png")["solver"] == solver


def test_it_is_described(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", model) == 0
    told = capsys.readouterr().out
    assert ", DDPM layout" in told
    assert "none (unconditional)" in told
    assert "variance fixed_large" in told


def test_it_is_trained_like_any_network(tmp_path: Path) -> None:
    with seeded(0):
        net = TINY.build()
    task = DiffusionTask(net, ProcessConfig(steps=40, variance="fixed_small"), ObjectiveConfig(loss="simple"))
    outcome = run(tmp_path, task, images=64, lr=5e-3, preview_every=32)
    assert outcome.images == 64
    losses = [record["loss"] for record in checkpoint_records(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]  # the first loss is 1: a fresh network predicts no noise
    assert next((tmp_path / "previews").iterdir()).suffix == ".png"
    loaded = load_diffusion(tmp_path, weights="net")
    assert loaded.net.config == TINY
    torch.testing.assert_close(loaded.net.state_dict(), dict(net.state_dict()))


def checkpoint_records(folder: Path) -> list[dict[str, Any]]:
    from undiffuse.training import read_events

    return [record for record in read_events(folder / "metrics.jsonl") if record.get("kind") == "train"]
