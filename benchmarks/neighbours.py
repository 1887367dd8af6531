"""Samples beside their nearest training pictures, by the features of a classifier.

python benchmarks/neighbours.py emoji-32 emoji/train --judge runs/emoji-judge --picture docs/emoji-neighbours.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import undiffuse
from undiffuse.data import DataConfig
from undiffuse.metrics.extractors.base import in_batches
from undiffuse.metrics.extractors.classifier import ClassifierExtractor
from undiffuse.pictures import draw_grid, save_png


def features(judge: ClassifierExtractor, images: np.ndarray) -> torch.Tensor:
    return torch.cat([part.features for part in in_batches(judge, images)]).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("training", help="the pictures that it was trained on")
    parser.add_argument("--judge", required=True, help="a classifier of clean pictures that guides nothing")
    parser.add_argument("--classifier", default="emoji-32-classifier", help="the one that guides")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--nearest", type=int, default=3, help="pictures beside each sample (default 3)")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--picture", type=Path, required=True)
    args = parser.parse_args()

    pipeline = undiffuse.Pipeline.from_pretrained(
        args.model, classifier=args.classifier, guidance=args.guidance, solver="dpmpp-2m-sde", steps=20
    )
    samples = pipeline.sample(len(pipeline.model.labels), classes="all", seed=args.seed)
    dataset = DataConfig(path=args.training, size=samples.images.shape[1], channels=samples.images.shape[3]).build()
    pictures = np.stack([dataset.plain(k).image for k in range(len(dataset))])
    judge = ClassifierExtractor.load(args.judge)
    apart = torch.cdist(features(judge, samples.images), features(judge, pictures))
    order = apart.argsort(dim=1)[:, : args.nearest]
    rows = [samples.images, *(pictures[order[:, k].numpy()] for k in range(args.nearest))]
    names = ["sample", *(f"{word} picture" for word in ("nearest", "second", "third", "fourth", "fifth"))]
    grid = draw_grid(np.concatenate(rows), row_labels=names[: len(rows)], column_labels=samples.names)
    save_png(args.picture, grid, {"command": "neighbours"}, overwrite=True)
    print(f"{len(pictures):,} training pictures; distances {apart.min(dim=1).values.numpy().round(2)}")


if __name__ == "__main__":
    main()
