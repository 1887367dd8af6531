#!/usr/bin/env bash
# EMAModel.save_pretrained writes the settings of the average into the network's config.json.
# unet_ema/config.json of every training with --use_ema holds decay, optimization_step, power and others beside the
# network's arguments. A strict reader of config.json, which takes every key for an argument of UNet2DModel, refuses it;
# in diffusers itself UNet2DModel.from_pretrained only logs a warning that these keys are ignored.
# Seen with diffusers 0.42.1 and torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json, os, sys, tempfile
import diffusers
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
import inspect
print("diffusers", diffusers.__version__)
net = UNet2DModel(sample_size=8, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
with tempfile.TemporaryDirectory() as folder:
    ema = EMAModel(net.parameters(), decay=0.99, model_cls=UNet2DModel, model_config=net.config)
    ema.save_pretrained(folder)
    config = json.load(open(os.path.join(folder, "config.json")))
arguments = set(inspect.signature(UNet2DModel.__init__).parameters)
extra = sorted(key for key in config if key not in arguments and not key.startswith("_"))
print("keys that are no arguments of UNet2DModel:", extra)
assert {"decay", "optimization_step", "power", "inv_gamma"} <= set(extra), "the behaviour has changed"
PYTHON
