"""Hashes of named tensors: the identities of weights, features and statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["tensors_hash", "weights_hash"]


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of a model's weights over (name, dtype, shape, bytes) in the order of their names.

    It is the identity of a model in records and checkpoints, whatever file the weights are in.
    """
    return _hash(weights, "|", short=True)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of tensors over (name, dtype, shape, bytes) in the order of their names.

    It stands in cards of extractors, cached features and reference files, and so must not change. It differs from
    `weights_hash` in its separators and names of types.
    """
    return _hash(tensors, "\0", short=False)


def _hash(tensors: Mapping[str, Tensor], separator: str, short: bool) -> str:
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        kind = str(tensor.dtype).removeprefix("torch.") if short else str(tensor.dtype)
        digest.update(f"{name}{separator}{kind}{separator}{list(tensor.shape)}{separator}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
