"""How fast one model is on a GPU: every side in this process, timed in turns. Prints a line of JSON for each cell."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu.timing import in_turns, wait, warm
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from unets import preparing
from unets.models import LARGE, Batch, Model, batch, find, training_images
from unets.sides import Library, Setting, Side

from undiffuse import kernels
from undiffuse.nets import UNetConfig
from undiffuse.nets.meta import build_on_meta

Report = Callable[[dict[str, Any]], None]
SIDES = {
    "guided-fp16": Side(title="guided-diffusion, its own fp16", library="Guided", precision="fp16"),
    "diffusers-fp16": Side(title="diffusers, fp16", library="Diffusers", precision="fp16"),
    "diffusers-fp16-compiled": Side(
        title="diffusers, fp16, torch.compile", library="Diffusers", precision="fp16", compiled=True
    ),
    "ours-bf16": Side(title="**undiffuse bf16**", library="Undiffuse", precision="bf16"),
    "ours-fp16": Side(title="**undiffuse fp16**", library="Undiffuse", precision="fp16"),
    "ours-bf16-eager": Side(
        title="undiffuse bf16, no CUDA graphs", library="Undiffuse", precision="bf16", kernels="graphs=off"
    ),
    "ours-bf16-torch": Side(
        title="undiffuse bf16, no CUDA graphs, PyTorch's norms", library="Undiffuse", precision="bf16",
        kernels="graphs=off,norm_act=torch",
    ),
    "ours-bf16-compiled": Side(
        title="undiffuse bf16, torch.compile", library="Undiffuse", precision="bf16", compiled=True
    ),
}  # fmt: skip
NEEDS = {"Guided": "guided_diffusion", "Diffusers": "diffusers"}
OWN = ("ours-bf16", "ours-fp16", "ours-bf16-eager", "ours-bf16-torch")
# The rows of a part. A training step has no CUDA graphs.
ROWS = {
    "forward": ("guided-fp16", "diffusers-fp16", *OWN),
    "training": ("guided-fp16", "diffusers-fp16", "ours-bf16", "ours-fp16", "ours-bf16-torch"),
    "sampling": ("guided-fp16", "ours-bf16", "ours-bf16-eager"),
    "guided": ("guided-fp16", "ours-bf16", "ours-bf16-eager"),
    "compiled": ("diffusers-fp16-compiled", "ours-bf16-compiled", "ours-bf16"),
    "compiled training": ("ours-bf16-compiled", "ours-bf16"),
}
# Rows of the largest networks, of which not all sides fit into memory at once.
FEW = ("guided-fp16", "ours-bf16")
LARGEST = {("ADM-64", "training"): FEW, ("ADM-256", "training"): FEW, ("ADM-256", "forward"): (*FEW, "ours-bf16-eager")}
# Cells of a model, the most important ones first: what does not fit into the time is left out.
CELLS: dict[str, tuple[tuple[str, int], ...]] = {
    "S": (
        ("forward", 64), ("forward", 1), ("forward", 8), ("training", 64), ("sampling", 64), ("sampling", 1),
        ("guided", 1), ("guided", 64), ("sampling", 8), ("guided", 8),
    ),
    "M": (
        ("forward", 64), ("forward", 1), ("forward", 8), ("training", 64), ("sampling", 8), ("guided", 8),
        ("sampling", 1), ("training", 8), ("guided", 1), ("sampling", 64), ("guided", 64),
    ),
    "L": (("forward", 64), ("forward", 1), ("forward", 8), ("training", 8), ("sampling", 1)),
    "ADM-64": (
        ("forward", 64), ("forward", 1), ("forward", 8), ("training", 64), ("sampling", 8), ("training", 8),
        ("sampling", 1),
    ),
    "ADM-256": (("forward", 8), ("forward", 1), ("training", 2), ("sampling", 1), ("forward", 64)),
    "tiny": (("forward", 2), ("training", 2), ("sampling", 2), ("guided", 2)),
}  # fmt: skip
COMPILED = (("M", "compiled", 64), ("S", "compiled", 1), ("S", "compiled training", 64), ("M", "compiled", 1))
CALLS = {"forward": 1, "compiled": 1, "training": 3, "compiled training": 3, "sampling": 25}
_WITHOUT_DIFFUSERS = ("L", "ADM-256")  # whose weights take long to convert


class Bench:
    """The sides of one model.

    Args:
        model: The model.
        device: Where to run. On a CPU precisions that it lacks are float32: a dry run, which measures nothing.
        until: The monotonic clock's time at which to stop.
        report: Receives the results.
    """

    def __init__(self, model: Model, device: torch.device, until: float, report: Report) -> None:
        self.model, self.device, self.until, self.report = model, device, until, report
        self._folder = tempfile.TemporaryDirectory(dir=_place(device))
        self.folder = Path(self._folder.name)
        self.dry = device.type == "cpu"
        judge = f"{model.name}-classifier"
        models = [model, *([find(judge)] if judge in (*LARGE, "S-classifier") else [])]
        self.has_classifier = len(models) > 1
        self.has_diffusers = model.name not in _WITHOUT_DIFFUSERS
        preparing.main(self.folder, models, partial(drawn_on, device), self.has_diffusers)
        self.work = flop(model, device)
        self.libraries: dict[str, Library] = {}

    def close(self) -> None:
        """Removes the weights."""
        self._folder.cleanup()

    def cell(self, part: str, size: int) -> None:
        """Measures a cell and reports it; a side that fails is reported with the reason and does not stop others."""
        result: dict[str, Any] = {
            "model": self.model.name, "part": part, "batch": size, "flop": self.work * size * CALLS.get(part, 0),
        }  # fmt: skip
        if time.monotonic() > self.until:
            self.report({**result, "skipped": "no time was left"})
            return
        inputs = batch(self.model, size)
        if "training" in part:
            inputs = Batch(training_images(self.model, size), inputs.t, inputs.y)
        inputs = inputs.to(self.device)
        calls, failed, about = dict[str, Any](), dict[str, str](), dict[str, dict[str, float]]()
        # A sampling run makes the first calls of the network in itself.
        few = self.dry or part in ("sampling", "guided")
        for name in LARGEST.get((self.model.name, part), ROWS[part]):
            try:
                call = self._call(name, part, inputs)
                about[name] = warm(call, self.device, 1 if few else 3)
                calls[name] = call
            except Exception as error:  # out of memory, a library that is missing or does not work here
                failed[name] = _first_line(error)
                self._free(name)
            if time.monotonic() > self.until:
                break
        rounds, seconds = (1, 0.0) if self.dry else (5, 0.15 if part != "sampling" else 0.3)
        timings = in_turns(calls, self.device, rounds, seconds, self.until) if calls else {}
        found = {name: {**timing, **about[name]} for name, timing in timings.items()}
        self.report({**result, "timings": found, "failed": failed, "errors": self._errors(part, calls)})
        calls.clear()
        if "training" in part:  # it has changed the weights and holds moments and averages
            for name in list(self.libraries):
                self._free(name)
        self._clean()

    def _call(self, name: str, part: str, inputs: Batch) -> Callable[[], Tensor]:
        library = self._library(name)
        if "training" in part:
            return library.training(inputs)
        if part in ("forward", "compiled"):
            return partial(library.forward, inputs)
        if part == "guided" and not self.has_classifier:
            raise LookupError("this model has no classifier here")
        sampler = library.sampling() if part == "sampling" else library.guided()
        if sampler is None:
            raise LookupError("the library has no guidance")
        return partial(sampler, inputs)

    def _library(self, name: str) -> Library:
        if name not in self.libraries:
            side = SIDES[name]
            package = NEEDS.get(side.library)
            if package is not None and importlib.util.find_spec(package) is None:
                raise LookupError(f"{package} is not installed")
            if side.library == "Diffusers" and not self.has_diffusers:
                raise LookupError("not converted for diffusers")
            self.libraries[name] = side.load(self._setting(side))
        return self.libraries[name]

    def _setting(self, side: Side) -> Setting:
        setting = side.setting(self.model, self.folder, self.device)
        if self.dry and side.precision == "fp16":  # the CPU's float16 is no one's way of computing
            return Setting(**{**vars(setting), "precision": "fp32"})
        return setting

    def _errors(self, part: str, calls: Mapping[str, Any]) -> dict[str, float]:
        """Root mean square difference of outputs or images from the first side's, relative to those."""
        if "training" in part or len(calls) < 2 or time.monotonic() > self.until:
            return {}
        (first, expected), *others = ((name, call().float()) for name, call in calls.items())
        scale = expected.square().mean().sqrt()
        return {name: float((out - expected).square().mean().sqrt() / scale) for name, out in others} | {first: 0.0}

    def _free(self, name: str) -> None:
        self.libraries.pop(name, None)
        self._clean()

    def _clean(self) -> None:
        gc.collect()
        wait(self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def measure(name: str, device: torch.device, until: float, report: Report) -> None:
    """All cells of a model."""
    bench = Bench(find(name), device, until, report)
    try:
        for part, size in CELLS[name]:
            bench.cell(part, size)
    finally:
        bench.close()


def measure_compiled(device: torch.device, until: float, report: Report) -> None:
    """What torch.compile gives, where the time suffices: minutes of it go into compiling."""
    cells = COMPILED if device.type == "cuda" else (("tiny", "compiled", 2),)
    for name, part, size in cells:
        if time.monotonic() > until:
            report({"model": name, "part": part, "batch": size, "skipped": "no time was left"})
            continue
        bench = Bench(find(name), device, until, report)
        try:
            bench.cell(part, size)
        finally:
            bench.close()


def drawn_on(device: torch.device, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as `unets.models.drawn` has them, of other numbers, drawn on the device."""
    generator = torch.Generator(device).manual_seed(0)
    out = {}
    for name, tensor in state.items():
        values = torch.randn(tensor.shape, generator=generator, device=device)
        if tensor.ndim > 1:
            values /= tensor[0].numel() ** 0.5
        else:
            values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        out[name] = values.cpu()
    return out


def flop(model: Model, device: torch.device) -> float:
    """FLOP of a forward pass of one image, counted by torch from the shapes of products and convolutions."""
    net = build_on_meta(UNetConfig(**model.arguments).build).to_empty(device=device).eval()
    x, zero = torch.zeros(1, 3, model.size, model.size, device=device), torch.zeros(1, device=device)
    with torch.no_grad(), kernels.using("pure"), FlopCounterMode(display=False) as counter:
        net(x, zero, zero.long())
    return float(counter.get_total_flops())


def _place(device: torch.device) -> str | None:
    """A folder in memory for the weights, where there is one with room."""
    shared = Path("/dev/shm")
    room = device.type == "cuda" and shared.is_dir() and shutil.disk_usage(shared).free > 8 * 2**30
    return str(shared) if room else None


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]
