"""Reads files of denoising-diffusion-pytorch: milestones of a `Trainer`, or the state dict of a U-Net.

A Trainer's file contains the network inside its process (`GaussianDiffusion`), and an EMA of both. Shapes show the
whole network, the tables stored with the weights give the noise levels, and the loss weights show what is predicted.
The image size is not stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from undiffuse.denoiser import ProcessConfig
from undiffuse.nets.meta import build_on_meta
from undiffuse.nets.unet_rms import RMSUNetConfig

ANCHOR = "time_mlp.1.weight"
_SCHEDULES = ("linear", "cosine", "sigmoid")
_OBJECTIVES = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}
_FLAGS = ("image_size", "objective", "beta_schedule", "timesteps", "theta")


def looks_like(names: Mapping[str, Any]) -> bool:
    """Returns whether these names are those of this program's U-Net, alone or inside its process."""
    return any(f"{prefix}init_conv.weight" in names and f"{prefix}{ANCHOR}" in names for prefix in ("", "model."))


def read(
    state: Mapping[str, Tensor], flags: Mapping[str, str], version: str = ""
) -> tuple[RMSUNetConfig, ProcessConfig, dict[str, Tensor]]:
    """Reads the network, the process and the weights by our names.

    Args:
        state: The state dict of a U-Net, or of a `GaussianDiffusion`.
        flags: The user's settings: "image_size", and for a bare U-Net "objective", "beta_schedule", "timesteps".
        version: The program's version, if the file records it.

    Raises:
        ValueError: The network is of another version or uses self-conditioning, or a setting is missing.
    """
    unknown = sorted(set(flags) - set(_FLAGS))
    if unknown:
        raise ValueError(f"models of denoising-diffusion-pytorch take {', '.join(_FLAGS)}, not {unknown[0]}")
    inside = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    tables = {name: value for name, value in state.items() if not name.startswith("model.")} if inside else {}
    weights = inside or dict(state)
    config = _config(weights, flags, version)
    process = _process(tables, flags, config.out_channels == 2 * config.in_channels)
    names = build_on_meta(config.build).state_dict()
    return config, process, {name: weights[name].detach().float().contiguous() for name in names}


