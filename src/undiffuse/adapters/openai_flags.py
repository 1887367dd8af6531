"""Converts flags of OpenAI's guided-diffusion, improved-diffusion and consistency_models to our configurations.

The published files contain only weights; the flags in the READMEs describe their networks and processes. Three families
share most flags and differ in their defaults and in what the image size implies:

    diffusion          image_size, num_channels, ... (all releases; consistency_models has nothing else)
    super-resolution   large_size and small_size instead of image_size
    classifier         image_size and flags that begin with "classifier_"

Values may be of their own type or the text of a command line ("True", "64", "32,16,8"); flags left out have the
release's default. What has no influence on the function computed (use_fp16, timestep_respacing) is accepted and left
to the caller: precision and sub-chain are chosen when sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from undiffuse.denoiser import ProcessConfig
from undiffuse.nets import ClassifierConfig, UNetConfig

Flags = Mapping[str, Any]

GUIDED = "guided-diffusion"
IMPROVED = "improved-diffusion"
CONSISTENCY = "consistency_models"

CLASSES = 1000  # all releases: ImageNet's classes wherever a network is conditional

# channel_mult implied by the image size. Improved diffusion knows 32, 64 and 256, guided diffusion 64 to 512.
_MULTIPLIERS: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
# A super-resolution network of large_size 512 has six levels of full width, unlike the 512x512 model.
_UPSAMPLER_MULTIPLIERS = {**_MULTIPLIERS, 512: (1, 1, 2, 2, 4, 4)}

_DEFAULTS: dict[str, Any] = {
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    "sigma_small": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
}
_IMPROVED_DEFAULTS = {"rescale_timesteps": True, "rescale_learned_sigmas": True}
# Consistency models know noise by sigma: they have none of the flags of chains.
_CONSISTENCY_DEFAULTS: dict[str, Any] = {
    **{name: value for name, value in _DEFAULTS.items() if name not in (
        "sigma_small", "diffusion_steps", "noise_schedule", "use_kl", "predict_xstart", "rescale_timesteps",
        "rescale_learned_sigmas",
    )},
    "attention_resolutions": "32,16,8",
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "weight_schedule": "karras",
    "training_mode": "",
}  # fmt: skip
MODES = ("edm", "consistency_distillation", "consistency_training", "progdist")
"""Values of `training_mode`. The two of consistency make the network a consistency model; the others are diffusion
models. The original's sampling and training scripts have different defaults of it, so it has none here."""
_CLASSIFIER_DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "classifier_width": 128,
    "classifier_depth": 2,
    "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True,
    "classifier_pool": "attention",
}
# Flags that do not change what is computed, or only how it is trained and sampled.
_HARMLESS = {
    "use_fp16", "classifier_use_fp16", "timestep_respacing", "image_size", "large_size", "small_size", "noised"
}  # fmt: skip

OTHERS = frozenset(
    ("anneal_lr", "batch_size", "classifier_path", "classifier_scale", "clip_denoised", "data_dir", "ema_rate",
     "eval_interval", "fp16_scale_growth", "iterations", "log_interval", "lr", "lr_anneal_steps", "microbatch",
     "model_path", "num_samples", "resume_checkpoint", "save_interval", "schedule_sampler", "seed",
     "use_ddim", "val_data_dir", "weight_decay",
     # of consistency_models alone
     "distill_steps_per_iter", "end_scales", "generator", "global_batch_size", "loss_norm", "s_churn", "s_noise",
     "s_tmax", "s_tmin", "sampler", "scale_mode", "start_ema", "start_scales", "target_ema_mode", "teacher_dropout",
     "teacher_model_path", "total_training_steps", "ts")
)  # fmt: skip
"""Flags of the releases' training and sampling scripts that say nothing about the network or its process. A whole
command line or a dump of all arguments holds them beside the flags that matter."""


def unet_config(flags: Flags, family: str = GUIDED) -> UNetConfig:
    """Returns the U-Net of a diffusion or super-resolution model.

    Args:
        flags: Flags by name; with `large_size` they describe a super-resolution network.
        family: The release that the flags belong to, "guided-diffusion ...", "improved-diffusion ..." or
            "consistency_models". It decides the defaults. Networks of consistency_models always have the new order of
            queries, keys and values, because that release ignores `use_new_attention_order`.

    Raises:
        ValueError: A flag is unknown, the size implies no channel_mult, or an attention resolution does not divide the
            image size.
    """
    f = _complete(flags, _defaults(family), family)
    upsampler = "large_size" in flags
    size = int(flags["large_size"] if upsampler else flags.get("image_size", 64))
    return UNetConfig(
        image_size=size,
        in_channels=3,
        model_channels=int(f["num_channels"]),
        out_channels=6 if _truth(f["learn_sigma"]) else 3,
        num_res_blocks=int(f["num_res_blocks"]),
        attention_resolutions=_factors(f["attention_resolutions"], size),
        channel_mult=_multipliers(f["channel_mult"], size, _UPSAMPLER_MULTIPLIERS if upsampler else _MULTIPLIERS),
        dropout=float(f["dropout"]),
        num_classes=CLASSES if _truth(f["class_cond"]) else None,
        use_checkpoint=_truth(f["use_checkpoint"]),
        num_heads=int(f["num_heads"]),
        num_head_channels=int(f["num_head_channels"]),
        num_heads_upsample=int(f["num_heads_upsample"]),
        use_scale_shift_norm=_truth(f["use_scale_shift_norm"]),
        resblock_updown=_truth(f["resblock_updown"]),
        use_new_attention_order=family == CONSISTENCY or _truth(f["use_new_attention_order"]),
        super_resolution=upsampler,
    )


