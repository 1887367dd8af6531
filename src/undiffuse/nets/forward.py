"""How a network is called: in which precision, in which layout of memory, prepared for use or as it is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.nets.blocks import channels_last
from undiffuse.nets.footprint import Footprint, store_weights_
from undiffuse.nets.packing import pack_

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Forward:
    """The network as it is called: compiled if asked for, under autocast in 16-bit runs, float32 in and out.

    `precision` is "fp32", "bf16" or "fp16"; `footprint` is what the network took when this was made; `packed` says that
    its layers have no gradients.
    """

    def __init__(
        self,
        net: nn.Module,
        precision: str,
        device: torch.device,
        compiled: bool = False,
        footprint: Footprint | None = None,
        packed: bool = False,
    ) -> None:
        self.net = net
        self.footprint = Footprint.of(net) if footprint is None else footprint
        self.conditions: frozenset[str] = getattr(net, "conditions", frozenset())
        self._call: Any = _compiled(net, device) if compiled else net
        self._recorded = compiled and device.type == "cuda"  # the result may lie in a graph's memory
        self._device = device.type
        self._dtype = AUTOCAST.get(precision)
        self._packed = packed

    def __call__(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        if self._packed and x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "this network was made ready without gradients, and one with respect to its input is wanted: make it "
                "ready with gradient=True"
            )
        x = channels_last(x)
        with torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None):
            out = self._call(x, t, **cond)
        # A CUDA graph's result lies where the next call's will; a conversion to float32 copies it.
        return out.clone() if self._recorded and out.dtype == torch.float32 else out.float()


def _compiled(net: nn.Module, device: torch.device) -> Any:
    """The network compiled. Where it is only used, for one size of input at a time, and on a GPU recorded as CUDA
    graphs, for which a network of some hundred small operations waits most."""
    if any(parameter.requires_grad for parameter in net.parameters()):
        return torch.compile(net)
    return torch.compile(net, dynamic=False, mode="reduce-overhead" if device.type == "cuda" else None)


def inference_forward(
    net: nn.Module, precision: str, device: torch.device, *, gradient: bool = False, compiled: bool = False
) -> Forward:
    """The network made ready, in place, to be used only: on the device, frozen, weights in 16 bits where they are
    computed with in 16 bits, laid out for the CPU where it is one.

    `gradient` keeps what a gradient with respect to the image needs (guidance by a classifier); `compiled` leaves all
    to PyTorch's compiler, which fuses norms and what follows them by itself.
    """
    net.requires_grad_(False).eval()
    module: Any
    for module in net.modules():
        if hasattr(module, "use_checkpoint"):
            module.use_checkpoint = False  # it saves memory in training, and only costs time here
    dtype = AUTOCAST.get(precision, torch.float32)
    if dtype != torch.float32:
        store_weights_(net, dtype)  # before it moves, so that the device never holds it whole
    net.to(device)
    footprint = Footprint.of(net)  # a packed network has no parameters any more
    packed = device.type == "cpu" and not gradient and not compiled
    if packed:
        pack_(net, dtype)
    else:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Forward(net, precision, device, compiled and not gradient, footprint, packed)
