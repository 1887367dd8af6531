"""Foreign files with DDPM's U-Net: recognised, read and converted, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from support.golden_files import Golden, draw_weights
from undiffuse.adapters import diffusers_config
from undiffuse.adapters.ddpm_weights import convert, diffusers_name, recognise, weights_in
from undiffuse.adapters.diffusers_config import DDPM_SETTINGS, check_unet, find
from undiffuse.adapters.diffusers_scheduler import process_config
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import DDPMConfig, UNetConfig
from undiffuse.noise_levels import linear_betas

GOLDEN = Path(__file__).parents[1] / "data" / "ddpm_unet2d.safetensors"
LINEAR = {
    "_class_name": "DDPMScheduler", "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear",
    "num_train_timesteps": 1000, "trained_betas": None, "variance_type": "fixed_large", "clip_sample": True,
}  # fmt: skip

# The names of the PyTorch conversions for two levels of one block, attention at the lower one.
ATTENTION = ("norm", "q", "k", "v", "proj_out")
BLOCK = ("norm1", "conv1", "temb_proj", "norm2", "conv2")
MODULES = [
    "temb.dense.0", "temb.dense.1", "conv_in",
    *(f"down.0.block.0.{part}" for part in BLOCK), "down.0.downsample.conv",
    *(f"down.1.block.0.{part}" for part in (*BLOCK, "nin_shortcut")), *(f"down.1.attn.0.{part}" for part in ATTENTION),
    *(f"mid.block_1.{part}" for part in BLOCK), *(f"mid.attn_1.{part}" for part in ATTENTION),
    *(f"mid.block_2.{part}" for part in BLOCK),
    *(f"up.0.block.{i}.{part}" for i in (0, 1) for part in (*BLOCK, "nin_shortcut")),
    *(f"up.1.block.{i}.{part}" for i in (0, 1) for part in (*BLOCK, "nin_shortcut")),
    *(f"up.1.attn.{i}.{part}" for i in (0, 1) for part in ATTENTION), "up.1.upsample.conv",
    "norm_out", "conv_out",
]  # fmt: skip
SMALL = DDPMConfig(image_size=32, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2,))


def original(config: DDPMConfig = SMALL) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in config.build().state_dict().items()}


def golden(name: str = "cifar") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in diffusers' layout, as diffusers itself names them, and its configuration."""
    about = Golden(GOLDEN).meta["networks"][name]
    return draw_weights(about["layout"], about["seed"]), about["config"]


def as_before_2023(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the names that google's files themselves carry."""
    words = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for name, tensor in state.items():
        for new, old in words.items():
            name = name.replace(new, old)
        renamed[name] = tensor
    return renamed


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def test_the_original_layout_is_our_own() -> None:
    state = original()
    assert set(state) == {f"{module}.{part}" for module in MODULES for part in ("weight", "bias")}
    config, process, converted = convert(state)
    assert config == SMALL
    assert process == ProcessConfig(variance="fixed_large")
    np.testing.assert_array_equal(process.chain().betas, np.linspace(1e-4, 0.02, 1000))
    assert same(converted, state)


def test_halves_and_the_prefix_of_parallel_training_are_taken_off() -> None:
    state = original()
    wrapped = {f"module.{name}": tensor.half() for name, tensor in state.items()}
    assert same(convert(wrapped)[2], {name: tensor.half().float() for name, tensor in state.items()})


@pytest.mark.parametrize("name", ["cifar", "large"])
def test_both_layouts_are_the_same_weights(name: str) -> None:
    """From diffusers' names, old and new, to ours; from the original's names to the same; and back to diffusers'."""
    state, unet = golden(name)
    config, _, ours = convert(state, unet=unet)
    levels = len(config.channel_mult)
    assert {diffusers_name(own, levels) for own in ours} == set(state)
    for own, tensor in ours.items():
        assert torch.equal(tensor.flatten(), state[diffusers_name(own, levels)].flatten())
    assert same(convert(as_before_2023(state), unet=unet)[2], ours)
    again, _, straight = convert(ours, image_size=unet["sample_size"])
    assert again == config
    assert same(straight, ours)


@pytest.mark.parametrize(
    ("config", "size", "variance"),
    [
        (DDPMConfig(model_channels=32), 32, "fixed_large"),
        (DDPMConfig(model_channels=32, image_size=64, channel_mult=(1, 2, 2, 2, 4), attention_resolutions=(4,)), 64,
         "fixed_large"),
        (DDPMConfig(model_channels=32, image_size=256, channel_mult=(1, 1, 1, 1, 2, 2), attention_resolutions=(16,)),
         256, "fixed_small"),
    ],
)  # fmt: skip
def test_image_size_and_variance_of_the_authors_networks(config: DDPMConfig, size: int, variance: str) -> None:
    found, process, _ = convert(original(config))
    assert (found, found.image_size, process) == (config, size, ProcessConfig(variance=variance))


def test_what_is_given_goes_before_what_is_guessed() -> None:
    config, process, _ = convert(original(), image_size=(48, 64), variance="fixed_small", dropout=0.1)
    assert (config.size, config.dropout, process.variance) == ((48, 64), 0.1, "fixed_small")
    state, unet = golden()
    config, process, _ = convert(state, unet={**unet, "dropout": 0.2, "sample_size": [16, 24]}, scheduler=LINEAR)
    assert (config.size, config.dropout, process.variance) == ((16, 24), 0.2, "fixed_large")
    config, process, _ = convert(state, unet=DDPM_SETTINGS, scheduler=LINEAR, image_size=8, variance="fixed_small")
    assert (config.image_size, config.dropout, process.variance) == (8, 0.0, "fixed_small")
    with pytest.raises(ValueError, match="variance 'learned_range': expected 'fixed_large' or 'fixed_small'"):
        convert(state, unet=unet, variance="learned_range")


def test_an_image_size_that_cannot_be_told_is_asked_for() -> None:
    for factors, where in (((), "no level"), ((1, 2), "1/1 and 1/2")):
        net = DDPMConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=factors)
        with pytest.raises(ValueError, match=f"attention is at {where} of it.*give the image size"):
            convert(original(net))
        assert convert(original(net), image_size=32)[0] == net
    state, unet = golden()
    assert convert(state, unet={**unet, "sample_size": None})[0].image_size == 32
    with pytest.raises(ValueError, match="sample_size = 'big'"):
        convert(state, unet={**unet, "sample_size": "big"})
    with pytest.raises(ValueError, match="dropout = None; expected a number"):
        convert(state, unet={**unet, "dropout": None})


