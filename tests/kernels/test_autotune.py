"""The choice among implementations: by planted times, kept in a file, the same for every batch of a run."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from undiffuse import kernels
from undiffuse.kernels import autotune, choice, convolution, timing, timing_table
from undiffuse.kernels.autotune import Plan, current_plan, planned, rule
from undiffuse.kernels.convolution import conv_3x3, has_winograd, implementation
from undiffuse.kernels.timing_table import Case, Entry, TimingTable, case_of
from undiffuse.nets import UNetConfig
from undiffuse.nets.runner import NetworkRunner, prepare_for_inference

WAYS = choice.OPERATIONS["conv3x3_packed"]
KEY = ("conv3x3_packed", "bf16", 256, 256, 64, 64)
AMX = {(256, 64): {"winograd": 0.088, "packed": 0.014, "torch": 0.016}}
AMX[384, 16] = {"winograd": 0.015, "packed": 0.0022, "torch": 0.0025}
needs_kernel = pytest.mark.skipif(not has_winograd(32, 32, torch.float32), reason="no compiled convolution here")


class Times:
    """Planted times, and the shapes that were timed."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.seconds: Callable[[Case], dict[str, float] | None] = lambda case: {
            "winograd": 3e-3, "packed": 1e-3, "torch": 2e-3
        }  # fmt: skip

    def measure(self, case: Case, ways: tuple[str, ...], trial: object, limit: float) -> dict[str, float] | None:
        self.cases.append(case)
        found = self.seconds(case)
        return None if found is None else {way: found[way] for way in ways}


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Times]:
    planted = Times()
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "timed")
    monkeypatch.setattr(timing, "measure", planted.measure)
    monkeypatch.setattr(autotune, "timings", lambda: table)
    table = TimingTable(tmp_path / "timings.json")
    for name, value in (("_spent", 0.0), ("_disturbed", 0), ("_again", set()), ("_assumed", set()), ("START", 1e9)):
        monkeypatch.setattr(autotune, name, value)
    yield planted


