#!/usr/bin/env bash
# DPMSolverMultistepScheduler with a learned variance keeps exactly three channels of the network's output.
# It does not halve the output: it takes [:, :3]. For grey images, whose network gives two channels, the step returns an
# image of two channels from one of one channel, without an error; for RGBA it mixes up image and variance.
# Seen with diffusers 0.42.1 and torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import diffusers, torch
from diffusers import DPMSolverMultistepScheduler
print("diffusers", diffusers.__version__)
shapes = {}
for channels in (3, 1):
    scheduler = DPMSolverMultistepScheduler(variance_type="learned_range")
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, 8, 8, generator=generator)
    output = torch.randn(1, 2 * channels, 8, 8, generator=generator)
    shapes[channels] = scheduler.step(output, scheduler.timesteps[0], x).prev_sample.shape[1]
    print(f"an image of {channels} channels, an output of {2 * channels}: the step returns {shapes[channels]} channels")
assert shapes == {3: 3, 1: 2}, "the behaviour has changed"
PYTHON
