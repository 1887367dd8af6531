#!/usr/bin/env bash
# UniPC with B(h) = h (solver_type="bh1"), one of the two variants of the paper, ends in NaN in diffusers.
# With the default final_sigmas_type="zero" the last step goes to sigma = 0, where h is infinite and so is B(h) = h;
# "bh2" (the default) is expm1(-h), which is finite. No warning is given.
# Seen with diffusers 0.42.1 and torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import diffusers, torch
from diffusers import UniPCMultistepScheduler
print("diffusers", diffusers.__version__)
result = {}
for variant in ("bh1", "bh2"):
    scheduler = UniPCMultistepScheduler(solver_type=variant)
    scheduler.set_timesteps(10)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    finite = []
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x).prev_sample
        finite.append(bool(torch.isfinite(x).all()))
    result[variant] = finite
    print(variant, "finite after each step:", finite)
assert all(result["bh2"]) and all(result["bh1"][:-1]) and not result["bh1"][-1], "the behaviour has changed"
PYTHON
