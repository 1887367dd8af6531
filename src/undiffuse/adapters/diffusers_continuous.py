"""Reads the schedulers of diffusers that have no chain: consistency models, EDM, flow matching and SDEs.

    CMStochasticIterativeScheduler                                    consistency models (Song et al. 2023)
    EDMEulerScheduler, EDMDPMSolverMultistepScheduler                 EDM's preconditioning (Karras et al. 2022)
    FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler   flow matching (Lipman et al. 2023)
    ScoreSdeVeScheduler, KarrasVeScheduler                            the VE SDE, NCSN++ (Song et al. 2021)
    ScoreSdeVpScheduler                                               the VP SDE

The other schedulers are read by `diffusers_scheduler`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from undiffuse.adapters.diffusers_scheduler import Schedule, clip_of, number
from undiffuse.config import SamplerConfig
from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import DDPMConfig
from undiffuse.nets.unet2d import UNet2DConfig

CONSISTENCY = "CMStochasticIterativeScheduler"
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
KARRAS_VE = "KarrasVeScheduler"
VE = ("ScoreSdeVeScheduler", KARRAS_VE)
VP = "ScoreSdeVpScheduler"
NAMES = frozenset((CONSISTENCY, *EDM, *FLOW, *VE, VP))
# Settings that change nothing here, or are read below.
_READ = frozenset(
    ("num_train_timesteps", "sigma_min", "sigma_max", "sigma_data", "prediction_type", "clip_denoised", "shift",
     "solver_order", "algorithm_type", "solver_type", "lower_order_final", "thresholding", "snr", "sampling_eps",
     "correct_steps", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type",
     "dynamic_thresholding_ratio", "sample_max_value", "s_noise", "s_churn",
     "s_min", "s_max", "beta_min", "beta_max")
)  # fmt: skip
_USUAL: Mapping[str, tuple[Any, ...]] = {
    "rho": (7, 7.0),
    "sigma_schedule": ("karras",),
    "final_sigmas_type": ("zero",),
    "euler_at_final": (False,),
    "use_dynamic_shifting": (False, None),
    "shift_terminal": (None,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "invert_sigmas": (False, None),
    "stochastic_sampling": (False, None),
}


def read(settings: Mapping[str, Any], network: DDPMConfig | UNet2DConfig) -> Schedule:
    """Reads the configuration of one of `NAMES`.

    Args:
        settings: The content of scheduler_config.json.
        network: The network that it belongs to.

    Raises:
        ValueError: The network or a setting does not fit the process.
    """
    name = str(settings["_class_name"])
    if network.out_channels != network.in_channels:
        raise ValueError(f"{name} belongs to networks without a variance, and this one has {network.out_channels} "
                         f"output channels for images of {network.in_channels}")  # fmt: skip
    if name == CONSISTENCY:
        process, sampling, notes = _consistency(settings)
    elif name in EDM:
        process, sampling, notes = _edm(name, settings)
    elif name in FLOW:
        process, sampling, notes = _flow(name, settings)
    elif name == VP:
        process, sampling, notes = _vp(settings)
    else:
        process, sampling, notes = _ve(name, settings, network)
    for key, value in settings.items():
        if key in _USUAL and value not in _USUAL[key]:
            notes.append(f"{key} = {value!r} is not followed")
        elif key not in _USUAL and key not in _READ and not key.startswith("_"):
            notes.append(f"{key} = {value!r} is not known and not followed")
    return Schedule(process, sampling, tuple(notes))


def network_of(settings: Mapping[str, Any] | None, network: UNet2DConfig) -> UNet2DConfig:
    """Returns the network as its scheduler uses it: one of the VE SDE takes images in [0, 1] and gives the score."""
    if settings is None or settings.get("_class_name") not in VE:
        return network
    if network.time_type != "fourier":
        raise ValueError(
            f"{settings['_class_name']} is supported for networks with Fourier times (time_embedding_type 'fourier'), "
            f"as NCSN++ has them; this one has {network.time_type!r}"
        )
    return replace(network, unit_range=True, divided_by_time=False)


_Read = tuple[ProcessConfig, SamplerConfig, list[str]]


def _consistency(settings: Mapping[str, Any]) -> _Read:
    process = ProcessConfig(
        preconditioning="edm",
        target="consistency",
        variance="fixed_small",
        time_factor=250.0,
        sigma_min=number(settings, "sigma_min", 0.002),
        sigma_max=number(settings, "sigma_max", 80.0),
        sigma_data=number(settings, "sigma_data", 0.5),
    )
    notes = [] if settings.get("s_noise", 1.0) == 1 else [f"s_noise = {settings['s_noise']!r} is not followed"]
    clip = "none" if settings.get("clip_denoised", True) is False else "static"
    return process, SamplerConfig(solver="consistency", steps="1", clip=clip), notes


def _edm(name: str, settings: Mapping[str, Any]) -> _Read:
    target = settings.get("prediction_type", "epsilon")
    if target != "epsilon":
        raise ValueError(
            f"{name} with prediction_type {target!r} takes the negative of what EDM's networks predict, which is not "
            "supported: use 'epsilon'"
        )
    process = ProcessConfig(
        preconditioning="edm",
        target="edm",
        variance="fixed_small",
        sigma_min=number(settings, "sigma_min", 0.002),
        sigma_max=number(settings, "sigma_max", 80.0),
        sigma_data=number(settings, "sigma_data", 0.5),
    )
    solver = "ddim" if name == EDM[0] else "dpmpp-2m"  # Euler's method in sigma is DDIM
    notes = []
    if name != EDM[0] and (settings.get("algorithm_type", "dpmsolver++"), settings.get("solver_order", 2),
                           settings.get("solver_type", "midpoint")) != ("dpmsolver++", 2, "midpoint"):  # fmt: skip
        notes.append("the solver is DPM-Solver++ of second order, midpoint")
    clip = clip_of(settings, clips=False)
    return process, SamplerConfig(solver=solver, grid="karras", clip=clip), notes


def _flow(name: str, settings: Mapping[str, Any]) -> _Read:
    steps = settings.get("num_train_timesteps", 1000)
    if steps != 1000:
        raise ValueError(f"{name} with num_train_timesteps = {steps!r} is not supported: the network's time is 1000 t")
    process = ProcessConfig(preconditioning="flow", target="velocity", variance="fixed_small")
    shift = number(settings, "shift", 1.0)
    if not shift > 0:
        raise ValueError(f"{name} with shift = {shift:g} is not possible: expected a number above 0")
    # With dynamic shifting the scheduler ignores `shift`; that setting is listed as not followed.
    shifted = shift != 1 and not settings.get("use_dynamic_shifting")
    solver = "ddim" if name == FLOW[0] else "heun"  # on straight paths, Euler's method is DDIM
    grid = f"uniform:shift={shift!r}" if shifted else "uniform"
    return process, SamplerConfig(solver=solver, grid=grid, clip="none"), []


def _vp(settings: Mapping[str, Any]) -> _Read:
    process = ProcessConfig(
        preconditioning="vp",
        target="eps",  # which the scheduler divides by -sigma
        variance="fixed_small",
        beta_min=number(settings, "beta_min", 0.1),
        beta_max=number(settings, "beta_max", 20.0),
    )
    notes = [
        f"{VP} is not built here: the default is Heun's method",
        f"{VP} does not say the network's time: it is 999 t, as in score_sde, for t from 0 to 1",
    ]
    return process, SamplerConfig(solver="heun", steps="40", grid="karras", clip="none"), notes


def _ve(name: str, settings: Mapping[str, Any], network: DDPMConfig | UNet2DConfig) -> _Read:
    if isinstance(network, DDPMConfig) or not network.unit_range:
        raise ValueError(f"{name} is supported for networks with Fourier times, as NCSN++'s; this is DDPM's U-Net")
    if name == KARRAS_VE:  # its noise is that of images in [-1, 1]
        low, high = number(settings, "sigma_min", 0.02), number(settings, "sigma_max", 100.0)
    else:  # of images in [0, 1]
        low, high = 2 * number(settings, "sigma_min", 0.01), 2 * number(settings, "sigma_max", 1348.0)
    process = ProcessConfig(preconditioning="ve", target="score", variance="fixed_small", sigma_min=low, sigma_max=high)
    start = -2 * math.log(min(high, 160.0))
    notes = [f"{name} is not built here: the default is Heun's method; `langevin-pc` also predicts and corrects"]
    return process, SamplerConfig(solver="heun", steps="40", grid=f"karras:from={start:.6g}", clip="none"), notes
