"""How time and memory grow with files, shards, evaluated and sampled images.

    python benchmarks/scale_curves.py --write docs/benchmarks-scale-curves   # minutes on an idle core; 100 MB of disk
    python benchmarks/scale_curves.py --curves evaluate sample               # some of the curves
    python benchmarks/scale_curves.py --quick                                # does everything run? Measures nothing

Linux. Each point is a process of its own. A curve is drawn as seconds of the processor for each item, and as the peak
of memory, so that what grows with the number of items is flat or straight.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scale
from common.measuring import commit, described, environment, keep, kilobytes, surroundings

FEATURES, SIZE = 64, 8
METRICS = ("fd", "kid", "pr")


@dataclass(frozen=True)
class Curve:
    """One thing that grows.

    Attributes:
        title: What is done.
        item: What is counted, in the plural.
        counts: How many, at each point.
        lines: Names of the measured parts, and how they are called.
        reasons: Why the curves bend.
    """

    title: str
    item: str
    counts: Sequence[int]
    lines: dict[str, str]
    reasons: str


FILES = """The first start bends at 20,000 files: up to there every image is decoded in full to find broken ones, beyond
only headers are read. A later start bends at 10,000: fewer files are listed and checked again, because that takes no
longer than a second; from there on the index of the first start is mapped into memory, and a start costs the same for
any number of files."""
SHARDS = """The first start bends at 20,000 images as for files. Its memory grows by 1 KB an image, because all members
are kept once to sort out samples. A later start maps the index, as for files."""
EVALUATE = """Features cost the same for each image; the line falls because of the fixed cost of opening both sides. KID
and precision and recall compare all pairs, N^2 of them, so the time per image grows with N; the distance of Gaussians
(FD) does not. Precision and recall cost less than KID from 5,000 on: bounds, which are cheaper than distances, decide
most of their pairs. That they grow by more than the number of pairs from 20,000 to 50,000 has not been examined. Pairs
are taken in tiles of at most 2,048 images a side: the step in memory from 1,000 to 5,000 images is full tiles, and
beyond, memory does not grow with the images. It falls at 50,000 because the busy machine took pages away."""
SAMPLE = """Loading the model, the choice of kernels and the grid of the first images are a fixed cost, which weighs
more the fewer images are made. Memory grows by less than 0.15 KB an image; the pixels of one are 0.06 KB here."""
CURVES = {
    "files": Curve(
        "Opening folders of PNG files", "files", (1_000, 10_000, 100_000),
        {"first": "first start", "later": "later start"}, FILES,
    ),
    "shards": Curve(
        "Opening WebDataset shards of 1,000 images", "images", (1_000, 10_000, 100_000),
        {"first": "first start", "later": "later start"}, SHARDS,
    ),
    "evaluate": Curve(
        "Evaluating images against as many", "images", (1_000, 5_000, 20_000, 50_000),
        {"features": "features of both sides", "metrics": "FD and KID", "neighbours": "precision and recall"}, EVALUATE,
    ),
    "sample": Curve(
        "Sampling a tiny network into npz", "images", (1_000, 5_000, 20_000, 100_000),
        {"sample": "sampling"}, SAMPLE,
    ),
}  # fmt: skip


def opened(kind: str, count: int, folder: Path) -> dict[str, Any]:
    """First and later start of one data set, each in a process of its own."""
    makers: dict[str, Callable[[Path, int], None]] = {"files": scale.make_folders, "shards": make_shards}
    makers[kind](folder, count)
    time.sleep(2.5)  # what changed a moment ago is not kept in the cache
    data, cache = str(folder / "data"), folder / "cache"
    runs = {name: scale.in_process("--start", data, cache=cache) for name in ("first", "later")}
    return {
        "cpu": {name: run["cpu"] for name, run in runs.items()},
        "seconds": {name: run["seconds"] for name, run in runs.items()},
        "memory": {name: run["peak"] / 1024 for name, run in runs.items()},
    }


def make_shards(root: Path, images: int) -> None:
    """As many shards of a thousand images as it takes."""
    before, scale.SHARDS = scale.SHARDS, images // 1000
    try:
        scale.make_webdataset(root, images)
    finally:
        scale.SHARDS = before


class Stages:
    """Measures parts of one process."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {"cpu": {}, "seconds": {}, "memory": {}}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        cpu, began = time.process_time(), time.perf_counter()
        out = work()
        self.found["cpu"][name] = time.process_time() - cpu
        self.found["seconds"][name] = time.perf_counter() - began
        self.found["memory"][name] = kilobytes("VmHWM") / 1024
        return out


