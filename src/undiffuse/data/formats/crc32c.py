"""CRC-32C (Castagnoli), as TFRecord files have it, in lanes that NumPy works on side by side."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["crc32c", "masked"]

_POLYNOMIAL = 0x82F63B78  # reflected
_LANES = 256


@lru_cache(maxsize=1)
def _table() -> NDArray[np.uint32]:
    """The remainders of all bytes."""
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(_POLYNOMIAL), values >> 1).astype(np.uint32)
    return values


def _apply(matrix: NDArray[np.uint32], values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A 32x32 matrix over GF(2), given by its columns, times each of the values."""
    out = np.zeros_like(values)
    for bit in range(32):
        out ^= np.where((values >> np.uint32(bit)) & 1, matrix[bit], 0).astype(np.uint32)
    return out


@lru_cache(maxsize=64)
def _zeros(count: int) -> NDArray[np.uint32]:
    """The matrix that appends `count` zero bytes."""
    if count == 1:
        unit = np.uint32(1) << np.arange(32, dtype=np.uint32)
        return ((unit >> np.uint32(8)) ^ _table()[unit & np.uint32(0xFF)]).astype(np.uint32)
    half = _zeros(count // 2)
    twice = _apply(half, half)
    return _apply(_zeros(1), twice) if count % 2 else twice


def crc32c(data: bytes) -> int:
    """The checksum of some bytes."""
    table, state = _table(), 0xFFFFFFFF
    length = len(data) // _LANES
    if length >= 16:
        rows = np.frombuffer(data, dtype=np.uint8, count=length * _LANES).reshape(_LANES, length).astype(np.uint32)
        lanes = np.zeros(_LANES, dtype=np.uint32)
        lanes[0] = state
        for k in range(length):
            lanes = (lanes >> np.uint32(8)) ^ table[(lanes ^ rows[:, k]) & np.uint32(0xFF)]
        span = length
        while len(lanes) > 1:
            lanes = _apply(_zeros(span), lanes[0::2]) ^ lanes[1::2]
            span *= 2
        state, data = int(lanes[0]), data[length * _LANES :]
    for byte in data:
        state = (state >> 8) ^ int(table[(state ^ byte) & 0xFF])
    return state ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    """The checksum as TFRecord stores it: turned by 15 bits, plus a constant."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
