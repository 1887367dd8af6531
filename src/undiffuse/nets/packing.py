"""Packs layers for inference on the CPU: their weights are laid out once instead of at every call.

oneDNN computes with weights in a layout of its own and can add a convolution's result to a tensor on the way. Packing
replaces the layers of a network in place. The network computes the same, but can be neither trained nor saved; see
`runner.prepare_for_inference`, which packs a copy.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from undiffuse.kernels import matrix_unit, own_pages, products, return_memory
from undiffuse.kernels.autotune import current_plan
from undiffuse.kernels.convolution import PLAIN, filter_3x3, implementation, pack_filters, taps
from undiffuse.kernels.norm_act import FixedNorm
from undiffuse.nets.blocks import Attention, Conv3x3, GroupNorm, ResBlock
from undiffuse.nets.ddpm import ResBlock as DDPMResBlock
from undiffuse.nets.memory import is_last

_PRODUCT: tuple[str, list[Any], str] = ("none", [], "")  # nothing follows the operation
_PLAIN = (nn.Conv2d.forward, Conv3x3.forward)  # a convolution that computes something else keeps its weights


def pack_(net: nn.Module, dtype: torch.dtype) -> None:
    """Replace the layers of one of the library's networks, on a CPU, by packed ones without gradients.

    Embeddings, norms and the last layers stay in float32; norms only lose what gradients need. Does nothing if this
    version of PyTorch cannot pack.

    Args:
        net: The network.
        dtype: The precision that the packed layers compute in.
    """
    if not can_pack(dtype):
        return
    with own_pages():
        for name, module in list(net.named_modules()):
            for child, layer in module.named_children():
                precision = torch.float32 if is_last(f"{name}.{child}".lstrip(".")) else dtype
                if isinstance(layer, nn.Conv2d) and type(layer).forward not in _PLAIN:
                    continue
                if isinstance(layer, nn.Conv2d) and set(layer.kernel_size) != {1}:
                    setattr(module, child, PackedConv2d(layer, precision))
                elif isinstance(layer, nn.Conv2d) or (isinstance(layer, nn.Conv1d) and isinstance(module, Attention)):
                    setattr(module, child, PackedPointwise(layer, precision))
                elif type(layer) is GroupNorm:
                    setattr(module, child, PackedNorm(layer))
        _pack_projections(net)
    return_memory()


@functools.lru_cache
def _operation(name: str, overload: str = "default") -> Any:
    """Return an operation of oneDNN in PyTorch, its overload resolved, which takes longer than the call."""
    return getattr(getattr(torch.ops.mkldnn, name), overload)


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
            single, base = nn.Conv2d(16, 8, 1).to(dtype), x[:, :8].contiguous(memory_format=torch.channels_last)
            product, other = PackedPointwise(single, dtype), single(x).float()  # of a size that only oneDNN takes
            results = [(packed(x), plain), (packed.onto(x, x), plain + x.float())]
            results += [(product(x), other), (product.onto(base, x), other + base.float())]
            return all(torch.allclose(a.float(), b, near, near * float(b.abs().max())) for a, b in results)
    except (AttributeError, RuntimeError, TypeError):
        return False


class _Packed(nn.Module):
    """A layer whose weights never change: copies share them, since oneDNN's tensors cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return copy.copy(self)


