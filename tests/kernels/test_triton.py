"""Triton's norm: its numbers by Triton's interpreter, its programs built for an H100; and who is chosen on a GPU.

Where Triton is not installed, the tests of the choice remain.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from undiffuse import kernels
from undiffuse.kernels import gpu
from undiffuse.kernels.norm_act import norm_act_pure

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# One launch (up to 256 pixels) and several; channels that do not fill a block; more tiles than are combined at once.
NUMBERS = """
import torch
import sys
from undiffuse.kernels import norm_act_triton
from undiffuse.kernels.norm_act import norm_act_pure

norm_act = sys.modules["undiffuse.kernels.norm_act"]  # `undiffuse.kernels.norm_act` is the function
generator = torch.Generator().manual_seed(0)
draw = lambda *size: torch.randn(*size, generator=generator)

def apart(one, other):
    return float((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-9))

for (b, c, height, width, groups), dtype, conditioned, act in (
    ((2, 32, 4, 4, 32), torch.float32, True, True),
    ((1, 48, 5, 7, 12), torch.float32, False, True),
    ((2, 96, 17, 16, 32), torch.float32, True, True),
    ((1, 16, 66, 66, 4), torch.float32, False, False),
    ((1, 80, 17, 16, 5), torch.bfloat16, True, True),
    ((1, 64, 16, 16, 32), torch.float16, True, False),
):
    x = (2 * draw(b, c, height, width) + 5 * draw(1, c, 1, 1)).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = draw(c).requires_grad_(), draw(c).requires_grad_()
    both = draw(b, 2 * c).requires_grad_()
    scale, shift = both.chunk(2, dim=1) if conditioned else (None, None)
    grad = draw(b, c, height, width).to(dtype)
    wanted = [x, weight, bias, *([both] if conditioned else [])]
    exact = norm_act_pure(
        x.double(), groups, weight, bias, 1e-5, scale if scale is None else scale.double(),
        shift if shift is None else shift.double(), act,
    )
    norm_act._library = lambda x: norm_act_triton
    found = norm_act.norm_act(x, groups, weight, bias, 1e-5, scale=scale, shift=shift, act=act)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        same = norm_act.norm_act(x, groups, weight, bias, 1e-5, scale=scale, shift=shift, act=act)
        if b > 1:
            one = norm_act.norm_act(
                x[:1], groups, weight, bias, 1e-5, scale=None if scale is None else scale[:1],
                shift=None if shift is None else shift[:1], act=act,
            )
            assert torch.equal(one, same[:1])  # for any batch
    assert torch.equal(found, same)
    near = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    errors = [apart(found, exact)]
    for one, other in zip(
        torch.autograd.grad(found, wanted, grad), torch.autograd.grad(exact, wanted, grad.double()), strict=True
    ):
        errors.append(apart(one, other))
    print((b, c, height, width, groups), dtype, errors)
    assert errors[0] < near and errors[1] < 1.5 * near and max(errors[2:]) < 2e-6, errors

