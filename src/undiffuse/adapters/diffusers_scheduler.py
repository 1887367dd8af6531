"""What a scheduler_config.json of diffusers says: the process a network was trained on, and how it would be sampled.

    read(settings, doubled)    a `Schedule`: process, advice for sampling, and what of it is done otherwise here

The noise levels, what the network predicts and its variance belong to the model. Solver, spacing of the steps and
clipping are advice: samplers follow it where a user chooses nothing else. A setting that would change images and cannot
be followed is named in `notes`, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from undiffuse.config import SamplerConfig
from undiffuse.denoiser import ProcessConfig

TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "learned_range": "learned_range",
}
_DDPM, _DDIM = ("DDPMScheduler", "DDPMParallelScheduler"), ("DDIMScheduler", "DDIMParallelScheduler")
_PIPELINE_STEPS = {_DDPM: 1000, _DDIM: 50}  # that diffusers' pipelines take if nothing else is said
_NO_CHAIN = {
    "ScoreSdeVpScheduler": "its levels are those of a continuous SDE",
    "KarrasVeScheduler": "its levels are those of a variance-exploding process",
    "UnCLIPScheduler": "it belongs to a pipeline of several networks",
    "VQDiffusionScheduler": "its noise is one of discrete tokens",
}
# Settings that change no image here, or are read below.
_READ = frozenset(
    ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
     "variance_type", "clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio",
     "sample_max_value", "timestep_spacing", "steps_offset", "rescale_betas_zero_snr", "set_alpha_to_one",
     "solver_order", "algorithm_type", "solver_type", "skip_prk_steps", "use_karras_sigmas", "use_lu_lambdas",
     "use_exponential_sigmas", "predict_x0", "lower_order_final")
)  # fmt: skip
_HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "euler_at_final": (False,),
    "final_sigmas_type": ("zero",),
    "lambda_min_clipped": (-float("inf"), "-Infinity", "-inf"),
    "use_beta_sigmas": (False, None),
    "use_flow_sigmas": (False, None),
    "use_dynamic_shifting": (False, None),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "disable_corrector": ([], ()),
    "solver_p": (None,),
    "shift_terminal": (None,),
}
_SILENT = frozenset(("flow_shift", "time_shift_type"))  # which only matter with use_flow_sigmas and dynamic shifting


_OTHER_FORMS = frozenset(("dpmpp-3m", "dpmpp-2s", "dpmpp-2m-sde", "dpmpp-3m-sde", "deis", "pndm"))
"""Methods whose images differ visibly from those of diffusers' schedulers of that name, at the same levels."""


@dataclass(frozen=True)
class Schedule:
    """What a scheduler's configuration means here.

    Attributes:
        process: The process that the network was trained on.
        sampling: How diffusers would sample it, in our terms.
        notes: What is done otherwise here than with this scheduler in diffusers, a sentence each.
    """

    process: ProcessConfig
    sampling: SamplerConfig
    notes: tuple[str, ...] = ()


def read(settings: Mapping[str, Any], doubled: bool = False, variance: str | None = None) -> Schedule:
    """Read a scheduler's configuration.

    Args:
        settings: What scheduler_config.json says.
        doubled: Whether the network has twice as many channels out as in, the second half of which is its variance.
        variance: "posterior", "beta" or "range", in place of what the scheduler says.

    Raises:
        ValueError: It describes no chain of noise levels, contradicts the network, or leaves its variance open.
    """
    process = process_config(settings, variance, doubled)
    sampling, notes = _sampling(settings, process)
    for name, value in settings.items():
        usual = _HARMLESS.get(name)
        if usual is not None and value not in usual:
            notes.append(f"{name} = {value!r} is not followed")
        elif usual is None and name not in _READ | _SILENT and not name.startswith("_"):
            notes.append(f"{name} = {value!r} is not known and not followed")
    return Schedule(process, sampling, tuple(notes))


