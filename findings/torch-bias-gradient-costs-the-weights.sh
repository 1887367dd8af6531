#!/bin/sh
# On a CPU, the gradient of a convolution's bias alone takes as long as that of its weights.
#
# Whoever freezes the weights of a network and trains its biases expects a sum over pixels. Where oneDNN computes the
# convolution, PyTorch asks it for both gradients and drops one: 11.5 ms for the bias alone, 11.0 for the weights alone,
# 0.06 for the sum over pixels, which is the same number (8 images, 64 to 64 channels, 32x32, one thread of an AMD EPYC).
# Seen with torch 2.13.0: "bias alone takes 1.0 times as long as weights alone, a sum 0.01 times; equal: True".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 numpy
venv/bin/python - <<'EOF'
import sys
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
x = torch.randn(8, 64, 32, 32, generator=generator)
weight, bias = torch.randn(64, 64, 3, 3, generator=generator), torch.zeros(64)
grad = torch.randn(8, 64, 32, 32, generator=generator)


def backward(of_weight, of_bias):
    w, b = weight.clone().requires_grad_(of_weight), bias.clone().requires_grad_(of_bias)
    out = F.conv2d(x, w, b, padding=1)
    begin = time.thread_time()
    found = torch.autograd.grad(out, w if of_weight else b, grad)[0]
    return time.thread_time() - begin, found


def fastest(function):
    return min(function()[0] for _ in range(8))


def summed():
    begin = time.thread_time()
    found = grad.sum((0, 2, 3))
    return time.thread_time() - begin, found


of_weight, of_bias, of_sum = fastest(lambda: backward(True, False)), fastest(lambda: backward(False, True)), fastest(summed)
equal = torch.allclose(backward(False, True)[1], summed()[1], rtol=1e-4, atol=1e-2)
print(f"torch {torch.__version__}: bias alone takes {of_bias / of_weight:.1f} times as long as weights alone, "
      f"a sum {of_sum / of_weight:.2f} times; equal: {equal}")
sys.exit(0 if of_bias > 0.5 * of_weight and of_sum < 0.1 * of_weight and equal else 1)
EOF
