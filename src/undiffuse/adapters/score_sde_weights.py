"""Reads checkpoints of score_sde_pytorch (Song et al. 2021): its NCSN++ and DDPM++, trained on one of its SDEs.

A checkpoint contains the network's modules by number (`all_modules.12.Conv_0.weight`), and an EMA as a list of tensors
in the order of the parameters. Names and shapes show the whole network, except the filter of its resampling. The SDE
and the image size are in the program's configuration, which the checkpoint lacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from undiffuse.config import SamplerConfig
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets.edm_unet import EDMBlock, EDMUNet, EDMUNetConfig, InputResidual
from undiffuse.nets.meta import build_on_meta
from undiffuse.nets.unet2d import UNet2DConfig

_FIRST = "all_modules.0."
_SDES = {"vesde": "ve", "vpsde": "vp", "subvpsde": "subvp"}
_FLAGS = ("sde", "image_size", "fir", "continuous", "sigma_min", "sigma_max", "beta_min", "beta_max")
_EXAMPLE = '"sde=vesde image_size=32 fir=True"'
# The parts of a residual block, by the names of the two networks that they become.
_JOINED = {"GroupNorm_0": "norm0", "Conv_0": "conv0", "Dense_0": "affine", "GroupNorm_1": "norm1", "Conv_1": "conv1",
           "Conv_2": "skip"}  # fmt: skip
_APART = {"GroupNorm_0": "norm1", "Conv_0": "conv1", "Dense_0": "time_emb_proj", "GroupNorm_1": "norm2",
          "Conv_1": "conv2", "Conv_2": "conv_shortcut"}  # fmt: skip


def looks_like(names: Mapping[str, Any]) -> bool:
    """Returns whether these are the names of a network of this program."""
    return any(name.startswith(_FIRST) for name in names)


def state_dicts(content: Mapping[str, Any]) -> dict[str, Mapping[str, Tensor]]:
    """Returns the weights in a checkpoint by name: "ema" and "model".

    Raises:
        ValueError: The EMA does not belong to the network.
    """
    whole = content.get("model", content)
    if not isinstance(whole, Mapping) or not all(isinstance(value, Tensor) for value in whole.values()):
        return {}
    model = {str(name).removeprefix("module."): value for name, value in whole.items()}
    out: dict[str, Mapping[str, Tensor]] = {"model": model}
    ema = content.get("ema")
    shadow = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if isinstance(shadow, (list, tuple)):
        # The EMA lacks what is not trained: the table of noise levels and the frequencies of a Fourier embedding.
        names = [name for name, value in model.items() if name != "sigmas" and not _is_fourier(name, value)]
        names = names if len(names) == len(shadow) else [name for name in model if name != "sigmas"]
        if [model[name].shape for name in names] != [getattr(value, "shape", None) for value in shadow]:
            raise ValueError("its EMA (shadow_params) does not match the parameters of its model in number and shape")
        out["ema"] = {**model, **dict(zip(names, shadow, strict=True))}
    return out


@dataclass(frozen=True)
class _Module:
    """A numbered module: its weights by their names."""

    number: int
    parts: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        """What it is, by the names and shapes of its weights."""
        names = set(self.parts)
        if "NIN_3.W" in names:
            return "attention"
        if "GroupNorm_1.weight" in names:
            return "plain block" if "NIN_0.W" in names else "block"
        if "Conv2d_0.weight" in names:
            return "pyramid"
        if "Conv_0.weight" in names:
            return "combine" if self.parts["Conv_0.weight"].shape[-1] == 1 else "resample"
        if "W" in names:
            return "fourier"
        return {1: "norm", 2: "linear", 4: "conv"}.get(self.parts["weight"].ndim, "") if "weight" in names else ""

    @property
    def changes(self) -> tuple[int, int]:
        """Channels in and out of a block."""
        out, given = self.parts["Conv_0.weight"].shape[:2]
        return given, out


@dataclass(frozen=True)
class _Layout:
    """What the modules show: width, image channels, channels and attention of each level, and variants."""

    width: int
    channels: int
    blocks: int
    widths: tuple[int, ...]
    attends: tuple[bool, ...]
    fourier: bool
    pyramid: str


def read(
    state: Mapping[str, Tensor], flags: Mapping[str, str]
) -> tuple[EDMUNetConfig | UNet2DConfig, ProcessConfig, dict[str, Tensor]]:
    """Reads the network, the process and the weights by our names.

    Args:
        state: The weights by the program's names, with its table `sigmas`.
        flags: The user's settings, named as in the program's configuration: "sde", "image_size", "fir", and
            "continuous" of an SDE that also exists as a chain.

    Raises:
        ValueError: The network has unsupported parts, or a setting is missing.
    """
    unknown = sorted(set(flags) - set(_FLAGS))
    if unknown:
        raise ValueError(f"models of score_sde_pytorch take {', '.join(_FLAGS)}, not {unknown[0]}")
    modules = _modules(state)
    layout = _layout(modules)
    sde = _chosen(flags, "sde", tuple(_SDES), "the SDE of its training")
    if not flags.get("image_size", "").isdigit():
        raise ValueError(f"the file does not record the image size: give it, for example FILE@{_EXAMPLE}")
    size = int(flags["image_size"])
    continuous = layout.fourier or sde == "subvpsde" or _chosen(flags, "continuous", ("True", "False"),
        "whether it was trained on continuous times (training.continuous)") == "True"  # fmt: skip
    process = _process(sde, continuous, layout, state.get("sigmas"), flags)
    config: EDMUNetConfig | UNet2DConfig
    if layout.pyramid == "combine":
        config = skip = _skip_config(layout, size)
        return config, process, _weights(config, _skip_slots(skip), modules)
    filtered = layout.pyramid == "pyramid" or _chosen(flags, "fir", ("True", "False"),
        "whether resampling uses the filter [1, 3, 3, 1] (model.fir)") == "True"  # fmt: skip
    config = plain = _config(layout, size, filtered)
    return config, process, _weights(config, _slots(plain), modules)


def advice(size: int) -> SamplerConfig:
    """Returns how to sample: Heun's method on EDM's grid, in far fewer steps than the program's samplers need."""
    return SamplerConfig(solver="heun", steps="18" if size <= 32 else "40", grid="karras", clip="none")


