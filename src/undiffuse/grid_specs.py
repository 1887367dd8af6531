"""The grids of noise levels by name, and how a specification is shortened. Imports no torch.

`undiffuse.grids.grid` reads specifications and makes the grids.
"""

from __future__ import annotations

GRIDS: dict[str, str] = {
    "chain": "the original's spacings of the trained steps, by --steps alone",
    "karras": "EDM's: even in (sigma / alpha)^(1 / rho); rho=7",
    "logsnr": "even in log-SNR",
    "uniform": "even in t, from the last trained step to the first",
    "trailing": "even in t, from the last step, short of the first",
    "leading": "even in t, to the first step, short of the last",
    "quadratic": "even in the root of t",
    "at": "these log-SNRs: at:-8,-4,-1,2,8",
}


def brief(grid: str) -> str:
    """A grid for captions: of explicit levels the ends only, "at:-8.7641,...,9.2103"."""
    ends = grid.split(",")
    return f"{ends[0]},...,{ends[-1]}" if grid.startswith("at:") and len(ends) > 3 else grid
