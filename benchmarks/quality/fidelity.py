"""From uint8 images to FID, IS, KID, precision and recall: ours against torch-fidelity, with the same weights.

Both run in a virtual environment of their own (`common.installing`), each in a process of its own, in turns. The
weights are random, which costs what the published ones do. torch-fidelity imports torchvision, which it needs for data
sets and image files only; where torchvision cannot be imported, empty modules with the names it looks for stand in.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import numpy as np
from common.installing import prepared, stand_in
from common.measuring import Run, Stages, compare, described, environment, in_turns, median, surroundings

PEER = "torch-fidelity==0.4.0"
SUPPORT = ("numpy", "scipy", "pillow", "tqdm", "safetensors")
SIDES = ("torch-fidelity", "undiffuse")
SEED = 2020  # torch-fidelity's own, for the order of images in its score
SPLITS, SUBSETS = 10, 100
TOLERANCES = {"FID": 1e-3, "IS": 1e-4, "KID": 0.1, "precision": 3e-3, "recall": 3e-3}


def weights() -> dict[str, Any]:
    """Random weights of the network, by the names of the PyTorch ports."""
    import torch

    from undiffuse.metrics.extractors.inception import InceptionV3

    generator = np.random.default_rng(0)
    state = {}
    for name, tensor in InceptionV3().state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        drawn = generator.normal(size=tuple(tensor.shape))
        if len(tensor.shape) == 4:
            drawn *= np.sqrt(2 / np.prod(tensor.shape[1:]))
        elif name.endswith("running_var"):
            drawn = np.exp(0.25 * drawn)
        elif name.endswith("bn.weight"):
            drawn = 1 + 0.1 * drawn
        else:
            drawn *= 0.1
        state[name] = torch.from_numpy(drawn.astype(np.float32))
    return state


def images(count: int, size: int, seed: int) -> np.ndarray:
    """Smooth random pictures with some noise, uint8 [count, size, size, 3]; the two sets differ a little."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(count, 8, 8, 3)).repeat(-(-size // 8), axis=1).repeat(-(-size // 8), axis=2)
    fine = generator.normal(size=(count, size, size, 3))
    return (128 + 45 * coarse[:, :size, :size] + (10 + 2 * seed) * fine).clip(0, 255).astype(np.uint8)