def test_what_is_recognised() -> None:
    state, _ = golden()
    assert recognise(original()) == "original"
    assert recognise(state) == recognise(as_before_2023(state)) == "diffusers"
    others = UNetConfig(image_size=8, model_channels=32, channel_mult=(1,)).build().state_dict()
    assert recognise(others) is None
    assert recognise({}) is None
    assert recognise({**state, "down_blocks.0.attentions.0.transformer_blocks.0.norm1.weight": 0}) is None
    del state["conv_norm_out.weight"]
    assert recognise(state) is None
    with pytest.raises(ValueError, match="not weights of a DDPM-style U-Net, by its original names or by diffusers'"):
        convert(others)


def test_the_list_that_ddims_training_writes() -> None:
    raw, averaged = original(), original()
    optimiser = {"state": {}, "param_groups": []}
    content = [{f"module.{name}": tensor for name, tensor in raw.items()}, optimiser, 3, 999, averaged]
    assert weights_in(content) is averaged
    assert weights_in(content[:4]) is content[0]
    assert weights_in(raw) is raw
    assert weights_in({0: raw}) is None
    assert weights_in([optimiser]) is None
    assert weights_in([]) is None
    assert weights_in("text") is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("mid.attn_1.q.bias"), r"1 of its tensors differ; mid.attn_1.q.bias is missing"),
        (lambda s: s.update(logvar=torch.zeros(9)), r"logvar has shape \[9\], DDPM's has no such part"),
        (lambda s: s.update({"temb.dense.0.weight": torch.zeros(64, 32)}), r"shape \[64, 32\], DDPM's has shape \[128"),
        (lambda s: s.update({"conv_in.weight": torch.zeros(3)}), "lacks the convolution conv_in.weight"),
        (lambda s: s.update({"norm_out.bias": torch.zeros(32, dtype=torch.int64)}), "norm_out.bias is not a tensor"),
        (lambda s: s.update(epoch=3), "epoch is not a tensor"),
        (lambda s: s.update({"conv_out.weight": torch.zeros(6, 32, 3, 3)}), "predicts its variance"),
        (lambda s: s.update({"module.norm_out.bias": torch.zeros(32)}), "in the file twice"),
        (
            lambda s: s.update({"down.0.block.900000000.norm1.bias": torch.zeros(32)}),
            "encoder has no levels, or invalid ones",
        ),
        (lambda s: s.update({"conv_in.weight": torch.zeros(0, 3, 3, 3)}), "encoder has no levels, or invalid ones"),
        (lambda s: s.update({"down.900000000.x": torch.zeros(3)}), "lacks the convolution down.2"),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith("down.")],
            "encoder has no levels, or invalid ones",
        ),
    ],
)
def test_weights_that_are_not_ddpms_are_refused(spoil: Any, message: str) -> None:
    state: dict[str, Any] = original()
    spoil(state)
    with pytest.raises(ValueError, match=message):
        convert(state)