# A second derivative takes PyTorch's operations.
x = draw(1, 16, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
weight, bias = draw(16), draw(16)
results = []
for call in (norm_act.norm_act, lambda *a, **k: norm_act_pure(*a, None, None, True)):
    y = call(x, 4, weight, bias, 1e-5)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    results.append(torch.autograd.grad(first.square().sum(), x)[0])
assert apart(*results) < 1e-5
print("as it should be")
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@needs_triton
def test_the_interpreted_programs_compute_the_norm_and_its_gradients() -> None:
    done = run(NUMBERS, TRITON_INTERPRET="1")
    assert done.stdout.endswith("as it should be\n"), done.stdout + done.stderr[-3000:]


BUILD = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from undiffuse.kernels import norm_act_triton

def build(name, precision, aligned, **constants):
    program, types, facts = getattr(norm_act_triton, name), {}, {}
    for place, argument in enumerate(program.arg_names):
        pointer = argument.endswith("_ptr")
        if argument in constants:
            types[argument] = "constexpr"
        elif argument in ("x_ptr", "y_ptr", "grad_ptr", "gx_ptr"):
            types[argument] = precision
        else:
            types[argument] = "*fp32" if pointer else "fp32" if argument in ("count", "eps") else "i32"
        if aligned and (pointer or argument in ("channels", "stride")):
            facts[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(program, types, constexprs=constants, attrs=facts)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm

tile = {"ROWS": 64, "WIDTH": 64}
for precision, aligned, conditioned, act in (("*bf16", True, True, True), ("*fp16", False, False, False)):
    kind = {"CONDITIONED": conditioned, "ACT": act}
    build("_forward_group", precision, aligned, ROWS=64, WIDTH=8, **kind)
    build("_moments_of_tiles", precision, aligned, **tile)
    build("_moments_of_groups", precision, aligned, ROWS=64, WIDTH=8, BLOCK=64)
    apply = build("_apply", precision, aligned, **tile, **kind)
    build("_sums_of_tiles", precision, aligned, **tile, **kind)
    build("_sums_of_groups", precision, aligned, WIDTH=8, BLOCK=64, CONDITIONED=conditioned)
    build("_gradient", precision, aligned, **tile, **kind)
    assert ("st.global.v4.b32" in apply["ptx"]) == aligned  # sixteen bytes at once
print("all built")
"""


@needs_triton
def test_the_programs_build_for_an_h100(tmp_path: Any) -> None:
    done = run(BUILD, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    if "ptxas" in done.stderr and "not find" in done.stderr.lower():
        pytest.skip("this Triton comes without an assembler")
    assert done.stdout.endswith("all built\n"), done.stdout + done.stderr[-3000:]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A GPU whose Triton works or not, as `found["works"]` says."""
    found: dict[str, Any] = {"works": True, "tries": 0}

    def attempt(device: torch.device, dtype: torch.dtype) -> bool:
        found["tries"] += 1
        monkeypatch.setattr(gpu, "_reason", "" if found["works"] else "Triton does not work here: no compiler")
        return bool(found["works"])

    module = ModuleType("undiffuse.kernels.norm_act_triton")
    module.triton = SimpleNamespace(__version__="3.6.0")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "undiffuse.kernels.norm_act_triton", module)
    monkeypatch.setattr(kernels, "norm_act_triton", module, raising=False)
    monkeypatch.setattr(gpu, "_try", attempt)
    monkeypatch.setattr(gpu, "_works", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return found


def test_triton_is_tried_once_and_can_be_deselected(planted: dict[str, Any]) -> None:
    x = torch.zeros(2, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    assert gpu.triton_norm(x) is sys.modules["undiffuse.kernels.norm_act_triton"]
    assert gpu.triton_norm(x) is not None and planted["tries"] == 1
    assert gpu.triton_norm(torch.zeros(2, 32, 4, 4)) is None  # not channels-last
    assert gpu.triton_norm(x.double()) is None
    for setting in ("norm_act=torch", "pure", "off, graphs=off"):
        with kernels.using(setting):
            assert gpu.triton_norm(x) is None
            assert gpu.norm_status("cpu").reason == "selected"
    with kernels.using("pure,norm_act=triton"):
        assert gpu.triton_norm(x) is not None
    assert gpu.norm_status("cpu").active == "triton"


def test_without_triton_pytorch_takes_its_place(planted: dict[str, Any]) -> None:
    planted["works"] = False
    x = torch.zeros(2, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    assert gpu.triton_norm(x) is None and gpu.triton_norm(x) is None and planted["tries"] == 1
    assert gpu.norm_status("cpu") == kernels.Status("torch", "Triton does not work here: no compiler")
    for setting in ("norm_act=triton", "compiled"):
        with kernels.using(setting), pytest.raises(RuntimeError, match="no compiler"):
            gpu.triton_norm(x)


def test_a_recording_never_tries(planted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = torch.zeros(2, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    assert gpu.triton_norm(x) is None and planted["tries"] == 0


@pytest.mark.parametrize("broken", ["", "result", "gradient", "sums"])
def test_wrong_results_are_noticed(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison before the first use, with PyTorch's operations in Triton's place."""

    def formula(x: Any, weight: Any, bias: Any, scale: Any, shift: Any) -> Any:
        return norm_act_pure(x, 32, weight, bias, 1e-5, scale, shift, True)

    def forward(x: Any, *given: Any) -> Any:
        y = formula(x, *given[:4])
        return (y * 1.001 if broken == "result" else y), None

    def backward(grad: Any, x: Any, *given: Any) -> Any:
        _, gx, *sums = gpu._expected(x, given[:4], grad)
        return gx + (1e-3 if broken == "gradient" else 0), torch.stack(sums) * (1.001 if broken == "sums" else 1)

    module = SimpleNamespace(forward=forward, backward=backward)
    monkeypatch.setitem(sys.modules, "undiffuse.kernels.norm_act_triton", module)
    monkeypatch.setattr(kernels, "norm_act_triton", module, raising=False)
    monkeypatch.setattr(gpu, "_reason", "")
    assert gpu._try(torch.device("cpu"), torch.float32) == (not broken)
    assert ("wrong here" in gpu._reason) == bool(broken)


def test_settings_of_gpus_are_checked() -> None:
    with pytest.raises(ValueError, match="graphs is one of on, off"), kernels.using("graphs=yes"):
        pass
    with pytest.raises(ValueError, match="operations: conv3x3, .*norm_act, graphs"), kernels.using("norm=torch"):
        pass
