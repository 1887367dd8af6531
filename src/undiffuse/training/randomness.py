"""The one place where training touches torch's own generator: dropout masks and fresh weights.

The generator is seeded from counters for every micro-batch and put back afterwards, so its state never carries
anything from one step to the next: the random state of a run *is* (seed, images seen), and a resumed run draws the
same masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from undiffuse.noise import seed_generator


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from any numbers and words (sha256 of "a/b/c")."""
    digest = hashlib.sha256("/".join(str(p) for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside the block torch's generators (CPU and `device`) are seeded; on leaving it they are as they were before."""
    device = torch.device(device)
    cpu_state = torch.get_rng_state()
    if device.type == "cuda":
        device_state = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        device_state = torch.mps.get_rng_state()
    try:
        torch.manual_seed(seed)  # of all devices; the CPU's generator takes 32 bits of it only
        seed_generator(torch.default_generator, seed)
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if device.type == "cuda":
            torch.cuda.set_rng_state(device_state, device)
        elif device.type == "mps":
            torch.mps.set_rng_state(device_state)