def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process with the same cache."""
    autotune._again.clear()
    table = TimingTable(autotune.timings().path)
    monkeypatch.setattr(autotune, "timings", lambda: table)


def choose(plan: Plan, key: Any = KEY, batch: int = 8, ways: tuple[str, ...] = WAYS) -> str:
    return plan.choose(key, batch, ways, lambda *given: lambda: None)


@pytest.mark.parametrize("features", ["avx512f avx512_bf16", "avx512f amx_bf16 amx_tile"])
def test_the_times_of_a_processor_with_a_matrix_unit_decide(
    times: Times, monkeypatch: pytest.MonkeyPatch, features: str
) -> None:
    monkeypatch.setattr(autotune, "processor", lambda: ("a processor", features))
    times.seconds = lambda case: AMX[384 if case.side == 16 else 256, case.side]
    plan = Plan()
    assert choose(plan) == "packed"
    assert choose(plan, ("conv3x3_packed", "bf16", 384, 384, 16, 16)) == "packed"
    assert choose(plan, ("conv3x3", "bf16", 256, 256, 64, 64), ways=("winograd", "torch")) == "torch"


def test_the_rule_before_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for features, precision, side, wanted in (
        ("avx512f", "bf16", 64, "winograd"), ("avx512f", "fp32", 64, "winograd"), ("avx512f", "fp32", 4, "packed"),
        ("amx_bf16", "bf16", 64, "packed"), ("amx_bf16", "fp32", 64, "winograd"),
    ):  # fmt: skip
        monkeypatch.setattr(autotune, "processor", lambda features=features: ("a processor", features))
        assert rule(("conv3x3_packed", precision, 64, 64, side, side), 8, WAYS) == wanted
    assert rule(KEY, 8, ("torch",)) == "torch"


def test_a_case_is_timed_once_and_then_read_from_the_file(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    times.seconds = lambda case: {"winograd": 2e-3, "packed": 3e-3, "torch": 1e-3}
    assert [choose(Plan()) for _ in range(3)] == ["torch"] * 3
    assert times.cases == [Case("conv3x3_packed", "bf16", 256, 64, 8)]
    fresh(monkeypatch)
    times.seconds = lambda case: {"winograd": 1e-9, "packed": 1.0, "torch": 1.0}
    assert choose(Plan()) == "torch" and len(times.cases) == 1
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "measure")
    assert [choose(Plan()) for _ in range(2)] == ["winograd"] * 2 and len(times.cases) == 2
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "rule")
    assert choose(Plan()) == rule(KEY, 8, WAYS)
    assert len(times.cases) == 2


def test_less_than_three_percent_is_no_reason(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "processor", lambda: ("a processor", ""))
    times.seconds = lambda case: {"winograd": 1.02e-3, "packed": 1e-3, "torch": 2e-3}
    assert choose(Plan()) == "winograd"
    times.seconds = lambda case: {"winograd": 1.04e-3, "packed": 1e-3, "torch": 2e-3}
    assert choose(Plan(), ("conv3x3_packed", "bf16", 64, 64, 64, 64)) == "packed"


def test_a_run_has_one_choice_for_every_batch(times: Times) -> None:
    """Times under which each batch would have its own."""
    times.seconds = lambda case: {"winograd": 1.0, "packed": 1.0 if case.batch > 4 else 3.0, "torch": 2.0 * case.batch}
    with planned() as plan:
        assert [choose(current_plan(), batch=batch) for batch in (32, 1, 8, 2)] == [choose(plan, batch=32)] * 4
        assert plan.batch == 32 and [case.batch for case in times.cases] == [32]
    assert [choose(Plan(batch=8), batch=batch) for batch in (1, 32)] == [choose(Plan(batch=8), batch=8)] * 2
    with planned(plan), planned(Plan(), outermost=True) as inner:
        assert inner is plan
    assert current_plan().batch == 8  # outside of any run


def test_a_recorded_choice_is_used_again_and_its_absence_said(times: Times) -> None:
    plan = Plan()
    chosen = choose(plan)
    record = json.loads(json.dumps(plan.record()))
    assert record == {"batch": 8, chosen: ["conv3x3_packed bf16 256-256 64x64"]}
    other = {"batch": 8, "torch": record[chosen]}
    again = Plan(recorded=other)
    assert choose(again, batch=1) == "torch" and not again.notes and again.record() == other
    lost = Plan(recorded={"batch": 8, "winograd": record[chosen]})
    assert choose(lost, ways=("packed", "torch")) == "packed"
    assert lost.notes == [
        "winograd for conv3x3_packed bf16 256-256 64x64 is not available here, which changes rounding"
    ]
    for damaged in (
        None,
        3,
        {"batch": "x", "torch": 4},
        {"torch": ["conv3x3 bf16", 7, None]},
        {"fast": record[chosen]},
    ):
        assert choose(Plan(recorded=damaged)) == chosen


def test_pins(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDIFFUSE_KERNELS", "auto, conv3x3_packed=torch")
    assert choose(Plan(recorded={"packed": ["conv3x3_packed bf16 256-256 64x64"]})) == "torch"
    assert choose(Plan(), ways=("packed",)) == "packed"  # where the pinned one is not possible
    with kernels.using("conv3x3_packed=winograd"):
        assert choose(Plan()) == "winograd" and choice.setting().timing == "rule"
    for wrong in ("conv3x3=packed", "conv5x5=torch", "conv3x3"):
        with pytest.raises(ValueError, match=wrong.split("=")[0]), kernels.using(wrong):
            pass


def test_without_time_the_choice_of_a_near_case_is_taken_over(times: Times, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(Plan()) == "packed"
    for name, value in (("START", 0.0), ("SHARE", 0.0)):
        monkeypatch.setattr(autotune, name, value)
    monkeypatch.setattr(autotune, "processor", lambda: ("a processor", ""))
    near, far = ("conv3x3_packed", "bf16", 128, 128, 32, 32), ("conv3x3_packed", "bf16", 32, 32, 8, 8)
    assert choose(Plan(), near) == "packed" and choose(Plan(), far, 64) == "winograd"
    assert choose(Plan(), ("conv3x3_packed", "fp32", 128, 128, 32, 32)) == "winograd"  # another precision
    assert len(times.cases) == 1
    monkeypatch.setattr(autotune, "START", 1e9)
    fresh(monkeypatch)
    assert choose(Plan(), near) == "packed" and len(times.cases) == 1  # as before, in every later process


def test_a_busy_machine_is_not_timed_for_long(times: Times) -> None:
    times.seconds = lambda case: None
    sizes = (8, 16, 32, 64, 128)
    assert [choose(Plan(), (*KEY[:4], size, size)) for size in sizes] == [
        rule((*KEY[:4], size, size), 8, WAYS) for size in sizes
    ]
    assert len(times.cases) == 2 and not autotune.timings().entries
    times.seconds = lambda case: {"winograd": 1.0, "packed": 1.0, "torch": 0.1}
    assert choose(Plan(), (*KEY[:4], 8, 8)) == rule((*KEY[:4], 8, 8), 8, WAYS)  # as in the process's other runs


def test_a_damaged_file_counts_as_empty(tmp_path: Path) -> None:
    case, path = Case("conv3x3", "fp32", 64, 32, 8), tmp_path / "timings.json"
    sound = Entry("torch", {"winograd": 2e-3, "torch": 1e-3})
    TimingTable(path).add(case, sound)
    assert TimingTable(path).entries == {str(case): sound}
    whole = path.read_text()
    for text in ("", "{", "[]", "null", '{"entries": 3}', '{"entries": {"conv3x3 fp32": {}}}', whole[:-9], "[" * 9999):
        path.write_text(text)
        assert TimingTable(path).entries == {}
    for before, after in (
        ('"torch"', '"fast"'),
        ("0.002", '"quick"'),
        ("0.002", "NaN"),
        ("fp32", "fp8"),
        ("32x32", "32x16"),
    ):
        path.write_text(whole.replace(before, after))
        assert TimingTable(path).entries == {}, after
    path.write_bytes(b"\xff\xfe")
    assert TimingTable(path).add(case, sound) == sound and TimingTable(path).entries == {str(case): sound}
    blocked = tmp_path / "file"
    blocked.write_text("")
    table = TimingTable(blocked / "timings.json")  # cannot be written
    assert table.add(case, sound) == sound and table.entries == {str(case): sound}


def _add(path: Path, start: int) -> None:
    table = TimingTable(path)
    for k in range(12):
        table.add(Case("conv3x3", "fp32", 64, 32, 2**k), Entry("torch", {"torch": float(start)}))
        table.add(Case("conv3x3", "fp32", start, 32, 2**k), Entry("torch", {"torch": 1.0}))


def test_two_processes_lose_nothing_and_agree(tmp_path: Path) -> None:
    path = tmp_path / "timings.json"
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_add, args=(path, start)) for start in (128, 256)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    assert len(TimingTable(path).entries) == 36
    first = TimingTable(path).entries
    late = Entry("winograd", {"winograd": 1e-9})
    shared = Case("conv3x3", "fp32", 64, 32, 1)
    assert TimingTable(path).add(shared, late) == first[str(shared)]  # the first entry stays


def test_cases() -> None:
    assert Case.of("conv3x3", "fp32", 192, 64, 30, 34, 6) == Case("conv3x3", "fp32", 128, 32, 8)
    case = Case("conv3x3_grad", "bf16", 64, 8, 1)
    assert case_of(str(case)) == case and case_of("conv3x3 bf16 64x8x4 batch 1") is None
    machine = timing_table.machine()
    assert machine["torch"] == torch.__version__ and machine["cpus"] and machine["undiffuse"]


def test_the_limits_of_the_environment_have_tables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = timing_table.table_path()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert timing_table.table_path() != before


def test_large_cases_are_timed_on_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that charges a fixed time and one for each pixel gives the time of the whole case."""
    now, sizes = [0.0], []
    monkeypatch.setattr(timing, "running", lambda: 1)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "_interruptions", lambda: 0)
    cost = {"winograd": (4e-4, 1e-7), "packed": (1e-4, 1.2e-7), "torch": (1e-1, 1e-6)}

    def trial(way: str, batch: int, channels: int, height: int, width: int) -> Callable[[], object]:
        def call() -> None:
            sizes.append(batch * height * width * channels**2)
            now[0] += cost[way][0] + batch * height * width * cost[way][1]

        return call

    for case in (Case("conv3x3_packed", "fp32", 256, 64, 32), Case("conv3x3_packed", "fp32", 64, 8, 1)):
        found = timing.measure(case, WAYS, trial)
        assert found is not None
        for way in ("winograd", "packed"):
            whole = cost[way][0] + case.batch * case.side**2 * cost[way][1]
            assert found[way] == pytest.approx(whole, rel=1e-6)
        assert found["torch"] > 10 * found["packed"]
    assert 18 * max(sizes) < 3e9 * torch.get_num_threads()


