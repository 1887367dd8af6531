"""All published files by name: parameter names, shapes and counts of the networks their flags describe.

Networks are built on the meta device, where a parameter has a shape and no numbers.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from typing import Any

import pytest
import torch

from support.golden_files import of_kind
from undiffuse.adapters.openai_flags import classifier_config, loss_name, process_config, unet_config


def read(kind: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for path in of_kind(kind):
        data = path.read_bytes()
        merged |= json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return merged


CHECKPOINTS, LAYOUTS = read("published_checkpoints"), read("published_layouts")


def build(entry: dict[str, Any]) -> torch.nn.Module:
    family, flags = entry["family"], entry["flags"]
    with torch.device("meta"):
        if family.endswith("classifier"):
            return classifier_config(flags).build()
        return unet_config(flags, family).build()


def layout(net: torch.nn.Module) -> list[str]:
    """Sorted lines "key SHAPExSHAPE"."""
    return sorted(f"{key} {'x'.join(map(str, tensor.shape))}" for key, tensor in net.state_dict().items())


def with_each(names: list[str]) -> Any:
    """Decorator: one test for each name, and no test where there is none."""
    return lambda function: pytest.mark.parametrize("name", names)(function) if names else None


@with_each(sorted(CHECKPOINTS))
def test_golden_published_layout(name: str) -> None:
    entry = CHECKPOINTS[name]
    net = build(entry)
    lines = layout(net)
    if name in LAYOUTS:
        assert lines == LAYOUTS[name]
    assert len(lines) == entry["tensors"]
    assert sum(p.numel() for p in net.parameters()) == entry["parameters"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == entry["layout_sha256"]


@with_each(sorted(name for name, entry in CHECKPOINTS.items() if not entry["family"].endswith("classifier")))
def test_golden_published_process(name: str) -> None:
    """The process fits the network: a variance output where one is learned, and a chain of the flags' length."""
    entry = CHECKPOINTS[name]
    flags, family = entry["flags"], entry["family"]
    process, net = process_config(flags, family), unet_config(flags, family)
    assert process.out_channels(net.in_channels) == net.out_channels
    assert process.chain().steps == flags["diffusion_steps"]
    assert (process.schedule, process.rescale_timesteps) == (flags["noise_schedule"], flags["rescale_timesteps"])
    assert (loss_name(flags, family) == "RESCALED_KL") == flags["use_kl"]


if LAYOUTS and CHECKPOINTS:

    def test_golden_layouts_and_checkpoints_name_the_same_files() -> None:
        assert set(LAYOUTS) == set(CHECKPOINTS)


BAD_FLAGS = {
    "size without multipliers": ({"image_size": 96}, "guided-diffusion", "implies no channel_mult"),
    "no multiple": ({"image_size": 64, "attention_resolutions": "24"}, "guided-diffusion", "24 pixels"),
    "misspelt flag": ({"images_size": 64}, "guided-diffusion", "images_size"),
    "no boolean": ({"class_cond": "maybe"}, "guided-diffusion", "True or False"),
    "family": ({}, "stable-diffusion", "unknown family"),
}


@pytest.mark.parametrize(("flags", "family", "message"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flags_are_explained(flags: dict[str, Any], family: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet_config(flags, family)


def test_flags_may_be_text_and_have_the_release_defaults() -> None:
    """A command line's words mean the same as values; the two releases differ in the rescaling defaults."""
    words = {
        "image_size": "64",
        "learn_sigma": "True",
        "channel_mult": "0.5,1,2",
        "attention_resolutions": "32,16,8,128",
    }
    config = unet_config(words)
    assert (config.channel_mult, config.attention_resolutions, config.out_channels) == ((0.5, 1, 2), (2, 4, 8), 6)
    assert isinstance(config.channel_mult[1], int)
    assert process_config({}, "improved-diffusion").rescale_timesteps
    assert loss_name({}, "improved-diffusion") == "RESCALED_MSE"
    assert not process_config({}, "guided-diffusion").rescale_timesteps
    assert loss_name({}, "guided-diffusion") == "MSE"
    assert loss_name({"use_kl": "True"}) == "RESCALED_KL"
    assert [process_config({"sigma_small": s}).variance for s in (True, False)] == ["fixed_small", "fixed_large"]
    assert process_config({"predict_xstart": "true"}).target == "x0"
