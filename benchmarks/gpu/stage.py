"""One stage in a process of its own: `python -m gpu.stage NAME DEVICE SECONDS`. Each line it prints is a result."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch


def report(result: dict[str, Any]) -> None:
    """Prints a result at once, so that it is kept whatever happens next."""
    print("RESULT " + json.dumps(result), flush=True)


def surroundings(device: torch.device) -> dict[str, Any]:
    """The GPU, versions, and which of our paths are used."""
    import importlib.metadata
    import os
    import platform

    from common.measuring import commit

    import undiffuse
    from undiffuse.kernels.gpu import norm_status

    about: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "undiffuse": undiffuse.__version__,
        "commit": commit(), "date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "device": "a CPU (dry run)",
    }  # fmt: skip
    for package in ("triton", "guided-diffusion-sdk", "diffusers"):
        try:
            about[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            about[package] = "not installed"
    if device.type == "cuda":
        card, status = torch.cuda.get_device_properties(device), norm_status(device)
        about |= {
            "device": card.name, "memory_gib": round(card.total_memory / 2**30), "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), "norm": f"{status.active} ({status.reason})",
        }  # fmt: skip
    return about


def main(name: str, device: torch.device, seconds: float) -> None:
    """Runs a stage for at most about so many seconds."""
    until = time.monotonic() + seconds
    if device.type == "cuda":
        torch.cuda.init()
    if name == "about":
        report(surroundings(device))
    elif name == "peaks":
        from common.blocks import QUICK, Pace
        from unets.roofline import peaks

        report(peaks(device, QUICK if device.type == "cpu" else Pace(rounds=3, most=3, seconds=0.1, patience=seconds)))
    elif name == "correctness":
        from gpu import correctness

        correctness.main(device, until, report)
    elif name == "compiled":
        from gpu import speed

        speed.measure_compiled(device, until, report)
    else:
        from gpu import speed

        speed.measure(name.removeprefix("speed "), device, until, report)


if __name__ == "__main__":
    main(sys.argv[1], torch.device(sys.argv[2]), float(sys.argv[3]))
