"""The kernels of a run: one choice for all of its processes, made by the main one."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.distributed import DistContext
from undiffuse.distributed.sharding import ShardedGradients
from undiffuse.kernels import Plan, planned
from undiffuse.nets.protocol import NetworkSpec, conditions_of
from undiffuse.nets.runner import NetworkRunner, is_own

SECONDS = 2.0
"""Processor time that a training may spend on timing operations."""


def shared_plan(
    ranks: DistContext,
    net: nn.Module,
    spec: NetworkSpec,
    precision: str,
    batch: int,
    recorded: Any,
    sharded: ShardedGradients | None = None,
) -> Plan:
    """Returns the plan of a run, the same in every process.

    Each process would decide from its own timings and its own processor. So the main process runs the network on one
    image, forward and backward, which makes all the choices, and sends them to the others.

    Args:
        ranks: The processes.
        net: The network.
        spec: What its images and classes are.
        precision: "fp32", "bf16" or "fp16".
        batch: Images of a call to choose for.
        recorded: The choices of the run so far, see `Plan`.
        sharded: What sums the gradients if the network is split over the processes; all of them have to run it then.
    """
    plan = Plan(batch=batch, recorded=recorded, seconds=SECONDS)
    if ranks.world_size == 1 or ranks.device.type != "cpu" or not is_own(net):
        return plan
    if ranks.is_main or sharded is not None:
        with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]), planned(plan):
            # What is wrong with the network shows in the first step, in every process.
            _pass(net, spec, precision, sharded)
    return Plan(batch=batch, recorded=ranks.broadcast_json(plan.record()), seconds=SECONDS)


def _pass(net: nn.Module, spec: NetworkSpec, precision: str, sharded: ShardedGradients | None) -> None:
    x, conditions = torch.zeros(1, *spec.image_shape), dict[str, Tensor]()
    if "y" in conditions_of(net):
        conditions["y"] = torch.zeros(1, dtype=torch.int64)
    if spec.super_resolution:
        conditions["low_res"] = torch.zeros_like(x)
    with torch.enable_grad():
        out = NetworkRunner(net, precision, torch.device("cpu"))(x, torch.zeros(1), **conditions)
        if sharded is not None:  # gradients that are not summed would be added to those of the first update
            sharded.arm()
            out.sum().backward()
            sharded.finish()
            net.zero_grad(set_to_none=True)
            return
        wanted = [parameter for parameter in net.parameters() if parameter.requires_grad]
        torch.autograd.grad(out.sum(), wanted, allow_unused=True)