def test_the_number_of_groups_must_be_the_same() -> None:
    """A width that 32 does not divide cannot be of the authors' code; of diffusers' it can, if we choose the same."""
    narrow = DDPMConfig(
        model_channels=16, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(1,), image_size=8
    )
    with pytest.raises(ValueError, match="have 32 groups, but those of our network with 16 channels have 4 and 32"):
        convert(original(narrow))
    state, unet = golden()
    with pytest.raises(ValueError, match="have 16 groups, but those of our network with 32/64/64/64 channels have 32"):
        convert(state, unet={**unet, "norm_num_groups": 16})
    assert convert(state, unet={**unet, "attn_norm_num_groups": 32})[0].model_channels == 32


def test_shapes_alone_do_not_make_a_unet2d_ddpms() -> None:
    state, unet = golden()
    with pytest.raises(ValueError, match=r"give the folder with its config\.json"):
        convert(state)
    with pytest.raises(ValueError, match="flip_sin_to_cos = True"):
        convert(state, unet={**unet, "flip_sin_to_cos": True})
    del state["up_blocks.2.attentions.1.to_q.bias"]
    with pytest.raises(ValueError, match=r"1 of its tensors differ; up_blocks\.2\.attentions\.1\.to_q\.bias is"):
        convert(state, unet=unet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flip_sin_to_cos": True}, "flip_sin_to_cos = True, where DDPM has False"),
        ({"freq_shift": 0}, "freq_shift = 0"),
        ({"norm_eps": 1e-5}, "norm_eps = 1e-05"),
        ({"downsample_padding": 1}, "downsample_padding = 1"),
        ({"downsample_type": "resnet"}, "downsample_type = 'resnet'"),
        ({"upsample_type": "resnet"}, "upsample_type = 'resnet'"),
        ({"act_fn": "gelu"}, "act_fn = 'gelu'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"mid_block_scale_factor": 1.414}, "mid_block_scale_factor"),
        ({"mid_block_type": None}, "mid_block_type = None"),
        ({"add_attention": False}, "add_attention = False"),
        ({"center_input_sample": True}, "center_input_sample"),
        ({"num_class_embeds": 10}, "num_class_embeds = 10"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"attn_norm_num_groups": 8}, "attn_norm_num_groups = 8"),
        ({"attention_head_dim": 8}, "attention_head_dim = 8, where DDPM has None"),
        ({"attention_head_dim": 64}, "attention_head_dim = 64"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "down_block_types with SkipDownBlock2D"),
        ({"up_block_types": ["ResnetUpsampleBlock2D"]}, "up_block_types with ResnetUpsampleBlock2D"),
        ({"up_block_types": 5}, "up_block_types with 5"),
        ({"_class_name": "UNet2DConditionModel"}, "it is a UNet2DConditionModel"),
    ],
)
def test_settings_that_are_not_ddpms_are_named(change: dict[str, Any], message: str) -> None:
    check_unet(DDPM_SETTINGS, {64, 128})
    with pytest.raises(ValueError, match=message):
        check_unet({**DDPM_SETTINGS, **change}, {64, 128})


def test_one_head_is_as_wide_as_every_level_that_attends_and_the_middle() -> None:
    config = DDPMConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(1,))
    state = {diffusers_name(name, 2): tensor for name, tensor in original(config).items()}
    assert convert(state, unet=DDPM_SETTINGS, image_size=32)[0] == config
    for head in (32, 64):
        with pytest.raises(ValueError, match=f"attention_head_dim = {head}, where"):
            convert(state, unet={**DDPM_SETTINGS, "attention_head_dim": head}, image_size=32)


def test_settings_left_out_mean_what_diffusers_means() -> None:
    with pytest.raises(ValueError, match="flip_sin_to_cos.*freq_shift.*norm_eps.*downsample_padding.*head_dim = 8"):
        check_unet({}, {64})
    check_unet({**DDPM_SETTINGS, "attention_head_dim": 64, "act_fn": "swish"}, {64})  # one head all the same


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ProcessConfig(variance="fixed_large")),
        ({"variance_type": "fixed_small"}, ProcessConfig(variance="fixed_small")),
        ({"variance_type": "fixed_small_log"}, ProcessConfig(variance="fixed_small")),
        ({"prediction_type": "v_prediction"}, ProcessConfig(variance="fixed_large", target="v")),
        ({"prediction_type": "sample"}, ProcessConfig(variance="fixed_large", target="x0")),
        ({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500},
         ProcessConfig(schedule="cosine", steps=500, variance="fixed_large")),
        ({"trained_betas": [0.1, 0.2, 0.4]}, ProcessConfig(betas=(0.1, 0.2, 0.4), variance="fixed_large")),
        ({"num_train_timesteps": 3},
            ProcessConfig(betas=tuple(np.linspace(1e-4, 0.02, 3).tolist()), variance="fixed_large")),
        ({"beta_schedule": "scaled_linear", "num_train_timesteps": 3},
         ProcessConfig(betas=tuple((np.linspace(0.01, 0.02**0.5, 3) ** 2).tolist()), variance="fixed_large")),
    ],
)  # fmt: skip
def test_schedulers(change: dict[str, Any], expected: ProcessConfig) -> None:
    assert process_config({**LINEAR, **change}) == expected


