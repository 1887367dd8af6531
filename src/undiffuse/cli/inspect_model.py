"""Describes models, checkpoints and run folders for `undiffuse inspect`. Reads headers, not weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import safetensors

from undiffuse import checkpoints
from undiffuse.adapters import importing
from undiffuse.cli.console import duration, fields
from undiffuse.cli.training_report import example_conditions
from undiffuse.conditions import ModelConditions
from undiffuse.data.labels import join_names
from undiffuse.nets import DDPMConfig, NetworkSpec, config_from_dict, describe
from undiffuse.nets.config import NetworkConfig
from undiffuse.nets.registry import UnknownArchitecture
from undiffuse.pipelines.grids import quoted
from undiffuse.sharded_checkpoints import ShardedTensors, is_sharded_folder
from undiffuse.training import read_events
from undiffuse.training.provenance import read_sessions
from undiffuse.util.text import count_of

MODES = {1: "grey", 3: "RGB", 4: "RGBA"}


def describe_model(path: Path, name: str, as_json: bool = False) -> str:
    """Describes a model or checkpoint file; CheckpointError (a ValueError) if it is damaged or of another format."""
    manifest = checkpoints.read_manifest(path)
    if as_json:
        return json.dumps(manifest, indent=2)
    classifier = manifest.get("kind") == "classifier"
    spec, layers = _network(manifest["net"], "classifier" if classifier else "diffusion")
    height, width = spec.size
    what = "classifier of noisy images" if classifier else "diffusion model"
    what += ", super-resolution" if spec.super_resolution else ""
    what += f", {height}x{width} {MODES.get(spec.in_channels, f'{spec.in_channels} channels')} (height x width)"
    progress, data = manifest.get("progress") or {}, manifest.get("data") or {}
    weights = ["net", *manifest.get("ema", [])] if manifest.get("ema") else [manifest.get("weights", "net")]
    rows: list[tuple[str, object]] = [
        ("network", f"{count_parameters(path) / 1e6:.2f} million parameters, {layers}"),
        ("classes", _classes(manifest.get("labels"), spec.num_classes)),
        ("conditions", ModelConditions.from_dict(manifest.get("conditions")).text() or None),
        ("channels", ", ".join(data.get("channel_names") or ()) or None),
        ("process", _process(manifest["process"])),
        ("objective", _objective(manifest.get("objective"))),
        ("distilled", _distilled(manifest.get("distillation"))),
        ("trained", _trained(progress, manifest.get("train") or {})),
        ("data", f"{data['source']}, {count_of(data['count'], 'image')}" if "source" in data else None),
        ("started from", _beginning(manifest.get("init"))),
        ("weights", ", ".join(weights) + (" (default: the last; choose with --weights)" if weights[1:] else "")),
        ("recipe", manifest.get("recipe")),
        *_source(manifest.get("source")),
        ("version", manifest.get("version")),
        ("sha256", manifest.get("sha256")),
        ("file", f"{path} ({_bytes(path) / 1e6:.1f} MB{_parts(path)})"),
    ]  # fmt: skip
    return f"{what}\n{fields(rows)}\n{_next(manifest, name)}"


def _network(about: dict[str, Any], kind: str) -> tuple[NetworkSpec, str]:
    """Returns the network's specification and a description of its layers."""
    try:
        config: Any = config_from_dict(about, kind)
    except UnknownArchitecture:
        return describe(about), f"architecture {about['architecture']!r}, which is not registered here"
    if not isinstance(config, NetworkConfig):
        return describe(about), f"architecture {about['architecture']!r}"
    widths = "/".join(f"{m:g}" for m in config.channel_mult)
    layers = f"width {config.model_channels} x {widths}, {count_of(config.num_res_blocks, 'block')} per level"
    return describe(config), layers + (", DDPM layout" if isinstance(config, DDPMConfig) else "")


def describe_foreign(reference: str, like: str | None = None, as_json: bool = False) -> str:
    """Describes weights of another program and the sources of each fact; ValueError if they cannot be identified."""
    found = importing.identify(reference, like)
    manifest = found.manifest()
    numbers = sum(tensor.numel() for tensor in found.state.values())
    if as_json:
        return json.dumps({**manifest, "parameters": numbers}, indent=2)
    net: Any = found.meaning.config
    height, width = net.size
    what = "classifier of noisy images" if found.kind == "classifier" else "diffusion model"
    what += ", super-resolution" if getattr(net, "super_resolution", False) else ""
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in found.state.values()})
    rows: list[tuple[str, object]] = [
        ("network", f"{numbers / 1e6:.2f} million parameters in {len(found.state)} tensors, {', '.join(kinds)}"),
        ("classes", _classes(manifest["labels"], net.num_classes)),
        ("process", _process(manifest["process"])),
        *_source(manifest["source"]),
        ("file", f"{reference} ({found.source['bytes'] / 1e6:.1f} MB)"),
    ]
    name = reference if like is None else f"{reference}@{like}"
    what += f", {height}x{width} {MODES.get(net.in_channels, f'{net.in_channels} channels')} (height x width)"
    return f"{what}; weights of another program, converted on first use\n{fields(rows)}\n{_next(manifest, name)}"


def _source(source: Any) -> list[tuple[str, object]]:
    """Returns the origin of converted weights, and the source of each fact about them."""
    if not isinstance(source, dict):
        return []
    facts = source.get("facts")
    rows: list[tuple[str, object]] = [
        ("published as", f"{source['published']}: {source['url']}" if source.get("url") else source.get("published")),
        ("licence", source.get("licence")),
        ("made from", f"{source.get('file')}, sha256 {str(source.get('sha256'))[:16]}..."),
    ]
    stated = facts.items() if isinstance(facts, dict) else ()
    return rows + [("stated by" if k == 0 else "", f"{who}: {what}") for k, (who, what) in enumerate(stated)]


