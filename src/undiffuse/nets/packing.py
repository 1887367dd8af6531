"""Packs layers for inference on the CPU: their weights are laid out once instead of at every call.

oneDNN computes with weights in a layout of its own and can add a convolution's result to a tensor on the way. Packing
replaces the layers of a network in place. The network computes the same, but can be neither trained nor saved; see
`runner.prepare_for_inference`, which packs a copy.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.kernels import return_memory
from undiffuse.kernels.autotune import current_plan
from undiffuse.kernels.convolution import PLAIN, filter_3x3, implementation, pack_filters, taps
from undiffuse.nets.blocks import Attention, Conv3x3, ResBlock
from undiffuse.nets.ddpm import ResBlock as DDPMResBlock
from undiffuse.nets.memory import is_last

_ROWS = 1024  # the number of rows for which products are laid out, which matters little
_PLAIN = (nn.Conv2d.forward, Conv3x3.forward)  # a convolution that computes something else keeps its weights


def pack_(net: nn.Module, dtype: torch.dtype) -> None:
    """Replace the layers of one of the library's networks, on a CPU, by packed ones without gradients.

    Embeddings, norms and the last layers stay in float32. Does nothing if this version of PyTorch cannot pack.

    Args:
        net: The network.
        dtype: The precision that the packed layers compute in.
    """
    if not can_pack(dtype):
        return
    for name, module in list(net.named_modules()):
        for child, layer in module.named_children():
            precision = torch.float32 if is_last(f"{name}.{child}".lstrip(".")) else dtype
            if isinstance(layer, nn.Conv2d) and type(layer).forward not in _PLAIN:
                continue
            if isinstance(layer, nn.Conv2d) and set(layer.kernel_size) != {1}:
                setattr(module, child, PackedConv2d(layer, precision))
            elif isinstance(layer, nn.Conv2d) or (isinstance(layer, nn.Conv1d) and isinstance(module, Attention)):
                setattr(module, child, PackedPointwise(layer, precision))
    _pack_projections(net)
    return_memory()


@functools.lru_cache
def can_pack(dtype: torch.dtype) -> bool:
    """Return whether packed convolutions exist here and give the results of plain ones.

    They are not part of PyTorch's public interface, so they are tried.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        with torch.no_grad():
            conv = nn.Conv2d(16, 16, 3, padding=1)
            conv.weight.copy_(torch.linspace(-1, 1, conv.weight.numel()).view_as(conv.weight))
            packed = PackedConv2d(conv, dtype)
            x = torch.linspace(-1, 1, 16 * 25).view(1, 16, 5, 5).to(dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            plain = conv.to(dtype)(x).float()
            near = 1e-5 if dtype == torch.float32 else 0.02
            single = nn.Conv2d(16, 16, 1).to(dtype)
            product, other = PackedPointwise(single, dtype), single(x).float()
            results = [(packed(x), plain), (packed.onto(x, x), plain + x.float())]
            results += [(product(x), other), (product.onto(x, x), other + x.float())]
            return all(torch.allclose(a.float(), b, near, near * float(b.abs().max())) for a, b in results)
    except (AttributeError, RuntimeError, TypeError):
        return False


class _Packed(nn.Module):
    """A layer whose packed weights never change: copies of it share them, since oneDNN's tensors cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return copy.copy(self)


class PackedConv2d(_Packed):
    """A convolution with its weights laid out for the size of its inputs, which are cast to the weights' precision.

    A 3x3 convolution goes through the implementation that the run's plan chooses (`kernels.autotune`), all others
    through oneDNN. Its layout depends on the input's size: one that does not fit can be fifty times slower than none.
    So weights are laid out when the first input comes, and again when the size changes.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.how = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self._out = conv.out_channels if self.how == PLAIN and conv.kernel_size == (3, 3) else None
        self._laid_out: tuple[torch.Size | None, str, Tensor] = (None, "torch", conv.weight.detach().to(dtype))

    def weight_for(self, size: torch.Size) -> tuple[str, Tensor]:
        """Return the implementation for inputs of a size, and the weights in its layout."""
        way = "packed"
        if self._out is not None:
            way = implementation("conv3x3_packed", current_plan(), size, self._out, self.dtype)
        made_for, before, weight = self._laid_out
        if (made_for, before) != (size, way):
            plain = weight.to_dense() if weight.layout != torch.strided else weight
            if before == "winograd":
                plain = plain.permute(3, 2, 0, 1).contiguous()
            if way == "winograd":
                weight = taps(plain)
            elif way == "packed":
                weight = pack_filters(plain, size, self.how)
            else:
                weight = plain.contiguous(memory_format=torch.channels_last)
            self._laid_out = (size, way, weight)
            del plain
            return_memory()
        return way, weight

    def forward(self, x: Tensor) -> Tensor:
        way, weight = self.weight_for(x.shape)
        if way == "winograd":
            return filter_3x3(x.to(self.dtype), weight, self.bias)
        if way == "torch":
            return nn.functional.conv2d(x.to(self.dtype), weight, self.bias, padding=1)
        return torch.ops.mkldnn._convolution_pointwise(x.to(self.dtype), weight, self.bias, *self.how, "none", [], "")

    def onto(self, base: Tensor, x: Tensor) -> Tensor:
        """Return base + conv(x)."""
        way, weight = self.weight_for(x.shape)
        if way == "winograd":
            return filter_3x3(x.to(self.dtype), weight, self.bias, base)
        if way == "torch":
            return nn.functional.conv2d(x.to(self.dtype), weight, self.bias, padding=1).add_(base.to(self.dtype))
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x.to(self.dtype), base.to(self.dtype), weight, self.bias, *self.how, "add", 1.0, None, [], None
        )


