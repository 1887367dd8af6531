"""The fused norm against float64, its gradients, and what decides which kernels are used."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from undiffuse import kernels
from undiffuse.kernels import building, choice, norm_act
from undiffuse.kernels.norm_act import norm_act_pure

COMPILED = kernels.status().active == "compiled" or choice.choice() == "pure"
KINDS = ["pure", pytest.param("compiled", marks=pytest.mark.skipif(not COMPILED, reason="no compiled kernels here"))]
# batch, channels, height, width, groups: more than one chunk of pixels, rows that do not fill one, one pixel, odd sizes
SHAPES = [(2, 32, 32, 32, 32), (3, 48, 5, 7, 12), (1, 64, 1, 1, 32), (2, 256, 9, 8, 32), (1, 1024, 4, 4, 32)]


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    b, c, h, w, groups = shape
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    x = (draw(b, c, h, w) * 2 + 5 * draw(1, c, 1, 1)).to(dtype).contiguous(memory_format=torch.channels_last)
    scale, shift = draw(b, 2 * c).chunk(2, dim=1)
    return {"x": x, "groups": groups, "weight": draw(c), "bias": draw(c), "eps": 1e-5, "scale": scale, "shift": shift}


def formula(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, scale: Any, shift: Any, act: bool
) -> Tensor:
    """The definition, in float64."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    parts = x.unflatten(1, (groups, -1))
    mean = parts.mean(dim=(2, 3, 4), keepdim=True)
    variance = (parts - mean).square().mean(dim=(2, 3, 4), keepdim=True)
    z = ((parts - mean) / (variance + eps).sqrt()).flatten(1, 2)
    z = z * weight[:, None, None] + bias[:, None, None]
    if scale is not None:
        z = z * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]
    return z / (1 + torch.exp(-z)) if act else z


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-30))


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_operation_is_the_formula(kind: str, shape: tuple[int, ...], conditioned: bool, act: bool) -> None:
    given = drawn(shape)
    if not conditioned:
        given |= {"scale": None, "shift": None}
    with kernels.using(kind):
        out = norm_act(**given, act=act)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert apart(out, formula(**given, act=act)) < 3e-6


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_rounded_once(kind: str) -> None:
    given = drawn((2, 64, 16, 16, 32), torch.bfloat16)
    with kernels.using(kind):
        out = norm_act(**given)
    assert out.dtype == torch.bfloat16
    exact = formula(**given, act=True)
    assert apart(out, exact) < 1.05 * apart(exact.to(torch.bfloat16), exact)


