#!/usr/bin/env bash
# variance_type="fixed_large_log" makes DDPMScheduler give NaN at its first step.
# _get_variance returns the logarithm of beta, and step takes its square root as if it were the variance. The sibling
# "fixed_small_log" works, since it returns a standard deviation under the name of a variance.
# Seen with diffusers 0.42.1 and torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import diffusers, torch
from diffusers import DDPMScheduler
print("diffusers", diffusers.__version__)
finite = {}
for kind in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"):
    scheduler = DDPMScheduler(variance_type=kind)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 8, 8, generator=generator)
    out = scheduler.step(0.1 * x, scheduler.timesteps[0], x, generator=generator).prev_sample
    finite[kind] = bool(torch.isfinite(out).all())
    print(f"{kind:16} finite: {finite[kind]}")
expected = {"fixed_small": True, "fixed_small_log": True, "fixed_large": True, "fixed_large_log": False}
assert finite == expected, "the behaviour has changed"
PYTHON
