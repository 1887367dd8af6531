"""One process of the benchmark of networks: `python -m unets.worker CLOCK TASK`, in JSON; its last line is the result.

`errors` compares all sides in this process; `serve` and `start` look at one side, which has the process to itself.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.blocks import QUICK, Pace, block
from common.measuring import kilobytes, restart_peak
from torch import Tensor
from unets.models import MODELS, Batch, Model, batch, training_images
from unets.sides import GUIDED, SIDES, Library, Setting

Call = Callable[[], Any]
STRICT = 1e-5  # largest error of float32, relative to the largest output


class Task:
    """A task as it was sent: what, model, batch, sides, device, folder, threads, pace."""

    def __init__(self, sent: dict[str, Any]) -> None:
        self.what: str = sent["what"]
        self.model: Model = MODELS[sent["model"]]
        self.size: int = sent["batch"]
        self.names: list[str] = sent["sides"]
        self.device = torch.device(sent["device"])
        self.folder = Path(sent["folder"])
        self.pace = QUICK if sent["quick"] else Pace(**sent["pace"])
        torch.set_num_threads(sent["threads"])

    def setting(self, name: str) -> Setting:
        return SIDES[self.device.type][name].setting(self.model, self.folder, self.device)

    def load(self, name: str) -> Library:
        return SIDES[self.device.type][name].load(self.setting(name))

    def inputs(self) -> Batch:
        made = batch(self.model, self.size)
        if self.what == "training":
            made = Batch(training_images(self.model, self.size), made.t, made.y)
        return made.to(self.device)

    def call(self, library: Library, inputs: Batch) -> Call | None:
        """What is timed, for this library; None if it does not have it."""
        if self.what == "forward":
            return partial(library.forward, inputs)
        if self.what == "training":
            return library.training(inputs)
        sampler = library.sampling() if self.what == "sampling" else library.guided()
        return None if sampler is None else partial(sampler, inputs)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def errors(task: Task) -> dict[str, dict[str, float]]:
    """Errors by side, see `_errors`."""
    return _errors(task, {name: task.load(name) for name in task.names}, task.inputs())


def serve(task: Task) -> dict[str, Any]:
    """Makes the one side ready and says so; then runs a block for every line that comes in, and answers with its
    seconds a call and what others used meanwhile. At the end of the input: the side's peak of memory, of the whole
    process, and beyond its imports, weights and inputs; bytes.
    """
    (name,) = task.names
    inputs = task.inputs()
    library = task.load(name)
    if name.startswith("ours"):
        library.consume = task.what != "training"
    call = task.call(library, inputs)
    if call is None:
        return {}
    before = _restart_memory(task)
    call()
    task.synchronize()
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        print(json.dumps(block(call, task.pace.seconds, task.synchronize)), flush=True)
    peak = torch.cuda.max_memory_allocated() if task.device.type == "cuda" else kilobytes("VmHWM") * 1024
    return {"peak": peak, "beyond": peak - before}


def _restart_memory(task: Task) -> int:
    """Bytes held now, from where the peak is counted."""
    if task.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with suppress(OSError, AttributeError):  # glibc: what loading left behind is no part of the work
        ctypes.CDLL(None).malloc_trim(0)
    return restart_peak()


def _errors(task: Task, libraries: dict[str, Library], inputs: Batch) -> dict[str, dict[str, float]]:
    """By side with the same weights: of outputs against float64; of images, or of gradients, against the original's.

    Ends the benchmark if a float32 network is not what it should be.
    """
    same = {name: library for name, library in libraries.items() if library.same}
    if task.what == "forward":
        from unets.peers import float64

        few = Batch(inputs.x[:4], inputs.t[:4], inputs.y[:4])
        truth = float64(task.setting("diffusers"), few)
        errors = {name: _difference(library.forward(few), truth) for name, library in same.items()}
        for name, error in errors.items():
            if task.setting(name).precision == "fp32" and not error["max"] <= STRICT:
                sys.exit(f"{name} is not exact in float32: its largest error is {error['max']:.1e}")
        return errors
    if task.what == "training":
        return _gradient_errors(same, inputs)
    images = {}
    for name, library in same.items():
        call = task.call(library, inputs)
        if call is not None and name != "azula":  # which has times of its own, and so other images
            images[name] = call()
    return {name: _difference(made, images[GUIDED]) for name, made in images.items() if name != GUIDED}


def _gradient_errors(same: dict[str, Any], inputs: Batch) -> dict[str, dict[str, float]]:
    """Of ours against the original's, both of the hybrid loss, with the same noise."""
    guided, found = same.get(GUIDED), {}
    for name, library in same.items():
        if guided is None or not name.startswith("ours"):
            continue
        loss, noise = library.loss(inputs)
        guided.loss(inputs, guided.process(""), noise).backward()
        loss.backward()
        ours, theirs = (
            torch.cat([p.grad.flatten() for _, p in sorted(side.net.named_parameters()) if p.grad is not None])
            for side in (library, guided)
        )
        found[name] = _difference(ours, theirs)
        for side in (library, guided):
            side.net.zero_grad()
    return found


def _difference(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Largest and root mean square difference, each relative to that of what was expected."""
    apart, expected = found.double() - expected.double(), expected.double()
    return {
        "max": float(apart.abs().max() / expected.abs().max()),
        "rms": float(apart.square().mean().sqrt() / expected.square().mean().sqrt()),
    }


def start(task: Task) -> dict[str, Any]:
    """Seconds of a fresh process by stage: torch; the library and its network with weights; a call; then an image in
    25 steps. And the most memory that it had, in bytes.
    """
    seconds = {"torch": time.time() - STARTED}
    began = time.perf_counter()
    (name,) = task.names
    inputs = task.inputs()
    library = task.load(name)

    def done(stage: str) -> None:
        nonlocal began
        task.synchronize()
        now = time.perf_counter()
        seconds[stage], began = now - began, now

    done("library")
    library.forward(inputs)
    done("call")
    library.sampling()(inputs)
    done("image")
    return {"seconds": seconds, "memory": 1024 * kilobytes("VmHWM")}


def roofline(task: Task) -> dict[str, Any]:
    """The fastest products and 3x3 convolutions found here, FLOP a second by precision, and the sizes of networks."""
    from unets.roofline import peaks, work

    return {"peaks": peaks(task.device, task.pace), "work": work(task.folder)}


if __name__ == "__main__":
    STARTED = float(sys.argv[1])  # the clock when whoever wants this started the process
    chosen = json.loads(sys.argv[2])
    actions = {"errors": errors, "serve": serve, "start": start, "roofline": roofline}
    print(json.dumps(actions[chosen["action"]](Task(chosen))))
