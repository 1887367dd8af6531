"""`undiffuse quickstart`: samples the shipped models offline: the student in a second, the teacher with and without
guidance in a minute on a CPU.
"""

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
from undiffuse.models import ClassifierModel, load_classifier, paired_classifier, resolve
from undiffuse.noise import NoiseSource
from undiffuse.noise_levels import Level
from undiffuse.pictures import draw_grid, save_animation, save_png, spaced, stack
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.classes import class_names
from undiffuse.pipelines.grids import quoted
from undiffuse.pixels import to_uint8
from undiffuse.sampling import Step
from undiffuse.util.progress import Progress

TITLES = {"fashion-mnist-32": "Fashion-MNIST from noise", "emoji-32": "Emoji from noise"}
STUDENTS = {"fashion-mnist-32": "fashion-mnist-32-student"}
TEACHER_SOLVER, TEACHER_STEPS = "dpmpp-2m-sde", 10  # as good as 250 steps of DDPM (docs/frontier.md)
PATH_ROWS = 8
FRAMES = 25


@dataclass(frozen=True)
class Shown:
    """Images of all classes, row by row.

    Attributes:
        x: Images in [-1, 1] [N, C, H, W].
        pixels: The same as uint8 [N, H, W, C].
        path: The first row after every step, uint8 [K, H, W, C] each.
    """

    x: Tensor
    pixels: np.ndarray
    path: list[np.ndarray]


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    begin = time.monotonic()
    classifier = paired_classifier(args.model) or SHIPPED_CLASSIFIER
    student = STUDENTS.get(args.model)
    for name in filter(None, (args.model, classifier, student)):
        if not resolve(name).is_file():
            raise FileNotFoundError(
                f"the shipped model {name} is missing from this installation ({resolve(name)}): reinstall the package "
                "from a checkout that has src/undiffuse/assets (pip install --force-reinstall --no-deps .)"
            )
    folder = Path(args.out)
    settings = SamplerConfig(model=args.model, solver=args.solver, steps=args.steps)
    look = _first_look(args.model, student, args.device, args.seed, folder)
    plain = Pipeline.load(settings, args.device, keep_weights=False)
    guided = Pipeline.load(settings.replace(guidance=args.guidance), args.device, keep_weights=False)
    names = class_names(plain) or []
    classes = [k for _ in range(args.per_class) for k in range(len(names))]
    say(f"Sampling {len(classes)} images of {len(names)} classes on {plain.device.type}, without and with classifier")
    say(f"guidance ({plain.text()}).")
    with Progress("sampling", 2 * len(classes), "images") as progress:
        first, second = sample_rows([plain, guided], args.seed, args.per_class, len(names), progress)

    record = {"command": "quickstart", "seed": args.seed, **guided.record, **guided.notes, "per_class": args.per_class}
    rows = spaced(len(second.path), PATH_ROWS)
    path = np.concatenate([second.path[k] for k in rows])
    figures = [
        look,
        draw_grid(first.pixels, len(names), column_labels=names),
        draw_grid(second.pixels, len(names), column_labels=names),
        draw_grid(path, len(names), column_labels=names, row_labels=[f"step {k + 1}" for k in rows]),
    ]
    titles = [
        "Student and teacher" if student else "A first look",
        "Without guidance",
        f"Classifier guidance, scale {args.guidance:g}",
        "Denoising with guidance",
    ]
    captions = [
        "The student makes an image in 4 network calls. Below it is its teacher, in 10 calls from the same noise."
        if student
        else f"Images of {TEACHER_STEPS} network calls.",
        "The model is class-conditional: each column is one class. The grid below starts from the same noise.",
        "Same noise, with classifier guidance: each step also follows the gradient of log p(class | image).",
        "From noise to the first row of the guided grid.",
    ]
    caption = f"{plain.text()}, seed {args.seed}"
    page = stack(figures, titles, captions=captions, title=TITLES[args.model], caption=caption)
    pictures: dict[str, Image.Image] = {"quickstart.png": page}
    for name, figure in zip(("unguided.png", "guided.png", "path.png"), figures[1:], strict=True):
        pictures[name] = figure
    for name, picture in pictures.items():
        save_png(folder / name, picture, record, overwrite=True)
    frames = [second.path[k] for k in spaced(len(second.path), FRAMES)]
    save_animation(folder / "path.gif", frames, columns=5, scale=3, frame_ms=80, record=record, overwrite=True)

    _report(args, folder, list(pictures), time.monotonic() - begin)
    judge = load_classifier(classifier, device=plain.device)
    _opinion(judge, classes, {"without guidance": first.x, f"guided, scale {args.guidance:g}": second.x})
    following = list(_NEXT if args.model == SHIPPED else _NEXT_COLOUR)
    following.append((f"inspect {quoted(str(folder / 'quickstart.png'))}", "show how this picture was made"))
    say("\nNext steps:\n" + table([[f"undiffuse {words}", what] for words, what in following], indent=2))
    return 0


