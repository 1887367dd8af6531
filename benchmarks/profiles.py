"""Where the time of one training step and of one sampling step goes; fails if more than 3 % have no reason.

    python benchmarks/profiles.py                                 # model S, float32 and bf16, 16 images
    python benchmarks/profiles.py training --model M --batch 8 --precision bf16
    python benchmarks/profiles.py --write docs/benchmarks-profile

On the CPU, with this environment's torch and nothing else. The training step is the engine's own, from the data to the
average; the sampling step that of DDIM. README.md tells how the parts are found.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

from common.measuring import ROOT, commit, described, keep, surroundings

STEPS = {"training": 4, "sampling": 12}  # profiled, and as many before them are not looked at
INTRODUCTION = """# Where a step's time goes

Written by `python benchmarks/profiles.py --write docs/benchmarks-profile` from docs/benchmarks-profile.json;
benchmarks/README.md explains how parts are found.
A part's time is that of its own operations, by torch.profiler, whose records
make a step slower: both times are given. More than 3 % of a step without a reason would have failed the command.
"""


class Watch:
    """Profiles steps: `begin` is called at the beginning of each, first to look at the clock, then to profile."""

    def __init__(self, steps: int) -> None:
        from torch.profiler import ProfilerActivity, profile

        self.steps, self.number = steps, 0
        self.seconds: list[float] = []
        self.profile = profile(activities=[ProfilerActivity.CPU])
        self._scope: Any = None
        self._last = 0.0

    @property
    def wanted(self) -> int:
        """Steps to be taken: one to warm up, those timed, one between, those profiled."""
        return 2 * self.steps + 2

    def begin(self) -> None:
        from profiling.scopes import PREFIX
        from torch.profiler import record_function

        now = time.perf_counter()
        if 2 <= self.number <= self.steps + 1:
            self.seconds.append(now - self._last)
        if self._scope is not None:
            self._scope.__exit__(None, None, None)
            self._scope = None
        if self.number == self.steps + 2:
            self.profile.__enter__()
        if self.number == 2 * self.steps + 2:
            self.profile.__exit__(None, None, None)
        elif self.number >= self.steps + 2:
            self._scope = record_function(PREFIX + "step")
            self._scope.__enter__()
        self.number += 1
        self._last = time.perf_counter()

    def result(self) -> dict[str, Any]:
        """Parts, and seconds a step with and without the profiler."""
        from profiling.grouping import parts

        found = parts(self.profile.events(), self.steps)
        return {
            "seconds": statistics.median(self.seconds),
            "profiled": sum(part.seconds for part in found),
            "parts": [{**asdict(part), "reason": part.reason, "unexplained": part.unexplained} for part in found],
        }


def training(watch: Watch, model: Any, precision: str, batch: int) -> None:
    """Steps of the engine on images in memory."""
    import numpy as np
    from growing.points import PROCESS, network
    from profiling.scopes import named
    from unets.models import CLASSES, training_images

    from undiffuse.data import ArraySource, DataConfig, ImageDataset
    from undiffuse.objectives import ObjectiveConfig
    from undiffuse.pixels import to_uint8
    from undiffuse.training import DiffusionTask, TrainConfig, engine, train

    images = to_uint8(training_images(model, 4 * batch)).numpy()
    names = [str(number) for number in range(CLASSES)]
    source = ArraySource(images, np.arange(len(images), dtype=np.int64) % CLASSES, names)
    dataset = ImageDataset(source, DataConfig(path="images", size=model.size, channels=3, flip=True))
    task = DiffusionTask(network(model), PROCESS, ObjectiveConfig(loss="hybrid"), labels=names)  # type: ignore[arg-type]
    config = TrainConfig(
        steps=watch.wanted + 1,
        batch=batch,
        precision=precision,
        device="cpu",
        log_every=None,
        preview_every=None,
        validate_every=None,
        save_every=None,
        ema_decays=(0.9999,),
    )
    batches: Callable[..., Iterator[Any]] = engine.batches

    def watched(*args: Any, **keywords: Any) -> Iterator[Any]:
        stream = batches(*args, **keywords)
        following = named(lambda: next(stream), "data")
        while True:
            watch.begin()
            yield following()

    with tempfile.TemporaryDirectory() as folder, patch.object(engine, "batches", watched):
        train(task, dataset, config, Path(folder) / "run")


def sampling(watch: Watch, model: Any, precision: str, batch: int) -> None:
    """Steps of DDIM."""
    from growing.points import CPU, PROCESS, network
    from profiling.scopes import named
    from unets.models import batch as inputs

    from undiffuse.denoiser import ChainDenoiser
    from undiffuse.nets.runner import prepare_for_inference
    from undiffuse.noise import NoiseSource
    from undiffuse.sampling import sample
    from undiffuse.solvers import DDIM

    denoiser = ChainDenoiser(prepare_for_inference(network(model), precision, CPU), PROCESS)
    chain = denoiser.chain.respaced(str(watch.wanted + 1))
    made = inputs(model, batch)
    noise = NoiseSource(0, range(batch))
    steps = sample(denoiser, chain, DDIM(), noise, made.x.shape[1:], cond={"y": made.y}, x_T=made.x)
    following = named(lambda: next(steps, None), "sampler")
    while True:
        watch.begin()
        if following() is None:
            break


WHAT = {"training": training, "sampling": sampling}


def measure(what: str, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """One step's parts, for JSON."""
    import torch
    from profiling.scopes import scopes
    from unets.models import MODELS

    from undiffuse import kernels

    torch.set_num_threads(args.threads)
    watch = Watch(args.steps or STEPS[what])
    with scopes(), kernels.using(args.kernels):
        WHAT[what](watch, MODELS[args.model], precision, args.batch)
        status = kernels.status()
    used = status.active if status.active == "compiled" else f"{status.active} ({status.reason})"
    about = surroundings(args.threads, ("torch", "numpy"))
    named = {"what": what, "precision": precision, "model": args.model, "batch": args.batch}
    return {
        **watch.result(),
        **named,
        "about": about,
        "commit": commit(),
        "kernels": used,
    }


