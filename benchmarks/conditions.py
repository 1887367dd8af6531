"""Fashion-MNIST from edges, and from (class, brightness): small models, and the metrics that show that they obey.

    python benchmarks/conditions.py train edges      # two minutes on one free core, each of the three
    python benchmarks/conditions.py train brightness
    python benchmarks/conditions.py train nothing    # the unconditional model of the same size
    python benchmarks/conditions.py measure          # writes docs/conditions.json and docs/conditions.png

The pictures are made smaller, 16x16, so that this fits a CPU. Edges are Sobel's, of these pictures
(`undiffuse.metrics.adherence.edge_maps`). Brightness is the mean of all pixels, 0 to 255. Conditions are measured on those
of the test set, which no model was trained on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import undiffuse
from undiffuse.data import fashion_mnist, prepare
from undiffuse.metrics.adherence import brightness, edge_maps

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    trained = commands.add_parser("train")
    trained.add_argument("kind", choices=KINDS)
    trained.add_argument("--images", type=int, default=24_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train(args.kind, args.images)


if __name__ == "__main__":
    main()
