"""The settings of a training run, and the learning rate as a pure function of the images seen."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from undiffuse.ema import exponent_of
from undiffuse.timesteps import parse_density

GRADIENT_DTYPES = ("fp32", "bf16")
PRECISIONS = ("fp32", "bf16", "fp16")
SHARDINGS = ("none", "fsdp")
LR_DECAYS = ("none", "linear", "cosine")

# What may differ when a run is continued, because it changes nothing (or only the pace) of what is being trained.
_OUTPUTS = ["log_every", "preview_every", "preview_count", "preview_steps", "validate_every", "validate_images"]
_OUTPUTS += ["evaluate_every", "evaluate_images", "evaluate_steps"]
_SAVING = ["save_every", "save_seconds", "keep", "milestones", "posthoc_every"]
_PACE = ["images", "steps", "time_limit", "device", "workers", "compile", "sharding", "max_bad_updates"]
FREE_TO_CHANGE = frozenset([*_PACE, *_OUTPUTS, *_SAVING])
# What may differ too, but changes the numbers from there on: said in a note.
CHANGE_WITH_NOTE = frozenset(["lr", "warmup_images", "lr_decay", "grad_clip", "microbatch"])
CHANGE_WITH_NOTE |= {"precision", "gradient_dtype"}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a training. All lengths and intervals are counted in images, so they do not depend on the batch.

    Attributes:
        batch: Images per update, over all processes.
        images: Images after which the run ends, at the next whole batch. Exactly one of `images` and `steps` is given.
        steps: Updates after which the run ends.
        microbatch: Images at once in one process; None for as many as fit into memory.
        lr: Learning rate of AdamW.
        warmup_images: Images over which the learning rate rises linearly.
        lr_decay: "none", or "linear" or "cosine" to 0 at the end of the run.
        weight_decay: Weight decay of AdamW.
        betas: Decay rates of the moments of AdamW, in [0, 1).
        eps: Denominator term of AdamW.
        grad_clip: Largest norm of the gradient; None does not clip. The norm is recorded in either case.
        ema_decays: Decays of the exponential averages of the weights, see `undiffuse.ema`.
        ema_warmup: Whether the averages start with smaller decays.
        posthoc_widths: Relative widths of power-function averages, from which averages of any width are made
            afterwards, see `undiffuse.training.posthoc`.
        posthoc_every: Images between two snapshots of these.
        precision: "fp32", "bf16" (autocast) or "fp16" (autocast with a dynamic loss scale); weights stay float32.
        gradient_dtype: In which precision several processes send and sum their gradients, "fp32" or "bf16". One process
            has no use for it.
        sharding: "none" keeps weights, moments and averages in every process, "fsdp" (FSDP2, `fully_shard`) an equal
            share of them, for models that do not fit into one device. One process has no use for it.
        compile: Whether to use `torch.compile`.
        seed: Seed of the noise, the time steps and dropout.
        timesteps: How time steps are drawn: "uniform", "antithetic", "stratified" or "loss-second-moment".
        density: Density of the noise levels: "uniform", "lognormal:-1.2,1.2", "logitnormal:0,1" or "uniform-logsnr",
            see `undiffuse.timesteps`.
        log_every: Images between two records; None never.
        preview_every: Images between two previews; None only at the end.
        preview_count: Images of a preview.
        preview_steps: Solver steps of a preview.
        validate_every: Images between two validations; None only at the end.
        validate_images: Held-out images of a validation.
        evaluate_every: Images between two evaluations of samples, see `undiffuse.training.evaluation`.
        evaluate_images: Samples of an evaluation.
        evaluate_steps: Solver steps of its samples.
        save_every: Images between two checkpoints; None by the clock or at the end only.
        save_seconds: Seconds between two checkpoints.
        keep: How many of the last checkpoints are kept.
        milestones: One checkpoint every so many images is kept for good.
        max_bad_updates: Updates in a row with a non-finite loss or gradient after which the run stops. Such updates are
            skipped.
        workers: Decoding threads; None chooses them.
        device: "cpu", "cuda" or "mps"; None for the fastest there is.
        time_limit: Seconds after the start of the process in which the run has to be saved and ended; None for the time
            that a Slurm job has, or no limit.
    """

    batch: int = 128
    images: int | None = None
    steps: int | None = None
    microbatch: int | None = None
    lr: float = 1e-4
    warmup_images: int = 0
    lr_decay: str = "none"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    grad_clip: float | None = None
    ema_decays: tuple[float, ...] = (0.999, 0.9999)
    ema_warmup: bool = True
    posthoc_widths: tuple[float, ...] = ()
    posthoc_every: int | None = None
    precision: str = "fp32"
    gradient_dtype: str = "fp32"
    sharding: str = "none"
    compile: bool = False
    seed: int = 0
    timesteps: str = "uniform"
    density: str = "uniform"
    log_every: int | None = 10_000
    preview_every: int | None = 200_000
    preview_count: int = 20
    preview_steps: int = 25
    validate_every: int | None = 200_000
    validate_images: int = 1_000
    evaluate_every: int | None = None
    evaluate_images: int = 1_000
    evaluate_steps: int = 25
    save_every: int | None = 200_000
    save_seconds: float | None = None
    keep: int = 2
    milestones: int | None = None
    max_bad_updates: int = 20
    workers: int | None = None
    device: str | None = None
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if (self.images is None) == (self.steps is None):
            raise ValueError(
                "the end of the training is missing: give either images or steps (exactly one); "
                f"got images={self.images}, steps={self.steps}"
            )
        at_least_one = ["batch", "images", "steps", "microbatch", "keep", "milestones", "log_every", "preview_every"]
        at_least_one += ["preview_count", "preview_steps", "validate_every", "validate_images", "save_every"]
        at_least_one += ["evaluate_every", "evaluate_steps", "posthoc_every"]
        for name in at_least_one:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.evaluate_images < 2:
            raise ValueError(f"evaluate_images must be at least 2, got {self.evaluate_images}")
        for name in ("warmup_images", "max_bad_updates", "workers", "weight_decay", "seed"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.time_limit is not None and not 0 < self.time_limit < math.inf:
            raise ValueError(f"time_limit must be a number of seconds above 0, got {self.time_limit}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite (1e-4 is usual), got {self.lr}")
        if not all(0 <= b < 1 for b in self.betas) or not 0 < self.eps < 1 or not self.weight_decay < 1e3:
            raise ValueError(
                f"betas must be in [0, 1), eps in (0, 1) and weight_decay a number; got {self.betas}, {self.eps}, "
                f"{self.weight_decay}"
            )
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise ValueError(f"grad_clip must be positive, or None for no clipping; got {self.grad_clip}")
        if self.lr_decay not in LR_DECAYS:
            raise ValueError(f"lr_decay is one of {', '.join(LR_DECAYS)}; got {self.lr_decay!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is one of {', '.join(PRECISIONS)}; got {self.precision!r}")
        if self.gradient_dtype not in GRADIENT_DTYPES:
            raise ValueError(f"gradient_dtype is one of {', '.join(GRADIENT_DTYPES)}; got {self.gradient_dtype!r}")
        if self.sharding not in SHARDINGS:
            raise ValueError(f"sharding is one of {', '.join(SHARDINGS)}; got {self.sharding!r}")
        if self.sharding != "none" and self.compile:
            raise ValueError("sharding and compile cannot be combined; choose one of them")
        parse_density(self.density)
        for width in self.posthoc_widths:
            exponent_of(width)  # ValueError for one that no power function has
        if bool(self.posthoc_widths) != (self.posthoc_every is not None):
            raise ValueError(
                "averages of any width afterwards need both posthoc_widths, for example 0.05,0.1, and posthoc_every, "
                f"the images between two snapshots; got {self.posthoc_widths} and {self.posthoc_every}"
            )
        # JSON knows no tuples; a config read back from a checkpoint equals the one written
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "ema_decays", tuple(self.ema_decays))
        object.__setattr__(self, "posthoc_widths", tuple(self.posthoc_widths))

    @property
    def total_images(self) -> int:
        """Images after which the run ends: the first whole batch at or past `images`."""
        steps = self.steps if self.steps is not None else -(-(self.images or 0) // self.batch)
        return steps * self.batch

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def learning_rate(config: TrainConfig, images: int) -> float:
    """Returns the learning rate of the update that follows `images` images.

    lr * ramp * decay, ramp = min(1, (images + batch) / warmup_images), p = images / total_images,
    decay = 1 ("none"), 1 - p ("linear", ADM's classifiers), (1 + cos(pi p)) / 2 ("cosine").
    """
    ramp = min(1.0, (images + config.batch) / config.warmup_images) if config.warmup_images else 1.0
    p = min(1.0, images / config.total_images)
    decay = {"none": 1.0, "linear": 1.0 - p, "cosine": 0.5 * (1.0 + math.cos(math.pi * p))}[config.lr_decay]
    return config.lr * ramp * decay


def due(every: int | None, before: int, after: int) -> bool:
    """Returns whether a multiple of `every` images lies between `before` (excluded) and `after` (included)."""
    return every is not None and after // every > before // every


def differences(old: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Compares two resolved run configs, {"train": {...}, "net": {...}, ...}.

    Returns:
        (changes that are not allowed when a run resumes, changes worth a note), a line each.
    """
    forbidden: list[str] = []
    notes: list[str] = []
    for section in sorted(set(old) | set(new)):
        a, b = old.get(section), new.get(section)
        if a == b:
            continue
        if not (isinstance(a, dict) and isinstance(b, dict)):
            forbidden.append(f"{section}: {_short(a)} -> {_short(b)}")
            continue
        for key in sorted(set(a) | set(b)):
            if a.get(key) == b.get(key) or (section == "train" and key in FREE_TO_CHANGE):
                continue
            line = f"{section}.{key}: {_short(a.get(key))} -> {_short(b.get(key))}"
            (notes if section == "train" and key in CHANGE_WITH_NOTE else forbidden).append(line)
    return forbidden, notes


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
