"""`undiffuse recipes`: lists the recipes, or prints all settings of one."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from undiffuse import recipes
from undiffuse.cli.console import fields, say, table
from undiffuse.config.advice import describe
from undiffuse.nets.meta import build_on_meta
from undiffuse.recipes import Recipe

_NO_FIGURES = ("source", "file", "unverified")  # what a recipe publishes beside numbers


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.name is None:
        if args.json:
            say(json.dumps({name: recipes.get(name).to_dict() for name in recipes.names()}, indent=2))
        else:
            say(overview())
        return 0
    recipe = recipes.get(args.name)
    say(json.dumps(recipe.to_dict(), indent=2) if args.json else details(recipe))
    return 0


def overview() -> str:
    """Returns a table with a line for each recipe."""
    rows = []
    for name in recipes.names():
        recipe = recipes.get(name)
        kind = "classifier" if recipe.kind == "classifier" else "upsampler" if recipe.low_size else "model"
        rows.append([name, kind, _size(recipe), f"{parameters(recipe) / 1e6:.1f}M", _result(recipe)])
    head = ("recipe", "kind", "size", "weights", "published, or measured here")
    return (
        f"{table(rows, head, right=(3,))}\n\n`undiffuse recipes NAME` prints all settings of a recipe.\n"
        "`undiffuse train DATA --recipe NAME` trains with it."
    )


def details(recipe: Recipe) -> str:
    """Returns all settings and figures of one recipe as text."""
    rows: list[tuple[str, object]] = [
        ("kind", recipe.kind),
        ("network", f"{parameters(recipe):,} parameters"),
        ("data", recipe.data_path),
        ("enlarges", f"from {recipe.low_size} pixels" if recipe.low_size else None),
        ("measured here", recipe.measured),
    ]
    rows += [(f"published {key}" if key not in _NO_FIGURES else key, value)
             for key, value in recipe.published.items()]  # fmt: skip
    if recipe.kind == "diffusion":
        rows.append(("sampled by", describe(recipe.advice)))
    parts = [f"{recipe.name}: {recipe.summary}", fields(rows)]
    for title, section in (("data", recipe.data), ("net", recipe.net), ("process", recipe.process),
                           ("objective", recipe.objective), ("train", recipe.train)):  # fmt: skip
        if section is not None:
            parts.append(f"\n{title} (--set {title}.FIELD=VALUE)\n{fields(_settings(section))}")
    if recipe.kind == "classifier":
        parts.append(f"\n  clean images  {100 * recipe.clean_fraction:g}%")
    command = "train-classifier" if recipe.kind == "classifier" else "train"
    parts.append(f"\nTo train with it:\n  undiffuse {command} {recipe.data_path or 'DATA'} --recipe {recipe.name}")
    return "\n".join(parts)


def parameters(recipe: Recipe) -> int:
    """Returns the number of parameters of the network, without allocating them."""
    net: Any = build_on_meta(recipe.net.build)
    return sum(p.numel() for p in net.parameters())


def _settings(section: Any) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if isinstance(value, tuple):
            value = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value)
        rows.append((field.name, "none" if value is None else value))
    return rows


def _size(recipe: Recipe) -> str:
    size = recipe.data.size
    text = str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"
    text = f"{recipe.low_size}->{text}" if recipe.low_size else text
    return text + (" grey" if recipe.data.channels == 1 else "")


def _result(recipe: Recipe) -> str:
    """The result measured here, otherwise the published one."""
    if not recipe.measured.startswith("not "):
        return f"here: {recipe.measured}"
    for key, value in recipe.published.items():
        if key not in _NO_FIGURES and value[:1].isdigit():
            metric, _, how = key.partition(" (")
            return f"{metric} {value.split(';')[0]}" + (f" ({how}" if how else "")
    return recipe.measured
