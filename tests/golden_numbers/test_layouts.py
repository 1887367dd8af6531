"""All published files by name: parameter names, shapes and counts of the networks their flags describe.

Networks are built on the meta device, where a parameter has a shape and no numbers.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from support.foreign_files import with_planes
from support.golden_files import of_kind
from undiffuse.adapters import published
from undiffuse.adapters.openai_flags import classifier_config, loss_name, process_config, unet_config
from undiffuse.adapters.openai_weights import recognise, recognised_from
from undiffuse.distillation import karras_level
from undiffuse.grids import grid
from undiffuse.nets import UNetConfig


def read(kind: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for path in of_kind(kind):
        data = path.read_bytes()
        merged |= json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    return merged


CHECKPOINTS, LAYOUTS = read("published_checkpoints"), read("published_layouts")
CONSISTENCY, CONSISTENCY_LAYOUTS = read("published_consistency"), read("published_consistency_layouts")


def build(entry: dict[str, Any], **more: Any) -> torch.nn.Module:
    family, flags = entry["family"], {**entry["flags"], **more}
    with torch.device("meta"):
        if family.endswith("classifier"):
            return classifier_config(flags).build()
        return unet_config(flags, family).build()


def layout(net: torch.nn.Module) -> list[str]:
    """Sorted lines "key SHAPExSHAPE"."""
    return lines_of(net.state_dict())


def lines_of(state: Mapping[str, torch.Tensor]) -> list[str]:
    return sorted(f"{key} {'x'.join(map(str, tensor.shape))}" for key, tensor in state.items())


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


@with_each(sorted(CONSISTENCY))
def test_golden_published_consistency_layout(name: str) -> None:
    """The flags make the network of the file, whose attention has 1x1 convolutions of images."""
    told, entry = CONSISTENCY[name], published.get(name)
    net = build(told, training_mode=entry.flags["training_mode"])
    lines = lines_of(with_planes(net.state_dict()))
    if CONSISTENCY_LAYOUTS:
        assert lines in CONSISTENCY_LAYOUTS.values()
    assert len(lines) == told["tensors"]
    assert sum(p.numel() for p in net.parameters()) == told["parameters"] == entry.parameters
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == told["layout_sha256"]
    shapes = {key: tuple(map(int, shape.split("x"))) for key, shape in map(str.split, lines)}
    found = recognise(shapes)
    assert found.planar
    assert found == recognised_from(entry.net)  # type: ignore[arg-type]


@with_each(sorted(CONSISTENCY))
def test_golden_published_consistency_models(name: str) -> None:
    """Flags, kind and advice of the registry are those of the release; the new order holds without a flag."""
    told, entry = CONSISTENCY[name], published.get(name)
    flags = {**told["flags"], "training_mode": entry.flags["training_mode"]}
    assert (entry.file, entry.family) == (told["file"], told["family"])
    assert entry.net == unet_config(flags, "consistency_models")
    assert entry.process == process_config(flags, "consistency_models")
    assert isinstance(entry.net, UNetConfig)
    assert entry.net.use_new_attention_order
    assert told["attention_order"].startswith("new")
    assert entry.process.target == told["kind"]
    assert (entry.process.time_factor, entry.process.sigma_min, entry.process.sigma_max) == (250.0, 0.002, 80.0)
    sampling, how = entry.sampling, told["sampling"]
    assert sampling is not None
    if told["kind"] == "edm":
        assert (sampling.solver, sampling.steps) == (how["sampler"], str(how["steps"]))
        assert (sampling.grid, sampling.solver_options, entry.also) == ("karras", "", ())
        return
    ones = [config for config in (sampling, *entry.also) if config.steps == "1"]
    assert [config.solver for config in ones] == ["consistency"] * how["onestep"]
    steps = how["two_step_steps"]
    if steps is None:
        assert sampling in ones
        return
    levels = karras_level(torch.tensor(how["two_step_ts"][:-1]), steps, 0.002, 80.0, 7.0)
    expected = (levels.sigma / levels.alpha).tolist()
    path = grid(entry.process.chain(), sampling.steps or "", sampling.grid or "")
    assert path.steps == 2
    assert how["two_step_ts"][-1] == steps - 1  # the level of the finished image, to which no noise is added
    got = [path.level(k) for k in (1, 0)]
    assert [float(level.sigma / level.alpha) for level in got] == pytest.approx(expected, rel=1e-6)


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
