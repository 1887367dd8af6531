"""Fashion-MNIST from edges, and from (class, brightness): small models, and the metrics that show that they obey.

    python benchmarks/conditions.py train edges      # two minutes on one free core, each of the three
    python benchmarks/conditions.py train brightness
    python benchmarks/conditions.py train nothing    # the unconditional model of the same size
    python benchmarks/conditions.py measure          # writes docs/conditions.json and docs/conditions.png

The pictures are made smaller, 16x16, so that this fits a CPU. Edges are Sobel's, of these pictures
(`undiffuse.metrics.adherence.edge_maps`). Brightness is the mean of all pixels, 0 to 255. The samples that are measured
have the edges, classes and brightness of test pictures, which no model was trained on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import undiffuse
from undiffuse.data import fashion_mnist, prepare
from undiffuse.metrics.adherence import brightness, edge_agreement, edge_maps, number_adherence
from undiffuse.models import load_classifier
from undiffuse.pipelines import Pipeline
from undiffuse.pixels import from_uint8

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "build" / "conditions"
SIZE = 16
KINDS = ("edges", "brightness", "nothing")
NETWORK = {
    "net.channel_mult": "1,2,2", "net.num_res_blocks": 1, "net.attention_resolutions": "4",
    "net.num_head_channels": 24, "net.dropout": 0.0,
}  # fmt: skip


def pictures(part: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images uint8 [N, 16, 16], labels [N] and the names of the classes."""
    data = fashion_mnist(part)
    assert data.labels is not None
    assert data.label_names is not None
    small = np.stack([prepare(image, SIZE, 1)[..., 0] for image in data.images])
    return small, data.labels, data.label_names


def conditions(kind: str, images: np.ndarray) -> dict[str, Any] | None:
    """What a model of a kind is conditioned on, for these images [N, 16, 16]."""
    if kind == "edges":
        return {"image": edge_maps(images).astype(np.uint8) * 255}
    return {"labels": True, "numbers": {"brightness": brightness(images)}} if kind == "brightness" else None


def train(kind: str, images: int) -> None:
    """Trains one of the three models, or resumes it."""
    data, labels, names = pictures("train")
    undiffuse.train(
        data, labels=labels if kind == "brightness" else None, class_names=names,
        condition=conditions(kind, data), out=RUNS / kind, recipe="general-32-edm", size=SIZE, width=24, fit="crop",
        images=images, batch=32, device="cpu", seed=0, progress=False, lr=1e-3, warmup_images=3_200,
        ema_decays=(0.99, 0.999), precision="bf16", log_every=1_600, save_seconds=600.0, preview_every=None,
        posthoc_widths=(), posthoc_every=None, **NETWORK,
    )  # fmt: skip


def samples(kind: str, count: int, condition: Any, classes: Any = None, **settings: Any) -> np.ndarray:
    """Samples uint8 [count, 16, 16] of a model; all models have the same noise."""
    pipeline = Pipeline.from_pretrained(RUNS / kind, device="cpu", solver="dpmpp-2m", steps="20", **settings)
    made = pipeline.sample(count, classes, seed=0, condition=condition, progress=False, batch=64)
    return made.numpy()[..., 0]


def judged(images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images that the shipped judge assigns to their class; it was trained on 28x28, padded to 32x32."""
    model = load_classifier("fashion-mnist-32-judge")
    large = np.stack([np.pad(prepare(image, 28, 1)[..., 0], 2) for image in images])
    with torch.no_grad():
        scores = model.net.eval()(from_uint8(large[..., None]), torch.zeros(len(large)))
    return float((scores.argmax(1).numpy() == labels).mean())


def measure(count: int) -> None:
    """Samples by test conditions, measures them, and writes docs/conditions.json and docs/conditions.png."""
    images, labels, names = pictures("test")
    chosen = np.arange(count) * len(images) // count
    real, classes = images[chosen], labels[chosen]
    free = samples("nothing", count, None)
    edges, bright = edge_maps(real), brightness(real)
    drawn = {"image": edges.astype(np.uint8) * 255}
    out: dict[str, Any] = {"count": count, "edges": {}, "brightness": {}}
    sets = {
        "by edges": samples("edges", count, drawn),
        "by edges, --cfg 2": samples("edges", count, drawn, cfg=2.0),
        "unconditional": free,
        "other real pictures": np.roll(real, count // 2, axis=0),
    }  # fmt: skip
    for name, found in sets.items():
        scores = edge_agreement(edges, edge_maps(found))
        strict = edge_agreement(edges, edge_maps(found), 0)
        error = float(scores.std(ddof=1) / count**0.5)
        out["edges"][name] = {"F1": float(scores.mean()), "error": error, "F1 exact": float(strict.mean())}
    given = {"brightness": bright.tolist(), "class": classes.tolist()}
    wanted = {
        "by class and brightness": samples("brightness", count, given),
        "by class and brightness, --cfg 2": samples("brightness", count, given, cfg=2.0),
        "unconditional": free,
        "real pictures": real,
    }
    for name, found in wanted.items():
        a = number_adherence(bright, brightness(found))
        out["brightness"][name] = {**asdict(a), "judge": judged(found, classes)}
    (ROOT / "docs" / "conditions.json").write_text(json.dumps(out, indent=1) + "\n")
    for rows in (out["edges"], out["brightness"]):
        print(json.dumps(rows, indent=1))
    draw(real, edges, sets["by edges"], names)


def draw(real: np.ndarray, edges: np.ndarray, found: np.ndarray, names: list[str]) -> None:
    """The picture of the documentation: edges and what was made of them; classes from dark to bright."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns, levels = 10, (10, 30, 50, 70, 90, 110, 130, 150, 170, 190)
    kinds = ("T-shirt/top", "Trouser", "Pullover", "Ankle boot")
    figure, axes = plt.subplots(3 + len(kinds), columns, figsize=(columns, 3.4 + len(kinds)))
    step = len(real) // columns
    for k in range(columns):
        for row, image in enumerate((edges[k * step], found[k * step], real[k * step])):
            axes[row, k].imshow(image, cmap="gray", vmin=0, vmax=1 if row == 0 else 255)
    for row, kind in enumerate(kinds):
        made = samples("brightness", columns, {"brightness": list(levels)}, classes=kind)
        for k, image in enumerate(made):
            axes[3 + row, k].imshow(image, cmap="gray", vmin=0, vmax=255)
            measured = float(brightness(image[None])[0])
            axes[3 + row, k].set_title(f"{levels[k]}: {measured:.0f}", fontsize=8)
    titles = ("edges given", "made of them", "the real ones", *kinds)
    for row, title in enumerate(titles):
        axes[row, 0].set_ylabel(title, fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle("Above: by edges of test pictures. Below: by class and brightness (given: measured)", fontsize=10)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "conditions.png", dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    trained = commands.add_parser("train")
    trained.add_argument("kind", choices=KINDS)
    trained.add_argument("--images", type=int, default=24_000)
    measured = commands.add_parser("measure")
    measured.add_argument("--count", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "train":
        train(args.kind, args.images)
    else:
        measure(args.count)


if __name__ == "__main__":
    main()
