"""What kinds of guidance cost, and what they give: seconds an image, and metrics of the images that were timed.

    python benchmarks/guidance.py                                    # the shipped model and its classifier
    python benchmarks/guidance.py --cfg MODEL --weak MODEL           # also a model with a null class, a weaker model
    python benchmarks/guidance.py --write docs/benchmarks-guidance   # keep the results for the documentation

A case is a few options of `undiffuse sample`. The cases take turns, a batch each, with the same noise and classes, so
the images are paired; those of all batches are judged by the extractor `fashion`, which has guided nothing. Linux.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.measuring import commit, described, keep, surroundings
from torch import Tensor

from undiffuse.evaluation import FeatureCache, MadeImages, Summary, compute_metrics, extract, open_images
from undiffuse.evaluation.text import with_error
from undiffuse.metrics import Estimate
from undiffuse.metrics.extractors import ClassifierExtractor
from undiffuse.models import load_diffusion
from undiffuse.nets import ClassifierConfig
from undiffuse.nets import runner as nets_runner
from undiffuse.nets.runner import NetworkRunner
from undiffuse.pipelines import Pipeline
from undiffuse.pipelines.classes import choose_classes
from undiffuse.pipelines.source import SampleSource

GROUPS: dict[str, tuple[dict[str, Any], ...]] = {
    "classifier": (
        {},
        {"guidance": 2},
        {"guidance": 2, "guidance_every": 2},
        {"guidance": 2, "guidance_every": 4},
        {"guidance": 2, "guidance_interval": "-3,3"},
        {"guidance": 2, "guidance_interval": "-3,3", "guidance_every": 2},
        {"guidance": 2, "guidance_interval": "1,8"},
        {"guidance": 2, "guidance_at": "x0"},
    ),
    "cfg": (
        {},
        {"cfg": 2},
        {"cfg": 2, "cfg_two_passes": True},
        {"cfg": 2, "guidance_every": 2},
        {"cfg": 2, "guidance_interval": "-3,3"},
        {"cfg": 4, "guidance_interval": "-3,3"},
        {"cfg": 4},
    ),
    "autoguidance": (
        {},
        {"autoguide": "WEAK"},
        {"autoguide": "WEAK", "guidance_every": 2},
        {"autoguide": "WEAK", "guidance_interval": "-3,3"},
    ),
}
"""Settings of `Pipeline.from_pretrained`; WEAK is the model of --weak."""
TITLES = {"classifier": "By a classifier", "cfg": "Classifier-free", "autoguidance": "By a weaker model"}
METRICS = ("accuracy", "fd", "pr")
SEED = 7


class Counted(NetworkRunner):
    """Networks as they are called, counting images: `passes` of diffusion models, and of classifiers."""

    passes = {"model": 0, "classifier": 0}

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self.passes["classifier" if isinstance(self.net.config, ClassifierConfig) else "model"] += len(x)
        return super().__call__(x, t, **cond)


@dataclass
class Case:
    """Options, and what has come out so far: images, and for each the seconds of clock and processor and the passes."""

    words: str
    sampler: Pipeline
    classes: list[int]
    images: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    passes: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: dict[str, Any], args: argparse.Namespace, model: str) -> Case:
        """Loads a pipeline; its words are the settings as options of the command line."""
        words = [f"--{name.replace('_', '-')}" + ("" if v is True else f" {v}") for name, v in settings.items()]
        given = {name: args.weak if value == "WEAK" else value for name, value in settings.items()}
        sampler = Pipeline.from_pretrained(
            model, device="cpu", solver=args.solver, steps=args.steps, precision="bf16", **given
        )
        return cls(" ".join(words), sampler, choose_classes(sampler, None) or [])

    def turn(self, numbers: list[int], kept: bool = True) -> None:
        """Makes these images; `kept`: and keeps them and what they took."""
        job, before = SampleSource(self.sampler, SEED, self.classes), dict(Counted.passes)
        begin = time.perf_counter(), time.process_time()
        images = job.make(numbers)
        now = time.perf_counter(), time.process_time()
        if kept:
            self.images.append(images)
            self.seconds.append((now[0] - begin[0]) / len(numbers))
            self.processor.append((now[1] - begin[1]) / len(numbers))
            self.passes = {name: (n - before[name]) / len(numbers) for name, n in Counted.passes.items()}

    def summary(self, extractor: ClassifierExtractor) -> Summary:
        """What the extractor sees in the images so far."""
        images = torch.cat(self.images)
        labels = np.array([self.classes[i % len(self.classes)] for i in range(len(images))], dtype=np.int64)
        made = MadeImages(
            lambda numbers: images[numbers], len(images), tuple(images.shape[1:]), where=self.words, identity={},
            labels=labels, label_names=self.sampler.model.labels,
        )  # fmt: skip
        return Summary.of(extract(made, [extractor])[0])


def measure(group: str, model: str, args: argparse.Namespace) -> dict[str, Any]:
    """All cases of a group in turns; the first round only warms up, and Ctrl-C ends it after the last whole round."""
    cases = [Case.of(settings, args, model) for settings in GROUPS[group]]
    for case in cases:
        case.turn([0, 1], kept=False)
    rounds = -(-args.images // args.batch)
    try:
        for number in range(rounds):
            for case in cases[number % len(cases) :] + cases[: number % len(cases)]:
                case.turn(list(range(number * args.batch, (number + 1) * args.batch)))
            print(f"{group}: round {number + 1} of {rounds}", flush=True)
    except KeyboardInterrupt:
        rounds = min(len(case.images) for case in cases)
        if not rounds:
            raise
    for case in cases:
        for kept in (case.images, case.seconds, case.processor):
            del kept[rounds:]
    extractor = ClassifierExtractor.load()
    trained = cases[0].sampler.model.manifest.get("data", {}).get("config", {})
    real = open_images("fashion-mnist:test", size=32, channels=1, fit=trained.get("fit", "pad"))
    reference = Summary.of(extract(real, [extractor], cache=FeatureCache())[0])
    rows = []
    for case in cases:
        found = compute_metrics(case.summary(extractor), reference, METRICS).estimates
        rows.append({
            "options": case.words, "seconds": case.seconds, "processor": case.processor, "passes": case.passes,
            "metrics": {e.name: [e.value, e.stderr] for e in found},
        })  # fmt: skip
    about = {
        "solver": args.solver, "steps": args.steps, "images": rounds * args.batch, "batch": args.batch,
        "models": {"model": _described(model), **({"weak": _described(args.weak)} if group == "autoguidance" else {})},
        "commit": commit(), **surroundings(torch.get_num_threads(), ("torch", "numpy")),
    }  # fmt: skip
    return {"rows": rows, "about": about}


def _described(name: str) -> str:
    """A model in a few words, without where it lies."""
    model = load_diffusion(name)
    count = sum(parameter.numel() for parameter in model.net.parameters()) / 1e6
    images = (model.manifest.get("progress") or {}).get("images")
    known = f"{name}, " if not Path(name).exists() else ""
    begun = ", begun with weights of another" if model.manifest.get("init") else ""
    return f"{known}{count:.2f} million parameters" + (f", {images:,} images in training{begun}" if images else "")


def table(result: dict[str, Any]) -> str:
    """A group as a table in Markdown. Ratios are medians over rounds of each round's ratio to the unguided one."""
    names = list(result["rows"][0]["metrics"])
    heads = ["options", "ms an image", "x", "passes", "classifier", *names]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    plain = result["rows"][0]["processor"]
    for row in result["rows"]:
        ratio = statistics.median(a / b for a, b in zip(row["processor"], plain, strict=True))
        cells = [
            f"`{row['options']}`" if row["options"] else "none",
            f"{1e3 * statistics.median(row['processor']):.0f}",
        ]
        cells += [f"{ratio:.2f}", f"{row['passes']['model']:g}", f"{row['passes']['classifier']:g}"]
        found = [
            Estimate(name=name, value=v, stderr=e, n=result["about"]["images"])
            for name, (v, e) in row["metrics"].items()
        ]
        lines.append("| " + " | ".join([*cells, *(with_error(e).replace("+-", "±") for e in found)]) + " |")
    about = result["about"]
    models = "; ".join(f"{name}: {text}" for name, text in about["models"].items())
    what = f"{about['images']} images in batches of {about['batch']}, {about['solver']} {about['steps']} steps, bf16. "
    return "\n".join(lines) + f"\n\n{models}. {what}{described(about)} Commit {about['commit']}."


