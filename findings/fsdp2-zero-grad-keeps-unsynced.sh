#!/usr/bin/env bash
# FSDP2: gradients of a backward pass with set_requires_gradient_sync(False) are kept where neither p.grad nor
# zero_grad() sees them. p.grad is None, zero_grad(set_to_none=True) clears nothing, and the next backward pass with
# sync on adds them: a warm-up pass, or a step that was given up, becomes part of the next update.
# Seen with torch 2.13.0: the gradient of one pass is [1, 1], and [2, 2] arrives.
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
net = fully_shard(nn.Linear(2, 1, bias=False), mesh=dist.init_device_mesh("cpu", (1,)))
x = torch.ones(1, 2)
net.set_requires_gradient_sync(False)
net(x).sum().backward()
hidden = net.weight.grad
net.zero_grad(set_to_none=True)
net.set_requires_gradient_sync(True)
net(x).sum().backward()
print(f"torch {torch.__version__}: before zero_grad p.grad is {hidden}, afterwards one pass gives "
      f"{net.weight.grad.full_tensor().tolist()}")
dist.destroy_process_group()
PYTHON
out=$("$folder/venv/bin/python" "$folder/show.py" 2>/dev/null)
echo "$out"
grep -q "p.grad is None, afterwards one pass gives \[\[2.0, 2.0\]\]" <<< "$out" || { echo "the behaviour has changed"; exit 1; }
