"""`undiffuse models`: lists the shipped and published models, describes one, and searches ImageNet's classes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from typing import Any

from undiffuse import checkpoints, recipes
from undiffuse.adapters import imagenet_classes, importing, published
from undiffuse.adapters.published import Published
from undiffuse.cli.console import fields, say, table
from undiffuse.cli.inspect_model import describe_model
from undiffuse.config.advice import describe, to_manifest
from undiffuse.models import SHIPPED, resolve
from undiffuse.pipelines.grids import quoted

RELEASES = {
    "guided-diffusion": "OpenAI's guided diffusion: ADM and its classifiers (Dhariwal & Nichol 2021)",
    "improved-diffusion": "OpenAI's improved diffusion (Nichol & Dhariwal 2021)",
    "consistency_models": "OpenAI's consistency models and their teachers (Song et al. 2023)",
    "ddpm": "DDPM (Ho et al. 2020), converted to PyTorch, and DDIM's model of CelebA (Song et al. 2021)",
}
EXAMPLE = "golden retriever"
METRICS = {
    "FID": "distance to the data in Inception features, lower is better (Heusel et al. 2017)",
    "sFID": "as FID, with spatial features, lower is better (Nash et al. 2021)",
    "IS": "Inception score, higher is better (Salimans et al. 2016)",
    "precision": "share of samples that lie among the data (Kynkaanniemi et al. 2019)",
    "recall": "share of the data that lie among the samples (same paper)",
    "bits/dim": "upper bound on the negative log-likelihood, lower is better (Ho et al. 2020)",
}


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.classes is not None:
        text = " ".join(args.classes)
        say(json.dumps(class_list(text, args.name), indent=2) if args.json else class_table(text, args.name))
    elif args.name is None:
        say(json.dumps({**_shipped_records(), **_published_records()}, indent=2) if args.json else overview())
    elif args.name in SHIPPED:
        path = resolve(args.name)
        say(json.dumps(_shipped_record(args.name), indent=2) if args.json else describe_model(path, args.name))
    else:
        entry = _entry(args.name)
        say(json.dumps(record(entry), indent=2) if args.json else details(entry))
    return 0


def overview() -> str:
    """Returns a table of all models, one per line."""
    parts = [_section("Shipped with this package (no download)", [_shipped_row(name) for name in SHIPPED])]
    for release, title in RELEASES.items():
        rows = [_row(entry) for entry in published.ENTRIES.values() if entry.release == release]
        parts.append(_section(title, rows))
    parts.append(
        "FID is the best published value (lower is better). Files are downloaded on first use.\n\n"
        "`undiffuse models NAME` describes a model and shows how to sample from it.\n"
        "`undiffuse models --classes TEXT` searches ImageNet's classes.\n"
        "`undiffuse recipes` lists recipes for training your own model."
    )
    return "\n\n".join(parts)


def details(entry: Published) -> str:
    """Describes one published file and the commands to use it."""
    net: Any = entry.net
    levels = "/".join(f"{m:g}" for m in net.channel_mult)
    attention = ", ".join(str(min(net.size) // f) for f in net.attention_resolutions if f <= net.downsampling)
    process = entry.process
    hashes = [f"{name} {value}" for name, value in (("sha256", entry.sha256), ("md5", entry.md5)) if value]
    unhashed = "none published; recorded at the first download and checked from then on"
    rows: list[tuple[str, object]] = [
        ("pictures", f"{_pixels(entry)} pixels, RGB"),
        ("trained on", entry.data),
        ("classes", _classes(entry)),
        ("network", f"{entry.parameters:,} parameters, width {net.model_channels} x {levels}, "
                    f"{net.num_res_blocks} blocks per level,\nattention at {attention} pixels"),
        ("process", process.levels_text
                    + (f", predicts {process.target}, variance {process.variance}" if entry.sampling else "")),
        ("sampled by", describe(entry.sampling) if entry.sampling else None),
        ("file", f"{entry.file}, {_bytes(entry)}"),
        ("hash", "\n".join(hashes) or unhashed),
        ("from", entry.url or f"{entry.page} (download it in a browser)"),
        ("page", entry.page if entry.url else None),
        ("present", "yes" if importing.is_here(entry.name) else f"no{', downloaded on first use' * bool(entry.url)}"),
        ("licence", entry.licence),
        ("paper", entry.paper),
        ("recipe", f"{recipe} (trains a model like this)" if (recipe := _recipe(entry)) else None),
        ("uncertain", entry.unverified or None),
    ]  # fmt: skip
    parts = [f"{entry.name}: {_kind(entry)} of {entry.release.replace('ddpm', 'DDPM')}", fields(rows)]
    if entry.results:
        results = [[result.how, result.figures] for result in entry.results]
        named = [name for name in METRICS if any(f"{name} " in figures for _, figures in results)]
        parts.append(f"\nPublished results on 50,000 samples:\n{table(results, indent=2)}\n")
        parts.append(fields([("source", entry.source), *((name, METRICS[name]) for name in named)], indent=2))
    parts.append("\n" + "\n".join(commands(entry)))
    return "\n".join(parts)


def record(entry: Published) -> dict[str, Any]:
    """Returns a published file as a dictionary for JSON."""
    return {
        **dataclasses.asdict(entry),
        "sampling": None if entry.sampling is None else to_manifest(entry.sampling),
        "also": [to_manifest(config) for config in entry.also],
        "kind": entry.kind,
        "image_size": entry.image_size,
        "low_size": entry.low_size,
        "classes": entry.num_classes,
        "net": dataclasses.asdict(entry.net),
        "process": dataclasses.asdict(entry.process),
        "here": importing.is_here(entry.name),
        "commands": [line.strip() for line in commands(entry) if line.startswith("  ")],
    }


def class_list(text: str, name: str | None = None) -> list[dict[str, Any]]:
    """Returns the classes of ImageNet, or of the model `name`, whose names contain a text, as dictionaries for JSON."""
    labels = None if name is None else _labels(name)
    if labels is not None and not imagenet_classes.are_these(labels):
        return [{"number": k, "name": label} for k, label in enumerate(labels) if text.casefold() in label.casefold()]
    return [
        {
            "number": index,
            "synset": imagenet_classes.synset(index),
            "name": imagenet_classes.names()[index],
            "synonyms": list(imagenet_classes.synonyms(index)),
        }
        for index in imagenet_classes.search(text)
    ]


def class_table(text: str, name: str | None = None) -> str:
    """Formats `class_list` as a table; ValueError if no class matches."""
    found = class_list(text, name)
    if not found:
        near = [imagenet_classes.names()[index] for index in imagenet_classes.similar(text)] if name is None else []
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"no class of {name or 'ImageNet'} contains {text!r}{meant}")
    if "synset" not in found[0]:
        return table([[c["number"], c["name"]] for c in found], ("number", "class"), right=(0,))
    rows = [
        [c["number"], c["synset"], c["name"], ", ".join(word for word in c["synonyms"] if word != c["name"])]
        for c in found
    ]
    shown = table(rows, ("number", "id", "class", "also"), right=(0,))
    example = found[0]["name"]
    return f'{shown}\n\nGive a class by number, id or name: undiffuse sample MODEL --class "{example}"'


def _entry(name: str) -> Published:
    if name not in published.ENTRIES and os.path.exists(name):
        raise ValueError(f"{name} is a local file or folder; to describe it: undiffuse inspect {quoted(name)}")
    return published.get(name)


def _labels(name: str) -> tuple[str, ...]:
    """Returns the names of a model's classes; ValueError if it has none."""
    if name in SHIPPED:
        return tuple(checkpoints.read_manifest(resolve(name))["labels"])
    if _entry(name).num_classes is None:
        raise ValueError(f"{name} is unconditional: it has no classes")
    return imagenet_classes.names()


