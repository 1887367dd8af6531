"""Kernels for processors without AVX-512, forced by the environment as PyTorch and oneDNN are."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from undiffuse import kernels
from undiffuse.kernels import building

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
NUMBERS = """
import warnings
import torch
from undiffuse import kernels
from undiffuse.kernels import Plan, convolution, norm_act, planned
from undiffuse.kernels.norm_act import norm_act_pure
from undiffuse.nets import UNetConfig, prepare_for_inference

assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT"), torch.backends.cpu.get_cpu_capability()
assert kernels.status().active == "compiled", kernels.status()
assert convolution.has_winograd(64, 64, torch.float32)
assert not convolution.has_winograd(64, 64, torch.bfloat16)  # needs AVX-512's products of pairs
generator = torch.Generator().manual_seed(0)
draw = lambda *size: torch.randn(*size, generator=generator)
for dtype, near in ((torch.float32, 3e-6), (torch.bfloat16, 6e-3)):
    x = (draw(2, 48, 9, 8) + 3).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias, both = (part.requires_grad_() for part in (draw(48), draw(48), draw(2, 96)))
    scale, shift = both.chunk(2, dim=1)
    found = norm_act(x, 12, weight, bias, 1e-5, scale=scale, shift=shift)
    exact = norm_act_pure(x.double(), 12, weight, bias, 1e-5, scale.double(), shift.double(), True)
    grad, wanted = draw(2, 48, 9, 8).to(dtype), (x, weight, bias, both)
    pairs = zip(
        (found, *torch.autograd.grad(found, wanted, grad)), (exact, *torch.autograd.grad(exact, wanted, grad.double()))
    )
    for one, other in pairs:
        assert (one.double() - other).norm() <= near * other.norm(), (dtype, one.shape)
for b, c, out, side in ((1, 32, 32, 7), (2, 64, 48, 16), (1, 96, 80, 33)):  # panels that are not full, odd sides
    x, base = (draw(b, n, side, side).contiguous(memory_format=torch.channels_last) for n in (c, out))
    weight, bias = draw(out, c, 3, 3) / c**0.5, draw(out)
    found = convolution.filter_3x3(x, convolution.taps(weight), bias, base)
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=1) + base
    assert (found - exact).norm() <= 1e-6 * exact.norm()
    alone = convolution.filter_3x3(x[:1], convolution.taps(weight), bias, base[:1])
    assert torch.equal(alone, found[:1])
net = UNetConfig(image_size=8, in_channels=1, model_channels=32, channel_mult=(1, 2), num_res_blocks=1).build()
with torch.no_grad():
    for parameter in net.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    x, t = draw(2, 1, 8, 8), torch.tensor([1.0, 500.0])
    with kernels.using("pure"):
        exact = net(x, t)
    with kernels.using("conv3x3_packed=winograd"), planned(Plan()) as plan:
        assert torch.allclose(prepare_for_inference(net, "fp32", "cpu")(x, t), exact, atol=1e-5)
    assert "winograd" in plan.record(), plan.record()
if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    with warnings.catch_warnings(record=True) as caught:
        for precision in ("fp32", "bf16", "bf16"):
            prepare_for_inference(net, precision, "cpu")
    assert ["bf16 is emulated" in str(one.message) for one in caught] == [True], caught
print(kernels.status().reason)
"""


@pytest.mark.skipif(
    kernels.status().active != "compiled" or "avx2" not in building.processor()[1].split(),
    reason="no compiled kernels here, or no AVX2",
)
def test_a_build_for_avx2_computes_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NUMBERS], capture_output=True, text=True, check=False, env={**os.environ, **AVX2}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() != kernels.status().reason or "avx512f" not in building.processor()[1].split()


@pytest.mark.parametrize(
    ("limits", "limited"),
    [
        ({}, False), ({"ATEN_CPU_CAPABILITY": "avx512"}, False), ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, False),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, True), ({"ATEN_CPU_CAPABILITY": "default"}, True),
        ({"ONEDNN_MAX_CPU_ISA": "avx2_vnni"}, True), (AVX2, True),
    ],
)  # fmt: skip
def test_the_environment_limits_the_flags(
    limits: dict[str, str], limited: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in AVX2:
        monkeypatch.delenv(name, raising=False)
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    narrow = limited and platform.machine() == "x86_64"
    assert ("-mno-avx512f" in building.flags()) == narrow
