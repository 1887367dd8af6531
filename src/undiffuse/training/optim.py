"""AdamW with its state laid out beforehand, the gradient's norm, and the loss scale of fp16."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.distributed import DistContext
from undiffuse.distributed.sharding import is_sharded, rows_of
from undiffuse.train_config import TrainConfig
from undiffuse.training.companions import Trained
from undiffuse.training.custom import plain_state, restored


def make_optimizer(net: nn.Module | Trained, config: TrainConfig) -> torch.optim.AdamW:
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


def optimizer_tensors(net: nn.Module | Trained, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state (live tensors) as "optimizer.<parameter>.<state>"."""
    return {
        f"optimizer.{name}.{key}": value
        for name, p in net.named_parameters()
        if p in optimizer.state
        for key, value in optimizer.state[p].items()
        if isinstance(value, Tensor)
    }


def optimizer_state(net: nn.Module | Trained, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns what of an optimizer is not in `optimizer_tensors`, JSON-ready: its groups, and numbers by parameter."""
    names = {id(p): name for name, p in net.named_parameters()}
    numbers = {
        names[id(p)]: plain_state({k: v for k, v in state.items() if not isinstance(v, Tensor)}, names[id(p)])
        for p, state in optimizer.state.items()
    }
    groups = [plain_state(_without_parameters(group), "group") for group in optimizer.param_groups]
    return {"groups": groups, "numbers": {name: state for name, state in numbers.items() if state}}


def load_optimizer(
    net: nn.Module | Trained, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Restores an optimizer from the tensors "optimizer.<parameter>.<state>" and from `optimizer_state`.

    Raises:
        ValueError: The optimizer has other groups, or the state is that of other parameters.
    """
    if len(state["groups"]) != len(optimizer.param_groups):
        raise ValueError(
            f"the optimizer in the checkpoint has {len(state['groups'])} parameter groups, this one "
            f"{len(optimizer.param_groups)}"
        )
    names = {id(p): name for name, p in net.named_parameters()}
    known: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            name, _, entry = key.removeprefix("optimizer.").rpartition(".")
            known.setdefault(name, {})[entry] = tensor.clone()
    for name, numbers in state["numbers"].items():
        known.setdefault(name, {}).update({entry: restored(value) for entry, value in numbers.items()})
    packed = optimizer.state_dict()
    order = [p for group in optimizer.param_groups for p in group["params"]]
    packed["state"] = {i: known.pop(names[id(p)]) for i, p in enumerate(order) if names[id(p)] in known}
    if known:
        raise ValueError(f"the optimizer in the checkpoint has state for {next(iter(known))}, which this one has not")
    load_groups(packed["param_groups"], state["groups"])
    optimizer.load_state_dict(packed)


def load_groups(groups: Sequence[dict[str, Any]], kept: Sequence[Mapping[str, Any]]) -> None:
    """Restores the settings of parameter groups (learning rates, betas) from those in `optimizer_state`."""
    for group, values in zip(groups, kept, strict=True):
        group.update({key: restored(value, group.get(key)) for key, value in values.items()})


def _without_parameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def gradient_norm(gradients: Sequence[Tensor], ranks: DistContext) -> float:
    """Euclidean norm of all gradients together (inf or nan if one of them is), the same in every process.

    Gradients that are split over the processes are summed over all of them.
    """
    mine = [rows_of(gradient).local for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(mine)))
    if any(map(is_sharded, gradients)):
        norm = ranks.sum_(norm.double().square().reshape(1)).sqrt()
    return float(norm.item())


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
