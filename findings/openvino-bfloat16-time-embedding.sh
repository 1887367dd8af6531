#!/usr/bin/env bash
# OpenVINO with INFERENCE_PRECISION_HINT "bf16" also rounds what is before the first product to bfloat16: a time embedding's
# angles, which are up to 1,000, are off by up to 2, so the network sees another time. A product of sines and cosines of
# t = 900 differs by a tenth and more of its largest value, one of t = 1 by a hundredth. With the sines and cosines given
# as inputs in float32 every t has the small error. PyTorch's autocast keeps them in float32.
# Needs a processor with bfloat16 arithmetic (AVX512_BF16 or AMX); on others OpenVINO computes in float32.
# Seen with openvino 2026.4.1.
set -euo pipefail
if ! grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo; then
    echo "this processor has no bfloat16 arithmetic: nothing to see here"
    exit 0
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 openvino==2026.4.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np, openvino as ov
from openvino import opset13 as op
print("openvino", ov.__version__)
rng, half, width = np.random.default_rng(0), 32, 256
first, second = (rng.normal(size=size).astype(np.float32) / 8 for size in ((2 * half, width), (width, width)))
frequencies = np.exp(-np.log(10_000) * np.arange(half) / half).astype(np.float32)[None]
constant = lambda value: op.constant(np.asarray(value, np.float32))

def product(waves):
    return op.matmul(op.swish(op.matmul(waves, constant(first), False, False)), constant(second), False, False)

def called(model, hint, value):
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    return ov.Core().compile_model(model, "CPU", settings)([value])[0]

times = np.array([1, 10, 100, 300, 500, 700, 900, 999], np.float32)
t = op.parameter([len(times)], np.float32, name="t")
angles = op.multiply(op.unsqueeze(t, op.constant(1)), constant(frequencies))
whole = ov.Model([product(op.concat([op.cos(angles), op.sin(angles)], 1))], [t])
given = op.parameter([len(times), 2 * half], np.float32, name="waves")
later = ov.Model([product(given)], [given])
waves = np.concatenate([f(times[:, None] * frequencies) for f in (np.cos, np.sin)], 1)
truth = called(whole, "f32", times)
error = lambda out: (np.abs(out - truth).max(1) / np.abs(truth).max()).round(4)
inside, outside = error(called(whole, "bf16", times)), error(called(later, "bf16", waves))
for name, found in (("times", times), ("error, waves inside", inside), ("error, waves given", outside)):
    print(f"{name:20}", *found)
assert inside[-4:].max() > 0.1 and inside[0] < 0.03 and outside.max() < 0.03, "the behaviour has changed"
PYTHON