def _section(title: str, rows: list[list[str]]) -> str:
    return f"{title}\n{table(rows, right=(4,), indent=2)}"


def _row(entry: Published) -> list[str]:
    classes = f", {entry.num_classes} classes" if entry.num_classes and entry.kind != "classifier" else ""
    here = "here" if importing.is_here(entry.name) else ""
    kind = "consistency" if entry.process.target == "consistency" else entry.kind
    return [entry.name, kind, _pixels(entry), entry.data + classes, here or _bytes(entry), _best(entry)]


def _shipped_row(name: str) -> list[str]:
    about = checkpoints.read_manifest(resolve(name))
    size = about["net"]["image_size"]
    size = str(size) if isinstance(size, int) else "x".join(map(str, size))
    return [name, about["kind"], size, f"Fashion-MNIST, {len(about['labels'])} classes", "here", ""]


def _shipped_records() -> dict[str, Any]:
    return {name: _shipped_record(name) for name in SHIPPED}


def _shipped_record(name: str) -> dict[str, Any]:
    return {**checkpoints.read_manifest(resolve(name)), "here": True}


def _published_records() -> dict[str, Any]:
    return {entry.name: record(entry) for entry in published.ENTRIES.values()}


def _kind(entry: Published) -> str:
    if entry.kind == "classifier":
        return "classifier of noisy images"
    conditional = "class-conditional" if entry.num_classes else "unconditional"
    if entry.process.target == "consistency":
        return f"{conditional} consistency model"
    return f"{conditional} {'upsampler' if entry.kind == 'upsampler' else 'diffusion model'}"


