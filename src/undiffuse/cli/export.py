"""`undiffuse export`: writes a model as a file or folder for other programs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch

from undiffuse.adapters.export_diffusers import export_diffusers
from undiffuse.adapters.export_graph import export_onnx, export_torch
from undiffuse.adapters.export_openai import export_openai
from undiffuse.adapters.exporting import Exported, Model, accept, call, example_inputs, relative_difference, staged
from undiffuse.cli.console import Live, fields, say
from undiffuse.models import ClassifierModel, DiffusionModel, load_model, resolve, save_model, split_reference
from undiffuse.pipelines.grids import quoted
from undiffuse.util.text import count_of

# Suffixes of each format: that of the export ("" for a folder), then those of the files next to it.
ENDINGS = {
    "safetensors": (".safetensors",),
    "openai": (".pt", ".pt.json"),
    "diffusers": ("",),
    "onnx": (".onnx", ".onnx.json", ".onnx.data"),
    "torch": (".pt2", ".pt2.json"),
}
_WRITERS: dict[str, Callable[[Model, Path], Exported]] = {
    "openai": export_openai,
    "diffusers": export_diffusers,
    "onnx": export_onnx,
    "torch": export_torch,
}


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    ending, *beside = ENDINGS[args.to]
    target = Path(args.out) if args.out else _default(args.model, args.to, ending)
    if ending and target.suffix != ending:
        raise ValueError(f"--out {target}: the name must end in {ending}")
    companions = [target.with_name(target.name.removesuffix(ending) + other) for other in beside]
    if target.exists() and _is_source(target, args.model, args.weights):
        raise ValueError(f"--out {target} is the model itself and must not be replaced: choose another name")
    live = Live()
    try:
        with staged(target, companions, overwrite=args.overwrite) as path:
            model = load_model(args.model, weights=args.weights)
            live.show(f"writing {target} ...")
            done = _export_safetensors(model, path) if args.to == "safetensors" else _WRITERS[args.to](model, path)
    finally:
        live.clear()
    say(_report(model, args.model, [path for path in (target, *companions) if path.exists()], done))
    return 0


def _is_source(target: Path, reference: str, weights: str | None) -> bool:
    given = Path(split_reference(reference)[0])
    return (os.path.exists(given) and target.samefile(given)) or target.samefile(resolve(reference, weights))


def _default(reference: str, to: str, ending: str) -> Path:
    """Returns a path in the working directory that is named after the model's file or folder."""
    path = Path(split_reference(reference)[0])
    name = path.stem if path.suffix in (".safetensors", ".pt", ".pth") else path.resolve().name
    return Path(f"{name}{ending or f'-{to}'}")


def _export_safetensors(model: DiffusionModel | ClassifierModel, path: Path) -> Exported:
    """Writes the chosen weights and everything needed to use them, without the training state."""
    save_model(path, model)
    again = load_model(path)
    inputs = example_inputs(model, 2, full_size=False)
    with torch.no_grad():
        difference = relative_difference(call(again.net, inputs), call(model.net, inputs))
    guides = isinstance(model, ClassifierModel)
    command = "undiffuse sample MODEL --classifier" if guides else "undiffuse sample"
    return Exported(
        difference=accept(difference, path.name),
        checked="read back as a model",
        usage=f"{command} {quoted(path.name)}\n# in Python: undiffuse.models.load_model({path.name!r})",
    )


def _report(model: DiffusionModel | ClassifierModel, name: str, written: list[Path], done: Exported) -> str:
    same = "outputs equal those of the model"
    differ = f"outputs differ from those of the model by at most {done.difference:.1e} of the largest"
    rows: list[tuple[str, object]] = [
        ("model", f"{name}, weights {model.weights!r}, {model.digest[:12]}..."),
        ("written", "\n".join(_sized(path) for path in written)),
        ("checked", f"{done.checked}: {differ if done.difference else same}"),
        *(("note", f"{note[0].upper()}{note[1:]}.") for note in done.notes),
    ]
    code = "\n".join(f"    {line}" for line in done.usage.splitlines())
    return f"{fields(rows)}\nTo use it:\n{code}"


def _sized(path: Path) -> str:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    shown = f"{size / 1e6:,.1f} MB" if size > 1e6 else f"{size / 1e3:.1f} kB"
    return f"{path}/ ({count_of(len(files), 'file')}, {shown})" if path.is_dir() else f"{path} ({shown})"