def classifier_config(flags: Flags, channel_mult: Sequence[float] = ()) -> ClassifierConfig:
    """Returns the noisy-image classifier of guided diffusion: 1000 classes, heads of 64 channels, legacy qkv order.

    The release has no flag for `channel_mult`: without it the image size implies it.
    """
    f = _complete(flags, _CLASSIFIER_DEFAULTS, f"{GUIDED} classifier")
    size = int(f["image_size"])
    return ClassifierConfig(
        image_size=size,
        in_channels=3,
        model_channels=int(f["classifier_width"]),
        out_channels=CLASSES,
        num_res_blocks=int(f["classifier_depth"]),
        attention_resolutions=_factors(f["classifier_attention_resolutions"], size),
        channel_mult=_multipliers(channel_mult, size, _MULTIPLIERS),
        num_head_channels=64,
        use_scale_shift_norm=_truth(f["classifier_use_scale_shift_norm"]),
        resblock_updown=_truth(f["classifier_resblock_updown"]),
        pool=str(f["classifier_pool"]),
    )


def process_config(flags: Flags, family: str = GUIDED) -> ProcessConfig:
    """The trained process of a diffusion or super-resolution model.

    learn_sigma gives variances by interpolation ("learned_range"); otherwise they are fixed, to beta (the original's
    "fixed large") or, with sigma_small, to the posterior variance. Networks of consistency_models are preconditioned as
    in EDM, and their time is 250 ln(sigma).
    """
    f = _complete(flags, _defaults(family), family)
    if family == CONSISTENCY:
        return _karras_process(f)
    variance = (
        "learned_range" if _truth(f["learn_sigma"]) else "fixed_small" if _truth(f["sigma_small"]) else "fixed_large"
    )
    return ProcessConfig(
        schedule=str(f["noise_schedule"]),
        steps=int(f["diffusion_steps"]),
        target="x0" if _truth(f["predict_xstart"]) else "eps",
        variance=variance,
        rescale_timesteps=_truth(f["rescale_timesteps"]),
    )


def _karras_process(f: Flags) -> ProcessConfig:
    """The process of a network of consistency_models: a consistency model or, by `training_mode`, its teacher."""
    mode = str(f["training_mode"])
    if mode not in MODES:
        raise ValueError(f"{CONSISTENCY} needs training_mode, one of {', '.join(MODES)}; got {mode!r}")
    if _truth(f["learn_sigma"]):
        raise ValueError(f"learn_sigma True: {CONSISTENCY} samples no network with a learned variance")
    return ProcessConfig(
        preconditioning="edm",
        target="consistency" if mode.startswith("consistency") else "edm",
        variance="fixed_small",
        sigma_min=float(f["sigma_min"]),
        sigma_max=float(f["sigma_max"]),
        sigma_data=0.5,
        time_factor=250.0,
    )


def loss_name(flags: Flags, family: str = GUIDED) -> str:
    """The original's name of the training loss: RESCALED_KL with use_kl, else RESCALED_MSE or MSE.

    (MSE with learned variances is the hybrid loss; "rescaled" multiplies its bound term by steps / 1000.)
    """
    f = _complete(flags, _defaults(family), family)
    if _truth(f["use_kl"]):
        return "RESCALED_KL"
    return "RESCALED_MSE" if _truth(f["rescale_learned_sigmas"]) else "MSE"


def known() -> frozenset[str]:
    """Return the names of all flags of the releases' scripts."""
    return frozenset(set(_DEFAULTS) | set(_CONSISTENCY_DEFAULTS) | set(_CLASSIFIER_DEFAULTS) | _HARMLESS | OTHERS)


def _defaults(family: str) -> dict[str, Any]:
    if family.startswith(GUIDED):
        return _DEFAULTS
    if family.startswith(IMPROVED):
        return {**_DEFAULTS, **_IMPROVED_DEFAULTS}
    if family == CONSISTENCY:
        return _CONSISTENCY_DEFAULTS
    raise ValueError(f"unknown family {family!r}; it begins with {GUIDED!r} or {IMPROVED!r}, or is {CONSISTENCY!r}")


def _complete(flags: Flags, defaults: dict[str, Any], family: str) -> dict[str, Any]:
    unknown = sorted(set(flags) - set(defaults) - _HARMLESS)
    if unknown:
        raise ValueError(
            f"flags unknown for {family}: {', '.join(unknown)}. "
            f"Known are: {', '.join(sorted(set(defaults) | _HARMLESS))}"
        )
    return {**defaults, **flags}


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in ("true", "t", "yes", "y", "1"):
        return True
    if text in ("false", "f", "no", "n", "0"):
        return False
    raise ValueError(f"expected True or False, got {value!r}")


def _numbers(value: Any) -> list[float]:
    parts = value.split(",") if isinstance(value, str) else list(value)
    return [int(x) if x == int(x) else x for x in (float(p) for p in parts if p != "")]


def _multipliers(given: Any, size: int, implied: Mapping[int, tuple[float, ...]]) -> tuple[float, ...]:
    if given:
        return tuple(_numbers(given))
    if size not in implied:
        sizes = ", ".join(str(s) for s in sorted(implied))
        raise ValueError(
            f"image size {size} implies no channel_mult (known: {sizes}); give channel_mult, such as '1,2,2'"
        )
    return implied[size]


def _factors(resolutions: Any, size: int) -> tuple[int, ...]:
    """Attention resolutions in pixels, as down-sampling factors; those above the image size are never reached."""
    factors = []
    for resolution in _numbers(resolutions):
        if resolution > size:
            continue
        if resolution <= 0 or size % resolution:
            raise ValueError(
                f"attention at {resolution:g} pixels is impossible for images of {size} pixels: {size} is no multiple"
            )
        factors.append(size // int(resolution))
    return tuple(factors)
