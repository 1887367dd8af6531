"""Networks of diffusers' UNet2DModel: numbers frozen from 0.42.1, and all configurations where it is installed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from support.foreign_files import layout_of
from support.golden_files import draw_weights
from support.unet2d_cases import BASE, CASES, FROZEN
from undiffuse.adapters import diffusers_unet
from undiffuse.nets import UNet2D, UNet2DConfig, config_from_dict
from undiffuse.nets.runner import prepare_for_inference

DATA = Path(__file__).parents[1] / "data" / "unet2d.safetensors"
CLOSE = 1e-5  # of the largest value, in float32


def inputs(config: UNet2DConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, config.in_channels, *config.size, generator=generator)
    given = {"x": x, "t": torch.tensor([3.0, 500.0, 999.0])}
    if config.class_embedding == "vector":
        given["y"] = torch.randn(3, config.time_width, generator=generator)
    elif config.class_embedding:
        given["y"] = torch.tensor([0, 3, 9])
    return given


def network(config: UNet2DConfig) -> UNet2D:
    net = config.build().eval()
    net.load_state_dict(draw_weights(layout_of(config), 11))
    return net


def difference(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", FROZEN)
def test_outputs_are_those_that_diffusers_gave(name: str) -> None:
    config = diffusers_unet.network_config({**BASE, **CASES[name]})
    expected = load_file(DATA)[name]
    with torch.no_grad():
        assert difference(network(config)(**inputs(config)), expected) < CLOSE
        ready = prepare_for_inference(network(config), "fp32", torch.device("cpu"))
        assert difference(ready(**inputs(config)), expected) < CLOSE


def test_who_froze_the_numbers() -> None:
    with safe_open(str(DATA), framework="pt") as file:
        assert json.loads(file.metadata()["about"]) == {"diffusers": "0.42.1", "cases": list(FROZEN)}


@pytest.mark.parametrize("name", CASES)
def test_configurations_survive(name: str) -> None:
    config = diffusers_unet.network_config({**BASE, **CASES[name]})
    assert config_from_dict(json.loads(json.dumps(asdict(config)))) == config
    assert diffusers_unet.network_config(diffusers_unet.settings_of(config)) == config


@pytest.mark.parametrize("name", CASES)
def test_all_configurations_compute_what_diffusers_does(name: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers, which is not needed otherwise")
    theirs = diffusers.UNet2DModel(**{**BASE, **CASES[name]}).eval()
    state = theirs.state_dict()
    theirs.load_state_dict(draw_weights({key: list(value.shape) for key, value in state.items()}, 11))
    config = diffusers_unet.network_config(json.loads(theirs.to_json_string()))
    net = config.build().eval()
    net.load_state_dict(diffusers_unet.weights(config, theirs.state_dict()))
    given = inputs(config)
    with torch.no_grad():
        expected = theirs(given["x"], given["t"].long(), class_labels=given.get("y")).sample
        assert difference(net(**given), expected) < CLOSE


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "conditional on text"),
        ({"_class_name": "DiTTransformer2DModel"}, "a transformer"),
        ({"down_block_types": ("DownBlock2D", "KDownBlock2D")}, "upscalers"),
        ({"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}, "attends to text"),
        ({"up_block_types": ("UpDecoderBlock2D", "UpBlock2D")}, "autoencoders"),
        ({"down_block_types": ("DownBlock2D", "FooBlock2D")}, "does not have"),
        ({"down_block_types": ("DownBlock2D", "SkipDownBlock2D", "DownBlock2D")}, "one entry a level"),
        ({"act_fn": "tanh"}, "act_fn 'tanh'"),
        ({"resnet_time_scale_shift": "ada_group"}, "resnet_time_scale_shift 'ada_group'"),
        ({"class_embed_type": "projection"}, "class_embed_type 'projection'"),
        ({"mid_block_type": "UNetMidBlock2DCrossAttn"}, "mid_block_type"),
        ({"downsample_padding": 2}, "downsample_padding"),
        ({"sample_size": None}, "does not say the size"),
        ({"some_setting": 1}, "some_setting"),
        ({"norm_num_groups": None}, "norm_groups is needed"),
        ({"in_channels": "3"}, "in_channels = '3'"),
    ],
)
def test_what_is_refused_says_why(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        diffusers_unet.network_config({**BASE, **change}).build()


def test_what_a_user_says_of_a_model() -> None:
    config = diffusers_unet.network_config({**BASE, "num_class_embeds": 11, "sample_size": None},
                                           {"null_class": "True", "image_size": "16x24"})  # fmt: skip
    assert (config.num_classes, config.null_class, config.size) == (10, True, (16, 24))
    net = network(config)
    x, t = torch.zeros(2, 3, 16, 24), torch.tensor([1.0, 2.0])
    with torch.no_grad():
        assert net(x, t).equal(net(x, t, torch.tensor([10, 10])))
    with pytest.raises(ValueError, match="expected y, one class index"):
        network(diffusers_unet.network_config({**BASE, "num_class_embeds": 10}))(x, t)
    with pytest.raises(ValueError, match="unconditional"):
        network(diffusers_unet.network_config(BASE))(x, t, torch.tensor([1, 1]))


def test_old_spellings_of_weights() -> None:
    config = diffusers_unet.network_config(BASE)
    state = network(config).state_dict()
    old = {}
    for name, value in state.items():
        for new, before in ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."),
                            (".to_out.0.", ".proj_attn.")):  # fmt: skip
            name = name.replace(new, before)
        old[name] = value[..., None, None] if "query" in name and name.endswith("weight") else value
    read = diffusers_unet.weights(config, old)
    assert read.keys() == state.keys()
    assert all(read[name].equal(state[name]) for name in state)
    with pytest.raises(ValueError, match=r"conv_in.weight is missing, config.json says"):
        diffusers_unet.weights(config, {k: v for k, v in state.items() if k != "conv_in.weight"})