@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-5), (torch.bfloat16, 6e-3)])
@pytest.mark.parametrize("kind", KINDS)
def test_its_gradients_are_those_of_the_formula(kind: str, dtype: torch.dtype, near: float, conditioned: bool) -> None:
    for act in (True, False):
        for shape in SHAPES[:4]:
            given = drawn(shape, dtype)
            names = ["x", "weight", "bias", *(["scale", "shift"] if conditioned else [])]
            if not conditioned:
                given |= {"scale": None, "shift": None}
            given |= {name: given[name].requires_grad_() for name in names if given[name].is_leaf}
            given |= {name: given[name].detach().requires_grad_() for name in names}
            weights = torch.randn(given["x"].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
            with kernels.using(kind):
                ours = torch.autograd.grad(norm_act(**given, act=act), [given[n] for n in names], weights)
            exact = torch.autograd.grad(formula(**given, act=act), [given[n] for n in names], weights.double())
            for name, one, other in zip(names, ours, exact, strict=True):
                assert one.dtype == given[name].dtype
                if shape[2:4] == (1, 1) and name == "x":  # two numbers a group: nearly nothing flows back
                    continue
                assert apart(one, other) < near, (name, shape, act)


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_derivative_exists(kind: str) -> None:
    given = drawn((1, 16, 3, 2, 4))
    x = given.pop("x").requires_grad_()

    def twice(operation: Any) -> Tensor:
        (first,) = torch.autograd.grad(operation().sin().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    with kernels.using(kind):
        ours = twice(lambda: norm_act(x, **given))
    assert apart(ours, twice(lambda: formula(x, **given, act=True))) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_threads_do_not_touch_each_other(kind: str) -> None:
    given = drawn((5, 64, 24, 24, 32))
    threads = torch.get_num_threads()
    with kernels.using(kind):
        together = norm_act(**given)
        rows = {name: given[name][3:4] for name in ("x", "scale", "shift")}
        assert torch.equal(norm_act(**{**given, **rows}), together[3:4])
        if kind == "compiled":
            try:
                torch.set_num_threads(1)
                assert torch.equal(norm_act(**given), together)
                torch.set_num_threads(3)
                assert torch.equal(norm_act(**given), together)
            finally:
                torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_numbers(kind: str, dtype: torch.dtype) -> None:
    given = drawn((2, 32, 4, 4, 32), dtype)
    given["x"][0, 5, 1, 1] = float("nan")
    given["shift"] = given["shift"].clone()
    given["shift"][1, :8], given["shift"][1, 8:16] = 200.0, -200.0
    with kernels.using(kind):
        out = norm_act(**given)
    assert out[0, 5].isnan().all()  # its group, and nothing else
    assert not out[0, :5].isnan().any() and not out[1].isnan().any()
    assert float(out[1, :8].min()) > 100 and float(out[1, 8:16].abs().max()) < 1e-30
    constant = drawn((1, 32, 4, 4, 32), dtype) | {"x": torch.full((1, 32, 4, 4), 3.0, dtype=dtype)}
    with kernels.using(kind):
        assert apart(norm_act(**constant), formula(**constant, act=True)) < 5e-3


def test_what_the_compiled_kernels_do_not_serve_is_served() -> None:
    plain = drawn((2, 32, 6, 6, 32))
    others = {
        "rows first": plain | {"x": plain["x"].contiguous()},
        "few channels": drawn((2, 20, 6, 6, 5)),
        "float64": plain | {"x": plain["x"].double()},
        "float16": plain | {"x": plain["x"].half()},
        "no pixels": drawn((2, 2048, 1, 1, 32)) | {"scale": None, "shift": None},
    }
    for name, given in others.items():
        exact = formula(**given, act=True)
        if name == "no pixels":
            given, exact = given | {"x": given["x"][:, :, 0, 0]}, exact[:, :, 0, 0]
        assert apart(norm_act(**given), exact) < (2e-3 if name == "float16" else 3e-6), name


def test_graphs_are_traced_through_the_plain_operations() -> None:
    given = drawn((1, 32, 4, 4, 32))
    x = given.pop("x")

    class Net(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return norm_act(x, **given)

    with torch.no_grad():
        program = torch.export.export(Net(), (x,))
    assert any("group_norm" in str(node.target) for node in program.graph.nodes)
    assert apart(program.module()(x), norm_act_pure(x, **given, act=True)) < 1e-6


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    with kernels.using("pure"):
        assert kernels.status() == kernels.Status("pure", "selected")
        assert choice.library() is None
    with kernels.using("off"):
        assert choice.library() is None
    with pytest.raises(ValueError, match="setting of the kernels is 'fast'; expected"), kernels.using("fast"):
        pass
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "quick")
    with pytest.raises(ValueError, match="UNDIFFUSE_KERNELS is 'quick'; expected one of auto, pure, compiled, off"):
        choice.choice()


def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_library", "_active"):
        monkeypatch.setattr(choice, name, choice._UNSET)
    monkeypatch.setattr(choice, "_reason", "")
    monkeypatch.setattr(choice, "_chosen", "auto")


def test_without_a_compiler_everything_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    unbuilt(monkeypatch)
    assert kernels.status().active == "pure"
    if building.sys.platform == "linux":
        assert "no C compiler (no-such-compiler) was found" in kernels.status().reason
    norm_act(**drawn((1, 32, 2, 2, 32)))
    monkeypatch.setattr(choice, "_chosen", None)
    monkeypatch.setattr(choice, "_active", choice._UNSET)
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "compiled")
    with pytest.raises(RuntimeError, match="UNDIFFUSE_KERNELS=compiled, but"):
        norm_act(**drawn((1, 32, 2, 2, 32)))


@pytest.mark.skipif(not COMPILED, reason="no compiled kernels here")
def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'norm_act.c:1: error: cannot be' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(compiler))
    unbuilt(monkeypatch)
    assert kernels.status() == kernels.Status("pure", "the compiler failed: norm_act.c:1: error: cannot be")
    assert not list((tmp_path / "cache" / "kernels").iterdir())  # nothing half-built


@pytest.mark.skipif(not COMPILED, reason="no compiled kernels here")
def test_built_once_and_not_loaded_if_others_could_have_written_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNDIFFUSE_CACHE", str(tmp_path))
    unbuilt(monkeypatch)
    status = kernels.status()
    assert status.active == "compiled"
    file = Path(status.reason)
    assert file.parent == tmp_path / "kernels" and os.listdir(file.parent) == [file.name]
    monkeypatch.setenv("CC", os.environ.get("CC", "") or "")
    unbuilt(monkeypatch)
    before = file.stat().st_mtime_ns
    assert kernels.status() == status and file.stat().st_mtime_ns == before
    file.chmod(file.stat().st_mode | stat.S_IWOTH)
    unbuilt(monkeypatch)
    assert "is writable by others: delete it" in kernels.status().reason


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="page faults are counted by Linux")
def test_memory_is_kept_where_the_allocator_can_be_told() -> None:

    program = """
import resource, torch
from undiffuse.kernels import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        parts = [torch.ones(2**20) for _ in range(4)]  # 4 MiB each
        del parts
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
first, kept = faults(), keep_memory()
faults()
print(first, kept, faults())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    first, kept, after = done.stdout.split()
    assert kept == "False" or int(after) < max(100, int(first) / 5)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")
def test_weights_leave_no_holes() -> None:
    """What is allocated in `own_pages` goes back when it is freed; what comes after is kept again."""
    program = """
import torch
from undiffuse.kernels import keep_memory, own_pages

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024

def freed():
    parts = [torch.ones(2**18) for _ in range(64)]  # 1 MiB each
    held = resident()
    del parts
    return held - resident()

kept = keep_memory()
with own_pages():
    given_back = freed()
print(kept, given_back, freed())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept, given_back, later = done.stdout.split()
    assert kept == "False" or (int(given_back) > 50 and int(later) < 10)