def page(known: dict[str, Any]) -> str:
    """The documentation's page."""
    parts = [f"## {TITLES[group]}\n\n{table(known[group])}" for group in GROUPS if group in known]
    return "# What guidance costs and gives\n\n" + INTRODUCTION + "\n\n" + "\n\n".join(parts) + "\n"


INTRODUCTION = """\
Written by `python benchmarks/guidance.py --write docs/benchmarks-guidance`. The cases of a table took turns, a batch
each, with the same noise and classes. *ms an image*: median of the processor's time; *x*: median of its ratio to the
unguided one. *passes* of diffusion models for an image (autoguidance: of both), and of the classifier, each of which is
followed by a backward pass. Metrics by the classifier `fashion` (as it was at the commit of the table, see
docs/evaluation.md), which has guided nothing, against the 10,000 test images, +- one standard error; distance,
precision and recall of so few images compare within a table only."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="what is measured")
    parser.add_argument("--model", default="fashion-mnist-32", help="guided by its classifier, or autoguided")
    parser.add_argument("--cfg", metavar="MODEL", help="trained with --label-dropout; without it `cfg` is left out")
    parser.add_argument("--weak", metavar="MODEL", help="weaker than --model; without it `autoguidance` is left out")
    parser.add_argument("--solver", default="dpmpp-2m")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=512, help="of each case, in whole batches")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", type=Path, metavar="PATH", help="put the results into PATH.json and PATH.md")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background, where shells ignore it
    nets_runner.NetworkRunner = Counted  # type: ignore[misc]
    models = {"classifier": args.model, "cfg": args.cfg, "autoguidance": args.weak and args.model}
    for group in args.groups:
        if models[group] is None:
            print(f"{group}: left out, for want of a model", flush=True)
            continue
        result = measure(group, models[group], args)
        if args.write is not None:
            keep(args.write, {group: result}, page)
        print(f"{group}\n{table(result)}\n", flush=True)


if __name__ == "__main__":
    main()
