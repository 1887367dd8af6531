"""Links that open the page as it was: the settings, the tab, and what is chosen in it besides pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

from undiffuse.studio.jobs import MAKES, Job
from undiffuse.studio.settings import Settings, text_of
from undiffuse.util.errors import ConfigError
from undiffuse.util.text import join_names

__all__ = ["Opened", "opened", "query_of", "values_of"]

_WHOLE = ("from", "until", "frames", "variants")
_NUMBERS = ("amount", "strength")


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a link or an earlier job puts on the page.

    Attributes:
        settings: The form.
        task: The tab, one of `jobs.MAKES`.
        other: Of a comparison, the second settings.
        values: What is chosen in the tab, by the names of `values_of`.
    """

    settings: Settings = field(default_factory=Settings)
    task: str = "sample"
    other: Settings | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job) -> Opened:
        """Returns what a job was started from."""
        return cls(settings=job.settings, task=job.task, other=job.other, values=values_of(job))


def values_of(job: Job) -> dict[str, Any]:
    """Returns what is chosen in the tab of a job, by the names of its controls, without pictures."""
    inputs = job.inputs
    out: dict[str, Any] = {}
    if job.task == "interpolate":
        if not inputs.get("images"):
            out["from"], out["until"] = inputs["seeds"]
        out["frames"] = inputs.get("frames", 9)
    elif job.task == "restore":
        name = "upscale" if inputs.get("upscale") is not None else "deblur"
        out = {"task": "enlarge" if name == "upscale" else "deblur", "amount": inputs[name],
               "degrade": bool(inputs.get("degrade")), "method": inputs["method"]}  # fmt: skip
    elif job.task == "inpaint":
        hole = inputs.get("hole")
        out = {"hole": "" if hole is None else ",".join(map(str, hole)), "method": inputs["method"]}
    elif job.task in ("vary", "translate"):
        out = {name: inputs[name] for name in ("to", "strength", "variants") if name in inputs}
    return out


def query_of(job: Job) -> str:
    """Returns the query of a link that opens the page with a job's settings."""
    pairs = [] if job.task == "sample" else [("tab", job.task)]
    pairs += [(name, text_of(value)) for name, value in values_of(job).items() if value != ""]
    if job.task == "compare" and job.other is not None:
        pairs.append(("b", job.other.to_query()))
    return "&".join(part for part in (job.settings.to_query(), urlencode(pairs)) if part)


def opened(query: str | Iterable[tuple[str, str]], model: str = "") -> Opened:
    """Reads the query of a link; names of other programs are left out.

    Args:
        query: The query, or its pairs.
        model: The model where the query names none; "" for the shipped one.

    Raises:
        ConfigError: A value is not possible.
    """
    first = [("model", model)] if model else []
    pairs = [*first, *(parse_qsl(query) if isinstance(query, str) else query)]
    given = dict(pairs)
    task = given.get("tab", "sample")
    if task not in MAKES:
        raise ConfigError("tab", f"{task!r} is not possible; expected {join_names(MAKES)}")
    settings = Settings.from_query(pairs)
    other = None
    if task == "compare" and "b" in given:
        shared = Settings.from_query([*first, *parse_qsl(given["b"])])
        other = shared.replace(
            classes=settings.classes, count=settings.count, seed=settings.seed, condition=settings.condition
        )
    names = ("from", "until", "frames", "task", "amount", "degrade", "method", "hole", "to", "strength", "variants")
    values = {name: _read(name, given[name]) for name in names if name in given}
    return Opened(settings=settings, task=task, other=other, values=values)


def _read(name: str, text: str) -> Any:
    if name == "degrade":
        return text == "true"
    if name not in _WHOLE + _NUMBERS:
        return text
    try:
        return int(text) if name in _WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise ConfigError(name, f"{text!r} is not possible; expected {kind}") from None
