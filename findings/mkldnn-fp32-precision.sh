#!/usr/bin/env bash
# Setting `torch.backends.mkldnn.fp32_precision` changes the switch of all backends, not that of oneDNN alone: its getter
# reads ("mkldnn", "all"), its setter writes ("generic", "all"). Seen with PyTorch 2.13.0: after
# `torch.backends.mkldnn.fp32_precision = "bf16"` (for CPU layers only, one would think), torch.backends.fp32_precision is
# "bf16" too, and the default TF32 of CUDA convolutions (cudnn.conv) reads "none", so GPU convolutions change.
# Afterwards torch.get_float32_matmul_precision() may refuse to answer once a switch of one operation was set as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.2.6
"$folder/venv/bin/python" - <<'PY'
import torch

b = torch.backends
print("torch", torch.__version__)
read = lambda: {"all": b.fp32_precision, "mkldnn": b.mkldnn.fp32_precision, "cudnn.conv": b.cudnn.conv.fp32_precision}
print("before                          ", before := read())
b.mkldnn.fp32_precision = "bf16"
print('after mkldnn.fp32_precision=bf16', after := read())
assert before["all"] == "none" and after["all"] == "bf16", "the setter of mkldnn no longer changes all backends"
assert before["cudnn.conv"] == "tf32" and after["cudnn.conv"] == "none"
b.fp32_precision = "none"
b.mkldnn.matmul.fp32_precision = "bf16"
try:
    print("old switch:", torch.get_float32_matmul_precision())
    raise SystemExit("the old switch answers although a new one was set")
except RuntimeError as error:
    print("old switch:", str(error).splitlines()[0][:120])
PY
