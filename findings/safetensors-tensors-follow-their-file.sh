#!/bin/sh
# Tensors loaded by safetensors on a CPU are no copies: they are a private memory mapping of the file.
#
# Surprising: after load_file (or safe_open().get_tensor) has returned, writing other bytes into the same file, in place,
# changes the values of tensors that were loaded before, as long as they have not been modified. One expects a loaded
# state dict to be independent of its file, as with torch.load. A file replaced by rename is harmless: the mapping keeps
# the old one.
#
# Seen with safetensors 0.8.0 and torch 2.13.0 on Linux: zeros loaded, ones written into the file, ones read from the
# loaded tensor; torch.load gives zeros as expected, and so does load_file after a rename.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 torch==2.13.0 numpy==2.3.5
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import os
import sys

import safetensors
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def overwrite(path, where, values):
    with open(path, "r+b") as file:
        file.seek(where)
        file.write(values.numpy().tobytes())


zeros, ones = torch.zeros(100_000), torch.ones(100_000)
print("safetensors", safetensors.__version__, "torch", torch.__version__)

save_file({"w": zeros}, "w.safetensors")
loaded = load_file("w.safetensors")["w"]
with safe_open("w.safetensors", "pt") as file:
    opened = file.get_tensor("w")
overwrite("w.safetensors", os.path.getsize("w.safetensors") - 400_000, ones)
print("load_file, file changed in place:", float(loaded.sum()), "and safe_open:", float(opened.sum()))

save_file({"w": zeros}, "r.safetensors")
renamed = load_file("r.safetensors")["w"]
save_file({"w": ones}, "new.safetensors")
os.replace("new.safetensors", "r.safetensors")
print("load_file, file replaced by rename:", float(renamed.sum()))

torch.save({"w": zeros}, "w.pt")
copied = torch.load("w.pt", weights_only=True)["w"]
size = os.path.getsize("w.pt")
data = open("w.pt", "rb").read()
overwrite("w.pt", data.index(bytes(400_000)), ones)
print("torch.load, file changed in place:", float(copied.sum()))

as_seen = loaded.sum() == opened.sum() == 100_000 and renamed.sum() == 0 and copied.sum() == 0
sys.exit(0 if as_seen else 1)
EOF
