"""Fused operations that PyTorch does not have, in PyTorch's own operations and, optionally, compiled.

The compiled ones are written in C. The machine's own compiler builds them within a second when they are first used, and
they are kept in the cache folder. Without a compiler PyTorch's operations do the same work: only the speed differs. The
environment variable `UNDIFFUSE_KERNELS` chooses: "auto" (the default), "pure" or "off", or "compiled", which makes
their absence an error. `status` returns what is used and why.

Of operations with several implementations the fastest is used. Which one that is, is measured once on each machine
(`autotune`) and kept in the cache folder. `UNDIFFUSE_KERNELS` can also have "measure" (measure again), "rule" (measure
nothing) and pins such as "conv3x3=torch", with commas between; `using` takes the same text.
"""

from undiffuse.kernels.allocator import keep_memory, return_memory
from undiffuse.kernels.autotune import Plan, planned, timings
from undiffuse.kernels.choice import Status, status, using
from undiffuse.kernels.convolution import conv_3x3
from undiffuse.kernels.norm_act import norm_act

__all__ = [
    "Plan",
    "Status",
    "conv_3x3",
    "keep_memory",
    "norm_act",
    "planned",
    "return_memory",
    "status",
    "timings",
    "using",
]