def _pixels(entry: Published) -> str:
    return f"{entry.low_size}->{entry.image_size}" if entry.low_size else str(entry.image_size)


def _classes(entry: Published) -> str:
    if entry.num_classes is None:
        return "none"
    return f"{entry.num_classes}, those of ImageNet (search them: undiffuse models --classes TEXT)"


def _bytes(entry: Published) -> str:
    count = entry.about_bytes
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _best(entry: Published) -> str:
    rated = [result for result in entry.results if result.fid is not None]
    if not rated:
        return ""
    best = min(rated, key=lambda result: result.fid or 0.0)
    return f"FID {best.fid:.2f}" + (" guided" if best.guidance else "")


def _recipe(entry: Published) -> str | None:
    """Returns the name of the recipe that describes how this file was trained, or None."""
    named = (name for name in recipes.names() if recipes.get(name).published.get("file") == entry.file)
    return next(named, None)


def commands(entry: Published) -> list[str]:
    """Returns command lines to use the file, each below its purpose."""
    if entry.sampling is None:
        guided = [e for e in published.ENTRIES.values() if e.sampling and entry.name in e.sampling.guidance.classifier]
        return ["To guide with it:", *(f"  {_sample(e)}" for e in guided)]
    begin = ["To fine-tune it on your own images:", f"  undiffuse train DATA --init-from {entry.name}"]
    if entry.process.target == "consistency":  # `train` does not train these
        begin = []
    if entry.kind == "upsampler":
        base = _sample(published.get(entry.base or ""))
        return ["To upscale samples of the model that it was made for:", f"  {base} --out small",
                f"  {_sample(entry)}", *begin]  # fmt: skip
    out = ["To sample:", f"  {_sample(entry)}"]
    for other in entry.also:
        out += [f"To sample in {other.steps} step{'' if other.steps == '1' else 's'}:",
                f"  {_sample(entry)} --steps {other.steps}"]  # fmt: skip
    for upsampler in published.upsamplers_of(entry.name):
        out += [f"To upscale its samples to {upsampler.image_size} pixels:", f"  {_sample(upsampler, 'samples')}"]
    return [*out, *begin]


def _sample(entry: Published, low: str = "small") -> str:
    """Returns the command to sample a model as its authors did; solver, steps and classifier follow from its name."""
    assert entry.sampling is not None
    words = [f"undiffuse sample {entry.name}"]
    if entry.kind == "upsampler":
        words.append(f"--low-res {low}")
    strength = entry.sampling.guidance.strength
    if entry.num_classes or strength:
        words.append(f'--class "{EXAMPLE}"')
    if strength:
        words.append(f"--guidance {strength:g}")
    return " ".join(words)