def _modules(state: Mapping[str, Tensor]) -> list[_Module]:
    numbered: dict[int, dict[str, Tensor]] = {}
    for name, value in state.items():
        found = re.fullmatch(r"all_modules\.(\d+)\.(.+)", name)
        if found:
            numbered.setdefault(int(found[1]), {})[found[2]] = value
    return [_Module(number, parts) for number, parts in sorted(numbered.items())]


def _layout(modules: list[_Module]) -> _Layout:
    """Reads the modules on the way down, up to the middle, in the order of the program's constructor."""
    kinds = [module.kind for module in modules]
    if "plain block" in kinds or "resample" in kinds:
        raise ValueError(
            "this network of score_sde_pytorch has blocks of DDPM (resblock_type 'ddpm'), which are not supported: use "
            "a DDPM++ or NCSN++ (resblock_type 'biggan')"
        )
    fourier = kinds[0] == "fourier"
    start = 3 if fourier else 2
    if kinds[start - 2 : start + 2] != ["linear", "linear", "conv", "block"] or kinds[-1] != "conv":
        raise ValueError("this network of score_sde_pytorch is neither DDPM++ nor NCSN++, and is not supported")
    width, channels = modules[start].parts["weight"].shape[:2]
    at, levels, pyramid = start + 1, [], ""
    level: list[_Module] = []
    attending = False
    while at < len(modules):
        module = modules[at]
        given, out = module.changes if module.kind == "block" else (0, 0)
        if module.kind == "attention":
            attending = True
        elif module.kind == "block" and given == out and "Conv_2.weight" in module.parts:  # halves the resolution
            levels.append((level, attending))
            level, attending = [], False
            if kinds[at + 1] in ("pyramid", "combine"):
                at, pyramid = at + 1, kinds[at + 1]
        elif module.kind == "block" and (not levels or len(level) < len(levels[0][0])):
            level.append(module)
        else:
            break
        at += 1
    if not levels or not level:
        raise ValueError("this network of score_sde_pytorch has a single resolution, which is not supported")
    levels.append((level, attending))
    return _Layout(
        width,
        channels,
        len(levels[0][0]),
        tuple(blocks[-1].changes[1] for blocks, _ in levels),
        tuple(attends for _, attends in levels),
        fourier,
        pyramid,
    )


