"""AdamW with its state laid out beforehand, the gradient's norm, and the loss scale of fp16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from undiffuse.training.config import TrainConfig


def make_optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over all parameters of `net`, fused where this device has it (one pass over memory instead of ten).

    The moments are made at once (zeros, as AdamW would at its first step): saving, loading and exchanging them then
    needs no special first case.
    """
    parameters = list(net.parameters())
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=fused or None,
    )
    for p in parameters:
        optimizer.state[p] = {
            # the fused kernels count steps on the parameter's device, the others on the CPU
            "step": torch.zeros((), dtype=torch.float32, device=p.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
        }
    return optimizer


def optimizer_tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state (live tensors) as "optimizer.<parameter>.<state>"."""
    return {
        f"optimizer.{name}.{key}": value
        for name, p in net.named_parameters()
        for key, value in optimizer.state[p].items()
    }


def gradient_norm(gradients: Sequence[Tensor]) -> float:
    """Euclidean norm of all gradients together (inf or nan if one of them is)."""
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients)))).item())


@dataclass
class LossScale:
    """The dynamic loss scale of fp16, against small gradients vanishing in half precision.

    The loss is multiplied before backward and the gradients divided after. The scale is halved when a gradient
    overflows (that update is skipped) and doubled after `interval` good updates. With `enabled=False` it stays 1.
    """

    enabled: bool
    value: float = 2.0**16
    good: int = 0
    interval: int = 1000
    largest: float = 2.0**24

    def __post_init__(self) -> None:
        if not self.enabled:
            self.value = 1.0

    def unscale_(self, gradients: Sequence[Tensor]) -> None:
        """Divides gradients by the scale, in place (a power of two: exact)."""
        if self.value != 1.0:
            torch._foreach_mul_(list(gradients), 1.0 / self.value)

    def can_shrink(self) -> bool:
        """True while an overflow may be the scale's fault; at a scale of 1 it is the model's."""
        return self.enabled and self.value > 1.0

    def update(self, overflow: bool) -> None:
        """After every update: `overflow` if its gradients were not finite."""
        if not self.enabled:
            return
        if overflow:
            self.value, self.good = max(1.0, self.value / 2), 0
            return
        self.good += 1
        if self.good >= self.interval:
            self.value, self.good = min(self.largest, self.value * 2), 0

    def state(self) -> dict[str, float]:
        """For the manifest."""
        return {"enabled": self.enabled, "value": self.value, "good": self.good}

    def load(self, state: dict[str, float]) -> None:
        """Back from the manifest. A run that changes from another precision to fp16 starts with the default scale."""
        if self.enabled and state.get("enabled", state["value"] != 1.0):
            self.value, self.good = float(state["value"]), int(state["good"])
