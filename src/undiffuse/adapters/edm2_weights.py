"""Reads network pickles of NVIDIA's EDM2 (Karras et al. 2024) as data: `Precond` around its U-Net, in pixel space.

The pickles contain whole objects with the source code of their classes, which is never run. Weights are normalised and
multiplied by their gains here, once. NVIDIA's networks are under CC BY-NC-SA 4.0; users must respect the licence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from undiffuse.adapters import programs
from undiffuse.config import SamplerConfig
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets.edm2_unet import EPS, EDM2UNetConfig
from undiffuse.nets.meta import build_on_meta

_UNET: Mapping[str, Any] = {
    "model_channels": 192, "channel_mult": [1, 2, 3, 4], "channel_mult_noise": None, "channel_mult_emb": None,
    "num_blocks": 3, "attn_resolutions": [16, 8], "label_balance": 0.5, "concat_balance": 0.5,
    "resample_filter": [1, 1], "channels_per_head": 64, "dropout": 0, "res_balance": 0.3, "attn_balance": 0.3,
    "clip_act": 256,
}  # fmt: skip
_ALSO = ("img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_data", "logvar_channels")
_PARTS = {"conv_res0.weight": "conv0.weight", "emb_linear.weight": "scale.weight", "conv_res1.weight": "conv1.weight",
          "conv_skip.weight": "skip.weight", "attn_qkv.weight": "attention.qkv.weight",
          "attn_proj.weight": "attention.proj.weight"}  # fmt: skip
_WHOLE = {"emb_fourier.freqs": "embedding.frequencies", "emb_fourier.phases": "embedding.phases",
          "emb_noise.weight": "embedding.noise.weight", "emb_label.weight": "embedding.label.weight",
          "out_conv.weight": "conv_out.weight"}  # fmt: skip


def read(module: Any, state: Mapping[str, Tensor]) -> tuple[EDM2UNetConfig, ProcessConfig, dict[str, Tensor]]:
    """Reads the network, its process and its weights by our names.

    Args:
        module: The inert `Precond`.
        state: Its weights.

    Raises:
        ValueError: It works on latents, has unsupported settings, or its weights do not match its arguments.
    """
    outer = programs.attributes(module)
    given = programs.attributes(outer.get("_init_kwargs"))
    arguments = {**_UNET, **{key: outer[key] for key in _ALSO if key in outer}, **given}
    unknown = sorted(set(arguments) - set(_UNET) - set(_ALSO))
    if unknown or list(arguments["resample_filter"]) != [1, 1]:
        raise ValueError(f"this network of EDM2 has unsupported settings: {unknown or arguments['resample_filter']}")
    if not isinstance(arguments.get("img_resolution"), int):
        raise ValueError("this network of EDM2 does not record its arguments")
    size, channels, width = arguments["img_resolution"], arguments["img_channels"], arguments["model_channels"]
    if channels in (4, 8):
        raise ValueError(
            f"this network of EDM2 works on latents of an autoencoder ({channels} channels), and undiffuse supports "
            "only pixel-space models: use edm2-img64"
        )
    noise, emb = arguments["channel_mult_noise"], arguments["channel_mult_emb"]
    multipliers = tuple(arguments["channel_mult"])
    config = EDM2UNetConfig(
        image_size=size,
        in_channels=channels,
        out_channels=channels,
        model_channels=width,
        num_res_blocks=arguments["num_blocks"],
        channel_mult=multipliers,
        attention_resolutions=tuple(size // side for side in arguments["attn_resolutions"] if 0 < side <= size),
        time_channels=int(width * (multipliers[0] if noise is None else noise)),
        embedding=int(width * (max(multipliers) if emb is None else emb)),
        head_channels=arguments["channels_per_head"],
        residual_balance=arguments["res_balance"],
        attention_balance=arguments["attn_balance"],
        label_balance=arguments["label_balance"],
        concat_balance=arguments["concat_balance"],
        limit=arguments["clip_act"],
        num_classes=arguments.get("label_dim") or None,
    )
    ours = _weights(config, {key.removeprefix("unet."): v for key, v in state.items() if key.startswith("unet.")})
    process = ProcessConfig(
        preconditioning="edm", target="edm", variance="fixed_small", sigma_data=float(arguments.get("sigma_data", 0.5))
    )
    return config, process, ours


def advice() -> SamplerConfig:
    """Returns EDM2's sampling settings: Heun's method in 32 steps on Karras' grid, no clipping."""
    return SamplerConfig(solver="heun", steps="32", grid="karras", clip="none")


def folded(weight: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    """Returns a weight as it acts: of unit norm for each output (equation 47), times a gain."""
    w = weight.float()
    fan = w[0].numel()
    norm = w.flatten(1).norm(dim=1).reshape(-1, *[1] * (w.ndim - 1)) + EPS * fan**0.5
    return (w / norm * gain).contiguous()


def _weights(config: EDM2UNetConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights by our names, folded; ValueError if they are not those of the configuration."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        block, _, last = name.removesuffix(".weight").rpartition(".")
        gain = {"emb_linear": f"{block}.emb_gain", "out_conv": "out_gain"}.get(last, "")
        if value.ndim > 1:
            out[_name(config, name)] = folded(value, state[gain].float() if gain in state else 1.0)
        elif value.ndim == 1:  # the frequencies and phases of the times
            out[_name(config, name)] = value.float().contiguous()
    expected = {key: tuple(value.shape) for key, value in build_on_meta(config.build).state_dict().items()}
    found = {key: tuple(value.shape) for key, value in out.items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        raise ValueError(f"{len(wrong)} of its weights do not match its arguments, first {wrong[0]}")
    return out


def _name(config: EDM2UNetConfig, name: str) -> str:
    """Returns our name of a weight, or the name itself if there is none."""
    if name in _WHOLE:
        return _WHOLE[name]
    found = re.fullmatch(r"(enc|dec)\.(\d+)x\d+_(conv|down|up|in\d|block\d+)\.(.+)", name)
    if not found:
        return name
    half, side, what, part = found.groups()
    part = _PARTS.get(part, part)
    if what == "conv":
        return f"conv_in.{part}"
    if what.startswith("in"):
        return f"middle.{what.removeprefix('in')}.{part}"
    top = len(config.widths) - 1
    level = (config.size[0] // int(side)).bit_length() - 1
    moves = level > 0 if half == "enc" else level < top  # the level begins with a block that halves or doubles
    index = 0 if what in ("down", "up") else int(what.removeprefix("block")) + moves
    return f"encoder.{level}.{index}.{part}" if half == "enc" else f"decoder.{top - level}.{index}.{part}"