def evaluated(count: int, folder: Path) -> dict[str, Any]:
    """Features by a random projection, and metrics of them."""
    import torch

    from undiffuse.evaluation import EvaluationConfig, Summary, compute_metrics, extract
    from undiffuse.evaluation.inputs import open_set
    from undiffuse.metrics import Card
    from undiffuse.metrics.extractors import Extracted

    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(SIZE * SIZE * 3, FEATURES, generator=generator) / SIZE

    class Projection:
        card = Card(
            protocol="projection", extractor="projection", weights_sha256="0" * 64, distance="FD", layer="all",
            dimension=FEATURES,
        )  # fmt: skip
        spatial_card = None

        def __call__(self, pixels: torch.Tensor) -> Extracted:
            return Extracted(pixels.reshape(len(pixels), -1).float() @ projection / 255, None)

        def scores(self, features: torch.Tensor) -> None:
            return None

    for side, seed in (("a", 1), ("b", 2)):
        rng = np.random.default_rng(seed)
        level = rng.integers(40, 200, (count, 1, 1, 3))
        pixels = (level + rng.integers(-30, 30, (count, SIZE, SIZE, 3))).astype(np.uint8)
        np.savez(folder / f"{side}.npz", pixels)
    measure = Stages()
    config = EvaluationConfig(cache=False, progress=False)

    def features() -> list[Summary]:
        sides = [open_set(folder / f"{side}.npz", config) for side in "ab"]
        return [Summary.of(extract(side.images, [Projection()])[0]) for side in sides]

    first, second = measure("features", features)
    measure("metrics", lambda: compute_metrics(first, second, METRICS[:2]))
    measure("neighbours", lambda: compute_metrics(first, second, METRICS[2:]))
    return measure.found


def sampled(count: int, folder: Path) -> dict[str, Any]:
    """Two steps of DDIM by a network of a few thousand weights."""
    import torch

    from undiffuse.config import SamplerConfig
    from undiffuse.denoiser import ProcessConfig
    from undiffuse.models import DiffusionModel, save_model
    from undiffuse.nets import UNetConfig
    from undiffuse.pipelines import Pipeline
    from undiffuse.pipelines.run import SamplingRun

    torch.manual_seed(0)
    net = UNetConfig(
        image_size=SIZE, in_channels=1, out_channels=1, model_channels=8, channel_mult=(1,), num_res_blocks=1,
        attention_resolutions=(),
    ).build()  # fmt: skip
    model = DiffusionModel(net, ProcessConfig(schedule="cosine", steps=100, variance="fixed_small"))
    save_model(folder / "model.safetensors", model)
    measure = Stages()

    def sample() -> None:
        config = SamplerConfig(model=str(folder / "model.safetensors"), steps=2, solver="ddim")
        run = SamplingRun.of(Pipeline.load(config), folder / "samples", count=count, format="npz", batch=256)
        run.run(progress=False)

    measure("sample", sample)
    return measure.found


POINTS: dict[str, Callable[[int, Path], dict[str, Any]]] = {"evaluate": evaluated, "sample": sampled}


