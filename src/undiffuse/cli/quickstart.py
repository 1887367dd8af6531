"""`undiffuse quickstart`: what a newcomer sees first. Offline, on a CPU, in about a minute."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from undiffuse.cli.console import duration, say, table
from undiffuse.cli.options import SHIPPED, SHIPPED_CLASSIFIER
from undiffuse.config import SamplerConfig
from undiffuse.data.screening import default_workers
from undiffuse.models import ClassifierModel, load_classifier, resolve
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import Level
from undiffuse.pictures import draw_grid, save_animation, save_png, spaced, stack
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.classes import class_names
from undiffuse.pipelines.grids import quoted
from undiffuse.pixels import to_uint8
from undiffuse.sampling import Step
from undiffuse.util.progress import Progress

FIRST_SOLVER, FIRST_STEPS = "dpmpp-2m-sde", 10  # of the first look: as good as 250 ancestral steps (docs/frontier.md)
PATH_ROWS = 8
FRAMES = 25


@dataclass(frozen=True)
class Shown:
    """Images of all classes, row by row: x [N, C, H, W], uint8 [N, H, W, C]; the first row after every step."""

    x: Tensor
    pixels: np.ndarray
    path: list[np.ndarray]


def run(args: argparse.Namespace) -> int:
    """The command."""
    begin = time.monotonic()
    for name in (SHIPPED, SHIPPED_CLASSIFIER):
        if not resolve(name).is_file():
            raise FileNotFoundError(
                f"the shipped model {name} is missing from this installation ({resolve(name)}): install the package "
                "again (pip install --force-reinstall --no-deps .), from a checkout that has src/undiffuse/assets"
            )
    settings = SamplerConfig(model=SHIPPED, solver=args.solver, steps=args.steps)
    plain = Pipeline.load(settings, args.device, keep_weights=False)
    guided = Pipeline.load(settings.replace(guidance=args.guidance), args.device, keep_weights=False)
    names = class_names(plain) or []
    classes = [k for _ in range(args.per_class) for k in range(len(names))]
    say(f"Sampling {len(classes)} images of {len(names)} classes twice, without guidance and guided by the classifier")
    say(f"({plain.text()}), on {plain.device.type}.")
    folder = Path(args.out)
    if plain.path.steps > FIRST_STEPS:
        _first_look(
            Pipeline.load(settings.replace(solver=FIRST_SOLVER, steps=FIRST_STEPS), args.device), args.seed, folder
        )
    with Progress("sampling", 2 * len(classes), "images") as progress:
        first, second = sample_rows([plain, guided], args.seed, args.per_class, len(names), progress)

    record = {"command": "quickstart", "seed": args.seed, **guided.record, **guided.notes, "per_class": args.per_class}
    rows = spaced(len(second.path), PATH_ROWS)
    path = np.concatenate([second.path[k] for k in rows])
    figures = [
        draw_grid(first.pixels, len(names), column_labels=names),
        draw_grid(second.pixels, len(names), column_labels=names),
        draw_grid(path, len(names), column_labels=names, row_labels=[f"step {k + 1}" for k in rows]),
    ]
    titles = ["Without guidance", f"Guided by the classifier, scale {args.guidance:g}", "The denoising path, guided"]
    captions = [
        "Each column is a class the model was told; the noise is the same as below.",
        "The same noise again: at every step the image also moves to where a classifier is surer of its class.",
        "From noise to the first guided row, left to right the same images as above.",
    ]
    caption = f"{plain.text()}, seed {args.seed}"
    page = stack(figures, titles, captions=captions, title="Fashion-MNIST from noise", caption=caption)
    pictures: dict[str, Image.Image] = {"quickstart.png": page}
    for name, figure in zip(("unguided.png", "guided.png", "path.png"), figures, strict=True):
        pictures[name] = figure
    for name, picture in pictures.items():
        save_png(folder / name, picture, record, overwrite=True)
    frames = [second.path[k] for k in spaced(len(second.path), FRAMES)]
    save_animation(folder / "path.gif", frames, columns=5, scale=3, frame_ms=80, record=record, overwrite=True)

    _report(args, folder, list(pictures), time.monotonic() - begin)
    judge = load_classifier(SHIPPED_CLASSIFIER, device=plain.device)
    _opinion(judge, classes, {"without guidance": first.x, f"guided, scale {args.guidance:g}": second.x})
    told = [*_NEXT, (f"inspect {quoted(str(folder / 'quickstart.png'))}", "how this picture was made")]
    say("\nWhat to type next:\n" + table([[f"undiffuse {words}", what] for words, what in told], indent=2))
    return 0


def _first_look(sampler: Pipeline, seed: int, folder: Path) -> None:
    """One image of each class in a few steps, so that there is something to see within seconds."""
    names = class_names(sampler) or []
    with Progress("a first look", len(names), "images") as progress:
        (row,) = sample_rows([sampler], seed, 1, len(names), progress)
    record = {"command": "quickstart", "seed": seed, **sampler.record, **sampler.notes, "per_class": 1}
    path = folder / "first.png"
    save_png(path, draw_grid(row.pixels, len(names), column_labels=names), record, overwrite=True)
    say(f"A first look, in {FIRST_STEPS} steps only: {path}")


def sample_rows(samplers: list[Pipeline], seed: int, rows: int, row: int, progress: Progress) -> list[Shown]:
    """`rows` rows of `row` images, one of each class, from every sampler; row by row, side by side on a CPU's cores.

    A core a row needs no waiting for each other within a layer, which on small images costs more than it gains and is
    ruinous on a busy machine. It also makes the images independent of the number of cores.
    """
    stop = threading.Event()
    jobs = [(sampler, start) for sampler in samplers for start in range(0, rows * row, row)]

    def work(job: tuple[Pipeline, int]) -> tuple[Tensor, list[np.ndarray]]:
        sampler, start = job
        torch.set_num_threads(1)
        frames: list[np.ndarray] = []

        def on_step(step: Step) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            if start == 0:
                frames.append(to_uint8(step.x.float()).cpu().numpy())

        noise = NoiseSource(seed, range(start, start + row))
        return sampler.from_noise(noise, range(row), on_step=on_step, progress=progress), frames

    threads = torch.get_num_threads()
    workers = min(len(jobs), default_workers()) if samplers[0].device.type == "cpu" else 1
    pool = ThreadPoolExecutor(workers)
    try:
        done = list(pool.map(work, jobs))
    finally:
        stop.set()  # Ctrl-C comes to the main thread only
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    shown = []
    for first in range(0, len(jobs), rows):
        x = torch.cat([images for images, _ in done[first : first + rows]]).float()
        shown.append(Shown(x, to_uint8(x).cpu().numpy(), done[first][1]))
    return shown


def _report(args: argparse.Namespace, folder: Path, pictures: list[str], seconds: float) -> None:
    say(f"\nDone in {duration(seconds)}. Look at {folder / pictures[0]}")
    say(f"  alone, in the same folder: {', '.join([*pictures[1:], 'path.gif'])}")


def _opinion(judge: ClassifierModel, classes: Sequence[int], images: dict[str, Tensor]) -> None:
    """What the classifier thinks of finished images: how many it takes for their class, and how surely."""
    classifier = judge.level_classifier()
    y = torch.tensor(classes)
    rows: list[list[Any]] = []
    for name, x in images.items():
        with torch.no_grad():
            scores = torch.log_softmax(classifier(x, Level.clean()).float(), dim=-1).cpu()
        right = float((scores.argmax(1) == y).float().mean())
        sure = float(scores.gather(1, y[:, None]).mean())
        rows.append([name, f"{100 * right:.0f}%", f"{sure:.2f}"])
    say("\nWhat the classifier says of the finished images:")
    say(table(rows, ("", "taken for their class", "mean log-probability of it"), right=(1, 2), indent=2))
    say("  Guidance should raise both. This is no measure of quality: the judge is the very classifier that\n"
        "  guided, so it shows that guidance did its work, not how real the images look.")  # fmt: skip


_NEXT = (
    ("sample --class dress --count 16 --guidance 2", "more dresses, guided"),
    ("train FOLDER", "a model of your own images"),
    ("inspect FOLDER", "what your images are, before that"),
    ("nll fashion-mnist:test", "the model's likelihood, in bits per dimension"),
)