def test_disturbed_calls_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    count = [0]

    def interruptions() -> int:
        count[0] += 1
        return count[0]

    monkeypatch.setattr(timing, "running", lambda: 1)
    monkeypatch.setattr(timing, "_interruptions", interruptions)
    assert timing.best_times({"one": lambda: None}, 1.5, float("inf")) is None
    monkeypatch.setattr(timing, "_interruptions", lambda: 0)
    assert set(timing.best_times({"one": lambda: None, "two": lambda: None}, 1.5, float("inf")) or ()) == {"one", "two"}
    monkeypatch.setattr(timing, "running", lambda: 10**6)
    assert timing.best_times({"one": lambda: None}, 1.5, float("inf")) is None


@needs_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operation", list(choice.OPERATIONS))
def test_every_implementation_can_be_timed(operation: str, dtype: torch.dtype) -> None:
    if operation == "conv3x3_packed" and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    for way in choice.OPERATIONS[operation]:
        convolution._trial(operation, dtype)(way, 1, 32, 4, 4)()


@needs_kernel
@torch.no_grad()
def test_a_network_in_every_way(times: Times) -> None:
    """A prepared network gives the same numbers by each implementation, and uses the one with the best time."""
    net = UNetConfig(
        image_size=16, in_channels=3, model_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=()
    ).build()
    for parameter in net.parameters():
        parameter.copy_(torch.linspace(-0.2, 0.2, parameter.numel()).view_as(parameter))
    x = torch.linspace(-1, 1, 4 * 3 * 256).view(4, 3, 16, 16)
    t = torch.arange(4).float()
    outs = []
    for best in WAYS:
        times.seconds = lambda case, best=best: {way: 1.0 if way == best else 2.0 for way in WAYS}
        with kernels.using("measure"), planned() as plan:
            autotune._again.clear()
            runner = prepare_for_inference(net, "fp32", "cpu")
            outs.append(runner(x, t))
            assert set(plan.record()) == {"batch", best}
            largest = float(outs[-1].abs().max())
            assert float((runner(x[1:2], t[1:2]) - outs[-1][1:2]).abs().max()) < 1e-5 * largest
            assert plan.record()["batch"] == 4
    for out in outs[1:]:
        assert float((out - outs[0]).abs().max()) < 3e-5 * float(outs[0].abs().max())


