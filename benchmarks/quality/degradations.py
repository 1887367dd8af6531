"""What a metric notices: real images are degraded step by step until the metric sees it.

    python benchmarks/quality/degradations.py fashion efflite --counts 1500
    python benchmarks/quality/degradations.py fashion --counts 1500 10000 --write docs/degradations

All images are of the training split of Fashion-MNIST, prepared as for `evaluate` (32x32, padded): 5,000 are the
reference, sets of the others take the place of samples. Undegraded sets give the spread that a metric has by chance
(there are only five of 10,000 images, so this spread is known to a third). A degradation is seen if the metric lies
more than three of these standard deviations from their mean; the table has the smallest degradation from which on all
are seen. Features are kept by image in build/degradations, so that a stopped run resumes and all sizes share them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from undiffuse.evaluation import open_images
from undiffuse.metrics import Moments, c2st, frechet_distance, kid, manifold_metrics
from undiffuse.metrics.extractors import Extractor, build_extractors

ROOT = Path(__file__).resolve().parent.parent.parent
KEPT = ROOT / "build" / "degradations"
REFERENCE = 5_000
BATCH = 250
PIECE = 2_500
LIMIT = 3.0
Pick = np.ndarray
"""Numbers of images."""


def blur(x: Tensor, sigma: float, numbers: Pick) -> Tensor:
    """A Gaussian blur of standard deviation `sigma` pixels; x [N, H, W, 1] uint8."""
    n = torch.arange(-3, 4, dtype=torch.float32)
    kernel = torch.exp(-(n**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    y = torch.nn.functional.pad(x.movedim(3, 1).float(), (3, 3, 3, 3), mode="replicate")
    y = torch.nn.functional.conv2d(y, kernel.reshape(1, 1, 7, 1))
    y = torch.nn.functional.conv2d(y, kernel.reshape(1, 1, 1, 7))
    return y.round().clamp(0, 255).to(torch.uint8).movedim(1, 3)


def noise(x: Tensor, share: float, numbers: Pick) -> Tensor:
    """Gaussian noise of a standard deviation of `share` of the range of grey levels, another for each image."""
    drawn = np.stack([np.random.default_rng(int(n)).standard_normal(tuple(x.shape[1:]), np.float32) for n in numbers])
    return (x.float() + 255 * share * torch.from_numpy(drawn)).round().clamp(0, 255).to(torch.uint8)


def missing_class(pool: Pick, labels: Pick, count: int, share: float) -> Pick:
    """A set in which a share of the pullovers is replaced by other images."""
    keep = (labels[pool] != 2) | (np.random.default_rng(2).random(len(pool)) >= share)
    return pool[keep][:count]


def copies(pool: Pick, labels: Pick, count: int, share: float) -> Pick:
    """A set in which a share of the images repeats others of the set."""
    distinct = round(count * (1 - share))
    return np.concatenate([pool[:distinct], np.resize(pool[:distinct], count)[: count - distinct]])


PIXELS: dict[str, tuple[Callable[[Tensor, float, Pick], Tensor], tuple[float, ...]]] = {
    "blur (pixels)": (blur, (0.25, 0.3, 0.35, 0.4, 0.5, 0.7)),
    "noise": (noise, (0.0025, 0.005, 0.01, 0.02, 0.03, 0.05)),
}
SETS: dict[str, tuple[Callable[[Pick, Pick, int, float], Pick], tuple[float, ...]]] = {
    "pullovers missing": (missing_class, (0.1, 0.25, 0.5, 0.75, 1.0)),
    "copies": (copies, (0.05, 0.1, 0.2, 0.4, 0.6)),
}
WRONG = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of images with a wrong class, which only the accuracy can see."""


