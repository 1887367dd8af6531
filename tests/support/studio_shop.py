"""A stand-in for the work of a model process, so that processes, stops and deaths are tested without a network."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from undiffuse.pictures import save_png
from undiffuse.util.errors import ConfigError


class FakeShop:
    """Does what `job.inputs["do"]` says: "work" N short pieces, "stubborn", "die", "fail", "bug"."""

    def __init__(self, device: str) -> None:
        self.done = 0

    def do(self, job: Any, folder: str | None, emit: Any) -> dict[str, Any]:
        what, pieces = job.inputs.get("do", "work"), int(job.inputs.get("pieces", 2))
        self.done += 1
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fail":
            raise ConfigError("steps", "cannot be this many")
        if what == "bug":
            raise KeyError("nothing")
        if what == "stubborn":
            while True:
                try:
                    time.sleep(60)
                except BaseException:  # noqa: BLE001, S112 - that is the point
                    continue
        for piece in range(pieces):
            time.sleep(0.02)
            emit("progress", {"done": (piece + 1) / pieces, "left": 0.0})
        files = []
        if folder is not None:
            for k in range(2):
                image = np.full((4, 4, 1), 50 * k, np.uint8)
                files.append(str(save_png(Path(folder) / f"{k}.png", image, {"command": "test", "seed": k})))
        return {"files": files, "pid": os.getpid(), "done": self.done, "seconds": 0.1}
