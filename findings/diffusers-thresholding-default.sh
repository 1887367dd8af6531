#!/usr/bin/env bash
# thresholding=True in diffusers' schedulers is no dynamic thresholding unless sample_max_value is set, too.
# The threshold is clamped to [1, sample_max_value], whose default is 1.0: the quantile (dynamic_thresholding_ratio)
# plays no part, and images are clamped to [-1, 1], as by clip_sample=True. Imagen's method has no such upper limit.
# Seen with diffusers 0.42.1 and torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import diffusers, torch
from diffusers import DDPMScheduler
x = 3 * torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
print("diffusers", diffusers.__version__)
same = []
for ratio in (0.5, 0.9, 0.995):
    scheduler = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=ratio)
    out = scheduler._threshold_sample(x)
    same.append(bool(torch.equal(out, x.clamp(-1, 1))))
    print(f"ratio {ratio}: equal to clamp(-1, 1): {same[-1]} (sample_max_value {scheduler.config.sample_max_value})")
wide = DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1e9)._threshold_sample(x)
print("with sample_max_value=1e9 equal to the clamp:", bool(torch.equal(wide, x.clamp(-1, 1))))
assert all(same) and not torch.equal(wide, x.clamp(-1, 1)), "the behaviour has changed"
PYTHON
