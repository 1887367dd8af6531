"""Converts weights of DDPM's U-Net in the two common layouts to those of `DDPMUNet`.

    original     the PyTorch conversions of the authors' files, which DDIM samples from and its training writes:
                 "temb.dense.0.weight", "down.1.attn.0.q.weight", "up.0.block.2.conv1.weight", "norm_out.bias"
    diffusers    a UNet2DModel such as google/ddpm-cifar10-32: "time_embedding.linear_1.weight",
                 "down_blocks.1.attentions.0.to_q.weight", "up_blocks.3.resnets.2.conv1.weight", "conv_norm_out.bias"

The first is our own. Shapes show widths, blocks and attention levels. They do not show the image size, the variance of
the reverse step and, in diffusers' layout, whether the network equals DDPM's: `convert` documents the source of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from undiffuse.adapters import diffusers_config, diffusers_scheduler
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import DDPMConfig
from undiffuse.nets.meta import build_on_meta

ORIGINAL = "original"
DIFFUSERS = "diffusers"

ATTENTION_SIZE = 16
"""Side of the feature maps with attention in all of the authors' networks."""

# Names that a layout has for any network size; no other known layout has all of them.
_ANCHORS = {
    ORIGINAL: ("temb.dense.0.weight", "conv_in.weight", "mid.block_1.norm1.weight", "norm_out.weight"),
    DIFFUSERS: ("time_embedding.linear_1.weight", "conv_in.weight", "mid_block.resnets.0.norm1.weight",
                "conv_norm_out.weight"),
}  # fmt: skip

# Parts of names: ours, diffusers', and diffusers' spellings before 2023. "down" and "up" are handled separately,
# because "up" counts in reverse.
_PARTS: tuple[tuple[str, ...], ...] = (
    ("temb.dense.0.", "time_embedding.linear_1."),
    ("temb.dense.1.", "time_embedding.linear_2."),
    ("mid.block_1.", "mid_block.resnets.0."),
    ("mid.block_2.", "mid_block.resnets.1."),
    ("mid.attn_1.", "mid_block.attentions.0."),
    ("norm_out.", "conv_norm_out."),
    (".block.", ".resnets."),
    (".attn.", ".attentions."),
    (".downsample.", ".downsamplers.0."),
    (".upsample.", ".upsamplers.0."),
    (".temb_proj.", ".time_emb_proj."),
    (".nin_shortcut.", ".conv_shortcut."),
    (".norm.", ".group_norm."),
    (".q.", ".to_q.", ".query."),
    (".k.", ".to_k.", ".key."),
    (".v.", ".to_v.", ".value."),
    (".proj_out.", ".to_out.0.", ".proj_attn."),
)
_POINTWISE = re.compile(r"\.(q|k|v|proj_out)\.weight$")


def recognise(state: Mapping[str, Any]) -> str | None:
    """Returns the layout of a state dict, "original" or "diffusers"; None if it is not of a DDPM-style U-Net.

    Checks only names, so `convert` may still raise. Ignores the prefix "module." of parallel training. Recognises
    UNet2DModels with any settings, but not text-conditional U-Nets.
    """
    names = {name.removeprefix("module.") for name in state}
    if any(".transformer_blocks." in name for name in names):
        return None
    return next((layout for layout, anchors in _ANCHORS.items() if names.issuperset(anchors)), None)


def weights_in(content: Any) -> Mapping[str, Any] | None:
    """Returns the state dict of a DDPM-style U-Net in a file's content, or None if there is none.

    The content is a state dict, or a list written by DDIM's training: network, optimizer, epoch, step and the EMA
    weights, which are preferred, as in DDIM's sampling.
    """
    candidates = [content] if isinstance(content, Mapping) else []
    if isinstance(content, (list, tuple)) and content:
        candidates = [part for part in (content[-1], content[0]) if isinstance(part, Mapping)]
    return next((part for part in candidates if all(isinstance(name, str) for name in part) and recognise(part)), None)


