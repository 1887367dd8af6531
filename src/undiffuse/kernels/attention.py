"""Softmax attention by PyTorch's fused kernel or, in bfloat16 on a CPU, by plain products or our own kernel."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.kernels import matrix_unit
from undiffuse.kernels.autotune import current_plan
from undiffuse.kernels.choice import OPERATIONS, is_traced

LONGEST = {"attention": 1024, "attention_grad": 512}
"""Tokens up to which plain products are considered, by operation: their memory grows with the square."""
_SCORES = 2**23  # of a product at a time where no gradient is wanted, 16 MiB


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(D)) v [B, heads, L, D], by the implementation that the run's plan has chosen.

    Args:
        q: Queries [B, heads, L, D].
        k: Keys, likewise.
        v: Values, likewise.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.numel() == 0 or is_traced():
        return F.scaled_dot_product_attention(q, k, v)
    operation = "attention_grad" if torch.is_grad_enabled() and q.requires_grad else "attention"
    batch, heads, length, width = q.shape
    here = {
        "products": length <= LONGEST[operation],
        "amx": operation == "attention" and matrix_unit.suits_attention(q, k, v),
    }
    ways = tuple(way for way in OPERATIONS[operation] if here.get(way, True))
    if len(ways) == 1:
        return F.scaled_dot_product_attention(q, k, v)
    key = (operation, "bf16", width, heads, length, 1)
    return _FUNCTIONS[current_plan().choose(key, batch, ways, _trial(operation))](q, k, v)


def by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes `attention` by two plain products, without a gradient for a bounded number of sequences at a time."""
    batch, heads, length, width = q.shape
    q, k, v = (part.reshape(batch * heads, length, width) for part in (q, k, v))
    few = max(1, _SCORES // length**2)
    if few >= len(q) or (torch.is_grad_enabled() and q.requires_grad):
        out = _products(q, k, v)
    else:
        out = torch.cat([_products(*parts) for parts in zip(q.split(few), k.split(few), v.split(few), strict=True)])
    return out.view(batch, heads, length, width)


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "fused": F.scaled_dot_product_attention, "products": by_products, "amx": matrix_unit.attention,
}  # fmt: skip


def _products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=1 / math.sqrt(q.shape[2]))
    return torch.bmm(torch.softmax(scores, dim=-1), v)


def _trial(operation: str) -> Callable[[str, int, int, int, int], Callable[[], object]]:
    """Returns what makes calls of an operation to time, see `timing.Trial`: each image is one sequence of one head."""

    def trial(way: str, batch: int, channels: int, height: int, width: int) -> Callable[[], object]:
        # Numbers that differ: equal scores would spare the softmax nothing, but equal rows are rare.
        length = -(-height * width // matrix_unit.BLOCK) * matrix_unit.BLOCK  # which all implementations take
        x = torch.linspace(-1, 1, batch * length * channels).view(1, batch, length, channels).bfloat16()
        function = _FUNCTIONS[way]
        if operation == "attention":
            return lambda: function(x, x, x)

        def call() -> object:
            with torch.enable_grad():
                parts = [x.detach().requires_grad_() for _ in range(3)]
                return torch.autograd.grad(function(*parts), parts, x)

        return call

    return trial