class Seen:
    """The images as one extractor sees them.

    Args:
        extractor: The extractor.
        images: All images, uint8 [N, H, W, 1].
    """

    def __init__(self, extractor: Extractor, images: Tensor) -> None:
        self.extractor, self.images = extractor, images
        weights = extractor.card.weights_sha256 or extractor.card.distance
        self.folder = KEPT / hashlib.sha256(f"{extractor.card.protocol} {weights}".encode()).hexdigest()[:12]
        self.known: dict[str, dict[int, tuple[np.ndarray, np.ndarray | None]]] = {}

    def features(self, pick: Pick, change: str = "", strength: float = 0.0) -> tuple[Tensor, Tensor | None]:
        """Features and class scores of some images, degraded or not."""
        key = f"{change.split()[0]}-{strength:g}" if change else "as-they-are"
        if key not in self.known:
            self.known[key] = self._kept(key)
        known = self.known[key]
        missing = np.array([n for n in dict.fromkeys(pick.tolist()) if n not in known], dtype=np.int64)
        for start in range(0, len(missing), PIECE):
            self._add(known, key, missing[start : start + PIECE], change, strength)
        rows = [known[n] for n in pick.tolist()]
        features = torch.from_numpy(np.stack([row[0] for row in rows]))
        scores = [row[1] for row in rows if row[1] is not None]
        return features, torch.from_numpy(np.stack(scores)) if scores else None

    def _kept(self, key: str) -> dict[int, tuple[np.ndarray, np.ndarray | None]]:
        known: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        for path in sorted((self.folder / key).glob("*.npz")):
            with np.load(path) as held:
                logits = held["logits"] if "logits" in held.files else [None] * len(held["numbers"])
                known |= {int(n): (f, s) for n, f, s in zip(held["numbers"], held["features"], logits, strict=True)}
        return known

    def _add(
        self, known: dict[int, tuple[np.ndarray, np.ndarray | None]], key: str, pick: Pick, change: str, strength: float
    ) -> None:
        found = []
        for start in range(0, len(pick), BATCH):
            part = pick[start : start + BATCH]
            x = self.images[torch.from_numpy(part)]
            found.append(self.extractor(PIXELS[change][0](x, strength, part) if change else x))
        features = torch.cat([f.features for f in found]).float().numpy()
        logits = {} if found[0].logits is None else {"logits": torch.cat([f.logits for f in found]).numpy()}
        place = self.folder / key
        place.mkdir(parents=True, exist_ok=True)
        np.savez(place / f"{len(list(place.glob('*.npz'))):04d}.npz", numbers=pick, features=features, **logits)
        scores = logits.get("logits", [None] * len(pick))
        known |= {int(n): (f, s) for n, f, s in zip(pick, features, scores, strict=True)}


def metrics(x: Tensor, y: Tensor, kinds: Sequence[str]) -> dict[str, float]:
    """The metrics of features x against those of the reference y."""
    found: dict[str, float] = {}
    if "fd" in kinds:
        both = [Moments().update(side).statistics() for side in (x, y)]
        found["FD"] = float(frechet_distance(*both))
    if "kid" in kinds:
        found["KD"] = kid(x, y).value
    if "pr" in kinds:
        found |= {name: e.value for name, e in manifold_metrics(x, y).items() if name != "density"}
    if "c2st" in kinds:
        found["C2ST"] = c2st(x, y).value
    return found