@needs_kernel
def test_gradients_keep_the_plan_of_their_forward_pass(times: Times) -> None:
    x = torch.ones(1, 32, 8, 8, requires_grad=True)
    weight = torch.full((32, 32, 3, 3), 0.1)
    with planned(Plan(recorded={"winograd": ["conv3x3 fp32 32-32 8x8", "conv3x3_grad fp32 32-32 8x8"]})) as plan:
        y = conv_3x3(x, weight, None)
    y.sum().backward()
    assert not times.cases and list(plan.record()) == ["batch", "winograd"]
    assert x.grad is not None and torch.allclose(x.grad[0, 0, 1:-1, 1:-1], torch.tensor(28.8))


def test_a_runner_keeps_its_first_batch() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            plans.append(current_plan())
            implementation("conv3x3", current_plan(), (len(x), 32, 8, 8), 32, torch.float32)
            return x

    plans: list[Plan] = []
    runner = NetworkRunner(Net(), "fp32", torch.device("cpu"))
    for batch in (4, 1):
        runner(torch.zeros(batch, 3, 8, 8), torch.zeros(batch))
    with planned() as own:
        runner(torch.zeros(2, 3, 8, 8), torch.zeros(2))
    assert plans[0] is plans[1] and plans[2] is own
    if has_winograd(32, 32, torch.float32):
        assert plans[0].batch == 4 and own.batch == 2


@needs_kernel
def test_the_table_is_shown(tmp_path: Path) -> None:
    import os

    table = TimingTable(tmp_path / "timings.json")
    assert "none yet" in table.text()
    table.add(Case("conv3x3", "fp32", 64, 32, 8), Entry("torch", {"winograd": 2e-3, "torch": 1e-3}))
    table.add(Case("conv3x3", "fp32", 64, 32, 4), Entry("torch", {}, "conv3x3 fp32 64x32x32 batch 8"))
    assert "conv3x3 fp32 64x32x32 batch 8: torch (winograd 2, torch 1)" in table.text()
    assert "batch 4: torch (not timed, as conv3x3 fp32 64x32x32 batch 8)" in table.text()
    done = subprocess.run(
        [sys.executable, "-m", "undiffuse", "inspect"], capture_output=True, text=True, check=True,
        env={**os.environ, "UNDIFFUSE_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert "timings" in done.stdout and "none yet" in done.stdout
