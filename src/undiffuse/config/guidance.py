"""What guides a sampler: classifiers, classifier-free guidance, a weaker model; their scales and extent."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from undiffuse.config.fields import check_values, setting, settings_of
from undiffuse.config.kinds import (
    INTERVAL,
    Choice,
    Flag,
    Number,
    Parsed,
    Text,
    interval,
)
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import join_names

__all__ = ["GuidanceConfig"]

CLASSIFIER, COMPARISON, EXTENT = "classifier guidance", "classifier-free guidance and autoguidance", "guidance extent"


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """What guides a sampler. The defaults mean no guidance.

    Classifier-free guidance is applied first, then autoguidance, then the classifiers in their order; all of them act
    within `interval`, on `schedule`, at every `every`-th call of the network.

    Raises:
        ConfigError: If a value is not possible, or there are several classifiers and another number of scales.
    """

    classifier: tuple[str, ...] = setting(
        (), "noisy-image classifier: file, run folder or name (default: the model's own); repeatable", Text(),
        metavar="C", group=CLASSIFIER, many=True,
    )  # fmt: skip
    scale: tuple[float, ...] = setting(
        (), "scale of classifier guidance (default: 1 with --classifier, else 0); one per classifier", Number(),
        name="guidance", metavar="SCALE", group=CLASSIFIER, many=True,
    )  # fmt: skip
    at: str = setting(
        "x_t", "where to take the classifier's gradient: x_t (default, as in OpenAI's code), mean (as in the paper; "
        "ddpm only), or x0 (through the network)", Choice("x_t", "mean", "x0"),
        name="guidance_at", group=CLASSIFIER, advanced=True,
    )  # fmt: skip
    temperature: float = setting(
        1.0, "divide the classifier's logits by T (default 1)", Number(0, above=True), name="guidance_temperature",
        metavar="T", group=CLASSIFIER, advanced=True,
    )  # fmt: skip
    normalize: bool = setting(
        False, "scale every gradient to unit size, so that SCALE is relative to the noise", Flag(),
        name="guidance_normalize", group=CLASSIFIER, advanced=True,
    )  # fmt: skip
    cfg: float | None = setting(
        None, "scale of classifier-free guidance: 1 is off (default), 0 is unconditional; requires a model trained "
        "with label dropout", Number(), metavar="SCALE", group=COMPARISON,
    )  # fmt: skip
    cfg_rescale: float = setting(
        0.0, "rescale the guided prediction to the unguided standard deviation (Lin et al. 2023): 0 is off (default), "
        "1 is full", Number(0, 1), metavar="PHI", group=COMPARISON, advanced=True,
    )  # fmt: skip
    cfg_two_passes: bool = setting(
        False, "run the conditional and unconditional passes one after the other, which halves the memory", Flag(),
        group=COMPARISON, advanced=True,
    )  # fmt: skip
    autoguide: str | None = setting(
        None, "steer away from a smaller or less trained version of the model (Karras et al. 2024)", Text(),
        metavar="WEAK", group=COMPARISON, advanced=True,
    )  # fmt: skip
    autoguide_weights: str | None = setting(
        None, "weights of WEAK to use; without --autoguide, weights of MODEL itself", Text(), metavar="W",
        group=COMPARISON, advanced=True,
    )  # fmt: skip
    autoguide_scale: float = setting(
        2.0, "scale of autoguidance: 1 is off (default 2)", Number(), metavar="SCALE", group=COMPARISON, advanced=True
    )
    interval: str | None = setting(
        None, "guide only within this interval: log-SNR (-1,3), sigma (sigma:0.2,1.6) or step fractions "
        "(steps:0.2,0.8)",
        Parsed(interval, INTERVAL), name="guidance_interval", metavar="LO,HI", group=EXTENT, advanced=True,
    )  # fmt: skip
    schedule: str = setting(
        "constant", "guidance scale over the steps: constant (default), or growing with the same mean",
        Choice("constant", "linear", "cosine"), name="guidance_schedule", group=EXTENT, advanced=True,
    )  # fmt: skip
    every: int = setting(
        1, "evaluate guidance only at every K-th network call and reuse the last update in between (default 1)",
        Number(1, whole=True), name="guidance_every", metavar="K", group=EXTENT, advanced=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("classifier", "scale"):
            value = getattr(self, name)
            value = () if value is None else value
            one = isinstance(value, (str, int, float))
            object.__setattr__(self, name, (value,) if one else tuple(value))
        check_values(self)
        counts = len(self.classifier), len(self.scale)
        if max(counts) > 1 and counts[0] != counts[1]:
            raise ConfigError(
                "guidance", f"needs one scale for each classifier: got {counts[0]} classifiers and {counts[1]} scales"
            )

    @property
    def judges(self) -> tuple[tuple[str, float], ...]:
        """The classifiers with their scales; a single classifier with scale 0 is left out, since it does nothing."""
        pairs = tuple(zip(self.classifier, self.scale, strict=False))
        return pairs if len(pairs) > 1 else tuple(pair for pair in pairs if pair[1])

    @property
    def strength(self) -> float:
        """The scale of the first classifier; 0 without one."""
        return self.scale[0] if self.scale else 0.0

    @property
    def compares(self) -> bool:
        """Whether two predictions are compared at each step: classifier-free guidance or autoguidance."""
        return self.cfg not in (None, 1) or self.autoguide is not None

    def resolved(self, model: str | None, paired: Callable[[str], str | None]) -> GuidanceConfig:
        """Fills in what follows from the model, and drops settings of guidance that does not act.

        Args:
            model: Reference of the model that is guided.
            paired: Returns the reference of the classifier made for a model, or None.

        Raises:
            ConfigError: If there is no classifier for a scale, or a setting shapes guidance that was not requested.
        """
        out = self
        if out.classifier and not out.scale:
            out = replace(out, scale=(1.0,) * len(out.classifier))
        if out.strength and not out.classifier:
            found = paired(model) if model is not None else None
            if found is None:
                raise ConfigError(
                    "guidance",
                    f"{out.strength:g} needs a classifier of noisy images, and none is known for this model: give "
                    f"`classifier` (`undiffuse train-classifier DATA --for {model}` trains one)",
                )
            out = replace(out, classifier=(found,))
        if out.autoguide_weights is not None and out.autoguide is None:
            out = replace(out, autoguide=model)
        strengths: dict[str, Sequence[float]] = {
            "guidance": out.scale,
            "cfg": () if out.cfg is None else (out.cfg - 1,),
            "autoguide": () if out.autoguide is None else (out.autoguide_scale - 1,),
        }
        requested = [name for name, values in strengths.items() if values]
        acting = [name for name, values in strengths.items() if any(values)]
        if out.at != "x_t":
            _check_requested("guidance_at", ("guidance",), requested)
        idle: dict[str, Any] = {}
        for f, declared in settings_of(GuidanceConfig):
            shaped = _SHAPES.get(declared.name)
            if shaped and getattr(out, f.name) != f.default and not set(shaped) & set(acting):
                _check_requested(declared.name, shaped, requested)
                idle[f.name] = f.default
        if "autoguide" in requested and "autoguide" not in acting:
            idle |= {"autoguide": None, "autoguide_weights": None}
        if not out.judges:
            idle |= {"classifier": (), "scale": ()}
        return replace(out, cfg=None if out.cfg == 1 else out.cfg, **idle)

    def text(self) -> list[str]:
        """A few words for each setting in use, for captions; classifiers by their scales."""
        at = {"mean": " at the mean", "x0": " at x0"}.get(self.at, "")
        parts = [f"guidance {self.strength:g}{at}"] if self.strength else []
        parts += [f"and {scale:g}" for scale in self.scale[1:]]
        parts += [f"temperature {self.temperature:g}"] if self.temperature != 1 else []
        parts += ["normalised"] if self.normalize else []
        parts += [f"cfg {self.cfg:g}"] if self.cfg not in (None, 1) else []
        parts += [f"autoguided {self.autoguide_scale:g}"] if self.autoguide else []
        parts += [f"rescaled {self.cfg_rescale:g}"] if self.cfg_rescale else []
        parts += [f"interval {self.interval}"] if self.interval else []
        parts += [self.schedule] if self.schedule != "constant" else []
        parts += [f"every {self.every}"] if self.every != 1 else []
        return parts


_ALL = ("guidance", "cfg", "autoguide")
_SHAPES = {
    **dict.fromkeys(("guidance_interval", "guidance_schedule", "guidance_every"), _ALL),
    **dict.fromkeys(("guidance_temperature", "guidance_normalize"), ("guidance",)),
    "cfg_rescale": ("cfg", "autoguide"),
    "cfg_two_passes": ("cfg",),
    "autoguide_scale": ("autoguide",),
}
"""Settings of how guidance acts, each with the kinds of guidance that it shapes."""


def _check_requested(name: str, shaped: Sequence[str], requested: Collection[str]) -> None:
    if not set(shaped) & set(requested):
        kinds = join_names([f"`{kind}`" for kind in shaped], last=" or ")
        raise ConfigError(name, f"has no effect without guidance; add {kinds}")