class PackedPointwise(_Packed):
    """A 1x1 convolution of channels-last images as a product, whose layout hardly depends on the number of pixels."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        weight = conv.weight.detach().to(dtype).flatten(1)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.to(self.dtype).permute(0, 2, 3, 1)
        out = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return out.permute(0, 3, 1, 2)

    def onto(self, base: Tensor, x: Tensor) -> Tensor:
        """Return base + conv(x)."""
        rows, others = (part.to(self.dtype).permute(0, 2, 3, 1) for part in (x, base))
        out = torch.ops.mkldnn._linear_pointwise.binary(rows, others, self.weight, self.bias, "add")
        return out.permute(0, 3, 1, 2)


def _pack_projections(net: nn.Module) -> None:
    """Replace all projections of the embedding by parts of one product."""
    owners: list[tuple[nn.Module, str, Any]] = []
    for module in net.modules():
        if isinstance(module, ResBlock):
            owners.append((module.emb_layers, "1", module.emb_layers[1]))
        elif isinstance(module, DDPMResBlock):
            owners.append((module, "temb_proj", module.temb_proj))
    if not owners:
        return
    together = _Together([linear for _, _, linear in owners])
    start = 0
    for owner, name, linear in owners:
        setattr(owner, name, _Part(together, start, start + linear.out_features))
        start += linear.out_features


class _Together:
    """Computes linear layers of one input as one, and keeps the last result, which the parts use one by one."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        self.bias = torch.cat([layer.bias.detach() for layer in layers])
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, emb: Tensor) -> Tensor:
        last = self._last
        if last is None or last[0] is not emb:
            last = (emb, nn.functional.linear(emb, self.weight, self.bias))
            self._last = last
        return last[1]


class _Part(nn.Module):
    """Returns columns `start` to `stop` of layers that are computed together."""

    def __init__(self, together: _Together, start: int, stop: int) -> None:
        super().__init__()
        self.together, self.start, self.stop = together, start, stop

    def forward(self, emb: Tensor) -> Tensor:
        return self.together(emb)[:, self.start : self.stop]