def theirs(samples: np.ndarray, reference: np.ndarray, path: str) -> Run:
    stand_in()
    import torch
    import torch_fidelity

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, pixels: np.ndarray) -> None:
            self.pixels = torch.from_numpy(pixels)

        def __len__(self) -> int:
            return len(self.pixels)

        def __getitem__(self, index: int) -> torch.Tensor:
            return self.pixels[index].permute(2, 0, 1)

    stages = Stages()
    found = torch_fidelity.calculate_metrics(
        input1=Pictures(samples),
        input2=Pictures(reference),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=path,
        kid_subset_size=min(1000, len(samples), len(reference)),
        cuda=False,
        cache=False,
        verbose=False,
    )
    stages.done("all")
    names = {
        "FID": "frechet_inception_distance",
        "IS": "inception_score_mean",
        "KID": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    return stages.result({name: float(found[key]) for name, key in names.items()})


def ours(samples: np.ndarray, reference: np.ndarray, path: str) -> Run:
    import torch

    from undiffuse.metrics import InceptionScore, Moments, frechet_distance, kid_subsets, manifold_metrics
    from undiffuse.metrics.extractors import InceptionExtractor, in_batches

    stages = Stages()
    extractor = InceptionExtractor(torch.load(path, weights_only=True))
    outputs = [list(in_batches(extractor, side)) for side in (samples, reference)]
    x, y = (torch.cat([part.features for part in parts]) for parts in outputs)
    logits = torch.cat([part.logits for part in outputs[0] if part.logits is not None])
    # torch-fidelity shuffles before it splits; with the same order both score the same sets.
    order = np.random.RandomState(SEED).permutation(len(samples))
    score = InceptionScore(-(-len(samples) // SPLITS)).update(logits[torch.from_numpy(order)])
    size = min(1000, len(samples), len(reference))
    manifold = manifold_metrics(x, y, k=3, precision="exact")
    values = {
        "FID": frechet_distance(Moments().update(x).statistics(), Moments().update(y).statistics()),
        "IS": score.compute().value,
        "KID": kid_subsets(x, y, size=size, subsets=SUBSETS, seed=SEED).value,
        "precision": manifold["precision"].value,
        "recall": manifold["recall"].value,
    }
    stages.done("all")
    return stages.result(values)


def network(side: str, pixels: np.ndarray, path: str, batch: int) -> Run:
    """The network alone, on one batch: its seconds are the less of two passes'."""
    import torch

    if side == SIDES[0]:
        stand_in()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        names = ["2048", "logits_unbiased"]
        net = FeatureExtractorInceptionV3("inception-v3-compat", names, feature_extractor_weights_path=path)
        batches = torch.from_numpy(pixels[:batch]).permute(0, 3, 1, 2).contiguous()
    else:
        from undiffuse.metrics.extractors import InceptionExtractor

        net = InceptionExtractor(torch.load(path, weights_only=True))
        batches = torch.from_numpy(pixels[:batch])
    with torch.no_grad():
        net(batches[:1])
        stages = Stages()
        net(batches)
        stages.done("first")
        net(batches)
        stages.done("second")
    best = min(stages.seconds, key=lambda stage: stages.seconds[stage])
    stages.seconds, stages.cpu = {best: stages.seconds[best]}, {best: stages.cpu[best]}
    return stages.result({"batch": float(batch)})


def child(what: str, side: str, path: str, count: int, size: int, threads: int) -> None:
    """One run of one side; prints a line of JSON."""
    import torch

    torch.set_num_threads(threads)
    samples, reference = images(count, size, 1), images(count, size, 2)
    if what == "network":
        run = network(side, samples, path, min(64, count))
    else:
        run = (theirs if side == SIDES[0] else ours)(samples, reference, path)
    print(json.dumps(run))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns, everything and the network alone; for JSON."""
    python = prepared(args.folder / "venv", SUPPORT, [PEER])
    path = args.folder / "weights.pth"
    subprocess.run(
        [str(python), "-m", "quality.fidelity", "weights", str(path)], check=True, env=environment(args.threads)
    )

    def command(what: str, side: str) -> list[str]:
        numbers = [str(n) for n in (args.images, args.size, args.threads)]
        return [str(python), "-m", "quality.fidelity", what, side, str(path), *numbers]

    whole = in_turns(SIDES, args.repeats, lambda side: command("all", side), args.threads)
    compare(whole, TOLERANCES)
    alone = in_turns(SIDES, max(2, args.repeats), lambda side: command("network", side), args.threads)
    about = surroundings(args.threads, ("torch", "numpy"))
    about["versions"]["torch-fidelity"] = PEER.rpartition("=")[2]
    return {"images": args.images, "size": args.size, "about": about, "runs": whole, "network": alone}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown: medians of the clock, ratios, memory, and what it was run on."""
    whole, alone = result["runs"], result["network"]
    lines = ["| | torch-fidelity | undiffuse | ratio |", "|---|---:|---:|---:|"]
    batch = alone[SIDES[0]][0]["values"]["batch"]
    for name, runs, kind, unit in (
        ("FID, IS, KID, precision, recall, s", whole, "seconds", 1.0),
        ("the same, seconds of processors", whole, "cpu_seconds", 1.0),
        ("network alone, ms an image", alone, "seconds", 1000 / batch),
        ("the same, of processors", alone, "cpu_seconds", 1000 / batch),
    ):
        a, b = (unit * median(runs[side], None, kind) for side in SIDES)
        lines.append(f"| {name} | {a:.1f} | {b:.1f} | {a / b:.2f} |")
    a, b = (max(run["memory"] for run in whole[side]) / 1e9 for side in SIDES)
    lines.append(f"| peak memory beyond the images, GB | {a:.2f} | {b:.2f} | {a / b:.1f} |")
    values = "; ".join(
        f"{name} {whole[SIDES[0]][0]['values'][name]:.6g} and {whole[SIDES[1]][0]['values'][name]:.6g}"
        for name in TOLERANCES
    )
    about = (
        f"{result['images']:,} samples and as many reference images, {result['size']}x{result['size']}, one set of "
        f"random weights; {len(whole[SIDES[0]])} runs a side, in turns, medians."
    )
    note = "KID is of random subsets, which the two draw differently."
    return "\n".join([*lines, "", about, described(result["about"]), "", f"The numbers: {values}. {note}"])


if __name__ == "__main__":
    if sys.argv[1] == "weights":
        import torch

        torch.save(weights(), sys.argv[2])
    else:
        child(*sys.argv[1:4], *(int(number) for number in sys.argv[4:]))
