#!/usr/bin/env bash
# After torchrun --max-restarts starts the processes of one machine again, their key-value store still holds the keys of
# the attempt that failed. The store's source says "We create a new TCPStore for every retry so no need to add prefix for
# each attempt", but with the default rendezvous the agent keeps one store, and dist.rendezvous("env://") adds no prefix.
# So a counter that deals out work goes on where the dead attempt stopped, and what it dealt out last is never done; an
# address left there leads to a process that is gone. A prefix with TORCHELASTIC_RESTART_COUNT helps.
# Seen with torch 2.13.0: the second attempt's first number is 1, not 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cat > "$folder/worker.py" <<'PYTHON'
import os, sys
import torch, torch.distributed as dist
store, rank, world_size = next(iter(dist.rendezvous("env://")))
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
number = store.add("work", 1) - 1
prefixed = dist.PrefixStore(f"attempt {attempt}", store).add("work", 1) - 1
print(f"torch {torch.__version__}, attempt {attempt}: first number {number}, with a prefix {prefixed}", flush=True)
sys.exit(1 if attempt == "0" else 0)
PYTHON
out=$(cd "$folder" && "$folder/venv/bin/torchrun" --nproc-per-node 1 --max-restarts 1 worker.py 2>/dev/null)
echo "$out"
grep -q "attempt 0: first number 0, with a prefix 0" <<< "$out" || { echo "the behaviour has changed"; exit 1; }
grep -q "attempt 1: first number 1, with a prefix 0" <<< "$out" || { echo "the behaviour has changed"; exit 1; }
