"""One process of the benchmark of growth: `python -m growing.points TASK` in JSON; its last line is the result.

`time` measures all points of an axis in turns, `memory` one point, `exchange` one process of several that train.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from common.blocks import QUICK, Pace, interleaved
from common.measuring import kilobytes, restart_peak
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from unets.models import MODELS, STEPS, Batch, Model, batch, drawn, training_images

from undiffuse import kernels
from undiffuse.denoiser import ChainDenoiser, ProcessConfig
from undiffuse.distributed import DistContext, GradientExchange, session
from undiffuse.ema import EMA
from undiffuse.nets import UNetConfig
from undiffuse.nets.blocks import Attention
from undiffuse.nets.runner import NetworkRunner, prepare_for_inference
from undiffuse.noise import NoiseSource
from undiffuse.objectives import ObjectiveConfig
from undiffuse.sampling import generate
from undiffuse.solvers import DDIM
from undiffuse.train_config import TrainConfig
from undiffuse.training.optim import gradient_norm, make_optimizer
from undiffuse.training.tasks import DiffusionTask, Inputs

CPU = torch.device("cpu")
PROCESS = ProcessConfig(schedule="linear", steps=STEPS, target="eps", variance="learned_range")
Call = Callable[[], Any]


def network(model: Model) -> nn.Module:
    """Our network with drawn weights."""
    net = UNetConfig(**model.arguments).build()
    net.load_state_dict(drawn(net.state_dict()))
    return net


def forward_call(made: Batch, forward: NetworkRunner) -> Call:
    def run() -> Tensor:
        with torch.no_grad():
            return forward(made.x, made.t.float(), y=made.y)

    return run


def sampling_call(forward: NetworkRunner, made: Batch, steps: int) -> Call:
    denoiser = ChainDenoiser(forward, PROCESS)
    chain = denoiser.chain.respaced(f"ddim{steps}")
    noise = NoiseSource(0, range(len(made)))
    return lambda: generate(denoiser, chain, DDIM(), noise, made.x.shape[1:], cond={"y": made.y}, x_T=made.x)


def training_call(
    net: nn.Module, precision: str, model: Model, size: int, ranks: DistContext | None = None
) -> Callable[[], float]:
    """One step on `size` images of this process, one of several, as the engine takes it.

    Returns the seconds that were spent to wait for the sums of gradients, after the backward pass.
    """
    ranks = ranks or DistContext()
    made = batch(model, size)
    task = DiffusionTask(net.train(), PROCESS, ObjectiveConfig(loss="hybrid"))  # type: ignore[arg-type]
    config = TrainConfig(images=1, precision=precision)
    forward, optimizer, average = NetworkRunner(net, precision, CPU), make_optimizer(net, config), EMA(net, (0.9999,))
    inputs = Inputs(
        x0=training_images(model, size),
        labels=made.y,
        t=made.t,
        weights=torch.ones(size),
        positions=torch.arange(size),
        seed=0,
    )

    exchange = GradientExchange(net.parameters(), ranks)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        exchange.arm()
        (task.losses(forward, inputs)["loss"].sum() / (size * ranks.world_size)).backward()
        began = time.perf_counter()
        exchange.finish()
        seconds = time.perf_counter() - began
        if gradient_norm([p.grad for p in net.parameters() if p.grad is not None], ranks) < float("inf"):
            optimizer.step()
            average.update(0)
        return seconds

    return run


def calls(axis: str, precision: str, points: list[int]) -> dict[str, Call]:
    """What is timed at each point."""
    model = MODELS["S"]
    if axis == "resolution":
        made: dict[str, Call] = {}
        for side in points:
            sized = replace(model, size=side, attention=(side // 2, side // 4))
            forward = prepare_for_inference(network(sized), precision, CPU)
            made[str(side)] = forward_call(batch(sized, 1), forward)
        return made
    net = network(model)
    if axis == "training batch":
        return {str(size): training_call(net, precision, model, size) for size in points}
    forward = prepare_for_inference(net, precision, CPU)
    if axis == "batch":
        return {str(size): forward_call(batch(model, size), forward) for size in points}
    return {str(steps): sampling_call(forward, batch(model, 4), steps) for steps in points}


def memory(axis: str, precision: str, point: int) -> int:
    """Most bytes beyond what the process holds when everything is made and before it is used for the first time."""
    (call,) = calls(axis, precision, [point]).values()
    with suppress(OSError, AttributeError):  # glibc: what making left behind is no part of the use
        ctypes.CDLL(None).malloc_trim(0)
    before = restart_peak()
    for _ in range(2):
        call()
    return 1024 * kilobytes("VmHWM") - before


def exchange(precision: str, size: int, steps: int) -> dict[str, float]:
    """A step of a global batch `size` shared by the processes: medians of seconds, and of those spent to exchange.

    Waiting for the slowest process is part of the exchange.
    """
    with session("cpu") as ranks:
        model, seconds, exchanged = MODELS["S"], [], []
        run = training_call(network(model), precision, model, size // ranks.world_size, ranks)
        before = restart_peak()
        for _ in range(steps + 1):  # the first is not counted
            ranks.barrier()
            began = time.perf_counter()
            exchanged.append(run())
            seconds.append(time.perf_counter() - began)
        middle = (len(seconds) - 1) // 2
        peak = 1024 * kilobytes("VmHWM") - before
        return {
            "seconds": sorted(seconds[1:])[middle],
            "exchange": sorted(exchanged[1:])[middle],
            "memory": float(peak),
            "gradient": float(4 * sum(p.numel() for p in network(model).parameters())),
            "main": float(ranks.is_main),
        }


def work(side: int) -> dict[str, float]:
    """Of a forward pass of model S on one image of this side: FLOP, those of attention, bytes of the largest map."""
    model = replace(MODELS["S"], size=side, attention=(side // 2, side // 4))
    net = network(model)
    attention, largest = [0.0], [0.0]

    def look(module: nn.Module, given: tuple[Any, ...], result: Tensor) -> None:
        _, channels, height, width = given[0].shape
        if isinstance(module, Attention):
            attention[0] += 4.0 * channels * (height * width) ** 2
        largest[0] = max(largest[0], 4.0 * channels * height * width)

    for module in net.modules():
        if isinstance(module, (Attention, nn.Conv2d)):
            module.register_forward_hook(look)
    made = batch(model, 1)
    # Compiled kernels are calls that the counter does not see.
    with kernels.using("pure"), FlopCounterMode(display=False) as counter, torch.no_grad():
        net(made.x, made.t.float(), y=made.y)
    counts = counter.get_flop_counts()["Global"]
    products = sum(flop for name, flop in counts.items() if "attention" not in str(name) and "bmm" not in str(name))
    return {"flop": products + attention[0], "attention": attention[0], "largest": largest[0]}


def main(task: dict[str, Any]) -> Any:
    torch.set_num_threads(task["threads"])
    axis, precision, points = task["axis"], task["precision"], task["points"]
    if task["action"] == "work":
        return {str(side): work(side) for side in points}
    if task["action"] == "memory":
        return memory(axis, precision, points[0])
    if task["action"] == "exchange":
        return exchange(precision, task["batch"], task["steps"])
    found = interleaved(calls(axis, precision, points), QUICK if task["quick"] else Pace(**task["pace"]))
    return {point: timing.result() for point, timing in found.items()}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
