"""Which levels of a residual classifier notice degradations: its features are divided, and each part is measured.

    python benchmarks/quality/levels.py fashion-mnist-32-judge --counts 1500

Images, degradations and the rule are those of `degradations`. A part is a list of "m" (means over the positions) and
"s" (standard deviations) with the number of a level; level 0 has the resolution of the image.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from degradations import REFERENCE, Seen, measure, page
from torch import Tensor

from undiffuse.evaluation import open_images
from undiffuse.metrics.extractors.base import Extracted, exact_arithmetic
from undiffuse.models import load_classifier
from undiffuse.nets import ResNet
from undiffuse.nets.blocks import channels_last
from undiffuse.pixels import from_uint8


class Pooled:
    """Extracts means and standard deviations of every level of a residual classifier, whatever its own features are."""

    def __init__(self, reference: str) -> None:
        model = load_classifier(reference)
        if not isinstance(model.net, ResNet):
            raise SystemExit(f"{reference} is no residual classifier")
        self.net = model.net.eval()
        self.card = Named(f"pooled-{model.digest[:12]}", model.digest)
        self.columns: dict[str, range] = {}
        first = 0
        for level, width in enumerate(self.net.config.widths):
            self.columns[f"m{level}"] = range(first, first + width)
            self.columns[f"s{level}"] = range(first + width, first + 2 * width)
            first += 2 * width

    @torch.inference_mode()
    def __call__(self, images: Any) -> Extracted:
        """Turns images uint8 [B, H, W, 1] into features [B, D]."""
        with exact_arithmetic(torch.device("cpu")):
            h = channels_last(self.net.stem(from_uint8(images, torch.device("cpu"))))
            found = [h.mean((2, 3)), h.std((2, 3), correction=0)]
            for stage in self.net.stages:
                h = stage(h)
                found += [h.mean((2, 3)), h.std((2, 3), correction=0)]
            return Extracted(torch.cat(found, dim=1))


class Named:
    """What `Seen` reads of an extractor's card."""

    def __init__(self, protocol: str, digest: str) -> None:
        self.protocol, self.weights_sha256, self.distance = protocol, digest, protocol


class Part(Seen):
    """Some columns of the features of another `Seen`."""

    def __init__(self, whole: Seen, columns: list[int]) -> None:
        self.whole, self.columns = whole, torch.tensor(columns)

    def features(self, pick: np.ndarray, change: str = "", strength: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Features of some images, degraded or not."""
        return self.whole.features(pick, change, strength)[0][:, self.columns], None


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", help="a residual classifier, by name or file")
    parser.add_argument("--counts", type=int, nargs="+", default=[1500], help="sizes of the sets")
    parser.add_argument("--parts", nargs="+", help="for example m2 m1,m2 s0,m2 (default: what is usual)")
    parser.add_argument("--nulls", type=int, default=20, help="undegraded sets, if there are so many images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    stored = open_images("fashion-mnist", size=32, channels=1, fit="pad")
    assert stored.labels is not None
    order = np.random.default_rng(0).permutation(len(stored))
    reference, pool = order[:REFERENCE], order[REFERENCE:]
    extractor: Any = Pooled(args.classifier)
    whole = Seen(extractor, stored.batch(0, len(stored)))
    last = len(extractor.net.stages)
    means, spreads = ([f"{kind}{level}" for level in range(last + 1)] for kind in "ms")
    usual = [means[-1], ",".join(means[1:]), ",".join(means), f"s0,{means[-1]}", ",".join([*means, *spreads])]
    results = {}
    for text in args.parts or usual:
        part = Part(whole, [n for name in text.split(",") for n in extractor.columns[name]])
        for count in args.counts:
            nulls = min(args.nulls, len(pool) // count)
            results[f"{text} {count}"] = measure(part, stored.labels, reference, pool, count, nulls, ["fd", "c2st"])
    print(page(results))


if __name__ == "__main__":
    main()
