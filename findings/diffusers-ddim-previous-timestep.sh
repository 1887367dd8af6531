#!/usr/bin/env bash
# DDIMScheduler does not step to the level of its next timestep unless timestep_spacing is "leading".
# A step ends at t - num_train_timesteps // num_inference_steps, whatever the list of timesteps says. With "linspace"
# and ten steps the network is asked at 999, 888, 777, ..., and the first step ends at the noise level of 899, not 888.
# DDPMScheduler looks the next timestep up. So from_config between the two is not enough for the same trajectory.
# Seen with diffusers 0.42.1 and torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import diffusers, torch
from diffusers import DDIMScheduler
print("diffusers", diffusers.__version__)
scheduler = DDIMScheduler(timestep_spacing="linspace", clip_sample=False)
scheduler.set_timesteps(10)
abar = scheduler.alphas_cumprod.double()
first, second = (int(t) for t in scheduler.timesteps[:2])
x0, noise = torch.full((1, 1, 2, 2), 0.5).double(), torch.ones(1, 1, 2, 2).double()
at = lambda t: abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * noise
out = scheduler.step(noise, first, at(first)).prev_sample  # the noise is known exactly
nearest = min(range(1000), key=lambda t: float((out - at(t)).abs().max()))
print("timesteps:", scheduler.timesteps.tolist())
print(f"the step from {first} ends at the level of timestep {nearest}; the network is asked next at {second}")
assert (first, second, nearest) == (999, 888, 899), "the behaviour has changed"
PYTHON
