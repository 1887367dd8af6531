"""Settings of the whole test run."""

from __future__ import annotations

import os

import torch

# What is measured on a busy machine is another thing each time; the tests of the measurement plan their own times.
os.environ.setdefault("UNDIFFUSE_KERNELS", "rule")

# The tests run in one process a core; more threads would only wait for each other.
torch.set_num_threads(1)
