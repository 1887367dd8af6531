"""Fused operations in PyTorch and, optionally, compiled C.

The machine's C compiler builds the C kernels on first use, in about a second, and they are stored in the cache folder.
Without a compiler, PyTorch's operations do the same work; only the speed differs. The environment variable
`UNDIFFUSE_KERNELS` selects the kernels: "auto" (the default), "pure" for PyTorch, or "compiled", which raises an error
if they are not available. `status` returns the choice and its reason.
"""

from undiffuse.kernels.allocator import keep_memory, return_memory
from undiffuse.kernels.choice import Status, status, using
from undiffuse.kernels.convolution import conv_3x3
from undiffuse.kernels.norm_act import norm_act

__all__ = ["Status", "conv_3x3", "keep_memory", "norm_act", "return_memory", "status", "using"]