def describe_run(folder: Path, as_json: bool = False) -> str:
    """Describes a run folder: its newest checkpoint, its progress and its latest metrics."""
    newest = checkpoints.latest(folder)
    if newest is None:
        return f"a run without a checkpoint yet, in {folder}"
    text = describe_model(newest, folder.as_posix(), as_json)
    if as_json:
        return text
    last: dict[str, dict[str, Any]] = {}
    for record in read_events(folder / "metrics.jsonl"):
        last[str(record.get("kind"))] = record
    rows: list[tuple[str, object]] = []
    if "train" in last:
        now = last["train"]
        share = 100 * now["images"] / now["total_images"]
        numbers = "  ".join(f"{k} {now[k]:.4g}" for k in ("loss", "mse", "bits", "top1") if _finite(now.get(k)))
        rows.append(("training", f"{now['images']:,} of {now['total_images']:,} images ({share:.1f}%)  {numbers}"))
    if "validation" in last:
        now = last["validation"]
        numbers = "  ".join(f"{k} {now[k]:.4g}" for k in ("loss", "mse", "top1", "top5") if _finite(now.get(k)))
        rows.append(("validation", f"after {now['images']:,} images: {numbers}"))
    for session in read_sessions(folder)[-1:]:
        versions, machine = session.get("versions") or {}, session.get("machine") or {}
        rows.append(("command", session.get("command")))
        rows.append(
            (
                "trained with",
                f"torch {versions.get('torch')}, {machine.get('processor')}, "
                f"{count_of(machine.get('threads') or 0, 'thread')}",
            )
        )
    rows.append(("checkpoints", ", ".join(f"{checkpoints.images_of(p):,}" for p in checkpoints.checkpoints(folder))))
    first, _, rest = text.partition("\n")
    return f"run in {folder}: {first}\n{fields(rows)}\n{rest}"


def count_parameters(path: Path) -> int:
    """Returns the number of parameters, read from the headers of a checkpoint."""
    if is_sharded_folder(path):
        return ShardedTensors(path).count("net.")
    with safetensors.safe_open(str(path), framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("net.")]  # noqa: SIM118
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)


def _bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in path.iterdir()) if path.is_dir() else path.stat().st_size


def _parts(path: Path) -> str:
    return f", split into {count_of(len(list(path.glob('*.safetensors'))), 'file')}" if path.is_dir() else ""


def _classes(labels: list[str] | None, count: int | None) -> str:
    if count is None:
        return "none (unconditional)"
    return f"{count}: {join_names(labels, 12)}" if labels else f"{count} (no names)"


def _process(process: dict[str, Any]) -> str:
    if process.get("preconditioning", "chain") != "chain":
        return (
            f"{process['preconditioning']}, continuous levels, predicts {process['target']}, variance "
            f"{process['variance']}"
        )
    schedule = "given" if process.get("betas") else process["schedule"]
    scaled = ", times rescaled to 1000" if process.get("rescale_timesteps") else ""
    return f"{process['steps']} {schedule} steps, predicts {process['target']}, variance {process['variance']}{scaled}"


def _objective(objective: dict[str, Any] | None) -> str | None:
    if not objective:
        return None
    text = str(objective.get("loss", "unknown loss"))
    if objective.get("weighting", "native") != "native":
        text += f", weighted by {objective['weighting']}"
    if objective.get("noise") is False:
        text += ", clean images only"
    if objective.get("clean_fraction"):
        text += f", {100 * objective['clean_fraction']:g}% clean images"
    return text


def _distilled(card: Any) -> str | None:
    """Returns what a student was distilled from, how, and at which levels it is called."""
    if not isinstance(card, dict):
        return None
    origin = (card.get("origin") or {}).get("name")
    source = f"from {origin}" if origin else f"from a model {str(card.get('teacher', 'of none'))[:12]}"
    levels = ", ".join(f"{float(value):.3g}" for value in card.get("logsnr", ()))
    guided = ", guided" if card.get("guidance") else ""
    return f"{source}{guided}, by {card.get('method')}, {count_of(card.get('calls', 0), 'call')} at log-SNR {levels}"


def _beginning(init: Any) -> str | None:
    """Returns the model that the training started from, with its licence."""
    if not isinstance(init, dict):
        return None
    licence = (init.get("origin") or {}).get("licence")
    return str(init.get("source")) + (f" (licence: {licence})" if licence else "")


def _trained(progress: dict[str, Any], train: dict[str, Any]) -> str | None:
    if "images" not in progress:
        return None
    time = f" in {duration(progress['seconds'])}" if progress.get("seconds") else ""
    batch = f", batch {train['batch']}, lr {train['lr']:g}, {train['precision']}" if "batch" in train else ""
    skipped = f", {count_of(progress['skipped'], 'update')} skipped" if progress.get("skipped") else ""
    return f"{count_of(progress['images'], 'image')}{time}{batch}{skipped}"


def _next(manifest: dict[str, Any], name: str) -> str:
    name = quoted(name)
    if manifest.get("kind") == "classifier":
        given = example_conditions(ModelConditions.from_dict(manifest.get("conditions")))
        return f"To guide with it:\n  undiffuse sample --model MODEL --classifier {name} --guidance 1{given}"
    low = " --low-res FOLDER" if manifest["net"].get("super_resolution") else ""
    prepared = (manifest.get("data") or {}).get("config") or {}
    given = example_conditions(ModelConditions.from_dict(manifest.get("conditions")), prepared.get("conditions") or ())
    return f"To sample:\n  undiffuse sample --model {name}{low}{given}"


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
