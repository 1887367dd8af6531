"""Reads network pickles of NVIDIA's EDM (Karras et al. 2022) as data: a preconditioning around one of its U-Nets.

`EDMPrecond` is the paper's own. `VPPrecond`, `VEPrecond` and `iDDPMPrecond` are those of its baselines (its Table 1).

The pickles contain whole objects with the source code of their classes, which is never run. Their attributes and
constructor arguments describe the network. Sampling is EDM's: noise from 80 to 0.002, Heun's method. NVIDIA's networks
are under CC BY-NC-SA 4.0; users must respect the licence.
"""

from __future__ import annotations

import math
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
_PRECONDITIONINGS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")
_ALSO = ("img_resolution", "in_channels", "out_channels", "label_dim", "augment_dim")


def read(module: Any, state: Mapping[str, Tensor]) -> tuple[EDMUNetConfig, ProcessConfig, dict[str, Tensor]]:
    """Reads the network, its process and its weights by our names.

    Args:
        module: The inert `EDMPrecond`, or another preconditioning.
        state: Its weights.

    Raises:
        ValueError: It has an unknown preconditioning or design, or its weights do not match its arguments.
    """
    name = programs.class_name(module)
    outer = programs.attributes(module)
    inner = programs.attributes(outer.get("_modules")).get("model")
    if name not in _PRECONDITIONINGS:
        known = ", ".join(_PRECONDITIONINGS)
        raise ValueError(f"this network of EDM has the unknown preconditioning {name!r}; known are {known}")
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
    size, channels = arguments["img_resolution"], arguments["in_channels"]
    config = EDMUNetConfig(
        image_size=size,
        in_channels=channels,
        out_channels=channels,
        model_channels=arguments["model_channels"],
        num_res_blocks=arguments["num_blocks"],
        channel_mult=tuple(arguments["channel_mult"]),
        attention_resolutions=tuple(size // side for side in arguments["attn_resolutions"] if 0 < side <= size),
        dropout=arguments["dropout"],
        design=design,
        time_type=arguments.get("embedding_type", "positional"),
        log_time=name == "VEPrecond",
        time_mult=arguments.get("channel_mult_noise", 1),
        embedding_mult=arguments["channel_mult_emb"],
        residual_input=arguments.get("encoder_type") == "residual",
        filtered=filters[0] == [1, 3, 3, 1],
        num_classes=arguments.get("label_dim") or None,
        null_class=bool(arguments["label_dropout"]) and bool(arguments.get("label_dim")),
    )
    bare = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    bare = {key: value for key, value in bare.items() if not key.endswith((".resample_filter", "map_augment.weight"))}
    if name == "iDDPMPrecond":  # the second half of its output, a variance, is never trained nor used
        last = [key for key in bare if key.rpartition(".")[0].endswith(("_aux_conv", "out_conv"))]
        bare |= {key: bare[key][:channels] for key in last if len(bare[key]) == 2 * channels}
    expected = {key: tuple(value.shape) for key, value in build_on_meta(config.build).state_dict().items()}
    found = {key: tuple(value.shape) for key, value in bare.items()}
    wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if wrong:
        raise ValueError(f"{len(wrong)} of its weights do not match its {kind} arguments, first {wrong[0]}")
    process = _process(name, outer, state)
    return config, process, {key: bare[key].detach().float().contiguous() for key in expected}


def _process(name: str, outer: Mapping[str, Any], state: Mapping[str, Tensor]) -> ProcessConfig:
    """Reads the noise levels and the meaning of the output from the attributes of a preconditioning."""

    def number(key: str, usual: float) -> float:
        value = outer.get(key, usual)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"its {name} has {key} = {value!r}; expected a number")
        return float(value)

    if name in ("VPPrecond", "iDDPMPrecond") and number("M", 1000) != 1000:
        raise ValueError(f"its {name} has M = {outer.get('M')} timesteps; only 1000 are supported")
    if name == "VPPrecond":
        low = number("beta_min", 0.1)
        high = low + number("beta_d", 19.9)
        return ProcessConfig(preconditioning="vp", target="eps", variance="fixed_small", beta_min=low, beta_max=high)
    if name == "VEPrecond":
        low, high = number("sigma_min", 0.02), number("sigma_max", 100)
        return ProcessConfig(
            preconditioning="ve", target="score", variance="fixed_small", sigma_min=low, sigma_max=high
        )
    if name == "iDDPMPrecond":
        sigmas = state.get("u")
        if sigmas is None or sigmas.shape != (1001,):
            raise ValueError("its iDDPMPrecond lacks the table u of its 1000 noise levels")
        alphas = 1 / (1 + sigmas.double().flip(0) ** 2)  # from the clean image to pure noise
        return ProcessConfig(betas=tuple((1 - alphas[1:] / alphas[:-1]).tolist()), target="eps", variance="fixed_small")
    return ProcessConfig(
        preconditioning="edm", target="edm", variance="fixed_small", sigma_data=number("sigma_data", 0.5)
    )


def advice(config: EDMUNetConfig, process: ProcessConfig) -> SamplerConfig:
    """Returns EDM's sampling settings: Heun's method on its grid, 18 steps for 32 pixels, else 40, no clipping."""
    steps = "18" if config.size[0] <= 32 else "40"
    grid = "karras:to=12.4292" if process.preconditioning == "vp" else "karras"  # to sigma = 0.002
    return SamplerConfig(solver="heun", steps=steps, grid=grid, clip="none")