def _config(weights: Mapping[str, Tensor], flags: Mapping[str, str], version: str) -> RMSUNetConfig:
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    levels = 1 + max((int(found[1]) for name in shapes if (found := re.match(r"downs\.(\d+)\.", name))), default=-1)
    written = f" (the file is of version {version})" if version else ""
    other = f"this is a network of denoising-diffusion-pytorch, but not the U-Net of its version 2{written}"
    try:
        width = shapes["time_mlp.3.weight"][0] // 4
        first, given = shapes["init_conv.weight"][:2]
        out = shapes["final_conv.weight"][0]
        ends = [(shapes.get(f"downs.{i}.3.1.weight") or shapes[f"downs.{i}.3.weight"])[0] for i in range(levels)]
        full = tuple(f"downs.{i}.2.to_out.weight" in shapes for i in range(levels))
        memories = [shapes[f"downs.{i}.2.mem_kv"] for i in range(levels)]
    except (KeyError, IndexError):
        raise ValueError(f"{other}: use a model saved by version 2") from None
    if given == 2 * out or "self_condition" in flags:
        raise ValueError(
            "this network uses self-conditioning (self_condition), which no sampler here supports: use a model trained "
            "without it"
        )
    if out not in (given, 2 * given) or not levels:
        raise ValueError(f"{other}: it has {given} input and {out} output channels")
    if "image_size" not in flags:
        raise ValueError(
            "the file does not record the image size (any multiple of "
            f"{2 ** (levels - 1)} fits the network): append it to the path, for example FILE@image_size=64"
        )
    memory = memories[0][2] if full[0] else memories[0][3]
    config = RMSUNetConfig(
        image_size=_whole(flags["image_size"], "image_size"),
        in_channels=given,
        out_channels=out,
        model_channels=width,
        channel_mult=tuple(end // width if end % width == 0 else end / width for end in ends),
        first_channels=0 if first == width else first,
        full=full,
        heads=tuple(shape[1] for shape in memories),
        head_channels=tuple(shape[3] if whole else shape[2] for shape, whole in zip(memories, full, strict=True)),
        memory=memory,
        theta=float(flags.get("theta", 10_000)),
        fourier=shapes.get("time_mlp.0.weights", (0,))[0],
    )
    expected = {name: tuple(value.shape) for name, value in build_on_meta(config.build).state_dict().items()}
    odd = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if odd:
        raise ValueError(f"{other}: {len(odd)} of its tensors differ, first {odd[0]}")
    return config


def _process(tables: Mapping[str, Tensor], flags: Mapping[str, str], doubled: bool) -> ProcessConfig:
    """Returns the process from its tables, or without them from the user's settings."""
    variance = "learned_range" if doubled else "fixed_small"
    if doubled and flags.get("objective", "pred_noise") != "pred_noise":
        raise ValueError(
            f"objective {flags['objective']}: this network learns its variance (LearnedGaussianDiffusion), and then it "
            "predicts the noise whatever the objective is"
        )
    if "betas" not in tables:
        missing = [name for name in ("objective", "beta_schedule", "timesteps") if name not in flags]
        if missing:
            raise ValueError(
                f"the file contains a network without its process: append {', '.join(missing)} to the path, for "
                'example "FILE@objective=pred_v beta_schedule=sigmoid timesteps=1000"'
            )
        if flags["objective"] not in _OBJECTIVES or flags["beta_schedule"] not in _SCHEDULES:
            raise ValueError(
                f"expected objective {' or '.join(_OBJECTIVES)}, beta_schedule {' or '.join(_SCHEDULES)}; got "
                f"{flags['objective']} and {flags['beta_schedule']}"
            )
        return ProcessConfig(
            schedule=flags["beta_schedule"],
            steps=_whole(flags["timesteps"], "timesteps"),
            target=_OBJECTIVES[flags["objective"]],
            variance=variance,
        )
    betas = tables["betas"].double()
    if doubled:
        target = "eps"  # LearnedGaussianDiffusion never uses its objective, which is pred_v by default
    else:
        target = _OBJECTIVES[flags["objective"]] if flags.get("objective") in _OBJECTIVES else _target(tables)
    process = ProcessConfig(target=target, variance=variance, steps=len(betas))
    for name in _SCHEDULES:
        try:
            named = ProcessConfig(schedule=name, steps=len(betas), target=process.target, variance=variance)
            own = torch.from_numpy(named.chain().betas)
        except ValueError:
            continue
        if torch.allclose(own, betas, rtol=1e-4, atol=1e-7):
            return named
    return ProcessConfig(betas=tuple(betas.tolist()), target=process.target, variance=variance)


def _target(tables: Mapping[str, Tensor]) -> str:
    """Returns what the network predicts, inferred from its loss weights.

    The weights are SNR / SNR, SNR and SNR / (SNR + 1) for noise, image and v; Min-SNR may clamp the numerator.
    """
    weight = tables.get("loss_weight")
    abar = torch.cumprod(1 - tables["betas"].double(), 0)
    snr = abar / (1 - abar)
    if weight is not None:
        weight = weight.double()
        for target, implied in (("eps", weight * snr), ("x0", weight), ("v", weight * (snr + 1))):
            if torch.allclose(implied, snr.clamp(max=float(implied.max())), rtol=1e-3):
                return target
    raise ValueError(
        "the file does not show what the network predicts (its loss weights match no known objective): append "
        f"objective={'|'.join(_OBJECTIVES)} to the path"
    )


def _whole(text: str, name: str) -> int:
    if not str(text).isdigit():
        raise ValueError(f"{name} {text}: expected a whole number")
    return int(text)
