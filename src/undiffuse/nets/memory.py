"""Estimates the memory of inference: weights, also stored in 16 bits, and activations; recognises out-of-memory errors.

The numbers of the library's own networks follow from their configuration and the size of the images. The activations of
other networks are counted in one pass on the device "meta", which takes neither memory nor arithmetic.
"""

from __future__ import annotations

import copy
import re
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from undiffuse.kernels import status
from undiffuse.nets.classifier import ClassifierConfig
from undiffuse.nets.ddpm import DDPMConfig
from undiffuse.nets.protocol import NetworkSpec, conditions_of, describe
from undiffuse.nets.unet import UNetConfig

_LAST = re.compile(r"(?:out|conv_out|out_conv|final_conv|dec\.\w+_aux_conv)\.")
_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, MPS, accelerators
    "can't allocate memory",  # the CPU allocator
    "not enough memory",  # the CPU allocator on Windows
    "alloc_failed",  # cuBLAS, cuDNN
)


def is_last(name: str) -> bool:
    """Returns whether a module of the library's networks is a last layer, which runs in float32 in any precision."""
    return _LAST.match(f"{name}.") is not None


def store_weights_(net: nn.Module, dtype: torch.dtype) -> None:
    """Store the weights of convolutions, which autocast would cast at every call, in `dtype`, in place.

    Norms, embeddings, linear layers and the last layers stay as they are, because they run in float32. The output under
    autocast to `dtype` is the same to the bit, without the time and memory of a second copy of the weights.
    """
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)) and not is_last(name):
            for parameter in module.parameters():
                parameter.data = parameter.data.to(dtype)


@dataclass(frozen=True)
class Footprint:
    """Memory that a network takes, whatever the batch size.

    Attributes:
        parameters: Number of parameters.
        weights: Bytes of the parameters as they are stored.
        kernel: Approximate bytes that kernels need besides tensors: the weights of the largest convolution, once in
            another layout and once transformed (16 / 9 of them, see `kernels.convolution`). 0 without convolutions.
    """

    parameters: int
    weights: int
    kernel: int

    @classmethod
    def of(cls, net: nn.Module) -> Footprint:
        """Of a network as it is now."""
        convolutions = (m for m in net.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d)))
        return cls(
            parameters=sum(p.numel() for p in net.parameters()),
            weights=sum(p.numel() * p.element_size() for p in net.parameters()),
            kernel=3 * max((m.weight.numel() * m.weight.element_size() for m in convolutions), default=0),
        )


def activation_bytes(
    config: UNetConfig | DDPMConfig | ClassifierConfig,
    size: tuple[int, int] | None = None,
    *,
    element: int = 4,
    gradient: bool = False,
    fused: bool | None = None,
) -> int:
    """Estimate the most memory that the activations of one image take at any time during a call.

    Without a gradient these are the pending skip connections and what the running residual block or attention holds;
    with a gradient, what all layers keep for it. What kernels need besides tensors is not included, see `Footprint`.

    Args:
        config: The config of one of the library's own networks.
        size: (height, width) of the image; default the trained size.
        element: Bytes of a number: 4 in float32, 2 under autocast to 16 bits (norms compute in float32 anyway).
        gradient: Whether the gradient with respect to the image is computed, as guidance by a classifier does.
        fused: Whether norms are one operation with what follows them; default whether the CPU has compiled kernels.

    Returns:
        Bytes.
    """
    height, width = size or config.size
    fused = status().active == "compiled" if fused is None else fused
    walk = _Walk(height * width, element, gradient, fused)
    channels, factor = config.widths[0], 1
    skips = [(channels, factor)]

    def held() -> float:
        return sum(walk.tensor(*skip) for skip in skips)

    updown = getattr(config, "resblock_updown", False)
    for level, out in enumerate(config.widths):
        attends = factor in config.attention_resolutions
        for _ in range(config.num_res_blocks):
            walk.stage(held(), channels, out, factor, attends)
            channels = out
            skips.append((channels, factor))
        if level < len(config.widths) - 1:
            if updown:
                walk.residual(held(), channels, channels, factor)
            factor *= 2
            skips.append((channels, factor))
    walk.stage(held(), channels, channels, factor, True)
    walk.stage(held(), channels, channels, factor, False)
    if isinstance(config, ClassifierConfig):
        return round(walk.most)
    for level, out in reversed(list(enumerate(config.widths))):
        for i in range(config.num_res_blocks + 1):
            before = walk.tensor(channels, factor)
            skip, _ = skips.pop()
            joined = walk.tensor(channels + skip, factor)
            walk.stage(held() + before + joined, channels + skip, out, factor, factor in config.attention_resolutions)
            channels = out
            if level and i == config.num_res_blocks:
                factor //= 2
                walk.residual(held() + before + joined, channels, channels, factor)
    return round(walk.most)


