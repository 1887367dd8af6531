"""Everything after the network: ours against the arithmetic of OpenAI's evaluator, on the same features."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
from common.measuring import Run, Stages, compare, described, in_turns, median, surroundings

POOL, SPATIAL, CLASSES = 2048, 2023, 1008
SAMPLES, REFERENCE = 50_000, 10_000
SIDES = ("original", "undiffuse")
STAGES = ("moments", "trace", "score", "precision and recall")
EXTRA = "standard errors, biases, two halves"
TOLERANCES = {"FID": 1e-5, "sFID": 1e-5, "IS": 1e-4, "precision": 1e-3, "recall": 1e-3}


def counts(scale: float) -> tuple[int, int]:
    """Samples and reference images; of the latter never so few that their covariance is singular."""
    return round(SAMPLES * scale), max(round(REFERENCE * scale), POOL + POOL // 8)


def features(count: int, dimension: int, seed: int) -> np.ndarray:
    """Like a network's: not negative, correlated, many near zero; float32 [count, dimension]."""
    mixing = np.random.default_rng(dimension).normal(size=(256, dimension)).astype(np.float32) / 16
    generator = np.random.default_rng(seed)
    out = np.empty((count, dimension), dtype=np.float32)
    for start in range(0, count, 1000):
        part = generator.normal(size=(min(1000, count - start), 256)).astype(np.float32) @ mixing
        part += 0.3 * generator.normal(size=part.shape).astype(np.float32)
        out[start : start + len(part)] = np.maximum(part, 0) * 0.5
    return out


def head() -> np.ndarray:
    """Weights of the class scores, float32 [2048, 1008]."""
    return np.random.default_rng(7).normal(size=(POOL, CLASSES)).astype(np.float32) * 0.05


def theirs(pool: list[np.ndarray], spatial: list[np.ndarray], weights: np.ndarray, threads: int) -> Run:
    from quality import original

    stages = Stages()
    both = [[original.moments(side) for side in sides] for sides in (pool, spatial)]
    stages.done("moments")
    fid, sfid = (original.frechet(*sides) for sides in both)
    stages.done("trace")
    score = original.inception_score(pool[0], weights)
    stages.done("score")
    precision, recall = original.precision_recall(*pool, threads)
    stages.done("precision and recall")
    return stages.result({"FID": fid, "sFID": sfid, "IS": score, "precision": precision, "recall": recall})


def ours(pool: list[np.ndarray], spatial: list[np.ndarray], weights: np.ndarray, distances: Any) -> Run:
    import torch

    from undiffuse.metrics import InceptionScore, Moments, frechet_distance, frechet_estimate, manifold_metrics

    samples, reference = (torch.from_numpy(side) for side in pool)
    last = torch.from_numpy(weights)
    stages = Stages()
    both = [[Moments().update(side).statistics() for side in sides] for sides in (pool, spatial)]
    stages.done("moments")
    fid, sfid = (frechet_distance(*sides) for sides in both)
    stages.done("trace")
    score = InceptionScore()
    for part in samples.split(512):
        score.update(part @ last)
    values = {"FID": fid, "sFID": sfid, "IS": score.compute().value}
    stages.done("score")
    found = manifold_metrics(samples, reference, k=3, precision=distances)
    values.update({name: found[name].value for name in ("precision", "recall")})
    stages.done("precision and recall")
    frechet_estimate(*both[0], features=samples, reference_features=reference)
    frechet_estimate(*both[1], features=torch.from_numpy(spatial[0]), splits=0)
    stages.done(EXTRA)
    return stages.result(values)


def child(side: str, scale: float, threads: int, distances: str) -> None:
    """One run of one side; prints a line of JSON."""
    import scipy.linalg  # noqa: F401 - importing is no part of the arithmetic
    import torch

    import undiffuse.metrics  # noqa: F401

    torch.set_num_threads(threads)
    samples, reference = counts(scale)
    pool, spatial = (
        [features(count, dimension, seed) for count, seed in ((samples, 1), (reference, 2))]
        for dimension in (POOL, SPATIAL)
    )
    # A first product starts the threads and the libraries' own memory.
    _ = torch.ones(600, 600) @ torch.ones(600, 600), np.ones((600, 600)) @ np.ones((600, 600))
    run = theirs(pool, spatial, head(), threads) if side == SIDES[0] else ours(pool, spatial, head(), distances)
    print(json.dumps(run))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns; for JSON."""

    def command(side: str) -> list[str]:
        return [sys.executable, "-m", "quality.arithmetic", side, str(args.scale), str(args.threads), args.distances]

    runs = in_turns(SIDES, args.repeats, command, args.threads)
    compare(runs, TOLERANCES)
    samples, reference = counts(args.scale)
    return {
        "samples": samples,
        "reference": reference,
        "distances": args.distances,
        "about": surroundings(args.threads, ("torch", "numpy", "scipy")),
        "runs": runs,
    }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown: medians of the clock, ratios, memory, and what it was run on."""
    runs = result["runs"]
    lines = [
        "| stage | original's arithmetic, s | undiffuse, s | ratio |",
        "|---|---:|---:|---:|",
    ]
    totals = {kind: [0.0, 0.0] for kind in ("seconds", "cpu_seconds")}
    for stage in STAGES:
        a, b = (median(runs[side], stage) for side in SIDES)
        lines.append(f"| {stage} | {a:.1f} | {b:.1f} | {a / b:.1f} |")
        for kind, total in totals.items():
            for index, side in enumerate(SIDES):
                total[index] += median(runs[side], stage, kind)
    for kind, name in (("seconds", "**all**"), ("cpu_seconds", "all, seconds of processors")):
        a, b = totals[kind]
        lines.append(f"| {name} | {a:.1f} | {b:.1f} | **{a / b:.1f}** |")
    a, b = (max(run["memory"] for run in runs[side]) / 1e9 for side in SIDES)
    lines.append(f"| peak memory beyond the features, GB | {a:.2f} | {b:.2f} | {a / b:.1f} |")
    lines.append(f"| besides: {EXTRA} | - | {median(runs[SIDES[1]], EXTRA):.1f} | |")
    values = "; ".join(
        f"{name} {runs[SIDES[0]][0]['values'][name]:.8g} and {runs[SIDES[1]][0]['values'][name]:.8g}"
        for name in TOLERANCES
    )
    about = (
        f"{result['samples']:,} samples, {result['reference']:,} reference images; {POOL} + {SPATIAL} features; "
        f'distances "{result["distances"]}"; {len(runs[SIDES[0]])} runs a side, in turns, medians.'
    )
    return "\n".join([*lines, "", about, described(result["about"]), "", f"The same numbers: {values}."])


if __name__ == "__main__":
    child(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