def _shared(layout: _Layout, size: int) -> dict[str, Any]:
    wrong = [width for width in layout.widths if width % layout.width]
    if wrong:
        raise ValueError(f"this network of score_sde_pytorch has a width of {wrong[0]}, no multiple of {layout.width}")
    return {
        "image_size": size,
        "in_channels": layout.channels,
        "out_channels": layout.channels,
        "model_channels": layout.width,
        "num_res_blocks": layout.blocks,
        "channel_mult": tuple(width // layout.width for width in layout.widths),
    }


def _config(layout: _Layout, size: int, filtered: bool) -> EDMUNetConfig:
    return EDMUNetConfig(
        **_shared(layout, size),
        attention_resolutions=tuple(2**level for level, attends in enumerate(layout.attends) if attends),
        time_type="fourier" if layout.fourier else "positional",
        log_time=layout.fourier,
        time_mult=2 if layout.fourier else 1,
        residual_input=layout.pyramid == "pyramid",
        filtered=filtered,
    )


def _skip_config(layout: _Layout, size: int) -> UNet2DConfig:
    kinds = tuple("AttnSkip" if attends else "Skip" for attends in layout.attends)
    narrow = [width for width, attends in zip(layout.widths, layout.attends, strict=True) if attends and width < 128]
    if not layout.fourier or layout.channels != 3 or narrow:
        raise ValueError(
            "this NCSN++ with skip connections of images is supported only with Fourier times, 3 image channels and "
            "attention from 128 channels up"
        )
    return UNet2DConfig(
        **_shared(layout, size),
        down_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        head_channels=None,
        norm_groups=None,
        norm_eps=1e-6,
        time_type="fourier",
        divided_by_time=False,
        mid_scale=2**0.5,
    )


def _slots(config: EDMUNetConfig) -> Iterator[tuple[str, str]]:
    """Yields (kind, our prefix) of the program's modules in their order, for a DDPM++ or NCSN++."""
    net = build_on_meta(config.build)
    assert isinstance(net, EDMUNet)
    if config.time_type == "fourier":
        yield "fourier", "map_noise.freqs"
    yield "linear", "map_layer0"
    yield "linear", "map_layer1"
    for half, blocks in (("enc", net.enc), ("dec", net.dec)):
        for name, block in blocks.items():
            if isinstance(block, EDMBlock):
                yield "block", f"{half}.{name}"
                if block.heads:
                    yield "attention", f"{half}.{name}"
            elif isinstance(block, InputResidual):
                yield "pyramid", f"{half}.{name}"
            else:
                yield "norm" if name.endswith("_norm") else "conv", f"{half}.{name}"


def _skip_slots(config: UNet2DConfig) -> Iterator[tuple[str, str]]:
    """Yields the same for an NCSN++ with skip connections of images."""
    yield "fourier", "time_proj.weight"
    yield "linear", "time_embedding.linear_1"
    yield "linear", "time_embedding.linear_2"
    yield "conv", "conv_in"
    top = len(config.widths) - 1
    for level, kind in enumerate(config.down_types):
        at = f"down_blocks.{level}"
        for i in range(config.num_res_blocks):
            yield "block", f"{at}.resnets.{i}"
            if kind.startswith("Attn"):
                yield "attention", f"{at}.attentions.{i}"
        if level != top:
            yield "block", f"{at}.resnet_down"
            yield "combine", f"{at}.skip_conv"
    yield "block", "mid_block.resnets.0"
    yield "attention", "mid_block.attentions.0"
    yield "block", "mid_block.resnets.1"
    for level, kind in enumerate(config.up_types):
        at = f"up_blocks.{level}"
        yield from (("block", f"{at}.resnets.{i}") for i in range(config.num_res_blocks + 1))
        if kind.startswith("Attn"):
            yield "attention", f"{at}.attentions.0"
        yield "norm", f"{at}.skip_norm" if level != top else "conv_norm_out"
        yield "conv", f"{at}.skip_conv" if level != top else "conv_out"
        if level != top:
            yield "block", f"{at}.resnet_up"


def _weights(
    config: EDMUNetConfig | UNet2DConfig, slots: Iterable[tuple[str, str]], modules: list[_Module]
) -> dict[str, Tensor]:
    """Returns the weights by our names; ValueError if the modules are others than those of the configuration."""
    joined = isinstance(config, EDMUNetConfig)
    wanted = list(slots)
    kinds = [module.kind for module in modules]
    other = next((i for i, (a, (b, _)) in enumerate(zip(kinds, wanted, strict=False)) if a != b), None)
    if other is not None or len(kinds) != len(wanted):
        at = min(len(kinds), len(wanted)) if other is None else other
        raise ValueError(f"this network of score_sde_pytorch has unsupported parts, first all_modules.{at}")
    out: dict[str, Tensor] = {}
    for module, (kind, prefix) in zip(modules, wanted, strict=True):
        if kind == "fourier":
            out[prefix] = module.parts["W"]
        elif kind == "attention":
            out |= _attention(module.parts, prefix, joined)
        else:
            names = {"block": _JOINED if joined else _APART, "pyramid": {"Conv2d_0": ""}, "combine": {"Conv_0": ""}}
            for name, value in module.parts.items():
                first, _, end = name.rpartition(".")
                out[".".join(part for part in (prefix, names.get(kind, {}).get(first, first), end) if part)] = value
    ours = {name: value.detach().float().contiguous() for name, value in out.items()}
    expected = {name: tuple(value.shape) for name, value in build_on_meta(config.build).state_dict().items()}
    found = {name: tuple(value.shape) for name, value in ours.items()}
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if odd:
        raise ValueError(f"this network of score_sde_pytorch has unsupported parts ({len(odd)} tensors, as {odd[0]})")
    return ours


def _attention(parts: Mapping[str, Tensor], prefix: str, joined: bool) -> dict[str, Tensor]:
    """Returns attention by our names; `joined` if q, k and v of a channel stand beside each other in one tensor."""
    weights = [parts[f"NIN_{i}.W"].t() for i in range(4)]
    biases = [parts[f"NIN_{i}.b"] for i in range(4)]
    if not joined:
        norms = {f"{prefix}.group_norm.{end}": parts[f"GroupNorm_0.{end}"] for end in ("weight", "bias")}
        names = [f"{prefix}.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
        pairs = zip(names, weights, biases, strict=True)
        return norms | {f"{n}.{end}": v for n, w, b in pairs for end, v in (("weight", w), ("bias", b))}
    return {
        f"{prefix}.norm2.weight": parts["GroupNorm_0.weight"],
        f"{prefix}.norm2.bias": parts["GroupNorm_0.bias"],
        f"{prefix}.qkv.weight": torch.stack(weights[:3], dim=1).flatten(0, 1)[:, :, None, None],
        f"{prefix}.qkv.bias": torch.stack(biases[:3], dim=1).flatten(),
        f"{prefix}.proj.weight": weights[3][:, :, None, None],
        f"{prefix}.proj.bias": biases[3],
    }


def _process(
    sde: str, continuous: bool, layout: _Layout, table: Tensor | None, flags: Mapping[str, str]
) -> ProcessConfig:
    """Returns the process: the SDE, or the chain that it was trained on."""
    if sde == "vesde":
        if not layout.fourier:
            raise ValueError(
                "a network of the VE SDE with a positional embedding takes the number of its noise level, which is "
                "not supported: use one with Fourier times (embedding_type 'fourier')"
            )
        ends = {} if table is None or table.numel() < 2 else {"sigma_min": table.min(), "sigma_max": table.max()}
        low, high = (2 * _number(flags, name, ends.get(name)) for name in ("sigma_min", "sigma_max"))
        # The program's sigma is that of images in [0, 1].
        return ProcessConfig(
            preconditioning="ve", target="score", variance="fixed_small", sigma_min=low, sigma_max=high
        )
    low, high = _number(flags, "beta_min", 0.1), _number(flags, "beta_max", 20.0)
    if continuous:
        return ProcessConfig(
            preconditioning=_SDES[sde], target="eps", variance="fixed_small", beta_min=low, beta_max=high
        )
    steps = 1000 if table is None else table.numel()
    chain = np.linspace(low / steps, high / steps, steps)
    return ProcessConfig(betas=tuple(chain.tolist()), target="eps", variance="fixed_small")


def _number(flags: Mapping[str, str], name: str, usual: Tensor | float | None) -> float:
    if name not in flags:
        if usual is None:
            raise ValueError(f"the file does not record {name}: give it, for example FILE@{_EXAMPLE}")
        return float(usual)
    try:
        return float(flags[name])
    except ValueError:
        raise ValueError(f"{name} {flags[name]}: expected a number") from None


def _chosen(flags: Mapping[str, str], name: str, known: tuple[str, ...], what: str) -> str:
    value = flags.get(name)
    if value is None:
        raise ValueError(
            f"the file does not record {name}, {what}: give {' or '.join(f'{name}={word}' for word in known)}, for "
            f"example FILE@{_EXAMPLE}"
        )
    word = next((word for word in known if word.lower() == value.lower()), None)
    if word is None:
        raise ValueError(f"{name} {value}: expected {' or '.join(known)}")
    return word


def _is_fourier(name: str, value: Tensor) -> bool:
    return name.endswith(".W") and value.ndim == 1
