"""How a model is sampled: solver, steps, grid, clipping; what guides it is in `config.guidance`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from undiffuse.config.fields import check_values, given, setting, settings_of
from undiffuse.config.guidance import GuidanceConfig
from undiffuse.config.kinds import (
    CLIPPING,
    Choice,
    Flag,
    Number,
    Parsed,
    SolverName,
    Text,
    clipping,
)
from undiffuse.grid_specs import GRIDS, levels_listed
from undiffuse.runtime_specs import DEFAULT, RUNTIMES
from undiffuse.solvers.registry import SOLVERS, current_record, read_options, solver_info, write_options
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import shown

__all__ = ["SamplerConfig"]

SAMPLER, RUNTIME = "sampler", "device and precision"
STEPS = '"250", sections "90,60,60,20,20", "ddim25", "leading25", "trailing25", or "at:0,10,999"'


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a model is sampled. None leaves the choice to `resolved`, or with a `budget` to what was measured.

    Example:
        SamplerConfig(model="fashion-mnist-32", solver="dpmpp-2m", steps="20").replace(guidance=2.0)

    Raises:
        ConfigError: If a value is not possible.
    """

    model: str | None = None
    weights: str | None = None
    solver: str | None = setting(
        None, "sampling method, see --help-all (default: the published one; else ddpm for learned variances; else "
        "ddim)", SolverName(SOLVERS), metavar="NAME", group=SAMPLER,
    )  # fmt: skip
    steps: str | None = setting(
        None, f"number or list of steps: {STEPS} (default: the solver's)", Text(), metavar="SPEC", group=SAMPLER
    )
    budget: int | None = setting(
        None, "use the best sampler measured for this model within N network calls per image", Number(1, whole=True),
        metavar="N", group=SAMPLER,
    )  # fmt: skip
    grid: str | None = setting(
        None, f"spacing of the steps: {', '.join(GRIDS)} (default: the solver's)", Text(), metavar="SPEC",
        group=SAMPLER, advanced=True,
    )  # fmt: skip
    solver_options: str = setting(
        "", "options of the solver, for example churn=30,s_max=50", Text(empty=True), metavar="KEY=VALUE,...",
        group=SAMPLER, advanced=True,
    )  # fmt: skip
    eta: float = setting(
        0.0, "noise of ddim: 0 is deterministic (default), 1 adds as much noise as DDPM", Number(0), metavar="E",
        group=SAMPLER, advanced=True,
    )  # fmt: skip
    clip: str | None = setting(
        None, "clamp the denoised image (static, static:RANGE), threshold it (dynamic, dynamic:QUANTILE), or leave it "
        "(none); default: as published, else static", Parsed(clipping, CLIPPING), metavar="static|dynamic|none",
        group=SAMPLER, advanced=True,
    )  # fmt: skip
    clip_after_guidance: bool = setting(
        True, "do not clamp the denoised image again after guidance (as OpenAI's ddim)", Flag(),
        group=SAMPLER, advanced=True, off="no-clip-after-guidance",
    )  # fmt: skip
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    precision: str = setting(
        "fp32", "precision of the network: fp32 (default), bf16, or fp16 (GPU only)", Choice("fp32", "bf16", "fp16"),
        group=RUNTIME,
    )  # fmt: skip
    runtime: str = setting(
        DEFAULT, "program that runs the network: torch (default, with this package's kernels), inductor "
        "(torch.compile), onnxruntime or openvino (CPU only); all but torch take a minute or more once per model",
        Choice(*RUNTIMES), group=RUNTIME, advanced=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("steps", "model", "weights"):
            value = getattr(self, name)
            if isinstance(value, int) and not isinstance(value, bool):
                object.__setattr__(self, name, str(value))
            elif value is not None and not str(value).strip():
                raise ConfigError(name, "is empty: give a value, or leave it out")
        if isinstance(self.solver_options, Mapping):
            name = self.solver or next(iter(SOLVERS))
            object.__setattr__(self, "solver_options", write_options(name, self.solver_options))
        check_values(self)

    def replace(self, **changes: Any) -> SamplerConfig:
        """Returns a copy with changes by flat name, those of guidance included: `replace(steps=20, guidance=2.0)`.

        Raises:
            ConfigError: If there is no such setting, or a value is not possible.
        """
        own = {f.name for f in fields(SamplerConfig)} - {"guidance"}
        guidance = given(GuidanceConfig, changes)
        if isinstance(changes.get("guidance"), GuidanceConfig):
            guidance = {}
        else:
            changes = {**changes, "guidance": replace(self.guidance, **guidance)}
        names = {declared.name for _, declared in settings_of(GuidanceConfig)}
        unknown = sorted(changes.keys() - own - names - {"guidance"})
        if unknown:
            raise ConfigError(unknown[0], f"there is no such setting; there are {', '.join(sorted(own | names))}")
        kept = {name: value for name, value in changes.items() if name in own}
        return replace(self, guidance=changes["guidance"], **kept)

    def resolved(self, process: Any, advice: SamplerConfig | None = None) -> SamplerConfig:
        """Chooses solver, steps, grid and clipping where they are open, as the model's authors do where that is known.

        Learned variances are what makes ancestral sampling good with few steps (Improved DDPM, section 4); a model
        with fixed ones is better served by DDIM.

        Args:
            process: The model's `ProcessConfig`.
            advice: How the authors of a published model sample it.

        Raises:
            ConfigError: For settings that exclude each other.
        """
        solver, at = self.solver, self.guidance.at
        if solver is None:
            wants_ddim = self.eta > 0 or not (process.learns_variance or at == "mean")
            solver = "ddim" if wants_ddim else "ddpm"
            if advice is not None and advice.solver is not None and not self.eta:
                solver = "ddpm" if at == "mean" else advice.solver
            solver = "consistency" if process.target == "consistency" and advice is None else solver
        usual = advice if advice is not None and advice.solver == solver else SamplerConfig()
        try:
            options = write_options(solver, read_options(solver, self.solver_options or usual.solver_options))
        except ValueError as error:
            raise ConfigError("solver_options", str(error)) from None
        if self.eta and solver != "ddim":
            raise ConfigError("eta", f"is the noise of ddim; {solver} has its own or none. Leave `eta` out")
        if self.guidance.strength and at == "mean" and solver != "ddpm":
            raise ConfigError("guidance_at", f'"mean" works with the solver ddpm only, not with {solver}')
        steps = self.steps or usual.steps
        grid = self.grid
        if steps is None or (steps.strip().isdecimal() and levels_listed(usual.grid) in (None, int(steps))):
            grid = grid or usual.grid
        steps = steps or _default_steps(solver, process, grid)
        # Steps that are more than a number ("ddim25", "at:0,10,999") name trained ones.
        grid = grid or (solver_info(solver).grid if steps.strip().isdecimal() else "chain")
        clip = self.clip or (advice.clip if advice is not None else None) or "static"
        return replace(
            self, solver=solver, steps=steps, grid=grid, solver_options=options, clip=clip, eta=self.eta or usual.eta
        )

    def record(self) -> dict[str, Any]:
        """The settings of a resolved config as a flat record for JSON, without the models, which are known by digest.

        What was added after the first records were written is left out at its default, so that a record always means
        what it meant when it was written.
        """
        out: dict[str, Any] = {}
        for config in (self, self.guidance):
            for f, declared in settings_of(config):
                value = getattr(config, f.name)
                default = _UNSAID.get(declared.name, f.default)
                if declared.name in _ALWAYS or (declared.name not in _MODELS and value != default):
                    out[declared.name] = value
        out["guidance"] = self.guidance.strength
        if self.guidance.autoguide is not None:
            out["autoguide_scale"] = self.guidance.autoguide_scale
        return out

    @classmethod
    def from_record(
        cls,
        record: Mapping[str, Any],
        *,
        model: str | None = None,
        classifier: Sequence[str] = (),
        autoguide: str | None = None,
        where: str = "the record",
    ) -> SamplerConfig:
        """Reads the record of a picture: the inverse of `record`, together with its models and notes.

        Args:
            record: The record with its notes.
            model: Where the model is now, if not where the record says.
            classifier: Where the classifiers are now, in their order.
            autoguide: Where the guiding model is now.
            where: What messages call the record.

        Raises:
            ValueError: If the record says too little, or something that no setting can be.
        """
        record = current_record(record)
        names = {declared.name: declared for kind in (cls, GuidanceConfig) for _, declared in settings_of(kind)}
        absent = [name for name in ("model", "model_file", "weights", "classifier", *_ALWAYS) if name not in record]
        if absent:
            raise ValueError(f"{where} does not say how to make an image: it lacks {', '.join(absent)}")
        texts = {"model", "model_file", "weights", *(["classifier"] if record["classifier"] is not None else [])}
        for name, value in record.items():
            declared = names.get(name)
            fits, expected = True, ""
            if name in texts:
                fits, expected = Text().accepts(value), "text"
            elif declared is not None and name != "classifier":
                fits, expected = declared.kind.accepts(value), declared.kind.expected
            if not fits:
                raise ValueError(f"{where} has {name} = {shown(value)}; expected {expected}")
        here = record["model_file"] if model is None else model
        own = _UNSAID | given(cls, record) | {"weights": record["weights"], "model": here}
        guidance = given(GuidanceConfig, record)
        guidance["classifier"], guidance["scale"] = _recorded_classifiers(record, classifier, where)
        if "autoguide" in record:
            guidance["autoguide"] = record.get("autoguide_file") if autoguide is None else autoguide
            if not Text().accepts(guidance["autoguide"]):
                raise ValueError(f"{where} lacks autoguide_file, the model that guides: give its file as autoguide")
        return cls(guidance=GuidanceConfig(**guidance), **own)


_MODELS = ("classifier", "guidance", "autoguide", "autoguide_weights", "autoguide_scale", "budget")
"""Settings that a record holds as digests of the models, or not at all."""
_ALWAYS = ("solver", "steps", "eta", "clip", "clip_after_guidance", "precision", "guidance", "guidance_at")
"""Settings that every record holds; the others only where they are not at their defaults."""
_UNSAID = {"grid": "chain"}
"""What a record means that does not say it, where that is not the default."""


def _recorded_classifiers(
    record: Mapping[str, Any], now: Sequence[str], where: str
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The classifiers of a record, by where they are, and their scales."""
    more = record.get("more_classifiers") or []
    pairs = isinstance(more, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in more)
    if not pairs or not all(Text().accepts(name) and Number().accepts(scale) for name, scale in more):
        raise ValueError(
            f"{where} has more_classifiers = {shown(more)}; expected a list of pairs of a name and a number"
        )
    files = list(now[1:]) or record.get("more_classifier_files")
    if more and not (isinstance(files, list) and len(files) == len(more) and all(map(Text().accepts, files))):
        raise ValueError(
            f"{where} is of {len(more) + 1} classifiers; expected their files in more_classifier_files, or give a "
            "classifier for each"
        )
    if record["classifier"] is None:
        return (), ()
    first = now[0] if now else record.get("classifier_file")
    if not Text().accepts(first):
        raise ValueError(f"{where} has classifier_file = {shown(first)}; expected text, or give the classifier's file")
    scales = (float(record["guidance"]), *(float(scale) for _, scale in more))
    return (str(first), *(map(str, files or ()) if more else ())), scales


def _default_steps(solver: str, process: Any, grid: str | None) -> str:
    """The method's default, at most the whole chain or the levels of the grid; for DDIM the original's spacing."""
    levels = levels_listed(grid)
    if levels is not None:
        return str(levels)
    count = min(solver_info(solver).steps, process.steps)
    if solver == "ddim" and grid in (None, "chain") and not process.needs_last_level:
        from undiffuse.noise_levels import ddim_spec  # imports torch, which help must not

        return ddim_spec(process.steps, count) or str(count)
    return str(count)
