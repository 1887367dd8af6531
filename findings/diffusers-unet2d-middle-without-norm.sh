#!/usr/bin/env bash
# UNet2DModel(resnet_time_scale_shift="scale_shift") has no group norm in its middle attention.
# All other attention layers keep theirs. In ADM, from which scale-shift conditioning comes, every attention has a norm;
# one must give attn_norm_num_groups to get it. A conversion of ADM's weights without it lacks two tensors, and a model
# trained this way differs from ADM in the layer at the lowest resolution.
# Seen with diffusers 0.42.1 and torch 2.13.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import diffusers
from diffusers import UNet2DModel
print("diffusers", diffusers.__version__)
found = {}
for shift, groups in (("default", None), ("scale_shift", None), ("scale_shift", 32)):
    net = UNet2DModel(sample_size=16, block_out_channels=(32, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                      up_block_types=("AttnUpBlock2D", "UpBlock2D"), resnet_time_scale_shift=shift,
                      attn_norm_num_groups=groups)
    middle, down = net.mid_block.attentions[0].group_norm, net.down_blocks[1].attentions[0].group_norm
    found[shift, groups] = (middle is not None, down is not None)
    print(f"{shift:12} attn_norm_num_groups={groups}: norm in the middle {middle is not None}, in levels {down is not None}")
expected = {("default", None): (True, True), ("scale_shift", None): (False, True), ("scale_shift", 32): (True, True)}
assert found == expected, "the behaviour has changed"
PYTHON