def test_a_scheduler_without_a_variance_means_the_posteriors() -> None:
    scheduler = {name: value for name, value in LINEAR.items() if name != "variance_type"}
    process = process_config({**scheduler, "_class_name": "DDIMScheduler"})
    assert process == ProcessConfig(variance="fixed_small")
    np.testing.assert_array_equal(process.chain().betas, linear_betas(1000))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"_class_name": "ScoreSdeVpScheduler", "beta_max": 20}, "ScoreSdeVpScheduler describes no chain"),
        ({**LINEAR, "beta_schedule": "laplace"}, "beta_schedule 'laplace'"),
        ({**LINEAR, "variance_type": "learned_range"}, "twice as many channels"),
        ({**LINEAR, "prediction_type": "flow"}, "predicts 'flow'"),
        ({**LINEAR, "rescale_betas_zero_snr": True}, "pure noise"),
        ({**LINEAR, "num_train_timesteps": 10**12}, "from 1 to"),
        ({**LINEAR, "num_train_timesteps": "many"}, "from 1 to"),
        ({**LINEAR, "beta_start": None}, "beta_start = None; expected a number"),
        ({**LINEAR, "trained_betas": 3}, "no list of numbers"),
        ({**LINEAR, "trained_betas": ["a"]}, "no list of numbers"),
        ({**LINEAR, "trained_betas": [0.1, 2.0]}, "beta"),
        ({**LINEAR, "beta_end": -1.0}, "beta"),
        ({**LINEAR, "beta_end": -1.0, "beta_schedule": "scaled_linear"}, "from 0.0001 to -1"),
        ({**LINEAR, "prediction_type": []}, "predicts"),
        ({**LINEAR, "variance_type": "learned"}, "the variance itself"),
        ({**LINEAR, "variance_type": "odd"}, "variance_type 'odd'"),
    ],
)
def test_schedulers_that_are_refused(scheduler: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        process_config(scheduler)


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_folders_of_diffusers(tmp_path: Path) -> None:
    _, unet = golden()
    assert find(tmp_path) is None
    write(tmp_path / "config.json", {"model_type": "not diffusers"})
    assert find(tmp_path) is None
    write(tmp_path / "config.json", unet)
    with pytest.raises(ValueError, match=r"has no diffusion_pytorch_model\.safetensors or .*weights files: other\.bin"):
        write(tmp_path / "other.bin", "")
        find(tmp_path)
    weights = write(tmp_path / "diffusion_pytorch_model.bin", "")
    assert find(tmp_path) == diffusers_config.Folder((weights,), unet, None)
    weights = write(tmp_path / "diffusion_pytorch_model.safetensors", "")  # goes before the pickle
    write(tmp_path / "scheduler_config.json", LINEAR)
    assert find(tmp_path) == diffusers_config.Folder((weights,), unet, LINEAR)
    inner = write(tmp_path / "unet" / "diffusion_pytorch_model.bin", "")
    write(tmp_path / "unet" / "config.json", {**unet, "sample_size": 64})
    write(tmp_path / "scheduler" / "scheduler_config.json", {**LINEAR, "num_train_timesteps": 500})
    found = find(tmp_path)
    assert found is not None
    assert found.scheduler is not None
    assert (found.weights, found.unet["sample_size"], found.scheduler["num_train_timesteps"]) == (inner, 64, 500)


@pytest.mark.parametrize(("content", "message"), [("{", " is not JSON"), ("[]", ": expected a JSON object, got list")])
def test_broken_configurations_are_named(content: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "config.json", content)
    with pytest.raises(ValueError, match=rf"config\.json{message}"):
        find(tmp_path)


def test_a_pipeline_without_a_unet_is_named(tmp_path: Path) -> None:
    write(tmp_path / "model_index.json", {"_class_name": "DDPMPipeline"})
    with pytest.raises(ValueError, match="has no pixel-space U-Net"):
        find(tmp_path)