def convert(
    state: Mapping[str, Tensor],
    *,
    unet: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
    variance: str | None = None,
    dropout: float | None = None,
) -> tuple[DDPMConfig, ProcessConfig, dict[str, Tensor]]:
    """Converts a state dict of either layout.

    Args:
        state: The state dict.
        unet: The config.json of a UNet2DModel (`diffusers_config.DDPM_SETTINGS` for a known file of DDPM). Required for
            weights in diffusers' layout, because another order in the time embedding, another padding or another
            number of heads has the same shapes.
        scheduler: The scheduler_config.json; by default DDPM's process, 1000 linear steps that predict the noise.
        image_size: By default unet's "sample_size", else the size for which attention is at 16x16.
        variance: "fixed_large" or "fixed_small"; by default the scheduler's, else that of the authors: fixed_large
            below 256 pixels (CIFAR-10, CelebA), fixed_small at 256 (LSUN, CelebA-HQ).
        dropout: For further training; by default unet's "dropout", else 0.

    Returns:
        The network, the process, and the weights by our names in float32.

    Raises:
        ValueError: This is not DDPM's U-Net, or a setting cannot be determined.
    """
    if variance not in (None, "fixed_large", "fixed_small"):
        raise ValueError(
            f"variance {variance!r}: expected 'fixed_large' or 'fixed_small', as DDPM's U-Net predicts none"
        )
    layout = recognise(state)
    if layout is None:
        raise ValueError("these are not weights of a DDPM-style U-Net, by its original names or by diffusers'")
    odd = [name for name, value in state.items() if not isinstance(value, Tensor) or not value.is_floating_point()]
    if odd:
        raise ValueError(
            f"{odd[0]} is not a tensor of floating-point numbers, so these are not the weights of a network"
        )
    if layout == DIFFUSERS and unet is None:
        raise ValueError(
            "these weights are in the layout of diffusers' UNet2DModel, whose shapes do not determine the network: "
            "give the folder with its config.json, not the file alone"
        )
    names = _names(state, layout)
    ours = {own: state[name] for own, name in names.items()}
    config = _config(ours, unet or {}, image_size, dropout)
    _check_groups(config, 32 if unet is None else unet.get("norm_num_groups", 32))
    if unet is not None:
        diffusers_config.check_unet(unet, _attending(config))
        ours = {own: value[..., None, None] if _is_flat(own, value) else value for own, value in ours.items()}
    if layout == DIFFUSERS:
        names = {**{own: diffusers_name(own, len(config.widths)) for own in config_names(config)}, **names}
    _check_shapes(config, ours, names)
    if scheduler is None:
        process = ProcessConfig(variance=variance or ("fixed_large" if min(config.size) < 256 else "fixed_small"))
    else:
        process = diffusers_scheduler.process_config(scheduler, variance)
    return config, process, {own: ours[own].detach().float().contiguous() for own in config_names(config)}


def config_names(config: DDPMConfig) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of the network's weights, in order."""
    return {name: tuple(value.shape) for name, value in build_on_meta(config.build).state_dict().items()}


def diffusers_name(name: str, levels: int) -> str:
    """Returns diffusers' name of our parameter `name` in a network of `levels` levels.

    Attention weights are [C, C, 1, 1] here and [C, C] there.
    """
    for own, theirs, *_ in _PARTS:
        if own in name and (own[0] == "." or name.startswith(own)):
            name = name.replace(own, theirs)
    if name.startswith("up."):
        level, rest = name.removeprefix("up.").split(".", 1)
        return f"up_blocks.{levels - 1 - int(level)}.{rest}"
    return re.sub(r"^down\.", "down_blocks.", name)


def _own_name(name: str, levels: int) -> str:
    """Returns our name of diffusers' parameter `name`. Unknown names stay unknown."""
    for own, *theirs in _PARTS:
        for their in theirs:
            if their in name and (their[0] == "." or name.startswith(their)):
                name = name.replace(their, own)
    found = re.match(r"up_blocks\.(\d+)\.(.*)", name)
    if found:
        return f"up.{levels - 1 - int(found[1])}.{found[2]}"
    return re.sub(r"^down_blocks\.", "down.", name)


def _names(state: Mapping[str, Any], layout: str) -> dict[str, str]:
    """Returns the names in the file by our names; ValueError if two of them mean the same."""
    bare = {name.removeprefix("module."): name for name in state}
    if layout == DIFFUSERS:
        levels = _count(bare, r"down_blocks\.(\d+)\.")
        bare = {_own_name(name, levels): given for name, given in bare.items()}
    if len(bare) < len(state):
        twice = sorted(set(state) - set(bare.values()))
        raise ValueError(f"{twice[0]} is in the file twice, also under another name")
    return bare


