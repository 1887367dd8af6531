"""How many images are made at once: what one needs against what is free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

MOST = 64  # images at once; more make nothing faster, and a stopped run loses more
CPU_ROOM = 2**30  # bytes; a CPU is no faster with larger batches
PART = {"cpu": 0.5, "cuda": 0.8}  # of the free memory that images may take; the rest is for kernels and for others


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on a device, in bytes; None where nothing tells."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return _free_main_memory() if device.type == "cpu" else None


def images_at_once(bytes_per_image: int, device: torch.device) -> int:
    """The images to make at once, from 1 to 64."""
    free = free_bytes(device)
    room = CPU_ROOM if free is None else PART.get(device.type, 0.5) * free
    if device.type == "cpu":
        room = min(room, CPU_ROOM)
    return max(1, min(MOST, int(room // bytes_per_image)))


def _free_main_memory() -> int | None:
    try:
        # Linux: what can be had without swapping, which unlike sysconf's number counts the cache of files in.
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, macOS not this number
        return None