def bytes_per_image(
    net: nn.Module,
    size: tuple[int, int] | None = None,
    *,
    element: int = 4,
    gradient: bool = False,
    spec: NetworkSpec | None = None,
) -> int | None:
    """Estimate the activations of one image of any network, as `activation_bytes` does for the library's own.

    Networks of other architectures are run once on the device "meta". Their numbers are those of float32, an upper
    bound for 16 bits.

    Args:
        net: The network, prepared or not.
        size: (height, width) of the image; default the trained size.
        element: Bytes of a number, 4 or 2.
        gradient: Whether the gradient with respect to the image is computed.
        spec: What the network's images are; default `describe(net)`.

    Returns:
        Bytes; None if they cannot be known without running the network on data, because its forward depends on the
        values of tensors. Callers then try a batch and halve it if memory does not suffice (`is_out_of_memory`).
    """
    config: Any = getattr(net, "config", None)
    if type(config) in (UNetConfig, DDPMConfig, ClassifierConfig):
        return activation_bytes(config, size, element=element, gradient=gradient)
    try:
        return _count_on_meta(net, spec or describe(net), size, gradient)
    except Exception:  # whatever a stranger's forward raises where there are no values
        return None


def _count_on_meta(net: nn.Module, spec: NetworkSpec, size: tuple[int, int] | None, gradient: bool) -> int:
    conditions = conditions_of(net)
    memo: dict[int, Any] = {}
    for module in net.modules():
        tensors = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for tensor in tensors:
            if isinstance(tensor, nn.Parameter):
                memo[id(tensor)] = nn.Parameter(tensor.to("meta"), requires_grad=False)
            elif isinstance(tensor, Tensor):
                memo[id(tensor)] = tensor.to("meta")
    empty = copy.deepcopy(net, memo).eval()
    height, width = size or spec.size
    with torch.device("meta"), torch.set_grad_enabled(gradient):
        x = torch.zeros(1, spec.in_channels, height, width, requires_grad=gradient)
        given: dict[str, Tensor] = {}
        if "y" in conditions and spec.num_classes is not None:
            given["y"] = torch.zeros(1, dtype=torch.int64)
        if spec.super_resolution:
            given["low_res"] = torch.zeros(1, spec.in_channels, max(1, height // 4), max(1, width // 4))
        given |= {name: torch.zeros(1, count) for name in ("tags", "numbers") if (count := spec.width_of(name))}
        if spec.cond_channels:
            given["cond_image"] = torch.zeros(1, spec.cond_channels, height, width)
        t = torch.zeros(1)
        with _Live() as live:
            out = empty(x, t, **given)
            if gradient:
                torch.autograd.grad(out.sum(), x)
    return live.most


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors made inside the block that exist at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._now = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._seen and key not in given:  # not a view of a weight
                    self._seen.add(key)
                    self._now += storage.nbytes()
                    self.most = max(self.most, self._now)
                    weakref.finalize(storage, self._drop, key, storage.nbytes())
        return out

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size


class _Walk:
    """The most that lives at once on the way through a network, block by block."""

    def __init__(self, pixels: int, element: int, gradient: bool, fused: bool) -> None:
        self.pixels, self.element, self.gradient, self.fused = pixels, element, gradient, fused
        self.most = self._kept = 0.0

    def tensor(self, channels: int, factor: int) -> float:
        """Bytes of an activation of `channels` at 1 / factor of the resolution."""
        return self.element * channels * self.pixels / factor**2

    def stage(self, held: float, inputs: int, outputs: int, factor: int, attends: bool) -> None:
        """A residual block, and attention to what it gives."""
        self.residual(held, inputs, outputs, factor)
        if attends:
            self._attention(held + self.tensor(outputs, factor), outputs, factor)

    def residual(self, held: float, inputs: int, outputs: int, factor: int) -> None:
        """Beside what others hold, a block has what goes into a convolution and what comes out, or three tensors of its
        output; where norms are not one operation and in 16 bits, a norm in float32 and what it came from."""
        e = self.element
        working = max(e * (inputs + outputs), 3 * e * outputs)
        kept = 2 * e * (inputs + outputs)  # for the gradient: what goes into norms and convolutions
        if not self.fused:
            if e < 4 or self.gradient:
                working = max(8 * inputs, outputs * (e + 8), working)
            kept += 4 * (inputs + outputs) * (e < 4) + 2 * e * outputs  # and what lies between norm and activation
        self._pass(held, working, kept, factor)

    def _attention(self, held: float, channels: int, factor: int) -> None:
        e = self.element
        # Tokens, their three projections, the attended values in two layouts, the result.
        working = max(8 * (not self.fused), 7 * e) * channels
        # In 16 bits with copies for plain products, see `kernels.attention`.
        self._pass(held, working, (7 * e if e == 4 else 11 * e + 4 * (not self.fused)) * channels, factor)

    def _pass(self, held: float, working: float, kept: float, factor: int) -> None:
        area = self.pixels / factor**2
        if self.gradient:  # skip connections are among what is kept
            self._kept += area * kept
            self.most = max(self.most, self._kept + area * working)
        else:
            self.most = max(self.most, held + area * working)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch reports by this error that memory did not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