def process_config(settings: Mapping[str, Any], variance: str | None = None, doubled: bool = False) -> ProcessConfig:
    """Read the process alone; arguments and errors as in `read`."""
    name = str(settings.get("_class_name", "DDPMScheduler"))
    if name in _NO_CHAIN or not {"beta_start", "beta_end", "beta_schedule", "trained_betas"} & set(settings):
        why = _NO_CHAIN.get(name, "it has no betas")
        raise ValueError(f"the scheduler {name} describes no chain of noise levels that is read here: {why}")
    target = str(settings.get("prediction_type", "epsilon"))
    if target not in TARGETS:
        raise ValueError(f"the scheduler predicts {target!r}; understood are {', '.join(TARGETS)}")
    process = ProcessConfig(target=TARGETS[target], variance=_variance(settings, name, variance, doubled))
    betas = settings.get("trained_betas")
    process = _with_betas(process, settings) if betas is None else replace(process, betas=_floats(betas))
    if settings.get("rescale_betas_zero_snr"):
        if process.target == "eps":
            raise ValueError(
                "the scheduler ends in pure noise (rescale_betas_zero_snr), where a network that predicts the noise "
                "says nothing about the image: such a model predicts v_prediction or sample"
            )
        process = _zero_terminal(process)
    process.chain()  # says what is wrong with betas that make none
    return process


def number(settings: Mapping[str, Any], name: str, default: float) -> float:
    """Return a setting that is a number. ValueError if it is none."""
    value = settings.get(name, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"the configuration has {name} = {value!r}; expected a number")
    return float(value)


def _variance(settings: Mapping[str, Any], name: str, given: str | None, doubled: bool) -> str:
    """The variance of reverse steps: as a user says, else the scheduler's, else the posterior's."""
    if given is not None:
        if (given == "learned_range") != doubled:
            channels = "has no channels for a variance" if not doubled else "gives its variance beside the image"
            raise ValueError(f"variance {given}: this network {channels}")
        return given
    kind = settings.get("variance_type")
    if doubled and (kind is None or str(kind).startswith("fixed")):
        raise ValueError(
            f"the network has twice as many channels out as in, and the scheduler {name} does not say what the second "
            "half is: say variance=learned_range if it is the interpolation of Improved DDPM (learned_range)"
        )
    kind = str(kind or "fixed_small")
    if kind == "learned":
        raise ValueError(
            "variance_type 'learned' takes the network's output as the variance itself, which is not read here; say "
            "variance=learned_range if it is the interpolation of Improved DDPM (learned_range)"
        )
    if kind == "fixed_large_log":
        return "fixed_large"
    if kind not in _VARIANCES:
        raise ValueError(f"the scheduler has variance_type {kind!r}; understood are {', '.join(_VARIANCES)}")
    if kind == "learned_range" and not doubled:
        if name in _DDPM:
            raise ValueError("variance_type 'learned_range' needs a network with twice as many channels out as in")
        return "fixed_small"
    return _VARIANCES[kind]


def _with_betas(process: ProcessConfig, settings: Mapping[str, Any]) -> ProcessConfig:
    """`process` with the schedule that a scheduler names."""
    late = str(settings.get("_class_name", "")) in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
                                                    "KDPM2AncestralDiscreteScheduler")  # fmt: skip
    start = number(settings, "beta_start", 0.00085 if late else 1e-4)
    end = number(settings, "beta_end", 0.012 if late else 0.02)
    steps = settings.get("num_train_timesteps", 1000)
    process = replace(process, steps=steps)
    schedule = settings.get("beta_schedule", "linear")
    if schedule == "squaredcos_cap_v2":
        return replace(process, schedule="cosine")
    if schedule == "linear" and (start, end, steps) == (1e-4, 0.02, 1000):
        return process
    if schedule == "linear":
        betas = np.linspace(start, end, steps)
    elif schedule == "scaled_linear" and min(start, end) >= 0:
        betas = np.linspace(start**0.5, end**0.5, steps) ** 2
    elif schedule == "sigmoid":
        betas = (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps))) + start
    else:
        known = "linear, scaled_linear, squaredcos_cap_v2 and sigmoid"
        raise ValueError(
            f"the scheduler has beta_schedule {schedule!r} from {start:g} to {end:g}; understood are {known}"
        )
    return replace(process, betas=tuple(betas.tolist()))