def point(name: str, count: int, place: Path) -> dict[str, Any]:
    """One point of a curve."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        if name not in POINTS:
            return {"count": count, **opened(name, count, Path(folder))}
        command = [sys.executable, __file__, "--point", name, str(count), folder]
        env = {**environment(1), "UNDIFFUSE_CACHE": f"{folder}/cache"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            sys.exit(done.stderr)
        return {"count": count, **json.loads(done.stdout.splitlines()[-1])}


def draw(known: dict[str, Any], path: Path) -> list[str]:
    """Draws every curve; the names of the pictures."""
    from undiffuse.pictures.plots import Panel, draw_plot

    names = []
    for name, points in sorted(known["curves"].items(), key=lambda item: list(CURVES).index(item[0])):
        curve = CURVES[name]
        per_item = {
            title: [(p["count"], 1e3 * p["cpu"][part] / p["count"]) for p in points]
            for part, title in curve.lines.items()
        }
        peak = {title: [(p["count"], p["memory"][part]) for p in points] for part, title in curve.lines.items()}
        panels = [
            Panel(lines=per_item, title="time", x_label=curve.item, y_label="ms of the processor for each item",
                  log_x=True, log_y=True),
            Panel(lines=peak, title="memory", x_label=curve.item, y_label="peak of the process so far, MB", log_x=True),
        ]  # fmt: skip
        names.append(f"{path.stem}-{name}.png")
        draw_plot(panels, title=curve.title).save(path.with_name(names[-1]), optimize=True)
    return names


def page(known: dict[str, Any]) -> str:
    """The documentation's page."""
    lines = [
        "# Growth of time and memory\n",
        "Written by `python benchmarks/scale_curves.py --write docs/benchmarks-scale-curves`. Times are seconds of the",
        "processor, divided by the number of items; memory is the peak of the process, PyTorch included, in MB. A",
        "million files and 100 shards are in [benchmarks-scale.md](benchmarks-scale.md).\n",
        f"Measured on {known['surroundings']} Commit {known['commit']}. {known['remark']}\n",
    ]
    for name, points in sorted(known["curves"].items(), key=lambda item: list(CURVES).index(item[0])):
        curve = CURVES[name]
        lines += [f"## {curve.title}\n", f"![{curve.title}](benchmarks-scale-curves-{name}.png)\n"]
        lines += [
            "| " + curve.item + " | " + " | ".join(f"{t}, ms each | {t}, MB" for t in curve.lines.values()) + " |"
        ]
        lines += ["|---|" + "---|" * (2 * len(curve.lines))]
        for p in points:
            cells = [f"{1e3 * p['cpu'][part] / p['count']:.4g} | {p['memory'][part]:.0f}" for part in curve.lines]
            lines.append(f"| {p['count']:,} | " + " | ".join(cells) + " |")
        lines += ["", curve.reasons, ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", nargs="+", choices=list(CURVES), default=list(CURVES))
    parser.add_argument("--place", type=Path, metavar="DIR", help="a folder for the data (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help="the first point of each curve")
    parser.add_argument("--draw", action="store_true", help="draw what is known again, measure nothing")
    parser.add_argument("--write", type=Path, metavar="PATH", help="write PATH.json, PATH.md and plots")
    parser.add_argument("--remark", default="", help="a sentence for the page")
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(POINTS[args.point[0]](int(args.point[1]), Path(args.point[2]))))
        return
    known: dict[str, Any] = {"curves": {}}
    if args.write and args.write.with_suffix(".json").exists():
        known = json.loads(args.write.with_suffix(".json").read_text())
    for name in [] if args.draw else args.curves:
        known["curves"][name] = []
        for count in CURVES[name].counts[:1] if args.quick else CURVES[name].counts:
            known["curves"][name].append(point(name, count, args.place or Path(tempfile.gettempdir())))
            print(name, known["curves"][name][-1], flush=True)
            known |= {
                "surroundings": described(surroundings(1, ("torch", "numpy", "pillow"))), "commit": commit(),
                "remark": args.remark or known.get("remark", ""),
            }  # fmt: skip
            if args.write:
                keep(args.write, known, page)
    if args.write:
        keep(args.write, known, page)
        draw(known, args.write)


if __name__ == "__main__":
    main()
