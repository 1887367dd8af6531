#!/usr/bin/env bash
# OpenVINO computes float32 models in bfloat16 where the processor has bfloat16 instructions, without being asked to.
# A float32 product is then wrong in the third digit; INFERENCE_PRECISION_HINT = f32 gives float32. A network exported
# for parity, or timed against a float32 one, is neither unless the hint is given. Needs a processor with AVX512-BF16 or
# AMX (`grep -c avx512_bf16 /proc/cpuinfo`); elsewhere both results are in float32.
# Seen with openvino 2026.4.1 on an AMD EPYC.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import openvino
import openvino.opset13 as ops

print("openvino", openvino.__version__)
rng = np.random.default_rng(0)
a, b = (rng.standard_normal((256, 256)).astype("float32") for _ in range(2))
given = ops.parameter([256, 256], np.float32, name="a")
model = openvino.Model([ops.matmul(given, ops.constant(b), False, False)], [given], "product")
expected = a.astype("float64") @ b
errors = {}
for hint in ({}, {"INFERENCE_PRECISION_HINT": "f32"}):
    compiled = openvino.Core().compile_model(model, "CPU", hint)
    result = compiled(a)[0]
    errors[len(hint)] = float(abs(result - expected).max() / abs(expected).max())
    print(hint or "no hint", "->", compiled.get_property("INFERENCE_PRECISION_HINT"), result.dtype, f"error {errors[len(hint)]:.1e}")
assert errors[0] > 1e-3 and errors[1] < 1e-5, "the behaviour has changed, or this processor has no bfloat16"
PYTHON
