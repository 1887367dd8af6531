"""What a network takes of memory when it is only used: its weights, stored in 16 bits too, and its activations; and how
it is told that memory did not suffice.

Nothing is run for the numbers: they follow from the configuration and the size of the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from undiffuse.kernels import status
from undiffuse.nets.classifier import ClassifierConfig
from undiffuse.nets.ddpm import DDPMConfig
from undiffuse.nets.unet import UNetConfig

_FLOAT32 = ("out.", "conv_out.")  # the last layers, which run in float32 whatever the precision
_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, MPS, accelerators
    "can't allocate memory",  # the CPU allocator
    "not enough memory",  # the CPU allocator on Windows
    "alloc_failed",  # cuBLAS, cuDNN
)


def store_weights_(net: nn.Module, dtype: torch.dtype) -> None:
    """Store in `dtype`, in place, the weights that autocast would cast to it at every call: those of convolutions.

    Norms, embeddings, linear layers and the last layers stay as they are, for they run in float32. The output under
    autocast to `dtype` is the same to the bit, without the second copy of the weights and the time it takes to make.
    """
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d)) and not f"{name}.".startswith(_FLOAT32):
            for parameter in module.parameters():
                parameter.data = parameter.data.to(dtype)


@dataclass(frozen=True)
class Footprint:
    """What a network takes, whatever the batch.

    `parameters`  how many
    `weights`     bytes of them as they are stored
    `kernel`      about what kernels need beside tensors: the largest convolution's weights, laid out anew (once) and
                  transformed (16 / 9 of them, `kernels.convolution`)
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
            kernel=3 * max(m.weight.numel() * m.weight.element_size() for m in convolutions),
        )


def activation_bytes(
    config: UNetConfig | DDPMConfig | ClassifierConfig,
    size: tuple[int, int] | None = None,
    *,
    element: int = 4,
    gradient: bool = False,
    fused: bool | None = None,
) -> int:
    """About the most memory in bytes that one image's activations take at any time of a call.

    `size`      (height, width) of the image; default the trained size
    `element`   bytes of a number: 4 in float32, 2 under autocast to 16 bits (norms compute in float32 all the same)
    `gradient`  with the gradient with respect to the image, as guidance by a classifier takes it
    `fused`     whether norms are one operation with what follows them; default whether the CPU has compiled kernels

    Without a gradient that is the skip connections made and not yet used, and what the residual block or attention at
    work holds; with one it is what all layers keep for it. What kernels need beside tensors is not in it, see
    `Footprint`.
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
        # In 16 bits with copies for plain products, see `blocks.multi_head_attention`.
        self._pass(held, working, (7 * e if e == 4 else 11 * e + 4 * (not self.fused)) * channels, factor)

    def _pass(self, held: float, working: float, kept: float, factor: int) -> None:
        area = self.pixels / factor**2
        if self.gradient:  # skip connections are among what is kept
            self._kept += area * kept
            self.most = max(self.most, self._kept + area * working)
        else:
            self.most = max(self.most, held + area * working)


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors by which torch says that memory did not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
