"""How near filled, enlarged and sharpened images come to the whole ones, and what the classes of carried ones are.

    python benchmarks/editing.py restoring                             # all methods, eight images: minutes
    python benchmarks/editing.py restoring --images 6 --tasks hole 4x blur --methods repaint mmps --picture PNG
    python benchmarks/editing.py translation --images 24 --guidance 3  # and other options of `translate`

The shipped model, the commands' settings, one thread; test images, as many of each class.
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from undiffuse.cli.options import sampler_config
from undiffuse.cli.parser import build_parser
from undiffuse.data import ImageDataset
from undiffuse.editing import Blur, Downsampling, Mask, Operator, ddib, rectangle
from undiffuse.editing.ddib import unguided
from undiffuse.editing.methods import load_pipeline, method_settings, sample_inpainted, sample_observed
from undiffuse.editing.variation import extent
from undiffuse.metrics.extractors.classifier import ClassifierExtractor
from undiffuse.noise import NoiseSource
from undiffuse.pictures import draw_grid, save_png
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.inputs import labels_of, model_images, open_images
from undiffuse.pixels import to_uint8
from undiffuse.sampling import Step, sample
from undiffuse.solvers import DDIM

HOLE = (10, 8, 12, 16)
CLASSES = ("Pullover", "Coat", "Shirt", "Dress", "Sneaker", "Ankle boot")  # each is carried to the next


def test_images(pipeline: Pipeline, count: int, classes: Sequence[str] = ()) -> tuple[Tensor, list[int]]:
    """Test images, as many of each class, [N, C, H, W], and their classes."""
    dataset = open_images("fashion-mnist:test", pipeline.model)
    labels = np.array(labels_of(dataset, pipeline.model))
    names = list(pipeline.model.labels or ())
    wanted = classes or names
    rank = [np.flatnonzero(labels == names.index(name)) for name in wanted]
    chosen = np.array([rank[i % len(rank)][i // len(rank)] for i in range(count)])
    few = ImageDataset(dataset.source.subset(chosen), dataset.config)
    return model_images(few, range(count), "cpu"), labels[chosen].tolist()


def last(steps: Iterator[Step]) -> Tensor:
    return deque(steps, 1)[0].x


def size_of(difference: Tensor) -> float:
    """Root mean square in 8-bit levels."""
    return 127.5 * float(difference.double().square().mean().sqrt())


def restoring(told: argparse.Namespace) -> None:
    count, seen = told.images, rectangle(HOLE, (32, 32))
    tasks: dict[str, tuple[Operator, tuple[str, ...]]] = {
        "hole": (Mask(seen), ("repaint", "mmps", "pigdm", "dps")),
        "2x": (Downsampling(2), ("mmps", "pigdm", "dps")),
        "4x": (Downsampling(4), ("mmps", "pigdm", "dps")),
        "blur": (Blur(1.5), ("mmps", "pigdm", "dps")),
    }
    rows: dict[str, Tensor] = {}
    for task in told.tasks or tasks:
        operator, methods = tasks[task]
        methods = tuple(name for name in methods if name in (told.methods or methods))
        for method in methods:
            pipeline, settings = load_pipeline("fashion-mnist-32", "cpu", method), method_settings(method)
            x0, labels = test_images(pipeline, count)
            y, noise = operator(x0), NoiseSource(0, range(count))
            known = seen.expand_as(x0) if task == "hole" else torch.zeros_like(x0, dtype=torch.bool)
            if method == methods[0]:
                rows.setdefault("original", x0)
                plain, called = baseline(task, x0, y, known)
                rows[f"{task}: seen"] = interpolate(y, size=x0.shape[-2:])
                print(f"| {task} | {called} | {size_of((plain - x0)[~known]):.1f} | | |", flush=True)
            begin = time.process_time()
            run = (noise, labels, lambda step: None)
            if isinstance(operator, Mask):
                x = sample_inpainted(pipeline, settings, operator, x0, *run)
            else:
                x = sample_observed(pipeline, settings, operator, y, *run)
            x = x if method == "repaint" else x.clamp(-1, 1)
            took = (time.process_time() - begin) / count
            off = size_of((operator(x) - y)[known] if task == "hole" else operator(x) - y)
            x = torch.where(known, x0, x)
            rows[f"{task}: {method}"] = x
            print(f"| {task} | {method} | {size_of((x - x0)[~known]):.1f} | {off:.1f} | {took:.1f} |", flush=True)
    if told.picture is not None:
        pixels = np.concatenate([to_uint8(row).numpy() for row in rows.values()])
        save_png(told.picture, draw_grid(pixels, count, row_labels=list(rows), scale=2), overwrite=True)


def baseline(task: str, x0: Tensor, y: Tensor, known: Tensor) -> tuple[Tensor, str]:
    if task == "hole":
        return torch.stack([x[k].mean().expand_as(x) for x, k in zip(x0, known, strict=True)]), "mean of the rest"
    if y.shape == x0.shape:
        return y, "as seen"
    return interpolate(y, size=x0.shape[-2:], mode="bicubic").clamp(-1, 1), "bicubic"


def translation(count: int, words: list[str]) -> None:
    """How often carried images are taken for the class they were carried to, and how near the source they are."""
    judge = ClassifierExtractor.load()

    def judged(x: Tensor, classes: list[int]) -> float:
        return float((judge(to_uint8(x).numpy()).logits.argmax(1) == torch.tensor(classes)).double().mean())

    args = build_parser().parse_args(["translate", "x", "--to", CLASSES[0], *words])
    pipeline = Pipeline.load(sampler_config(args, solver="ddim"), "cpu")
    steps, *_ = extent(pipeline, args.strength, args.logsnr, default=1.0)
    x0, labels = test_images(pipeline, count, CLASSES)
    order = [list(pipeline.model.labels or ()).index(name) for name in CLASSES]
    to = [order[(order.index(k) + 1) % len(order)] for k in labels]
    plain, path, noise = unguided(pipeline.denoiser), pipeline.path, NoiseSource(0, range(count))
    own, other = pipeline.condition(labels), pipeline.condition(to)
    begin = time.process_time()
    x = last(ddib(plain, path, noise, x0, own, other, steps=steps, decoder=pipeline.denoiser,
                       solver=pipeline.solver))  # fmt: skip
    took = (time.process_time() - begin) / count
    print(f"| {' '.join(words) or 'plain'} | {judged(x, to):.0%} | {size_of(x - x0):.1f} | {took:.1f} |", flush=True)
    if not words:
        back = last(ddib(plain, path, noise, x0, own, own))
        fresh = last(sample(plain, path, DDIM(), noise, pipeline.shape, cond=other))
        print(f"| sampled anew | {judged(fresh, to):.0%} | {size_of(fresh - x0):.1f} | |")
        print(f"| to their own class | {judged(back, labels):.0%} | {size_of(back - x0):.1f} | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["restoring", "translation"])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="of restoring: hole, 2x, 4x, blur (default all)")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="of restoring (default all)")
    parser.add_argument("--picture", metavar="PNG", help="of restoring, to draw what was made")
    args, words = parser.parse_known_args()
    torch.set_num_threads(1)
    restoring(args) if args.part == "restoring" else translation(args.images, words)


if __name__ == "__main__":
    main()