def table(of: Mapping[str, Any]) -> str:
    """Parts of 0.5 % and more, the rest in one row."""
    lines = ["| part | ms | share | calls | most of it, ms | why |", "|---|---:|---:|---:|---|---|"]
    small = [part for part in of["parts"] if part["share"] < 0.005]
    for part in of["parts"]:
        if part not in small:
            why = "**unexplained**" if part["unexplained"] else part["reason"]
            most = ", ".join(f"`{name}`" for name in part["most"])
            numbers = f"{1000 * part['seconds']:.1f} | {part['share']:.1%} | {part['calls']:.0f}"
            lines.append(f"| {part['name']} | {numbers} | {most} | {why} |")
    rest = sum(part["share"] for part in small)
    lines.append(f"| {len(small)} smaller parts | {1000 * rest * of['profiled']:.1f} | {rest:.1%} | | | |")
    said = (
        f"A step takes {1000 * of['seconds']:.1f} ms, under the profiler {1000 * of['profiled']:.1f} ms. "
        f"{described(dict(of['about']))} Commit {of['commit']}; our kernels: {of['kernels']}."
    )
    return "\n".join([*lines, "", said]) + "\n"


def title(of: Mapping[str, Any]) -> str:
    return f"One {of['what']} step, {of['precision']}, model {of['model']}, {of['batch']} images"


def page(known: Mapping[str, Any]) -> str:
    """The documentation's page."""
    return "\n".join([INTRODUCTION, *(f"## {title(of)}\n\n{table(of)}" for of in known.values())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*WHAT, []], help="default: both")
    parser.add_argument("--precision", nargs="*", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--model", choices=["S", "M"], default="S")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, help="how many are profiled")
    parser.add_argument("--kernels", choices=["auto", "pure", "compiled"], default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--write", type=Path, metavar="PATH", help="put the results into PATH.json and PATH.md")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    missing = []
    for what in args.what or WHAT:
        for precision in args.precision:
            found = measure(what, precision, args)
            print(f"## {title(found)}\n\n{table(found)}", flush=True)
            if args.write is not None:
                keep(args.write, {title(found): found}, page)
            missing += [f"{title(found)}: {p['name']} ({p['share']:.1%})" for p in found["parts"] if p["unexplained"]]
    if missing:
        sys.exit("unexplained: " + "; ".join(missing))


if __name__ == "__main__":
    main()
