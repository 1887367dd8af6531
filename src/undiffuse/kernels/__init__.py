"""Operations for which PyTorch has no kernel of one piece, in PyTorch's own operations and, optionally, compiled.

The compiled ones are C, built within a second by the machine's own compiler the first time they are used, and kept in
the cache folder. Where there is no compiler, or anything else is in the way, PyTorch's operations do the same work:
nothing depends on it but speed. `UNDIFFUSE_KERNELS` chooses: "auto" (the default), "pure", or "compiled", which makes
it an error if they cannot be had. `status` tells what is used and why; `undiffuse inspect` shows it.
"""

from undiffuse.kernels.allocator import keep_memory, return_memory
from undiffuse.kernels.choice import Status, status, using
from undiffuse.kernels.convolution import conv_3x3
from undiffuse.kernels.norm_act import norm_act

__all__ = ["Status", "conv_3x3", "keep_memory", "norm_act", "return_memory", "status", "using"]