def measure(
    seen: Seen, labels: Pick, reference: Pick, pool: Pick, count: int, nulls: int, kinds: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Returns, by metric and degradation, the smallest degradation that is seen; "" for none."""
    y, _ = seen.features(reference)
    sets = [pool[np.arange(n * count, (n + 1) * count) % len(pool)] for n in range(nulls)]
    by_chance = [metrics(seen.features(pick)[0], y, kinds) for pick in sets]
    spread = {
        name: (np.mean([row[name] for row in by_chance]), np.std([row[name] for row in by_chance], ddof=1))
        for name in by_chance[0]
    }
    values: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for change, (_, strengths) in PIXELS.items():
        values[change] = [(s, metrics(seen.features(sets[0], change, s)[0], y, kinds)) for s in strengths]
    # Every pool image that a changed set may need; the features of a prefix are those of the whole.
    room = min(len(pool), 2 * count)
    whole, scores = seen.features(pool[:room])
    place = {int(n): k for k, n in enumerate(pool[:room])}
    for change, (choose, strengths) in SETS.items():
        values[change] = []
        for s in strengths:
            rows = torch.tensor([place[int(n)] for n in choose(pool[:room], labels, count, s)])
            values[change].append((s, metrics(whole[rows], y, kinds)))
    table: dict[str, dict[str, str]] = {}
    for name, (mean, deviation) in spread.items():
        print(f"{count} {name}: by chance {mean:.4g} +- {deviation:.2g}")
        table[name] = {}
        for change, rows in values.items():
            away = [(s, (row[name] - mean) / deviation) for s, row in rows]
            print(f"   {change}: " + ", ".join(f"{s:g}: {z:+.1f}" for s, z in away))
            table[name][change] = smallest([(s, abs(z) > LIMIT) for s, z in away])
    if scores is not None:
        table["accuracy"] = {"wrong classes": _accuracy(seen, labels, sets)}
    return table


def _accuracy(seen: Seen, labels: Pick, sets: list[Pick]) -> str:
    right = []
    for pick in sets:
        scores = seen.features(pick)[1]
        assert scores is not None
        right.append((scores.argmax(1).numpy() == labels[pick]).astype(float))
    mean, deviation = np.mean([r.mean() for r in right]), np.std([r.mean() for r in right], ddof=1)
    drawn = np.random.default_rng(3).random(len(right[0]))
    found = [(s, abs(np.where(drawn < s, 0, right[0]).mean() - mean) > LIMIT * deviation) for s in WRONG]
    return smallest(found)


def smallest(found: Sequence[tuple[float, bool]]) -> str:
    """The smallest strength from which on everything is seen."""
    last = ""
    for strength, sees in reversed(found):
        if not sees:
            break
        last = f"{strength:g}"
    return last


def shown(change: str, strength: str) -> str:
    """A strength as the table has it."""
    if not strength:
        return "none"
    return f"{strength} px" if change.startswith("blur") else f"{100 * float(strength):g} %"


def page(results: dict[str, dict[str, dict[str, str]]]) -> str:
    """The results as a Markdown table."""
    changes = [*PIXELS, *SETS, "wrong classes"]
    lines = ["| features | samples | metric | " + " | ".join(changes) + " |", "|---|---:|---|" + "---:|" * len(changes)]
    for name, table in results.items():
        features, count = name.rsplit(" ", 1)
        for metric, row in table.items():
            cells = [shown(change, row[change]) if change in row else "" for change in changes]
            lines.append(f"| {features} | {int(count):,} | {metric} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extractors", nargs="+", help="extractors as for `undiffuse evaluate`")
    parser.add_argument("--counts", type=int, nargs="+", default=[1500], help="sizes of the sets")
    parser.add_argument("--metrics", default="fd,kid,pr,c2st", help="of fd, kid, pr, c2st")
    parser.add_argument(
        "--nulls", type=int, default=20, help="undegraded sets; at most as many as there are images for"
    )
    parser.add_argument("--write", type=Path, metavar="PATH", help="add the results to PATH.json and write PATH.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    stored = open_images("fashion-mnist", size=32, channels=1, fit="pad")
    images = stored.batch(0, len(stored))
    assert stored.labels is not None
    order = np.random.default_rng(0).permutation(len(stored))
    reference, pool = order[:REFERENCE], order[REFERENCE:]
    results: dict[str, dict[str, dict[str, str]]] = {}
    path = None if args.write is None else args.write.with_suffix(".json")
    if path is not None and path.is_file():
        results = json.loads(path.read_text())
    for given, extractor in zip(args.extractors, build_extractors(args.extractors, grey="repeat"), strict=True):
        seen = Seen(extractor, images)
        for count in args.counts:
            nulls = min(args.nulls, len(pool) // count)
            features = Path(given).stem if Path(given).is_file() else extractor.card.distance.removeprefix("FD-")
            name = f"{features} {count}"
            results[name] = measure(seen, stored.labels, reference, pool, count, nulls, args.metrics.split(","))
            if path is not None:
                path.write_text(json.dumps(results, indent=1) + "\n")
                path.with_suffix(".md").write_text(page(results))
    print(page(results))


if __name__ == "__main__":
    main()
