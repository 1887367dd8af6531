"""What this machine can do at best, and how much work the networks are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.blocks import QUICK, Pace, interleaved
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from unets.models import MODELS, batch
from unets.peers import Guided, Lucidrains
from unets.sides import DTYPES, Setting

from undiffuse.arithmetic import computes_bfloat16

_CONVOLUTIONS = ((8, 64, 64), (8, 128, 64), (8, 256, 32))  # images, channels, side


def peaks(device: torch.device, pace: Pace) -> dict[str, float]:
    """FLOP a second by precision: the fastest block of matrix products and 3x3 convolutions (channels last)."""
    names: tuple[str, ...] = ("fp32", "bf16", "fp16")
    if device.type == "cpu":  # a processor that only emulates bfloat16 would take minutes to show that
        names = ("fp32", "bf16") if computes_bfloat16() else ("fp32",)
    side, times = (2048, 1) if device.type == "cpu" else (8192, 16)
    convolutions = _CONVOLUTIONS
    if pace is QUICK:  # which measures nothing; processors without bfloat16 arithmetic would take minutes
        side, times, convolutions = 256, 1, ((1, 64, 16),)
    calls: dict[str, Callable[[], Any]] = {}
    flop: dict[str, float] = {}
    for name in names:
        made: dict[str, Any] = {"dtype": DTYPES[name], "device": device}
        a, b = torch.ones(side, side, **made), torch.ones(side, side, **made)
        calls[f"{name} product"], flop[f"{name} product"] = partial(torch.mm, a, b), 2.0 * side**3
        for images, channels, size in convolutions:
            x = torch.ones(images * times, channels, size, size, **made).contiguous(memory_format=torch.channels_last)
            kernel = torch.ones(channels, channels, 3, 3, **made).contiguous(memory_format=torch.channels_last)
            case = f"{name} convolution, {channels} channels"
            calls[case] = partial(F.conv2d, x, kernel, padding=1)
            flop[case] = 2.0 * 9 * channels**2 * images * times * size**2
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    with torch.no_grad():
        timings = interleaved(calls, pace, wait)
    fastest = {case: flop[case] / min(t.clean + t.disturbed) for case, t in timings.items()}
    best = {name: max(speed for case, speed in fastest.items() if case.startswith(name)) for name in names}
    return {**best, **fastest}


def work(folder: Path) -> dict[str, dict[str, float]]:
    """Parameters, and FLOP of a forward pass of one image: of the networks, and of what Lucidrains has in their place.

    Counted by torch from the shapes of products and convolutions, two for a multiplication and its addition.
    """
    found = {}
    for name, model in MODELS.items():
        setting = Setting(model=model, folder=folder, device=torch.device("cpu"))
        inputs = batch(model, 1)
        libraries: dict[str, Any] = {}
        if not model.classifier:
            libraries = {name: Guided(setting), f"{name} lucidrains": Lucidrains(setting)}
        for key, library in libraries.items():
            with FlopCounterMode(display=False) as counter:
                library.forward(inputs)
            parameters = sum(p.numel() for p in library.net.parameters())
            found[key] = {"parameters": float(parameters), "flop": float(counter.get_total_flops())}
    return found