def _zero_terminal(process: ProcessConfig) -> ProcessConfig:
    """The process with its last level pure noise, as rescale_betas_zero_snr makes it."""
    if process.betas is None:
        return replace(process, schedule=f"{process.schedule}+zero-terminal")
    root = np.sqrt(np.cumprod(1 - np.array(process.betas)))
    squared = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    betas = 1 - squared / np.append(1.0, squared[:-1])
    betas[-1] = 1.0
    return replace(process, betas=tuple(betas.tolist()))


def _sampling(settings: Mapping[str, Any], process: ProcessConfig) -> tuple[SamplerConfig, list[str]]:
    """How the scheduler samples in our terms, and what is otherwise."""
    name = str(settings.get("_class_name", "DDPMScheduler"))
    notes: list[str] = []
    solver, options, eta = _solver(name, settings, notes)
    clips = name in _DDPM or name in _DDIM
    clip = clip_of(settings, clips or (name == "HeunDiscreteScheduler" and bool(settings.get("clip_sample", False))))
    if name in _DDIM and clip != "none":
        notes.append(
            "behind clipping, the noise is derived from the clipped image, as by DDIMScheduler with "
            "use_clipped_model_output=True"
        )
    default = "leading" if name in (*_DDPM, *_DDIM, "PNDMScheduler") else "linspace"
    spacing, offset = str(settings.get("timestep_spacing", default)), settings.get("steps_offset", 0)
    if spacing not in ("leading", "trailing", "linspace") or not isinstance(offset, int):
        raise ValueError(f"the scheduler has timestep_spacing {spacing!r} and steps_offset {offset!r}")
    offset = offset if spacing == "leading" else 0
    if name in _DDPM or name in _DDIM:
        steps = next(count for names, count in _PIPELINE_STEPS.items() if name in names)
        if settings.get("set_alpha_to_one") is False:
            notes.append("the last step goes to the clean image, as with set_alpha_to_one = true")
        if name in _DDIM and spacing != "leading":
            notes.append(
                "a step goes to the level of the next one, where DDIMScheduler goes down by whole strides, which is "
                "the same for trailing steps whose number divides that of the chain"
            )
        spaced = f"{spacing}+{offset}" if offset else spacing
        count = min(steps, process.steps - offset)
        return SamplerConfig(solver=solver, steps=str(count), grid=f"chain:{spaced}", clip=clip, eta=eta), notes
    grid = {"leading": "leading", "trailing": "trailing", "linspace": "uniform"}[spacing]
    if settings.get("use_karras_sigmas"):
        grid = "karras"
    elif settings.get("use_lu_lambdas") or settings.get("use_exponential_sigmas"):
        grid = "logsnr"
    if offset:
        notes.append(f"steps_offset = {offset} is not followed")
    if settings.get("set_alpha_to_one") is False or (name == "PNDMScheduler" and "set_alpha_to_one" not in settings):
        notes.append("the last step goes to the clean image, as with set_alpha_to_one = true")
    if solver in _OTHER_FORMS:
        notes.append(f"{solver} is the same kind of method as {name}, but not step for step the same")
    if solver != "ddpm" and not process.continuous:
        notes.append(f"levels between trained steps are those of the grid {grid!r}, not rounded to whole steps")
    return SamplerConfig(solver=solver, grid=grid, clip=clip, eta=eta, solver_options=options), notes


