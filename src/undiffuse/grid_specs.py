"""Registry of the grids of noise levels: names and descriptions. It does not import torch.

`undiffuse.grids.grid` parses specifications and builds the grids.
"""

from __future__ import annotations

GRIDS: dict[str, str] = {
    "chain": "trained steps, spaced as in the original code",
    "karras": "EDM's spacing: even in (sigma / alpha)^(1 / rho); rho=7",
    "logsnr": "even in log-SNR",
    "uniform": "even in t, first and last trained step included; shift=1",
    "trailing": "even in t, including the last trained step only",
    "leading": "even in t, including the first trained step only",
    "quadratic": "even in the square root of t",
    "at": "explicit log-SNRs: at:-8,-4,-1,2,8",
}


def brief(grid: str) -> str:
    """Shortens a grid for captions: of explicit levels, only the ends remain, "at:-8.7641,...,9.2103"."""
    ends = grid.split(",")
    return f"{ends[0]},...,{ends[-1]}" if grid.startswith("at:") and len(ends) > 3 else grid


def levels_listed(grid: str | None) -> int | None:
    """Returns the number of levels in a grid that lists them, "at:-8,-4,2", None for any other."""
    return grid.count(",") + 1 if grid and grid.replace(" ", "").startswith("at:") else None
