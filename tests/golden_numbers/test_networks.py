"""Networks against the original U-Nets, super-resolution U-Nets and noisy classifiers, with weights drawn by recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.golden_files import NETWORKS, Golden, constructor_arguments, for_each, kind_of, load_weights
from undiffuse.nets import ClassifierConfig, UNetConfig

VARIANTS = ("plain", "use_checkpoint", "channels_last")


def build(golden: Golden, variant: str) -> torch.nn.Module:
    """The network of a golden file, with one property changed that must not change its output."""
    meta = golden.meta
    arguments = constructor_arguments(meta["kwargs"], tuple(golden.take("x").shape[2:]))
    config: ClassifierConfig | UNetConfig
    if kind_of(golden.path.name) == "classifier":
        config = ClassifierConfig(**arguments)
    else:
        config = UNetConfig(**arguments, super_resolution=kind_of(golden.path.name) == "superres")
    net = load_weights(
        replace(config, use_checkpoint=variant == "use_checkpoint").build(), meta["state_dict"], meta["seed"]
    )
    return net.to(memory_format=torch.channels_last) if variant == "channels_last" else net


def image(golden: Golden, variant: str, key: str = "x") -> torch.Tensor:
    x = golden.take(key)
    return x.contiguous(memory_format=torch.channels_last) if variant == "channels_last" else x


def backward_gradients(net: torch.nn.Module, x: torch.Tensor, *args: torch.Tensor | None) -> list[torch.Tensor]:
    """Gradients of the sum of squared outputs with respect to the image and all weights."""
    x = x.clone().requires_grad_()
    return list(torch.autograd.grad(net(x, *args).square().sum(), [x, *net.parameters()]))


@for_each("unet", "superres")
@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_unet(path: Path, variant: str) -> None:
    golden = Golden(path)
    net = build(golden, variant)
    y = golden.take("y") if "y" in golden else None
    low_res = image(golden, variant, "low_res") if "low_res" in golden else None
    # Under use_checkpoint the recomputing path runs only where gradients are recorded.
    with torch.set_grad_enabled(variant == "use_checkpoint"):
        golden.compare("output", net(image(golden, variant), golden.take("t"), y, low_res), NETWORKS)
    golden.finish()


@for_each("classifier")
@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_classifier_and_its_gradient(path: Path, variant: str) -> None:
    golden = Golden(path)
    net = build(golden, variant)
    x = image(golden, variant).clone().requires_grad_()
    logits = net(x, golden.take("t"))
    golden.compare("output", logits, NETWORKS)
    selected = logits.log_softmax(-1).gather(1, golden.take("y")[:, None]).sum()
    golden.compare("grad_log_prob", torch.autograd.grad(selected, x)[0], NETWORKS)
    golden.finish()


@for_each("unet", "superres", "classifier")
def test_checkpointing_keeps_gradients_and_dropout_masks(path: Path) -> None:
    """With the same random state, recomputing activations gives the gradients of the ordinary backward pass."""
    golden = Golden(path)
    golden.meta["kwargs"]["dropout"] = 0.3
    if kind_of(path.name) == "classifier":
        rest = [golden.take("t")]
    else:
        rest = [golden.take("t"), *(golden.take(k) if k in golden else None for k in ("y", "low_res"))]
    gradients = []
    for variant in ("plain", "use_checkpoint"):
        net = build(golden, variant).train()
        with torch.random.fork_rng():
            torch.manual_seed(11)
            gradients.append(backward_gradients(net, golden.take("x"), *rest))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())


@for_each("unet")
def test_wrong_qkv_order_is_noticed(path: Path) -> None:
    """The golden comparison can fail: the other layout of the qkv rows loads silently and gives another image."""
    golden = Golden(path)
    meta = golden.meta
    arguments = constructor_arguments(meta["kwargs"], tuple(golden.take("x").shape[2:]))
    arguments["use_new_attention_order"] = not arguments.get("use_new_attention_order", False)
    config = UNetConfig(**arguments)
    channels = int(config.model_channels * config.channel_mult[-1])
    if config.heads(channels, config.num_heads) == 1:
        pytest.skip("with one head in the middle block the two layouts may coincide")
    net = load_weights(config.build(), meta["state_dict"], meta["seed"])
    with torch.no_grad():
        output = net(golden.take("x"), golden.take("t"), golden.take("y") if "y" in golden else None)
    expected = golden.take("output")
    assert (output - expected).abs().max() > 3 * NETWORKS * expected.abs().max()
