"""Writes what is on the page as a command and as Python, each of which gives the same pictures when it is pasted."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from undiffuse.pipelines.grids import quoted
from undiffuse.studio.jobs import EDITS, Job
from undiffuse.studio.settings import declared, text_of

__all__ = ["command", "python", "record_command", "training_command"]

_OUT = {
    "sample": "samples", "interpolate": "interpolation", "inpaint": "inpainted", "restore": "restored",
    "vary": "variations", "translate": "translated",
}  # fmt: skip
_SPECIAL = set('$`\\!"\n')


def command(job: Job) -> str:
    """Returns the command of a job; of a comparison two commands, a line each."""
    if job.task == "compare" and job.other is not None:
        first = Job(task="sample", settings=job.settings)
        second = Job(task="sample", settings=job.other)
        return f"{_line(_words(first) + ['--out', 'a'])}\n{_line(_words(second) + ['--out', 'b'])}"
    return _line(_words(job) + _results(job))


def python(job: Job) -> str:
    """Returns Python that does a job; its results are saved."""
    if job.task == "compare" and job.other is not None:
        parts = [_sample(Job(task="sample", settings=s), name) for s, name in ((job.settings, "a"), (job.other, "b"))]
        return "from undiffuse import Pipeline\n\n" + "\n".join(parts)
    if job.task == "sample":
        return f"from undiffuse import Pipeline\n\n{_sample(job, 'samples')}"
    if job.task == "interpolate":
        return _interpolation(job)
    if job.task in EDITS:
        return _edit(job)
    raise ValueError(f"a job of the kind {job.task} has no Python of its own")


def record_command(path: str) -> str:
    """Returns the command that makes a picture again from its record."""
    return _line(["undiffuse", "sample", "--from-record", path])


def training_command(data: str, out: str, recipe: str = "", more: Sequence[str] = ()) -> list[str]:
    """Returns the words of the command that starts a training, without "undiffuse".

    Args:
        data: The training data.
        out: The run folder.
        recipe: A recipe's name; "" for the one that fits the data.
        more: Further options.
    """
    return ["train", data, *(["--recipe", recipe] if recipe else []), "--out", out, *more]


def _line(words: Sequence[str]) -> str:
    return " ".join(
        word if _bare(word) else shlex.quote(word) if _SPECIAL & set(word) else quoted(word) for word in words
    )


def _bare(word: str) -> bool:
    """Whether a word needs no quotes: an option, possibly with a plain value."""
    return quoted(word) == word


def _words(job: Job) -> list[str]:
    """The command with its model and settings, without where results go."""
    s, inputs = job.settings, job.inputs
    words = ["undiffuse", job.task]
    if job.task == "sample":
        words.append(s.model)
    elif job.task == "interpolate":
        images = inputs.get("images")
        words += list(images) if images else ["--seeds", ",".join(map(str, inputs["seeds"]))]
        words += ["--model", s.model]
    else:
        words += [*map(str, inputs["images"]), "--model", s.model]
    if s.weights is not None:
        words += ["--weights", s.weights]
    words += _options(job.sampler())
    for name in s.class_list() or ():
        words += ["--class", name]
    if job.task == "sample":
        words += ["--count", str(s.count), "--seed", str(s.seed)]
        for text in s.condition:
            words += ["--condition", text]
    elif job.task == "interpolate":
        words += ["--frames", str(inputs.get("frames", 9))]
    else:
        words += _edit_options(job)
    return words


def _results(job: Job) -> list[str]:
    return ["--out", _OUT[job.task]]


def _options(sampler: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for default, found in declared():
        if found.name not in sampler:
            continue
        value = sampler[found.name]
        flag = f"--{found.off or found.name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value != default else []
            continue
        for one in value if found.many else (value,):
            words += _option(flag, text_of(one))
    return words


def _option(flag: str, value: str) -> list[str]:
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def _edit_options(job: Job) -> list[str]:
    words: list[str] = []
    for name, value in job.inputs.items():
        flag = f"--{name.replace('_', '-')}"
        if name in ("images", "frames") or value is None or value is False:
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, (list, tuple)):
            words += _option(flag, ",".join(map(str, value)))
        else:
            words += _option(flag, text_of(value))
    if job.task != "translate":
        words += ["--seed", str(job.settings.seed)]
    return words


def _call(function: str, arguments: Sequence[str]) -> str:
    """A call on one line, or with an argument a line where that is longer than 100 columns."""
    line = f"{function}({', '.join(arguments)})"
    if len(line) <= 100:
        return line
    return f"{function}(\n    " + ",\n    ".join(arguments) + ",\n)"


def _sampler_arguments(job: Job) -> list[str]:
    values = {"weights": job.settings.weights, **job.sampler()}
    return [f"{name}={_literal(value)}" for name, value in values.items() if value is not None]


def _literal(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return repr(value[0] if len(value) == 1 else list(value))
    return repr(value)


def _sample(job: Job, out: str) -> str:
    s = job.settings
    arguments = [str(s.count)]
    if s.class_list() is not None:
        arguments.append(f"classes={s.class_list()!r}")
    arguments.append(f"seed={s.seed}")
    if s.condition:
        arguments.append(f"condition={list(s.condition)!r}")
    load = _call("Pipeline.from_pretrained", [repr(s.model), *_sampler_arguments(job)])
    return f"pipeline = {load}\nsamples = {_call('pipeline.sample', arguments)}\nsamples.save({out!r})\n"


def _config(job: Job, **fixed: Any) -> str:
    given = {"model": job.settings.model, "weights": job.settings.weights, **fixed, **job.sampler()}
    named = [f"{name}={_literal(value)}" for name, value in given.items() if value is not None]
    return _call("SamplerConfig().replace", named)


def _interpolation(job: Job) -> str:
    inputs = job.inputs
    arguments = ["pipeline", *([repr(list(inputs["images"]))] if inputs.get("images") else [])]
    arguments += [f"seeds={list(inputs['seeds'])!r}"] if not inputs.get("images") else []
    if job.settings.class_list() is not None:
        arguments.append(f"classes={job.settings.class_list()!r}")
    arguments.append(f"frames={inputs.get('frames', 9)}")
    return (
        "from undiffuse import Pipeline, SamplerConfig\n"
        "from undiffuse.pipelines.interpolation import interpolate\n\n"
        f"pipeline = Pipeline.load({_config(job, solver='ddim')})\n"
        f"{_call('interpolate', arguments)}.save({_OUT['interpolate']!r})\n"
    )


def _edit(job: Job) -> str:
    arguments = [repr([str(path) for path in job.inputs["images"]])]
    for name, value in job.inputs.items():
        if name != "images" and value is not None and value is not False:
            arguments.append(f"{name}={_literal(value)}")
    if job.one_class() is not None:
        arguments.append(f"classes={job.one_class()!r}")
    if job.task != "translate":
        arguments.append(f"seed={job.settings.seed}")
    arguments += ["model=config", f"out={_OUT[job.task]!r}"]
    return (
        f"from undiffuse import SamplerConfig\nfrom undiffuse.editing import {job.task}\n\n"
        f"config = {_config(job)}\n{_call(job.task, arguments)}\n"
    )