def _first_look(model: str, student: str | None, device: str, seed: int, folder: Path) -> Image.Image:
    """Samples one image of each class in a few calls, so that there is a picture within seconds.

    They are made by the student if the model has one, then by its teacher; both are returned side by side.
    """
    settings = SamplerConfig(model=model, solver=TEACHER_SOLVER, steps=str(TEACHER_STEPS))
    first = Pipeline.load(SamplerConfig(model=student) if student else settings, device)
    record = {"command": "quickstart", "seed": seed, **first.record, **first.notes, "per_class": 1}
    row, seconds = _one_row(first, seed)
    names = class_names(first) or []
    path = folder / "first.png"
    look = draw_grid(row, len(names), column_labels=names)
    save_png(path, look, record, overwrite=True)
    by = f"by a student of {first.path.steps} network calls" if student else f"by {first.path.steps} network calls"
    say(f"First picture: {path}\n  {len(names)} images {by}, in {seconds:.2f} seconds")
    if student is None:
        return look
    other, _ = _one_row(Pipeline.load(settings, device), seed)
    labels = [f"{first.path.steps} calls", f"{TEACHER_STEPS} calls"]
    page = draw_grid(np.concatenate([row, other]), len(names), column_labels=names, row_labels=labels)
    save_png(folder / "student.png", page, record, overwrite=True)
    return page


def _one_row(sampler: Pipeline, seed: int) -> tuple[np.ndarray, float]:
    """One image of each class, uint8 [K, H, W, C], and the seconds of sampling."""
    count = len(class_names(sampler) or [])
    begin = time.monotonic()
    with Progress("preview", count, "images") as progress:
        (row,) = sample_rows([sampler], seed, 1, count, progress)
    return row.pixels, time.monotonic() - begin


def sample_rows(samplers: list[Pipeline], seed: int, rows: int, row: int, progress: Progress) -> list[Shown]:
    """Samples `rows` rows of `row` images, one per class, from every sampler; on a CPU, one row per core.

    With one row per core no core waits for another within a layer, which for small images costs more time than it
    saves, above all on a busy machine. It also makes the images independent of the number of cores.

    Args:
        samplers: The pipelines.
        seed: Random seed; image i of every sampler starts from the same noise.
        rows: Number of rows.
        row: Images per row, which is the number of classes.
        progress: The progress line.

    Returns:
        The images of each sampler.
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
        stop.set()  # only the main thread receives Ctrl-C
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    shown = []
    for first in range(0, len(jobs), rows):
        x = torch.cat([images for images, _ in done[first : first + rows]]).float()
        shown.append(Shown(x, to_uint8(x).cpu().numpy(), done[first][1]))
    return shown


def _report(args: argparse.Namespace, folder: Path, pictures: list[str], seconds: float) -> None:
    say(f"\nDone in {duration(seconds)}. Open {folder / pictures[0]}")
    say(f"  single pictures in the same folder: {', '.join([*pictures[1:], 'path.gif'])}")


def _opinion(judge: ClassifierModel, classes: Sequence[int], images: dict[str, Tensor]) -> None:
    """Prints the classifier's accuracy on the finished images and the mean log-probability of their classes."""
    classifier = judge.level_classifier()
    y = torch.tensor(classes)
    rows: list[list[Any]] = []
    for name, x in images.items():
        with torch.no_grad():
            scores = torch.log_softmax(classifier(x, Level.clean()).float(), dim=-1).cpu()
        right = float((scores.argmax(1) == y).float().mean())
        sure = float(scores.gather(1, y[:, None]).mean())
        rows.append([name, f"{100 * right:.0f}%", f"{sure:.2f}"])
    say("\nThe classifier on the finished images:")
    say(table(rows, ("", "accuracy", "mean log-probability of the class"), right=(1, 2), indent=2))
    say("  Guidance should raise both numbers. They do not measure quality, because this classifier is also the\n"
        "  one that guided: they only show that guidance works.")  # fmt: skip


_NEXT = (
    ("sample --class dress --count 16 --guidance 2", "sample more dresses"),
    ("inspect FOLDER", "check your own images before training"),
    ("train FOLDER", "train a model on them"),
    ("nll fashion-mnist:test", "measure the model's likelihood in bits per dimension"),
)
_NEXT_COLOUR = (
    ("sample --model emoji-32 --class smileys-emotion --count 16 --cfg 2", "sample smileys, guided by the model alone"),
    *_NEXT[1:3],
)
