"""UNet2DModels of diffusers as networks of ours: what config.json says as a `UNet2DConfig`, and the weights' names.

The weights of `UNet2D` are called as in diffusers, but for spellings that diffusers used before 2023. A UNet2DModel
that computes what DDPM's U-Net does is read as that network by `ddpm_weights` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from undiffuse.nets.meta import build_on_meta
from undiffuse.nets.unet2d import DOWN_TYPES, UP_TYPES, UNet2DConfig
from undiffuse.nets.unet2d_blocks import ACTIVATIONS

# Settings of UNet2DModel in diffusers 0.42 by name, each with what it means when it is left out.
DEFAULTS: Mapping[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}

# Why a block type is refused; diffusers can save all of these, and run none but the first in a UNet2DModel.
_OTHER_BLOCKS = {
    "KDownBlock2D": "a block of k-diffusion's upscalers",
    "KUpBlock2D": "a block of k-diffusion's upscalers",
    "KCrossAttnDownBlock2D": "a block that attends to text",
    "KCrossAttnUpBlock2D": "a block that attends to text",
    "CrossAttnDownBlock2D": "a block that attends to text",
    "CrossAttnUpBlock2D": "a block that attends to text",
    "SimpleCrossAttnDownBlock2D": "a block that attends to text",
    "SimpleCrossAttnUpBlock2D": "a block that attends to text",
    "DownEncoderBlock2D": "a block of autoencoders, which takes no time",
    "UpDecoderBlock2D": "a block of autoencoders, which takes no time",
    "AttnDownEncoderBlock2D": "a block of autoencoders, which takes no time",
    "AttnUpDecoderBlock2D": "a block of autoencoders, which takes no time",
}
_OLD_NAMES = (
    (".attentions.", ".query.", ".to_q."),
    (".attentions.", ".key.", ".to_k."),
    (".attentions.", ".value.", ".to_v."),
    (".attentions.", ".proj_attn.", ".to_out.0."),
)


def network_config(settings: Mapping[str, Any], said: Mapping[str, Any] | None = None) -> UNet2DConfig:
    """Read the configuration of a UNet2DModel.

    Args:
        settings: What config.json says.
        said: What a user says of the model: "image_size", "num_classes", "null_class".

    Raises:
        ValueError: It is another model, uses parts that are not built here, or leaves out the size of the images.
    """
    said = said or {}
    name = settings.get("_class_name", "UNet2DModel")
    if name != "UNet2DModel":
        raise ValueError(f"it is a {name}, and of diffusers only UNet2DModel, for pixels, is read{_about(str(name))}")
    given = {**DEFAULTS, **{key: value for key, value in settings.items() if not key.startswith("_")}}
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise ValueError(
            f"config.json has settings that UNet2DModel does not have in diffusers 0.42: {', '.join(unknown)}"
        )
    widths = _whole_numbers(given["block_out_channels"], "block_out_channels")
    down, up = _types(given, "down_block_types", DOWN_TYPES), _types(given, "up_block_types", UP_TYPES)
    middle = given["mid_block_type"]
    if middle not in ("UNetMidBlock2D", None):
        raise ValueError(f"mid_block_type {middle!r}: UNet2DModel knows 'UNetMidBlock2D' and null")
    act = str(given["act_fn"]).lower()
    if act not in ACTIVATIONS:
        raise ValueError(f"act_fn {given['act_fn']!r} is not known; known are {', '.join(ACTIVATIONS)}")
    shift = given["resnet_time_scale_shift"]
    if shift not in ("default", "scale_shift"):
        raise ValueError(f"resnet_time_scale_shift {shift!r} is not known; there are 'default' and 'scale_shift'")
    for key in ("downsample_type", "upsample_type"):
        if given[key] not in ("conv", "resnet", None):
            raise ValueError(f"{key} {given[key]!r} is not known; UNet2DModel knows 'conv' and 'resnet'")
    embedding, classes, null = _classes(given, said)
    return UNet2DConfig(
        image_size=_size(given["sample_size"], said),
        in_channels=_whole(given, "in_channels"),
        out_channels=_whole(given, "out_channels"),
        model_channels=widths[0],
        num_res_blocks=_whole(given, "layers_per_block"),
        channel_mult=multipliers(widths),
        dropout=_number(given, "dropout"),
        down_types=down,
        up_types=up,
        head_channels=None if given["attention_head_dim"] is None else _whole(given, "attention_head_dim"),
        norm_groups=None if given["norm_num_groups"] is None else _whole(given, "norm_num_groups"),
        mid_norm_groups=None if given["attn_norm_num_groups"] is None else _whole(given, "attn_norm_num_groups"),
        norm_eps=_number(given, "norm_eps"),
        activation="silu" if act == "swish" else act,
        time_scale_shift=shift == "scale_shift",
        time_type=str(given["time_embedding_type"]),
        time_steps=_whole(given, "num_train_timesteps") if given["time_embedding_type"] == "learned" else 0,
        time_channels=0 if given["time_embedding_dim"] is None else _whole(given, "time_embedding_dim"),
        cosine_first=bool(given["flip_sin_to_cos"]),
        frequency_shift=_number(given, "freq_shift"),
        downsample_padding=_whole(given, "downsample_padding"),
        resnet_down=given["downsample_type"] == "resnet",
        resnet_up=given["upsample_type"] == "resnet",
        middle=middle is not None,
        mid_attention=bool(given["add_attention"]),
        mid_scale=_number(given, "mid_block_scale_factor"),
        centre=bool(given["center_input_sample"]),
        class_embedding=embedding,
        num_classes=classes,
        null_class=null,
    )


def settings_of(config: UNet2DConfig) -> dict[str, Any]:
    """Arguments of the UNet2DModel that computes what a network of this configuration does."""
    height, width = config.size
    table = config.class_embedding == "table"
    return {
        "sample_size": height if height == width else [height, width],
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "center_input_sample": config.centre,
        "time_embedding_type": config.time_type,
        "time_embedding_dim": config.time_channels or None,
        "freq_shift": int(config.frequency_shift) if config.frequency_shift % 1 == 0 else config.frequency_shift,
        "flip_sin_to_cos": config.cosine_first,
        "down_block_types": list(config.down_types),
        "mid_block_type": "UNetMidBlock2D" if config.middle else None,
        "up_block_types": list(config.up_types),
        "block_out_channels": list(config.widths),
        "layers_per_block": config.num_res_blocks,
        "mid_block_scale_factor": config.mid_scale,
        "downsample_padding": config.downsample_padding,
        "downsample_type": "resnet" if config.resnet_down else "conv",
        "upsample_type": "resnet" if config.resnet_up else "conv",
        "dropout": config.dropout,
        "act_fn": config.activation,
        "attention_head_dim": config.head_channels,
        "norm_num_groups": config.norm_groups,
        "attn_norm_num_groups": config.mid_norm_groups,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if config.time_scale_shift else "default",
        "add_attention": config.mid_attention,
        "class_embed_type": {"number": "timestep", "vector": "identity"}.get(config.class_embedding or ""),
        "num_class_embeds": (config.num_classes or 0) + config.null_class if table else None,
        "num_train_timesteps": config.time_steps or None,
    }


def weights(config: UNet2DConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's weights in float32, by its names.

    Raises:
        ValueError: They are not those of a network of this configuration.
    """
    expected = {name: tuple(value.shape) for name, value in build_on_meta(config.build).state_dict().items()}
    ours = {_new_name(name.removeprefix("module.")): value for name, value in state.items()}
    if config.time_type == "fourier":
        ours.pop("time_proj.W", None)  # the same frequencies, which old versions saved twice
    ours = {  # 1x1 convolutions of old versions
        name: value.flatten(1) if value.ndim == 4 and len(expected.get(name, ())) == 2 else value
        for name, value in ours.items()
    }
    found = {name: tuple(value.shape) for name, value in ours.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        name = odd[0]
        there = f"has shape {list(found[name])}" if name in found else "is missing"
        wanted = f"config.json says {list(expected[name])}" if name in expected else "config.json says of no such part"
        raise ValueError(f"{len(odd)} of the weights do not fit config.json: {name} {there}, {wanted}")
    return {name: ours[name].detach().float().contiguous() for name in expected}


def multipliers(widths: tuple[int, ...]) -> tuple[float, ...]:
    """Factors whose products with the first width, rounded down, are the widths."""
    first, found = widths[0], []
    for width in widths:
        factor = width // first if width % first == 0 else width / first
        if int(first * factor) != width:
            factor = (width + 0.5) / first
        if int(first * factor) != width:
            raise ValueError(f"block_out_channels has the entry {width}, which is no multiple of {first}")
        found.append(factor)
    return tuple(found)


def _new_name(name: str) -> str:
    for where, old, new in _OLD_NAMES:
        if where in name:
            name = name.replace(old, new)
    return name


def _about(name: str) -> str:
    if "Condition" in name or "Text" in name:
        return ": it is conditional on text, mostly on latents of an autoencoder"
    return ": it is a transformer" if "Transformer" in name or "DiT" in name else ""


def _types(given: Mapping[str, Any], key: str, known: tuple[str, ...]) -> tuple[str, ...]:
    value = given[key]
    kinds = tuple(str(kind).removeprefix("UNetRes") for kind in value) if isinstance(value, (list, tuple)) else ()
    for kind in kinds:
        if kind not in known:
            raise ValueError(f"{key} has {kind}, {_OTHER_BLOCKS.get(kind, 'which UNet2DModel does not have')}; "
                             f"read are {', '.join(known)}")  # fmt: skip
    if not kinds:
        raise ValueError(f"{key} is {value!r}; expected a list of block types")
    return kinds


def _classes(given: Mapping[str, Any], said: Mapping[str, Any]) -> tuple[str | None, int | None, bool]:
    """How classes are embedded, their number, and whether the table's last row means "no class"."""
    kind, rows = given["class_embed_type"], given["num_class_embeds"]
    null = str(said.get("null_class", "false")).lower() in ("true", "1", "yes")
    if kind is None and rows is None:
        return None, None, False
    if kind is None:
        rows = _whole(given, "num_class_embeds")
        return "table", rows - null, null
    if kind not in ("timestep", "identity"):
        raise ValueError(f"class_embed_type {kind!r} is not known; UNet2DModel knows 'timestep' and 'identity'")
    count = said.get("num_classes")
    if count is not None and not str(count).isdigit():
        raise ValueError(f"num_classes {count}: expected a whole number")
    return ("number", None if count is None else int(count), False) if kind == "timestep" else ("vector", None, False)


def _size(stated: Any, said: Mapping[str, Any]) -> int | tuple[int, int]:
    if "image_size" in said:
        text = str(said["image_size"])
        sides = text.split("x")
        if not all(side.isdigit() for side in sides) or len(sides) > 2:
            raise ValueError(f"image_size {text}: expected a whole number, or height x width like 48x64")
        return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))
    if stated is None:
        raise ValueError("config.json does not say the size of the images (sample_size): say it, image_size=64")
    if isinstance(stated, int):
        return stated
    height, width = (*_whole_numbers(stated, "sample_size"), 0, 0)[:2]
    return (height, width)


def _whole_numbers(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(part, int) for part in value):
        raise ValueError(f"config.json has {name} = {value!r}; expected a list of whole numbers")
    return tuple(value)


def _whole(given: Mapping[str, Any], name: str) -> int:
    value = given[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"config.json has {name} = {value!r}; expected a whole number")
    return value


def _number(given: Mapping[str, Any], name: str) -> float:
    value = given[name]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"config.json has {name} = {value!r}; expected a number")
    return value