def _count(names: Mapping[str, Any], pattern: str) -> int:
    """Returns one more than the largest number in names that match `pattern`."""
    return 1 + max((int(found[1]) for name in names if (found := re.match(pattern, name))), default=-1)


def _config(
    ours: Mapping[str, Tensor], unet: Mapping[str, Any], size: int | tuple[int, int] | None, dropout: float | None
) -> DDPMConfig:
    """Returns the configuration that the shapes show; ValueError if they match no network."""
    levels = _count(ours, r"down\.(\d+)\.")
    first, last = _shape(ours, "conv_in.weight"), _shape(ours, "conv_out.weight")
    widths = [_shape(ours, f"down.{level}.block.0.conv1.weight")[0] for level in range(levels)]
    width, channels = first[0], first[1]
    if last[0] == 2 * channels:
        raise ValueError(
            f"this network has {channels} input and {last[0]} output channels: it predicts its variance, which DDPM's "
            "U-Net does not"
        )
    blocks = _count(ours, r"down\.0\.block\.(\d+)\.")
    if not levels or blocks > len(ours) or min(width, *widths) < 1:
        raise ValueError("this is not DDPM's U-Net: its encoder has no levels, or invalid ones")
    attends = [level for level in range(levels) if f"down.{level}.attn.0.q.weight" in ours]
    if size is None:
        size = _image_size(unet.get("sample_size"), attends)
    return DDPMConfig(
        image_size=size,
        in_channels=channels,
        out_channels=last[0],
        model_channels=width,
        num_res_blocks=blocks,
        channel_mult=tuple(n // width if n % width == 0 else n / width for n in widths),
        attention_resolutions=tuple(2**level for level in attends),
        dropout=diffusers_scheduler.number(unet, "dropout", 0.0) if dropout is None else dropout,
    )


def _shape(ours: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Returns the shape of a convolution's weights."""
    if name not in ours or ours[name].ndim != 4:
        raise ValueError(f"this is not DDPM's U-Net: it lacks the convolution {name}")
    return tuple(ours[name].shape)


def _image_size(stated: Any, attends: list[int]) -> int | tuple[int, int]:
    """Returns the image size of config.json, a number or [height, width], or else the one implied by the attention."""
    sides = stated if isinstance(stated, (list, tuple)) else (stated, stated)
    if len(sides) == 2 and all(isinstance(side, int) for side in sides):
        return stated if isinstance(stated, int) else (sides[0], sides[1])
    if stated is not None:
        raise ValueError(f"config.json has sample_size = {stated!r}; expected a number or [height, width]")
    if len(attends) != 1:
        where = " and ".join(f"1/{2**level}" for level in attends) or "no level"
        raise ValueError(
            f"the image size cannot be determined, because attention is at {where} of it and not at a single level "
            f"(which would be {ATTENTION_SIZE}x{ATTENTION_SIZE}); give the image size"
        )
    return ATTENTION_SIZE * 2 ** attends[0]


def _attending(config: DDPMConfig) -> set[int]:
    """Returns the widths of the levels with attention, including the middle block."""
    at = config.attention_resolutions
    return {width for level, width in enumerate(config.widths) if 2**level in at} | {config.widths[-1]}


def _check_groups(config: DDPMConfig, stated: int) -> None:
    """Raises ValueError unless all group norms of our network have as many groups as the file's."""
    groups = {module.num_groups for module in build_on_meta(config.build).modules() if isinstance(module, nn.GroupNorm)}
    if groups != {stated}:
        raise ValueError(
            f"its group norms have {stated} groups, but those of our network with {'/'.join(map(str, config.widths))} "
            f"channels have {' and '.join(map(str, sorted(groups)))}"
        )


def _is_flat(name: str, value: Tensor) -> bool:
    return value.ndim == 2 and _POINTWISE.search(name) is not None


def _check_shapes(config: DDPMConfig, ours: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Raises ValueError, with the file's `names`, unless the weights match the configuration."""
    expected = config_names(config)
    found = {name: tuple(value.shape) for name, value in ours.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        name = odd[0]
        there = f"has shape {list(found[name])}" if name in found else "is missing"
        wanted = f"DDPM's has shape {list(expected[name])}" if name in expected else "DDPM's has no such part"
        raise ValueError(
            f"this is not DDPM's U-Net: {len(odd)} of its tensors differ; {names.get(name, name)} {there}, {wanted}"
        )
