#!/usr/bin/env bash
# FSDP2: after a forward pass without gradients the root module stays gathered (reshard_after_forward=None means False
# for the root). Its parameters are then other objects, plain tensors, and weights that are copied into the sharded
# parameters, which an optimizer or an average holds, are not seen by the next forward pass: an evaluation with averaged
# weights evaluates the trained ones in the root's part, without an error. reshard_after_forward=True helps.
# Seen with torch 2.13.0: zeros are copied into the weights, and the output stays what it was.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh, x = dist.init_device_mesh("cpu", (1,)), torch.ones(1, 2)
for reshard in (None, True):
    net = fully_shard(nn.Linear(2, 1, bias=False), mesh=mesh, reshard_after_forward=reshard)
    weight = net.weight  # what an optimizer or an average holds
    with torch.no_grad():
        before = net(x).item()
        weight.zero_()
        after = net(x).item()
    print(f"torch {torch.__version__}, reshard_after_forward={reshard}: zero weights give "
          f"{'zero' if after == 0 else 'the output from before' if after == before else after}")
dist.destroy_process_group()
PYTHON
out=$("$folder/venv/bin/python" "$folder/show.py" 2>/dev/null)
echo "$out"
grep -q "reshard_after_forward=None: zero weights give the output from before" <<< "$out" || { echo "the behaviour has changed"; exit 1; }
grep -q "reshard_after_forward=True: zero weights give zero" <<< "$out" || { echo "the behaviour has changed"; exit 1; }
