"""Fused operations in PyTorch and, optionally, compiled C.

The machine's C compiler builds the C kernels on first use, in about a second, and they are stored in the cache folder.
Without a compiler, PyTorch's operations do the same work; only the speed differs. The environment variable
`UNDIFFUSE_KERNELS` selects the kernels: "auto" (the default), "pure" or "off" for PyTorch, or "compiled", which raises
an error if they are not available. `status` returns the choice and its reason.

Where an operation has several implementations, they are timed once on each machine (`autotune`), the times are stored
in the cache folder, and the fastest is used. With `UNDIFFUSE_KERNELS=rule` nothing is timed: a rule chooses one by the
size of the input and the processor. `UNDIFFUSE_KERNELS` also takes "measure" (time them again) and pins such as
"conv3x3=torch", separated by commas; `using` takes the same text.

On GPUs Triton computes norms and what follows them, if it works there (`gpu`), and calls of prepared networks are CUDA
graphs (`nets.graphs`). Pins deselect them: "norm_act=torch", "graphs=off".
"""

from undiffuse.kernels.allocator import keep_memory, own_pages, return_memory
from undiffuse.kernels.attention import attention
from undiffuse.kernels.autotune import Plan, planned, timings
from undiffuse.kernels.choice import Status, status, using
from undiffuse.kernels.convolution import conv_3x3
from undiffuse.kernels.norm_act import norm_act

__all__ = [
    "Plan",
    "Status",
    "attention",
    "conv_3x3",
    "keep_memory",
    "norm_act",
    "own_pages",
    "planned",
    "return_memory",
    "status",
    "timings",
    "using",
]