def _solver(name: str, settings: Mapping[str, Any], notes: list[str]) -> tuple[str, str, float]:
    """(solver, its options, eta) nearest to a scheduler; adds to `notes` what it does otherwise."""
    order = settings.get("solver_order", 2)
    if name in _DDPM:
        return "ddpm", "", 0.0
    if name in _DDIM:
        return "ddim", "", 0.0
    if name == "EulerDiscreteScheduler":
        return "ddim", "", 0.0  # Euler's method in sigma / alpha is DDIM
    if name == "EulerAncestralDiscreteScheduler":
        return "ddim", "", 1.0
    if name == "HeunDiscreteScheduler":
        return "heun", "", 0.0
    if name == "PNDMScheduler":
        return "pndm", "warmup=plms" if settings.get("skip_prk_steps") else "", 0.0
    if name == "UniPCMultistepScheduler":
        if settings.get("predict_x0") is False:
            notes.append("UniPC predicts the image, as with predict_x0 = true")
        variant = settings.get("solver_type", "bh2")
        parts = [f"order={order}"] if order in (1, 2) else []
        return "unipc", ",".join([*parts, *(["variant=bh1"] if variant == "bh1" else [])]), 0.0
    if name == "DEISMultistepScheduler":
        return "deis", f"order={order}" if order in (1, 2) else "", 0.0
    if name in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        return _dpm_solver(name, settings, order, notes)
    nearest = {
        "LMSDiscreteScheduler": ("deis", ""),  # both are Adams-Bashforth in sigma / alpha
        "KDPM2DiscreteScheduler": ("dpmpp-2s", ""),
        "KDPM2AncestralDiscreteScheduler": ("ddpm", ""),
    }
    solver, options = nearest.get(name, ("dpmpp-2m", ""))
    notes.append(f"{name} is not built here: the nearest method, {solver}, is the default")
    return solver, options, 0.0


def _dpm_solver(name: str, settings: Mapping[str, Any], order: Any, notes: list[str]) -> tuple[str, str, float]:
    algorithm = str(settings.get("algorithm_type", "dpmsolver++"))
    if algorithm in ("dpmsolver", "sde-dpmsolver"):
        notes.append(f"algorithm_type {algorithm!r} predicts the noise; the method here, DPM-Solver++, the image")
    if settings.get("solver_type", "midpoint") != "midpoint":
        notes.append(f"solver_type {settings['solver_type']!r} is not built here: the midpoint variant is used")
    if algorithm.startswith("sde"):
        return ("dpmpp-3m-sde" if order == 3 else "dpmpp-2m-sde"), "", 0.0
    if order == 1:
        return "ddim", "", 0.0
    if name == "DPMSolverSinglestepScheduler":
        if order == 3:
            notes.append("the single-step method of third order is not built here: dpmpp-2s is the default")
        return "dpmpp-2s", "", 0.0
    return ("dpmpp-3m" if order == 3 else "dpmpp-2m"), "", 0.0


def clip_of(settings: Mapping[str, Any], clips: bool) -> str:
    """Returns what is done to denoised images, as `denoiser.clip_function` reads it.

    Args:
        settings: The content of scheduler_config.json.
        clips: Whether the scheduler clips unless clip_sample is false.
    """
    if settings.get("thresholding"):
        ratio = number(settings, "dynamic_thresholding_ratio", 0.995)
        most = number(settings, "sample_max_value", 1.0)
        return "static" if most <= 1 else f"dynamic:{ratio:g},{most:g}"  # clamped to 1, the quantile plays no part
    if not clips or settings.get("clip_sample", True) is False:
        return "none"
    reach = number(settings, "clip_sample_range", 1.0)
    return "static" if reach == 1 else f"static:{reach:g}"


def _floats(values: Any) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, (int, float)) for value in values):
        raise ValueError("the scheduler's trained_betas are no list of numbers")
    return tuple(float(value) for value in values)