class PackedConv2d(_Packed):
    """A convolution with its weights laid out for the size of its inputs, which are cast to the weights' precision.

    A 3x3 convolution goes through the implementation that the run's plan chooses (`kernels.autotune`), all others
    through oneDNN, whose layout depends on the input's size: one that does not fit can be fifty times slower than none.
    So weights are laid out when the first input comes; oneDNN's again when the size changes.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.how = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self._exact = None if self.bias is None else self.bias.float()
        self._out = conv.out_channels if self.how == PLAIN and conv.kernel_size == (3, 3) else None
        self._laid_out: tuple[torch.Size | None, str, Tensor] = (None, "torch", conv.weight.detach().to(dtype))
        self._token: object = None  # of the plan that chose for that size

    def weight_for(self, size: torch.Size) -> tuple[str, Tensor]:
        """Return the implementation for inputs of a size, and the weights in its layout."""
        made_for, before, weight = self._laid_out
        plan = current_plan()
        if made_for == size and plan.token is self._token:
            return before, weight
        way = "packed"
        if self._out is not None:
            way = implementation("conv3x3_packed", plan, size, self._out, self.dtype)
        self._token = plan.token
        if made_for is None or way != before or (way == "packed" and made_for != size):
            with own_pages():
                weight = self._lay_out(way, size)
            return_memory()
        self._laid_out = (size, way, weight)
        return way, weight

    def _lay_out(self, way: str, size: torch.Size) -> Tensor:
        _, before, weight = self._laid_out
        plain = weight.to_dense() if weight.layout != torch.strided else weight
        if before == "winograd":
            plain = plain.permute(3, 2, 0, 1).contiguous()
        elif before == "amx":
            plain = matrix_unit.unpack(weight, self._out or 0, 9).unflatten(2, (3, 3)).contiguous()
        if way == "amx":
            return matrix_unit.pack(plain.contiguous(memory_format=torch.channels_last))
        if way == "winograd":
            return taps(plain)
        if way == "packed":
            return pack_filters(plain, size, self.how)
        return plain.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        way, weight = self.weight_for(x.shape)
        if way == "amx":
            return matrix_unit.convolution(x.to(self.dtype), weight, self._out or 0, self._exact)
        if way == "winograd":
            return filter_3x3(x.to(self.dtype), weight, self._exact)
        if way == "torch":
            return nn.functional.conv2d(x.to(self.dtype), weight, self.bias, padding=1)
        return _operation("_convolution_pointwise")(x.to(self.dtype), weight, self.bias, *self.how, *_PRODUCT)

    def onto(self, base: Tensor, x: Tensor) -> Tensor:
        """Return base + conv(x)."""
        way, weight = self.weight_for(x.shape)
        if way == "amx":
            return matrix_unit.convolution(x.to(self.dtype), weight, self._out or 0, self._exact, base)
        if way == "winograd":
            return filter_3x3(x.to(self.dtype), weight, self._exact, base)
        if way == "torch":
            return nn.functional.conv2d(x.to(self.dtype), weight, self.bias, padding=1).add_(base.to(self.dtype))
        return _operation("_convolution_pointwise", "binary")(
            x.to(self.dtype), base.to(self.dtype), weight, self.bias, *self.how, "add", 1.0, None, [], None
        )


class PackedNorm(_Packed):
    """A group norm with what follows it (`kernels.norm_act`), whose parameters do not change."""

    def __init__(self, norm: GroupNorm) -> None:
        super().__init__()
        self.weight = norm.weight  # whose precision some networks look at
        self._compute = FixedNorm(norm.num_groups, norm.weight, norm.bias, norm.eps)

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, act: bool = False
    ) -> Tensor:
        return self._compute(x, scale, shift, act)


class PackedPointwise(_Packed):
    """A 1x1 convolution of channels-last images as a product, by the implementation that the run's plan chooses."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self._exact = None if self.bias is None else self.bias.float()
        self._out = conv.out_channels
        self._laid_out: tuple[str, Tensor] = ("torch", conv.weight.detach().to(dtype).flatten(1))
        self._made_for: tuple[torch.Size, object] | None = None  # size of the input, and the plan's token

    @property
    def weight(self) -> Tensor:
        """The weights in their present layout; some networks look at their precision."""
        return self._laid_out[1]

    def weight_for(self, size: torch.Size) -> tuple[str, Tensor]:
        """Return the implementation for inputs [B, C, H, W] of a size, and the weights in its layout."""
        plan = current_plan()
        if self._made_for != (size, plan.token):
            way, (before, weight) = products.implementation(plan, size, self._out, self.dtype), self._laid_out
            if way != before:
                with own_pages():
                    plain = products.plain(before, weight, self._out)
                    self._laid_out = (way, products.laid_out(way, plain))
            self._made_for = (size, plan.token)
        return self._laid_out

    def forward(self, x: Tensor) -> Tensor:
        return self._rows(x).permute(0, 3, 1, 2)

    def tokens(self, x: Tensor) -> Tensor:
        """Return conv(x) as tokens [B, H W, C]."""
        return self._rows(x).flatten(1, 2)

    def _rows(self, x: Tensor) -> Tensor:
        way, weight = self.weight_for(x.shape)
        rows = x.to(self.dtype).permute(0, 2, 3, 1)
        if way != "packed":
            return products.by(way)(rows, weight, self._out, self._exact)
        return _operation("_linear_pointwise")(rows, weight, self.bias, *_PRODUCT)

    def onto(self, base: Tensor, x: Tensor) -> Tensor:
        """Return base + conv(x)."""
        way, weight = self.weight_for(x.shape)
        rows, others = (part.to(self.dtype).permute(0, 2, 3, 1) for part in (x, base))
        if way != "packed":
            out = products.by(way)(rows, weight, self._out, self._exact, others)
        else:
            out = _operation("_linear_pointwise", "binary")(rows, others, weight, self.bias, "add")
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
    for number, (owner, name, _) in enumerate(owners):
        setattr(owner, name, _Part(together, number))


class _Together:
    """Computes linear layers of one input as one, and keeps the last result, which the parts use one by one."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.weight = torch.cat([layer.weight.detach() for layer in layers])
        self.bias = torch.cat([layer.bias.detach() for layer in layers])
        self._sizes = [layer.out_features for layer in layers]
        self._halves = [size // 2 for size in self._sizes for _ in range(2)]
        self._last: tuple[Tensor, Tensor, dict[bool, Sequence[Tensor]]] | None = None

    def __call__(self, emb: Tensor, number: int, halves: bool) -> Sequence[Tensor]:
        """Return the result of a layer, or its halves."""
        last = self._last
        if last is None or last[0] is not emb:
            with torch.autocast("cpu", enabled=False):
                last = (emb, nn.functional.linear(emb, self.weight, self.bias), {})
            self._last = last
        parts = last[2].get(halves)
        if parts is None:  # all at once, since cutting takes as long as computing
            parts = last[2][halves] = last[1].split(self._halves if halves else self._sizes, dim=1)
        return parts[2 * number : 2 * number + 2] if halves else parts[number : number + 1]


class _Part(nn.Module):
    """Returns the columns of one of the layers that are computed together, in float32."""

    leaves_autocast = True

    def __init__(self, together: _Together, number: int) -> None:
        super().__init__()
        self._together, self._number = together, number

    def forward(self, emb: Tensor) -> Tensor:
        return self._together(emb, self._number, False)[0]

    def halves(self, emb: Tensor) -> Sequence[Tensor]:
        """Return the first and the second half of the columns."""
        return self._together(emb, self._number, True)
