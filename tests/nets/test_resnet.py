"""The residual classifier: standardized filters, features of all levels, and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from undiffuse.denoiser import ProcessConfig
from undiffuse.metrics.extractors.classifier import ClassifierExtractor
from undiffuse.models import ClassifierModel, load_classifier, save_model
from undiffuse.nets import ResNet, ResNetConfig, config_from_dict, config_to_dict
from undiffuse.nets.resnet import StandardizedConv

CONFIG = ResNetConfig(image_size=16, in_channels=1, out_channels=5, model_channels=8, channel_mult=(1, 1, 2, 3))


def network(seed: int = 0) -> ResNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return CONFIG.build().eval()


def test_filters_are_standardized() -> None:
    """Neither the scale nor the mean of a filter matters, and noise of variance 1 keeps its variance."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = StandardizedConv(32, 64)
        x = torch.randn(8, 32, 16, 16)
    before = conv(x).detach()
    assert float(before[:, :, 1:-1, 1:-1].var()) == pytest.approx(1.0, rel=0.05)
    with torch.no_grad():
        conv.weight.mul_(3.0).add_(0.5)
    torch.testing.assert_close(conv(x), before, atol=2e-3, rtol=0)


def test_it_classifies_by_the_means_of_all_levels_but_the_first() -> None:
    net = network()
    assert net.out[0].in_features == 8 + 16 + 24
    x = torch.linspace(-1, 1, 3 * 256).reshape(3, 1, 16, 16)
    scores = net(x, torch.zeros(3))
    assert scores.shape == (3, 5)
    torch.testing.assert_close(net(x, torch.full((3,), 700.0)), scores)  # the time does not matter
    with pytest.raises(ValueError, match="multiples of 8"):
        net(torch.zeros(1, 1, 12, 12), torch.zeros(1))


def test_its_moments_are_those_of_the_levels_and_early_ones_train_nothing() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = replace(CONFIG, features="moments").build().eval()
    found: list[torch.Tensor] = []
    net.stem.register_forward_hook(lambda module, inputs, out: found.append(out))
    for stage in net.stages:
        stage.register_forward_hook(lambda module, inputs, out: found.append(out))
    seen: list[torch.Tensor] = []
    net.out.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    net(torch.linspace(-1, 1, 3 * 256).reshape(3, 1, 16, 16), torch.zeros(3))[:, 0].sum().backward()
    wanted = [part for h in found for part in (h.mean((2, 3)), h.std((2, 3), correction=0))]
    torch.testing.assert_close(seen[0], torch.cat(wanted, dim=1), atol=4e-3, rtol=1e-3)
    assert net.out[0].in_features == 2 * (8 + 8 + 16 + 24)

    weights = net.out[0].weight
    with torch.no_grad():
        weights[:, -48:] = 0  # the last level counts for nothing, so nothing below is trained
    net.zero_grad()
    net(torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16), torch.zeros(1))[:, 0].sum().backward()
    assert weights.grad is not None and float(weights.grad[0, :-48].abs().min()) > 0
    assert all(p.grad is None or not p.grad.any() for p in net.stem.parameters())


def test_it_is_saved_loaded_and_gives_features(tmp_path: Path) -> None:
    net = network()
    assert config_from_dict(config_to_dict(net), "classifier") == CONFIG
    about = {"objective": {"noise": False}}
    model = ClassifierModel(net, ProcessConfig(variance="fixed_small"), tuple("abcde"), about)
    save_model(tmp_path / "judge.safetensors", model)
    extractor = ClassifierExtractor(load_classifier(tmp_path / "judge.safetensors"), "own")
    images = (torch.arange(2 * 256).reshape(2, 16, 16, 1) % 251).to(torch.uint8)
    found = extractor(images)
    assert found.features.shape == (2, 48)
    x = (images.float() / 127.5 - 1).movedim(3, 1)
    torch.testing.assert_close(found.logits, net(x, torch.zeros(2)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "unet"}, "architecture 'resnet', not of 'unet'"),
        ({"channel_mult": (1,)}, "at least two levels"),
        ({"attention_resolutions": (2,)}, "has no attention"),
        ({"features": "medians"}, "means, moments"),
    ],
)
def test_impossible_networks(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**{"image_size": 16, "channel_mult": (1, 1), **change})  # type: ignore[arg-type]
