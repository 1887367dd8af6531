"""Reads network pickles of NVIDIA's EDM (Karras et al. 2022) as data: `EDMPrecond` around one of its U-Nets.

The pickles contain whole objects with the source code of their classes, which is never run. Their attributes and
constructor arguments describe the network. Sampling is EDM's: noise from 80 to 0.002, Heun's method. NVIDIA's networks
are under CC BY-NC-SA 4.0; users must respect the licence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from undiffuse.adapters import programs
from undiffuse.config import SamplerConfig
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets.edm_unet import EDMUNetConfig
from undiffuse.nets.meta import build_on_meta

LICENCE = "CC BY-NC-SA 4.0, if it is one of NVIDIA's own networks: not for commercial use"
_SONG: Mapping[str, Any] = {
    "model_channels": 128, "channel_mult": [1, 2, 2, 2], "channel_mult_emb": 4, "num_blocks": 4,
    "attn_resolutions": [16], "dropout": 0.10, "label_dropout": 0, "embedding_type": "positional",
    "channel_mult_noise": 1, "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1],
}  # fmt: skip
_DHARIWAL: Mapping[str, Any] = {
    "model_channels": 192, "channel_mult": [1, 2, 3, 4], "channel_mult_emb": 4, "num_blocks": 3,
    "attn_resolutions": [32, 16, 8], "dropout": 0.10, "label_dropout": 0,
}  # fmt: skip
_DESIGNS = {"SongUNet": ("song", _SONG), "DhariwalUNet": ("dhariwal", _DHARIWAL)}
_ALSO = ("img_resolution", "in_channels", "out_channels", "label_dim", "augment_dim")


def read(module: Any, state: Mapping[str, Tensor]) -> tuple[EDMUNetConfig, ProcessConfig, dict[str, Tensor]]:
    """Reads the network, its process and its weights by our names.

    Args:
        module: The inert `EDMPrecond`.
        state: Its weights.

    Raises:
        ValueError: It has another preconditioning or design, or its weights do not match its arguments.
    """
    name = programs.class_name(module)
    outer = programs.attributes(module)
    inner = programs.attributes(outer.get("_modules")).get("model")
    if name != "EDMPrecond":
        raise ValueError(
            f"this network of EDM has the preconditioning {name} of another paper, which is not supported: use one "
            "trained with EDMPrecond"
        )
    kind = programs.class_name(inner)
    if kind not in _DESIGNS:
        raise ValueError(
            f"this network of EDM is a {kind or 'network without a name'}; expected {' or '.join(_DESIGNS)}"
        )
    design, defaults = _DESIGNS[kind]
    given = programs.attributes(programs.attributes(inner).get("_init_kwargs"))
    arguments = {**defaults, **given}
    unknown = sorted(set(arguments) - set(defaults) - set(_ALSO))
    odd = [(key, arguments[key]) for key, usual in (("encoder_type", ("standard", "residual")),
           ("decoder_type", ("standard",))) if arguments.get(key, usual[0]) not in usual]  # fmt: skip
    filters = [list(arguments.get("resample_filter", [1, 1]))]
    if unknown or odd or filters[0] not in ([1, 1], [1, 3, 3, 1]):
        raise ValueError(f"this {kind} has unsupported settings: {unknown or odd or filters}")
    size = arguments["img_resolution"]
    config = EDMUNetConfig(
        image_size=size,
        in_channels=arguments["in_channels"],
        out_channels=arguments["out_channels"],
        model_channels=arguments["model_channels"],
        num_res_blocks=arguments["num_blocks"],
        channel_mult=tuple(arguments["channel_mult"]),
        attention_resolutions=tuple(size // side for side in arguments["attn_resolutions"] if 0 < side <= size),
        dropout=arguments["dropout"],
        design=design,
        time_type=arguments.get("embedding_type", "positional"),
        time_mult=arguments.get("channel_mult_noise", 1),
        embedding_mult=arguments["channel_mult_emb"],
        residual_input=arguments.get("encoder_type") == "residual",
        filtered=filters[0] == [1, 3, 3, 1],
        num_classes=arguments.get("label_dim") or None,
        null_class=bool(arguments["label_dropout"]) and bool(arguments.get("label_dim")),
    )
    bare = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    bare = {key: value for key, value in bare.items() if not key.endswith((".resample_filter", "map_augment.weight"))}
    expected = {key: tuple(value.shape) for key, value in build_on_meta(config.build).state_dict().items()}
    found = {key: tuple(value.shape) for key, value in bare.items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        raise ValueError(f"{len(wrong)} of its weights do not match its {kind} arguments, first {wrong[0]}")
    data = outer.get("sigma_data", 0.5)
    process = ProcessConfig(preconditioning="edm", target="edm", variance="fixed_small", sigma_data=float(data))
    return config, process, {key: bare[key].detach().float().contiguous() for key in expected}


def advice(config: EDMUNetConfig) -> SamplerConfig:
    """Returns EDM's sampling settings: Heun's method on its grid, 18 steps for 32 pixels, else 40, no clipping."""
    return SamplerConfig(solver="heun", steps="18" if config.size[0] <= 32 else "40", grid="karras", clip="none")
