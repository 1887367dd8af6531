"""Reproducible noise: every number is a pure function of (seed, image, step, purpose).

Image i of a run gets the same numbers for any batch size, micro-batch, worker, rank or device. The generator is Philox
4x32 with 10 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a bijection of a 128-bit
counter under a 64-bit key. It has no state that would have to be saved or synchronised.

    key = seed,   counter = (block of four elements, step, image, purpose)
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Words = tuple[Tensor, Tensor, Tensor, Tensor]
_TWISTER_WORDS = slice(24, 24 + 624 * 8)  # bytes of the Mersenne twister in the state of torch's CPU generator


def seed_generator(generator: torch.Generator, seed: int) -> None:
    """Seeds a generator of PyTorch by all 64 bits of a seed.

    PyTorch's own seeding of CPU generators ignores the upper 32 bits. Seeds below 2^32 give the same numbers as there;
    for others the whole state of the generator is a hash of the seed.

    Args:
        generator: The generator.
        seed: 0 <= seed < 2^64.
    """
    generator.manual_seed(seed)
    if seed >> 32 and generator.device.type == "cpu":
        state = generator.get_state()
        words = hashlib.shake_256(b"undiffuse seed" + seed.to_bytes(8, "little")).digest(624 * 4)
        wide = torch.frombuffer(bytearray(words), dtype=torch.int32).to(torch.int64) & _MASK
        state[_TWISTER_WORDS] = wide.view(torch.uint8)
        generator.set_state(state)


def philox4x32(counter: Words, key: tuple[int, int], rounds: int = 10) -> Words:
    """Applies the Philox 4x32 bijection to int64 tensors that hold 32-bit words; the counter's shapes broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        # 64-bit products wrap around in int64: the low word is exact, and masking removes the sign of the high word.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


class Noise(Protocol):
    """Provides a sampler's noise: a `NoiseSource`, or given noise."""

    def __len__(self) -> int:
        """Returns the number of images."""

    def normal(
        self, shape: Sequence[int], step: int = ..., purpose: str = ..., device: torch.device | str = ...
    ) -> Tensor:
        """Returns standard normal numbers [B, *shape] in float32."""


class NoiseSource:
    """Generates the random numbers of a set of images.

    `purpose` separates streams ("x_T", "step", "train", "time", ...): it may be any string, and numbers of different
    purposes are independent.

    Args:
        seed: Seed of the run, 0 <= seed < 2^64.
        indices: Number of each image in the run [B], 0 <= index < 2^32.
        stream: Prefix of every purpose. It gives independent noise to the second of two models that make image i
            together (the upsampler of a cascade).

    Raises:
        ValueError: The seed or an index is out of range, or there are no images.
    """

    def __init__(self, seed: int, indices: Tensor | Sequence[int], stream: str = "") -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be from 0 to 2^64 - 1, got {seed}")
        self.seed, self.stream = seed, stream
        self.indices = torch.as_tensor(indices, dtype=torch.int64).reshape(-1).cpu()
        if len(self.indices) == 0 or self.indices.min() < 0 or self.indices.max() > _MASK:
            raise ValueError("indices must be one or more image numbers from 0 to 2^32 - 1")

    def __len__(self) -> int:
        return len(self.indices)

    def words(self, blocks: int, step: int, purpose: str, device: torch.device | str = "cpu") -> Words:
        """Returns four tensors [B, blocks] of random 32-bit words."""
        if not 0 <= step <= _MASK:
            raise ValueError(f"step must be from 0 to 2^32 - 1, got {step}")
        block = torch.arange(blocks, dtype=torch.int64, device=device)[None]
        image = self.indices.to(device)[:, None]
        constant = torch.zeros((1, 1), dtype=torch.int64, device=device)
        counter = (block, constant + step, image, constant + zlib.crc32((self.stream + purpose).encode()))
        a, b, c, d = torch.broadcast_tensors(*philox4x32(counter, (self.seed & _MASK, self.seed >> 32)))
        return a, b, c, d

    def normal(
        self,
        shape: Sequence[int],
        step: int = 0,
        purpose: str = "step",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Returns standard normal numbers [B, *shape] by the Box-Muller transform, computed in float32 on `device`."""
        size = math.prod(shape)
        # MPS lacks some 64-bit integer arithmetic, so its noise is computed on the CPU and copied.
        place = "cpu" if torch.device(device).type == "mps" else device
        a, b, c, d = self.words(-(-size // 4), step, purpose, place)
        first, second = _box_muller(a, b), _box_muller(c, d)
        out = torch.stack([*first, *second], dim=-1).flatten(1)[:, :size]
        return out.reshape(len(self), *shape).to(device=device, dtype=dtype)

    def uniform(self, step: int = 0, purpose: str = "time") -> Tensor:
        """Returns uniform numbers [B] in (0, 1), float64 on the CPU, with 52 random bits."""
        a, b, _, _ = self.words(1, step, purpose)
        bits = ((a[:, 0] << 20) | (b[:, 0] >> 12)).to(torch.float64)
        return (bits + 0.5) * 2.0**-52


def _box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    # (a + 1/2) / 2^32 keeps 24 significant bits for small a, so the tail reaches 6.7 standard deviations.
    radius = torch.sqrt(-2 * torch.log((a.to(torch.float32) + 0.5) * 2.0**-32))
    angle = b.to(torch.float32) * (2 * math.pi * 2.0**-32)
    return radius * torch.cos(angle), radius * torch.sin(angle)
