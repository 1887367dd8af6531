"""Memory that kernels work in."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

KEPT = 2**22
"""Numbers of a workspace up to which a thread keeps it, 16 MiB."""
_local = threading.local()


def workspace(count: int) -> Tensor:
    """Returns a thread's workspace of `count` or more float32 numbers: blocks of ever other sizes would leave holes."""
    kept: Tensor | None = getattr(_local, "workspace", None)
    if kept is not None and len(kept) >= count:
        return kept
    if count > KEPT:
        return torch.empty(count, dtype=torch.float32)
    _local.workspace = kept = None  # before there is another
    _local.workspace = torch.empty(count, dtype=torch.float32)
    return _local.workspace
