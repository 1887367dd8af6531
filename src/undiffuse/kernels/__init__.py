"""Fused operations that PyTorch does not have, in PyTorch's own operations and, optionally, compiled.

The compiled ones are written in C. The machine's own compiler builds them within a second when they are first used, and
they are kept in the cache folder. Without a compiler PyTorch's operations do the same work: only the speed differs. The
environment variable `UNDIFFUSE_KERNELS` chooses: "auto" (the default), "pure", or "compiled", which makes their absence
an error. `status` returns what is used and why.
"""

from undiffuse.kernels.allocator import keep_memory, return_memory
from undiffuse.kernels.choice import Status, status, using
from undiffuse.kernels.convolution import conv_3x3
from undiffuse.kernels.norm_act import norm_act

__all__ = ["Status", "conv_3x3", "keep_memory", "norm_act", "return_memory", "status", "using"]
