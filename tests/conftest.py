"""Settings of the whole test run."""

from __future__ import annotations

import torch

# The tests run in one process a core; more threads would only wait for each other.
torch.set_num_threads(1)
