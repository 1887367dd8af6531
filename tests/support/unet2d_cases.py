"""Configurations of diffusers' UNet2DModel, every setting that it has at least once, small."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
_RESNET = {"downsample_type": "resnet", "upsample_type": "resnet"}
_SKIP = {"norm_num_groups": None}


def _types(down: str, up: str) -> dict[str, Any]:
    return {"down_block_types": tuple(down.split()), "up_block_types": tuple(up.split())}


CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "adm": {
        **_types("ResnetDownsampleBlock2D AttnDownBlock2D", "AttnUpBlock2D ResnetUpsampleBlock2D"),
        **_RESNET, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 8, "out_channels": 6,
    },
    "skip": {**_types("SkipDownBlock2D AttnSkipDownBlock2D", "AttnSkipUpBlock2D SkipUpBlock2D"), **_SKIP},
    "ncsnpp": {
        **_types("AttnSkipDownBlock2D SkipDownBlock2D", "SkipUpBlock2D AttnSkipUpBlock2D"), **_SKIP,
        "time_embedding_type": "fourier", "center_input_sample": True, "layers_per_block": 2,
    },
    "skip and plain": {
        **_types("SkipDownBlock2D AttnDownBlock2D DownBlock2D", "UpBlock2D UpBlock2D AttnUpBlock2D"),
        "block_out_channels": (32, 32, 64),
    },
    "three levels": {
        **_types(
            "AttnDownBlock2D ResnetDownsampleBlock2D DownBlock2D", "UpBlock2D ResnetUpsampleBlock2D AttnUpBlock2D"
        ),
        "block_out_channels": (32, 48, 96), "downsample_type": "resnet",
    },
    "prefixed types": _types("UNetResDownBlock2D AttnDownBlock2D", "AttnUpBlock2D UpBlock2D"),
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "scale and shift, norm": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 4},
    "middle groups": {"attn_norm_num_groups": 16},
    **{f"act {name}": {"act_fn": name} for name in ("swish", "mish", "gelu", "relu", "SiLU")},
    "one-sided padding": {"downsample_padding": 0},
    "eps 1e-6": {"norm_eps": 1e-6},
    "eps 0.1": {"norm_eps": 0.1},
    "one group": {"norm_num_groups": 1},
    "32 groups": {"norm_num_groups": 32},
    "fourier": {"time_embedding_type": "fourier"},
    "learned times": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "wide embedding": {"time_embedding_dim": 96},
    "classes by number": {"class_embed_type": "timestep"},
    "classes by vector": {"class_embed_type": "identity"},
    "classes by table": {"num_class_embeds": 10},
    "no middle": {"mid_block_type": None},
    "no middle attention": {"add_attention": False},
    "middle scale": {"mid_block_scale_factor": 1.4142135},
    **{f"heads of {size}": {"attention_head_dim": size} for size in (None, 4, 64, 24)},
    "centred": {"center_input_sample": True},
    "ddpm's times": {"freq_shift": 1, "flip_sin_to_cos": False},
    "sines first": {"flip_sin_to_cos": False},
    "not square": {"sample_size": (16, 24)},
    "learned sigma": {"out_channels": 6},
    "grey": {"in_channels": 1, "out_channels": 1},
    "odd widths": {"block_out_channels": (33, 66), "norm_num_groups": 3, "attention_head_dim": None},
    "mixed resampling": {"downsample_type": "resnet", "upsample_type": "conv"},
    "narrowing": {"block_out_channels": (64, 32)},
    "three blocks": {"layers_per_block": 3},
    "attention above": _types("AttnDownBlock2D DownBlock2D", "UpBlock2D AttnUpBlock2D"),
    "one level": {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)},
}  # fmt: skip

FROZEN = ("defaults", "adm", "skip", "ncsnpp", "act gelu", "classes by table", "classes by number", "ddpm's times",
          "one-sided padding", "heads of 24")  # fmt: skip
"""The configurations whose outputs by diffusers 0.42.1 are kept in data/unet2d.safetensors."""
